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

    The trust follows what the last change D brought along, told from gradients and updates only. Let s = <g, D> be the
    slope along D before it and s' = <g', D> the one after it, which is the derivative of the new loss in the length of
    D (the hypergradient of a step size). Where s' is negative the loss still fell at the end of the step, and a longer
    one would have been better; where it is positive the step went too far::

        trust <- min(trust - ``rate`` (s' + max(``tolerance`` s, s)) / (|s| + |s'|), log(``most``))

    Where the bound comes down to one Adam step, trust is exhausted, and a fresh Adam with learning rate ``adam_lr
    min(lr, 1)`` has the tensor for good. The steps of a rule that goes too far every time are thus bounded by a
    geometric series, 0.07 per coordinate altogether with the defaults.

    The memory is two numbers per coordinate: the last change, in whose place Adam later keeps its first moment, and the
    second moment.

    Attributes:
        adam_lr: a, the learning rate of the Adam to fall back on.
        first: r at the first step, > 1.
        most: The largest r. With the defaults a coordinate moves at most 0.1 per step.
        rate: How fast the trust follows, > 0.
        tolerance: By how much a step may go too far without loss of trust, as a share of the first slope, in [0, 1]:
            0 demands the best length on the line, 1 only that the step has not climbed.

    Raises:
        ValueError: A number out of range.

    Source: our own, from these: fallback on a classical step whenever a learned one fails a test (Heaton et al. 2023,
    safeguarded learned optimization; Premont-Schwarz et al. 2022, a simple guard for learned optimizers; their tests
    read the loss); step sizes that follow the hypergradient (Almeida et al. 1998; Baydin et al. 2018), here a bound.
    """

    adam_lr: float = 1e-3
    first: float = 10.0
    most: float = 100.0
    rate: float = 0.15
    tolerance: float = 0.15

    def __post_init__(self) -> None:
        if not (math.isfinite(self.adam_lr) and self.adam_lr > 0):
            raise ValueError(f"Guard: adam_lr must be finite and > 0, got {self.adam_lr}")
        if not (1 < self.first <= self.most < math.inf):
            raise ValueError(f"Guard: it must be 1 < first <= most, got first={self.first} and most={self.most}")
        if not (0 < self.rate < math.inf and 0 <= self.tolerance <= 1):
            raise ValueError(
                f"Guard: it must be rate > 0 and 0 <= tolerance <= 1, got {self.rate} and {self.tolerance}"
            )

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
        memory["step"] = torch.where(trusted, state["step"], memory["step"])
        memory["m"] = torch.where(trusted, (lr * own).to(memory["m"].dtype), memory["m"])
        return result, {"trust": trust, **memory}

    def _trust(self, state: Tensors, after: Tensor) -> Tensor:
        before, trust = state["slope"], state["trust"]
        both = before.abs() + after.abs()
        known = both > 0
        allowed = torch.maximum(self.tolerance * before, before)  # a step uphill from its start is allowed nothing
        too_far = (after + allowed) / torch.where(known, both, torch.ones_like(both))
        moved = (trust - self.rate * torch.where(known, too_far, 0.0)).clamp(0.0, math.log(self.most))
        return torch.where(trust > 0, moved, torch.zeros_like(moved))

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
        own, memory = entry.divided(state.per_param)
        memory |= guard.init_state({name: params[name] for name in grads if name not in memory})
        updates, new = update(grads, RuleState(own, state.shared), params)
        updates, kept = guard(grads, updates, memory, lr=lr)
        memory |= kept
        per_param = {
            name: tensors | entry.prefixed(memory.get(name, {}), entry.GUARD) for name, tensors in new.per_param.items()
        }
        return updates, RuleState(per_param, new.shared)

    return step
