"""Gradient descent with a learned rate for every coordinate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from learned_optim.rule import Rule
from learned_optim.sharding import distributed_like, is_sharded, local
from learned_optim.types import RuleState, Tensors


class MetaSGDRule(Rule):
    """u = -alpha o g, alpha of the parameters' shapes and learned; training may make a rate negative.

    Args:
        params: The parameters by name; only their names, shapes, dtypes and devices are used.
        alpha: The first value of every rate, or a range ``(low, high)`` to draw each one from uniformly, with torch's
            global random numbers.

    Raises:
        ValueError: ``params`` is empty, or ``alpha`` is neither a finite number nor a range.

    Source: Li et al. 2017, equation 4; there alpha is drawn from [0.005, 0.1] for regression.
    """

    scope = "tensor"

    def __init__(self, params: Tensors, alpha: float | Sequence[float] = 0.01) -> None:
        super().__init__()
        if not params:
            raise ValueError("MetaSGDRule: params is empty; it needs the tensors whose rates it shall hold")
        self._low, self._high = _range(alpha)
        self.names: list[str] = []
        self.rates = nn.ParameterList()
        self._drawn: set[str] = set()
        for name, param in params.items():
            self.add(name, param)

    @property
    def alpha(self) -> Tensors:
        """The rates by parameter name."""
        return dict(zip(self.names, self.rates, strict=True))

    def add(self, name: str, param: Tensor) -> None:
        """Starts rates for one more parameter."""
        if name in self._drawn:
            raise ValueError(f"MetaSGDRule: there are rates for {name!r} already")
        dtype = torch.promote_types(param.dtype, torch.float32)
        self.names.append(name)
        self._drawn.add(name)
        # Drawn as a whole, so that the rates of a sharded parameter are those of an ordinary one.
        rate = torch.empty(param.shape, dtype=dtype, device=param.device).uniform_(self._low, self._high)
        self.rates.append(nn.Parameter(distributed_like(rate, param)))

    def place(self, params: Tensors) -> None:
        for i, name in enumerate(self.names):
            if name in params and is_sharded(params[name]) and not is_sharded(self.rates[i]):
                self.rates[i] = nn.Parameter(distributed_like(self.rates[i].detach(), params[name]))

    def init_state(self, params: Tensors, *, generator: torch.Generator | None = None) -> RuleState:
        return RuleState({name: {} for name in params}, {})

    def forward(self, grads: Tensors, state: RuleState, params: Tensors) -> tuple[Tensors, RuleState]:
        alpha = self.alpha
        unknown = [name for name in grads if name not in alpha]
        if unknown:
            raise KeyError(f"MetaSGDRule: no rates for parameter {unknown[0]!r}; it has rates for {self.names}")
        return {name: -local(alpha[name]) * grad for name, grad in grads.items()}, state

    def config(self) -> dict[str, Any]:
        return {"params": {name: list(rate.shape) for name, rate in self.alpha.items()}}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> MetaSGDRule:
        return cls({name: torch.empty(shape) for name, shape in config["params"].items()})

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={tuple(rate.shape)}" for name, rate in self.alpha.items())


def _range(alpha: float | Sequence[float]) -> tuple[float, float]:
    bounds = [float(alpha)] * 2 if isinstance(alpha, (int, float)) else [float(value) for value in alpha]
    if len(bounds) != 2 or not (0 <= bounds[0] <= bounds[1] < math.inf):
        raise ValueError(f"MetaSGDRule: alpha must be a finite number >= 0 or a range (low, high) of such, got {alpha}")
    return bounds[0], bounds[1]
