"""The data that every rule and every driver agrees on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor

Tensors: TypeAlias = dict[str, Tensor]
"""Tensors by parameter name: parameters, gradients, updates or meta-parameters."""

LossFn: TypeAlias = Callable[..., Tensor]
"""``loss_fn(params)`` or ``loss_fn(params, batch)``, returning a scalar tensor."""


class RuleState(NamedTuple):
    """The state of a rule: what it remembers from one step to the next.

    Attributes:
        per_param: For each parameter name a plain dict of tensors. It is what becomes ``optimizer.state[p]``.
        shared: Tensors that belong to the whole network rather than to one parameter.
    """

    per_param: dict[str, Tensors]
    shared: Tensors


Update: TypeAlias = Callable[[Tensors, RuleState, Tensors], tuple[Tensors, RuleState]]
"""``update(grads, state, params) -> (updates, new_state)``: a rule, or any callable of its signature."""

Scalar: TypeAlias = float | Tensor
"""A number, or a 0-dimensional tensor."""

Minibatch: TypeAlias = Any
"""Whatever a loss function takes as its second argument."""
