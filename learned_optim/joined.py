"""All tensors of a network as one: the same step in fewer, larger operations."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor

from learned_optim.rule import Rule
from learned_optim.rules import RuleMap
from learned_optim.types import RuleState, Tensors, Update

_ALL = "all"


def joinable(rule: Rule) -> bool:
    """Whether a rule's step does not depend on which tensor a coordinate belongs to."""
    return rule.scope == "coordinate" and not isinstance(rule, RuleMap)


class JoinedUpdate:
    """The updates of a `joinable` rule, which is given all tensors one after the other as a single one.

    A coordinatewise rule has the same small operations for every tensor; a small network costs their number more than
    their size. Use as the ``update`` of `unroll`, with the state that `extend` returns, and `reduce` the last one. As
    there, every parameter must have a gradient at every step, so that all counters of steps agree.

    Args:
        update: The rule, or `bind` of it.
        params: Parameters by name, of one dtype; their shapes are used.
    """

    def __init__(self, update: Update, params: Tensors) -> None:
        self.update = update
        self.shapes = {name: p.shape for name, p in params.items()}
        self.sizes = [p.numel() for p in params.values()]

    def extend(self, state: RuleState) -> RuleState:
        """The rule's state of the joined tensor."""
        owns = state.per_param
        keys = dict.fromkeys(chain.from_iterable(owns.values()))
        joined: Tensors = {}
        for key in keys:
            values = {name: own[key] for name, own in owns.items()}
            joined[key] = next(iter(values.values())) if key == "step" else self._join(values)
        return RuleState({_ALL: joined}, state.shared)

    def reduce(self, state: RuleState) -> RuleState:
        """The rule's state of each tensor."""
        per_param: dict[str, Tensors] = {name: {} for name in self.shapes}
        for key, value in state.per_param[_ALL].items():
            parts = dict.fromkeys(self.shapes, value) if key == "step" else self._split(value)
            for name, part in parts.items():
                per_param[name][key] = part
        return RuleState(per_param, state.shared)

    def __call__(self, grads: Tensors, state: RuleState, params: Tensors) -> tuple[Tensors, RuleState]:
        updates, state = self.update({_ALL: self._join(grads)}, state, {_ALL: self._join(params)})
        return self._split(updates[_ALL]), state

    def _join(self, values: Tensors) -> Tensor:
        """Tensors of the parameters' shapes, with more dimensions of their own behind: shape (n, ...)."""
        flat = [values[name].reshape(-1, *values[name].shape[len(shape) :]) for name, shape in self.shapes.items()]
        return torch.cat(flat)

    def _split(self, value: Tensor) -> Tensors:
        """What `_join` has joined."""
        parts: Sequence[Tensor] = torch.split(value, self.sizes)
        return {
            name: part.reshape(*shape, *part.shape[1:])
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }
