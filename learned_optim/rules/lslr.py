"""Gradient descent with learned rates per layer and step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from learned_optim.rule import Rule
from learned_optim.rules.sgd import SGDRule
from learned_optim.types import RuleState, Tensors


class LSLRRule(Rule):
    """u_k = -alpha[tensor, k] g: a learned rate for each tensor and each of K steps; later steps use the last one.

    "Learning per-layer per-step learning rates", with a rate for each weight and bias rather than for each layer.

    Args:
        names: The parameters' names, or tensors by name, of which only the names are used.
        lr: First value of all rates.
        steps: K >= 1.

    Raises:
        ValueError: No name, ``steps`` below 1, or ``lr`` is negative or not finite.

    Source: Antoniou et al. 2019 (MAML++), section 4, LSLR.
    """

    scope = "tensor"

    def __init__(self, names: Sequence[str] | Mapping[str, Tensor], lr: float, steps: int) -> None:
        super().__init__()
        self.names, self.steps = list(names), steps
        if not self.names or isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise ValueError(f"LSLRRule: needs at least one name and steps >= 1, got {self.names!r:.100} and {steps!r}")
        first = SGDRule(lr).lr  # which checks it
        self.rates = nn.ParameterList(nn.Parameter(torch.full((steps,), first)) for _ in self.names)

    @property
    def alpha(self) -> Tensors:
        """The rates by parameter name, each of shape (K,)."""
        return dict(zip(self.names, self.rates, strict=True))

    def init_state(self, params: Tensors, *, generator: torch.Generator | None = None) -> RuleState:
        count = {name: {"step": param.new_zeros((), dtype=torch.float32)} for name, param in params.items()}
        return RuleState(count, {})

    def forward(self, grads: Tensors, state: RuleState, params: Tensors) -> tuple[Tensors, RuleState]:
        alpha, updates, per_param = self.alpha, {}, dict(state.per_param)
        for name, grad in grads.items():
            if name not in alpha:
                raise KeyError(f"LSLRRule: no rates for parameter {name!r}; it has rates for {self.names}")
            step = state.per_param[name]["step"]
            # Selected by a tensor, so that the step may differ between tasks and is never read on the host.
            chosen = step.clamp(max=self.steps - 1).long().reshape(1)
            updates[name] = -alpha[name].index_select(0, chosen).squeeze(0) * grad
            per_param[name] = {"step": step + 1}
        return updates, RuleState(per_param, state.shared)

    def config(self) -> dict[str, Any]:
        return {"names": self.names, "lr": 0.0, "steps": self.steps}

    def extra_repr(self) -> str:
        return f"steps={self.steps}, tensors={len(self.names)}"
