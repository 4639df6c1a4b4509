"""The networks of the papers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn


def sine_mlp(hidden: int = 40) -> nn.Sequential:
    """1-40-40-1 with ReLU, as in Finn et al. 2017, section 5.1. PyTorch's default initialisation."""
    return nn.Sequential(nn.Linear(1, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1))


def few_shot_conv(ways: int, *, filters: int = 64, size: int = 28, channels: int = 1, blocks: int = 4) -> nn.Sequential:
    """Blocks of a 3x3 convolution of stride 2, batch norm and ReLU, the mean over space, and a linear layer.

    Args:
        ways: Classes.
        filters: Of each convolution.
        size: Of the square images.
        channels: Of the images, shape (size, size) for 1, else (channels, size, size).
        blocks: How many.

    Source: Finn et al. 2017, section 5.2, for Omniglot; PyTorch's default initialisation in place of Glorot's.
    """
    layers: list[nn.Module] = [nn.Unflatten(-2, (1, size))] if channels == 1 else []
    for before in (channels, *[filters] * (blocks - 1)):
        layers += [nn.Conv2d(before, filters, 3, stride=2, padding=1), nn.BatchNorm2d(filters), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(filters, ways))


def few_shot_mlp(ways: int, hidden: Sequence[int] = (256, 128, 64, 64), *, inputs: int = 784) -> nn.Sequential:
    """The network without convolutions: hidden layers with batch norm and ReLU, and a linear layer.

    Source: Finn et al. 2017, section 5.2, for Omniglot; PyTorch's default initialisation.
    """
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise((inputs, *hidden)):
        layers += [nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(hidden[-1], ways))
