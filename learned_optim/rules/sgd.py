"""Gradient descent as a rule."""

from __future__ import annotations

import math
from typing import Any

import torch

from learned_optim.rule import Rule
from learned_optim.types import RuleState, Tensors


class SGDRule(Rule):
    """u = -lr g.

    It has no trainable parameter: the inner rule of MAML.

    Args:
        lr: Step size, finite and not negative.

    Raises:
        ValueError: ``lr`` is negative or not finite.
    """

    scope = "coordinate"

    def __init__(self, lr: float) -> None:
        super().__init__()
        if not isinstance(lr, (int, float)) or not (math.isfinite(lr) and lr >= 0):
            raise ValueError(f"SGDRule: lr must be a finite number >= 0, got {lr}")
        self.lr = float(lr)

    def init_state(self, params: Tensors, *, generator: torch.Generator | None = None) -> RuleState:
        return RuleState({name: {} for name in params}, {})

    def forward(self, grads: Tensors, state: RuleState, params: Tensors) -> tuple[Tensors, RuleState]:
        return {name: -self.lr * grad for name, grad in grads.items()}, state

    def config(self) -> dict[str, Any]:
        return {"lr": self.lr}

    def extra_repr(self) -> str:
        return f"lr={self.lr}"
