"""The contract of an optimizer as a pure function, and the two operations that every driver needs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call

from learned_optim.eager import may_look
from learned_optim.reduction import all_finite
from learned_optim.types import RuleState, Scalar, Tensors, Update

Scope: TypeAlias = Literal["coordinate", "tensor", "network"]


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
    * What it reduces over the coordinates of a tensor goes through `learned_optim.reduction`, which makes it whole
      where parameters are sharded.
    """

    known: ClassVar[dict[str, type[Rule]]] = {}
    """Rule classes by name: the only ones that a checkpoint can name. Subclassing registers."""

    scope: Scope = "network"
    """What a step looks at together. ``"coordinate"``: each by itself and all alike, so that any part of a tensor can
    go alone; ``"tensor"``: each by itself, so that some parameters can go without the others; ``"network"``."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        Rule.known[cls.__name__] = cls

    @abstractmethod
    def init_state(self, params: Tensors, *, generator: torch.Generator | None = None) -> RuleState:
        """The state before the first step.

        Args:
            params: The parameters, by name; on the meta device, only the sizes of the state are asked for.
            generator: The source of randomness of rules whose first state is drawn. Without one it is the same at every
                call, so that runs, processes and what vmap batches agree.

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

    def described(self) -> dict[str, Any]:
        """Class and `config`: what `rebuilt` takes."""
        return {"class": type(self).__name__, "config": self.config()}

    @staticmethod
    def rebuilt(description: Mapping[str, Any]) -> Rule:
        """A rule of the class and the sizes that `described` gave; its weights are still to be loaded.

        Raises:
            ValueError: The class is not `known`: the module that defines it has not been imported.
        """
        if description["class"] not in Rule.known:
            raise ValueError(f"unknown class of rules {description['class']!r}; import it first")
        return Rule.known[description["class"]].from_config(description["config"])

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Rule:
        """The inverse of `config`."""
        return cls(**config)

    def place(self, params: Tensors) -> None:
        """Lays meta-parameters that belong to places of a parameter out like it, where it is sharded; most rules have
        none. The eager driver calls it with the parameters that it takes in."""

    def step_(
        self, grads: Tensors, state: RuleState, params: Tensors, *, finite: Tensor | None = None
    ) -> tuple[Tensors, Tensor]:
        """The same step for the eager driver, which puts the new state into ``state`` itself.

        A rule may override it with one that works in chunks; it must equal ``forward``.

        Args:
            grads: As in ``forward``.
            state: As in ``forward``; its tensors are written in place.
            params: As in ``forward``.
            finite: Whether the gradients are, a 0-dimensional bool tensor; computed where it is not given.

        Returns:
            The updates, and whether gradients and updates are all finite: where they are not, the state is untouched.
        """
        updates, new = self(grads, state, params)
        finite = all_finite(updates) & (all_finite(grads) if finite is None else finite)
        for name in grads:
            overwrite(state.per_param[name], new.per_param[name], where=finite)
        overwrite(state.shared, new.shared, where=finite)
        return updates, finite

    def __call__(self, grads: Tensors, state: RuleState, params: Tensors) -> tuple[Tensors, RuleState]:
        result: tuple[Tensors, RuleState] = super().__call__(grads, state, params)
        return result


def overwrite(old: Tensors, new: Tensors, *, where: Tensor) -> None:
    """Writes new values into the tensors of ``old`` in place, or leaves them as they are where not ``where``."""
    copied = may_look([where]) and bool(where)
    for key, value in new.items():
        if value is not old[key]:
            if copied:
                old[key].copy_(value)
            else:
                torch.where(where, value, old[key], out=old[key])


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
