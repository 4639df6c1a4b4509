"""A safeguard for learned rules: bounded steps, trust that can run out, and Adam to fall back on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from learned_optim import entry
from learned_optim.reduction import totals
from learned_optim.rules.classical import adam_direction
from learned_optim.types import RuleState, Scalar, Tensors, Update


@dataclass(frozen=True)
class Guard:
    """Keeps a learned rule within a trust region and replaces it, tensor by tensor, where it proves harmful.

    It stands between a rule and `apply_updates` in all three drivers. For each tensor with update u it returns u',
    where in every coordinate::

        |lr u'| <= r a,     r = exp(trust),  a = ``adam_lr``, about the size of an Adam step (Kingma & Ba 2015, 2.1)

    The trust follows what the last change D brought along, told from gradients and updates only. With the slopes
    s = <g, D> before and s' = <g', D> after it, (s + s') / 2 estimates by the trapezoidal rule the change of the loss
    that the tensor's move has caused, and::

        c = (s + s') / (|s| + |s'|)   in [-1, 1]
        trust <- min(trust - log(2) c, log(``most``))

    so that a step that climbs halves the bound and one that descends doubles it. Where the bound comes down to one Adam
    step, trust is exhausted, and a fresh Adam with learning rate ``adam_lr min(lr, 1)`` has the tensor for good. A rule
    that overshoots at every step is stopped within a few, and the sum of its steps is bounded by a geometric series.

    The memory is two numbers per coordinate: the last change, in whose place Adam later keeps its first moment, and the
    second moment.

    Attributes:
        adam_lr: a, the learning rate of the Adam to fall back on.
        first: r at the first step, > 1.
        most: The largest r. With the defaults a coordinate moves at most 0.1 per step.

    Raises:
        ValueError: A number out of range.

    Source: our own, from these: fallback on a classical step whenever a learned one fails a test (Heaton et al. 2023,
    safeguarded learned optimization; Premont-Schwarz et al. 2022, a simple guard for learned optimizers, whose tests
    read the loss); a trust region that grows and shrinks with the agreement of prediction and outcome (Conn et al.
    2000); step sizes that shrink when the slope changes its sign (Riedmiller & Braun 1993).
    """

    adam_lr: float = 1e-3
    first: float = 10.0
    most: float = 100.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.adam_lr) and self.adam_lr > 0):
            raise ValueError(f"Guard: adam_lr must be finite and > 0, got {self.adam_lr}")
        if not (1 < self.first <= self.most < math.inf):
            raise ValueError(f"Guard: it must be 1 < first <= most, got first={self.first} and most={self.most}")

    def init_state(self, params: Tensors) -> dict[str, Tensors]:
        """What the guard remembers of each parameter before the first step."""
        state = {}
        for name, param in params.items():
            dtype = torch.promote_types(param.dtype, torch.float32)
            scalar = param.new_zeros((), dtype=dtype)
            state[name] = {
                "trust": scalar + math.log(self.first),
                "slope": scalar,
                "step": scalar.to(torch.float32, copy=True),
                "m": torch.zeros_like(param, dtype=dtype),
                "v": torch.zeros_like(param, dtype=dtype),
            }
        return state

    def __call__(
        self, grads: Tensors, updates: Tensors, state: Mapping[str, Tensors], *, lr: Scalar | Mapping[str, Scalar]
    ) -> tuple[Tensors, dict[str, Tensors]]:
        """The updates that may be applied, and the new memory; pure, like a rule.

        Args:
            grads: Gradients by parameter name.
            updates: What the rule made of them.
            state: By parameter name what `init_state` began.
            lr: As `apply_updates` will get it.
        """
        after = totals({name: (grad * state[name]["m"]).sum() for name, grad in grads.items()})
        guarded: Tensors = {}
        new: dict[str, Tensors] = {}
        for name, grad in grads.items():
            rate: Scalar = lr[name] if isinstance(lr, Mapping) else lr
            guarded[name], new[name] = self._one(grad, updates[name], state[name], after[name], rate)
        slopes = totals({name: (grad * new[name]["m"]).sum() for name, grad in grads.items()})
        return guarded, {name: own | {"slope": slopes[name]} for name, own in new.items()}

    def _one(self, grad: Tensor, update: Tensor, state: Tensors, after: Tensor, lr: Scalar) -> tuple[Tensor, Tensors]:
        trust = self._trust(state, after)
        trusted = trust > 0
        size = (lr * update).abs()
        bound = self.adam_lr * trust.exp().to(size.dtype)
        beyond = size > bound
        own = torch.where(beyond, update * (bound / torch.where(beyond, size, torch.ones_like(size))), update)

        # Adam begins with nothing on the day it takes over: until then `m` holds the last change, and `v` is zero.
        mine = {"step": state["step"], "m": torch.where(state["trust"] > 0, 0.0, state["m"]), "v": state["v"]}
        direction, memory = adam_direction(torch.where(trusted, 0.0, grad.to(state["m"].dtype)), mine)
        adams = self.adam_lr * _at_most_one(lr) * direction
        result = torch.where(trusted, own, adams)
        memory["m"] = torch.where(trusted, (lr * own).to(memory["m"].dtype), memory["m"])
        return result, {"trust": trust, **memory}

    def _trust(self, state: Tensors, after: Tensor) -> Tensor:
        both = state["slope"].abs() + after.abs()
        known = both > 0
        change = torch.where(known, (state["slope"] + after) / torch.where(known, both, torch.ones_like(both)), 0.0)
        moved = (state["trust"] - math.log(2) * change).clamp(0.0, math.log(self.most))
        return torch.where(state["trust"] > 0, moved, torch.zeros_like(moved))

    def config(self) -> dict[str, Any]:
        """Its numbers, as JSON values."""
        return asdict(self)


def _at_most_one(lr: Scalar) -> Scalar:
    """min(lr, 1) / lr: the multiple that `apply_updates` turns into min(lr, 1)."""
    return 1 / lr.clamp(min=1.0) if isinstance(lr, Tensor) else 1 / max(lr, 1.0)


def guarded(update: Update, guard: Guard | None, *, lr: Scalar | Mapping[str, Scalar]) -> Update:
    """A rule behind a guard, for the differentiable drivers; ``update`` itself where ``guard`` is None.

    The guard's memory lies in the state beside the rule's, and begins where it is missing.
    """
    if guard is None:
        return update

    def step(grads: Tensors, state: RuleState, params: Tensors) -> tuple[Tensors, RuleState]:
        own = {name: entry.own(tensors) for name, tensors in state.per_param.items()}
        memory = {name: entry.part(tensors, entry.GUARD) for name, tensors in state.per_param.items()}
        memory |= guard.init_state({name: params[name] for name in grads if not memory[name]})
        updates, new = update(grads, RuleState(own, state.shared), params)
        updates, kept = guard(grads, updates, memory, lr=lr)
        memory |= kept
        per_param = {
            name: tensors | entry.prefixed(memory[name], entry.GUARD) for name, tensors in new.per_param.items()
        }
        return updates, RuleState(per_param, new.shared)

    return step
