"""The hand-designed optimizers as rules: their memory as hidden state, their step as output.

Each equals its torch.optim counterpart and is differentiable also where gradients are exactly zero. In all of them
``u`` includes the learning rate, so that a driver's ``lr`` of 1 is the optimizer as published. State and arithmetic are
of the parameter's precision, at least float32.
"""

from __future__ import annotations

import sys
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from learned_optim.features import corrected_moments, over_root
from learned_optim.rule import Rule
from learned_optim.types import RuleState, Tensors


def adam_direction(
    grad: Tensor, state: Tensors, *, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
) -> tuple[Tensor, Tensors]:
    """-m^ / (sqrt(v^) + eps), and the new ``step``, ``m`` and ``v``; about 1 in size for a steady gradient.

    Source: Kingma & Ba 2015, algorithm 1. Deviation: 0 with finite derivatives where v^ = 0.
    """
    step = state["step"] + 1
    m, v, m_hat, v_hat = corrected_moments(grad, state["m"], state["v"], step, betas=betas)
    return -over_root(m_hat, v_hat, eps=eps), {"step": step, "m": m, "v": v}


class _ClassicalRule(Rule):
    """A coordinatewise rule without trainable parameters; its ``options`` are numbers and flags."""

    scope = "coordinate"

    def __init__(self, **options: Any) -> None:
        super().__init__()
        for name, value in options.items():
            unit = name in ("momentum", "alpha", "betas")
            for number in value if name == "betas" else (value,):
                fits = isinstance(number, (int, float)) and 0 <= number <= sys.float_info.max
                if not fits or (unit and number >= 1):
                    bounds = "in [0, 1)" if unit else "a finite number >= 0"
                    raise ValueError(f"{type(self).__name__}: {name} must be {bounds}, got {value}")
        self.options = options

    @abstractmethod
    def _memory(self) -> dict[str, float]:
        """The state's tensors of the parameter's shape, and the value with which each begins."""

    @abstractmethod
    def _step(self, grad: Tensor, state: Tensors, param: Tensor) -> tuple[Tensor, Tensors]:
        """The update of one tensor and its new state."""

    def init_state(self, params: Tensors, *, generator: torch.Generator | None = None) -> RuleState:
        per_param = {}
        for name, param in params.items():
            dtype = torch.promote_types(param.dtype, torch.float32)
            per_param[name] = {
                key: param.new_zeros((), dtype=torch.float32)
                if key == "step"
                else torch.full_like(param, first, dtype=dtype)
                for key, first in self._memory().items()
            }
        return RuleState(per_param, {})

    def forward(self, grads: Tensors, state: RuleState, params: Tensors) -> tuple[Tensors, RuleState]:
        updates: Tensors = {}
        per_param = dict(state.per_param)
        for name, grad in grads.items():
            wide = grad.to(torch.promote_types(grad.dtype, torch.float32))
            updates[name], per_param[name] = self._step(wide, state.per_param[name], params[name])
        return updates, RuleState(per_param, state.shared)

    def config(self) -> dict[str, Any]:
        return {name: list(value) if isinstance(value, tuple) else value for name, value in self.options.items()}

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={value!r}" for key, value in self.options.items())


class MomentumRule(_ClassicalRule):
    """Gradient descent with momentum: b' = momentum b + g; u = -lr b', or -lr (g + momentum b') with ``nesterov``.

    Equals ``torch.optim.SGD(lr, momentum, nesterov=...)``; its dampening is left out.

    Args:
        lr: Learning rate.
        momentum: In [0, 1).
        nesterov: Looks ahead.

    Raises:
        ValueError: A number out of range.

    Source: Sutskever et al. 2013, in the form of torch.optim.
    """

    def __init__(self, lr: float, momentum: float = 0.9, *, nesterov: bool = False) -> None:
        super().__init__(lr=lr, momentum=momentum, nesterov=nesterov)

    def _memory(self) -> dict[str, float]:
        return {"momentum_buffer": 0.0}

    def _step(self, grad: Tensor, state: Tensors, param: Tensor) -> tuple[Tensor, Tensors]:
        momentum = self.options["momentum"]
        buffer = momentum * state["momentum_buffer"] + grad
        ahead = grad + momentum * buffer if self.options["nesterov"] else buffer
        return -self.options["lr"] * ahead, {"momentum_buffer": buffer}


class AdagradRule(_ClassicalRule):
    """s' = s + g^2; u = -lr g / (sqrt(s') + eps).

    Equals ``torch.optim.Adagrad(lr, eps=..., initial_accumulator_value=...)``; its decay of the rate is left out.

    Args:
        lr: Learning rate.
        eps: Added to the root.
        initial_accumulator_value: Where s starts.

    Raises:
        ValueError: A number out of range.

    Source: Duchi et al. 2011.
    """

    def __init__(self, lr: float, *, eps: float = 1e-10, initial_accumulator_value: float = 0.0) -> None:
        super().__init__(lr=lr, eps=eps, initial_accumulator_value=initial_accumulator_value)

    def _memory(self) -> dict[str, float]:
        return {"sum": self.options["initial_accumulator_value"]}

    def _step(self, grad: Tensor, state: Tensors, param: Tensor) -> tuple[Tensor, Tensors]:
        total = state["sum"] + grad.square()
        return -self.options["lr"] * over_root(grad, total, eps=self.options["eps"]), {"sum": total}


class RMSpropRule(_ClassicalRule):
    """v' = alpha v + (1 - alpha) g^2; u = -lr g / (sqrt(v') + eps).

    Equals ``torch.optim.RMSprop(lr, alpha, eps)``; its centering and momentum are left out.

    Args:
        lr: Learning rate.
        alpha: Decay of the running mean, in [0, 1).
        eps: Added to the root.

    Raises:
        ValueError: A number out of range.

    Source: Tieleman & Hinton 2012, in the form of torch.optim.
    """

    def __init__(self, lr: float, alpha: float = 0.99, *, eps: float = 1e-8) -> None:
        super().__init__(lr=lr, alpha=alpha, eps=eps)

    def _memory(self) -> dict[str, float]:
        return {"square_avg": 0.0}

    def _step(self, grad: Tensor, state: Tensors, param: Tensor) -> tuple[Tensor, Tensors]:
        alpha = self.options["alpha"]
        mean = alpha * state["square_avg"] + (1 - alpha) * grad.square()
        return -self.options["lr"] * over_root(grad, mean, eps=self.options["eps"]), {"square_avg": mean}


def _two(betas: tuple[float, float]) -> tuple[float, float]:
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        raise ValueError(f"betas must be two numbers in [0, 1), got {betas!r}")
    return betas[0], betas[1]


class AdamRule(_ClassicalRule):
    """u = -lr m^ / (sqrt(v^) + eps); see `adam_direction`.

    Equals ``torch.optim.Adam(lr, betas, eps)``; its L2 penalty is left out, see `AdamWRule`.

    Args:
        lr: Learning rate.
        betas: Decays of both moments, in [0, 1).
        eps: Added to the root.

    Raises:
        ValueError: A number out of range.

    Source: Kingma & Ba 2015, algorithm 1.
    """

    def __init__(self, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), *, eps: float = 1e-8) -> None:
        super().__init__(lr=lr, betas=_two(betas), eps=eps)

    def _memory(self) -> dict[str, float]:
        return {"step": 0.0, "m": 0.0, "v": 0.0}

    def _step(self, grad: Tensor, state: Tensors, param: Tensor) -> tuple[Tensor, Tensors]:
        direction, new = adam_direction(grad, state, betas=self.options["betas"], eps=self.options["eps"])
        return self.options["lr"] * direction, new


class AdamWRule(AdamRule):
    """Adam with decoupled weight decay: u = -lr (m^ / (sqrt(v^) + eps) + weight_decay theta).

    Equals ``torch.optim.AdamW(lr, betas, eps, weight_decay)``.

    Args:
        lr: Learning rate.
        betas: Decays of both moments, in [0, 1).
        eps: Added to the root.
        weight_decay: Relative to ``lr``.

    Raises:
        ValueError: A number out of range.

    Source: Loshchilov & Hutter 2019, algorithm 2.
    """

    def __init__(
        self,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        *,
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        _ClassicalRule.__init__(self, lr=lr, betas=_two(betas), eps=eps, weight_decay=weight_decay)

    def _step(self, grad: Tensor, state: Tensors, param: Tensor) -> tuple[Tensor, Tensors]:
        update, new = super()._step(grad, state, param)
        return update - self.options["lr"] * self.options["weight_decay"] * param, new
