"""The networks of the papers."""

from __future__ import annotations

from torch import nn


def sine_mlp(hidden: int = 40) -> nn.Sequential:
    """1-40-40-1 with ReLU, as in Finn et al. 2017, section 5.1. PyTorch's default initialisation."""
    return nn.Sequential(nn.Linear(1, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1))
