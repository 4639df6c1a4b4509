"""The contract of an optimizer as a pure function, and the two operations that every driver needs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from learned_optim.types import RuleState, Scalar, Tensors, Update


class Rule(nn.Module, ABC):
    """One optimizer step as a pure function; its ``parameters()`` are the meta-parameters phi.

    ``updates, state = rule(grads, state, params)`` computes a step; drivers add ``lr * updates`` to the parameters.
    A subclass writes `init_state`, `forward` and `config`; then the same rule runs as a ``torch.optim.Optimizer``
    (`RuleOptimizer`), inside ``higher`` and inside `unroll`.

    What ``forward`` promises:

    * It is pure: it changes none of its arguments, writes no buffer, draws no random number and never synchronises
      with the host, so that it can be differentiated, batched with vmap and compiled.
    * ``updates`` has the keys, shapes and devices of ``grads``. A parameter whose name is absent from ``grads`` gets
      no update and keeps its state.
    * The new state has the keys, shapes and dtypes of the old one.
    """

    known: ClassVar[dict[str, type[Rule]]] = {}
    """Rule classes by name: the only ones that a checkpoint can name. Subclassing registers."""

    coordinatewise: ClassVar[bool] = False
    """Whether a step treats every coordinate by itself and alike, so that a part of a tensor is as good as a tensor."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        Rule.known[cls.__name__] = cls

    @abstractmethod
    def init_state(self, params: Tensors, *, generator: torch.Generator | None = None) -> RuleState:
        """The state before the first step.

        Args:
            params: The parameters, by name.
            generator: The source of randomness of rules whose first state is drawn.

        Returns:
            One entry of ``per_param`` for each parameter.
        """

    @abstractmethod
    def forward(self, grads: Tensors, state: RuleState, params: Tensors) -> tuple[Tensors, RuleState]:
        """One step.

        Args:
            grads: Gradients by parameter name, each of its parameter's shape.
            state: The state that `init_state` or the last step returned.
            params: The parameters, by name; at least those of ``grads``.

        Returns:
            The updates, which are *added* to the parameters, and the new state.
        """

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """The arguments that rebuild this rule, as JSON values. With `from_config` it is what checkpoints hold."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Rule:
        """A rule of the sizes that ``config`` says; its weights are still to be loaded."""
        return cls(**config)

    def step_(self, grads: Tensors, state: RuleState, params: Tensors) -> Tensors:
        """The same step for the eager driver: returns the updates and puts the new state into ``state`` itself.

        A rule may override it with one that works in place and in chunks; it must equal ``forward``.
        """
        updates, new = self(grads, state, params)
        for name in grads:
            state.per_param[name].update(new.per_param[name])
        state.shared.update(new.shared)
        return updates

    def __call__(self, grads: Tensors, state: RuleState, params: Tensors) -> tuple[Tensors, RuleState]:
        result: tuple[Tensors, RuleState] = super().__call__(grads, state, params)
        return result


def bind(rule: Rule, phi: Tensors) -> Update:
    """The rule as a function of ``(grads, state, params)`` with the meta-parameters ``phi`` in place of its own.

    Args:
        rule: A rule.
        phi: Tensors by the names of ``rule.named_parameters()``; names left out keep the rule's own.
    """

    def update(grads: Tensors, state: RuleState, params: Tensors) -> tuple[Tensors, RuleState]:
        result: tuple[Tensors, RuleState] = functional_call(rule, phi, (grads, state, params))
        return result

    return update


def oriented(grads: Tensors, *, maximize: bool) -> Tensors:
    """The gradients of what is to be minimised: negated when ``maximize`` is set."""
    return {name: -grad for name, grad in grads.items()} if maximize else grads


def apply_updates(
    params: Tensors,
    updates: Tensors,
    *,
    lr: Scalar | Mapping[str, Scalar] = 1.0,
    weight_decay: Scalar | Mapping[str, Scalar] = 0.0,
) -> Tensors:
    """theta + lr (u - weight_decay theta), for every parameter that has an update.

    Args:
        params: Parameters theta by name.
        updates: Updates u by name. A parameter without one is returned as it is.
        lr: Multiplies the whole change. For learned rules it has no unit and 1 is its natural value. A mapping gives
            each name its own, as parameter groups do.
        weight_decay: Decoupled decay per step (Loshchilov & Hutter 2019), a number or a mapping likewise.

    Returns:
        The new parameters, in the dtypes of the old.
    """
    return {
        name: _moved(theta, updates[name], _for(lr, name), _for(weight_decay, name)) if name in updates else theta
        for name, theta in params.items()
    }


def _for(value: Scalar | Mapping[str, Scalar], name: str) -> Scalar:
    return value[name] if isinstance(value, Mapping) else value


def _moved(theta: Tensor, u: Tensor, lr: Scalar, weight_decay: Scalar) -> Tensor:
    if isinstance(weight_decay, Tensor) or weight_decay != 0:
        u = u - weight_decay * theta
    return (theta + lr * u).to(theta.dtype)
