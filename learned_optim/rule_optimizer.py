"""The eager driver: any rule as a ``torch.optim.Optimizer``."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from learned_optim.rule import Rule, apply_updates, oriented
from learned_optim.types import RuleState, Tensors

Params: TypeAlias = Iterable[Tensor] | Iterable[tuple[str, Tensor]] | Iterable[dict[str, Any]]
"""What every torch optimizer takes: parameters, named parameters, or groups of either."""

_SHARED = "shared."


def split_entry(entry: Tensors) -> tuple[Tensors, Tensors]:
    """A parameter's own state, and the network's, which lies beside that of the first parameter as with LBFGS."""
    own = {key: value for key, value in entry.items() if not key.startswith(_SHARED)}
    return own, {key.removeprefix(_SHARED): value for key, value in entry.items() if key not in own}


def shared_entry(shared: Tensors) -> Tensors:
    """The network's state under the keys that it has beside the first parameter's."""
    return {_SHARED + key: value for key, value in shared.items()}


_hinted: set[str] = set()


class RuleOptimizer(Optimizer):
    """Runs any `Rule` as an ordinary ``torch.optim.Optimizer``.

    It takes parameters, named parameters or groups with their own ``lr``, ``weight_decay`` and ``maximize``; a closure;
    and every scheduler. ``state_dict()`` holds all that is needed to go on exactly, the rule's weights included: they
    travel in the first parameter group, where distributed checkpoints keep them.

    Args:
        params: What every torch optimizer takes.
        rule: The rule; it is held, not copied, and follows the device of the parameters.
        lr: Multiplies the update. It has no unit: 1 is the rule as it was trained.
        weight_decay: Decoupled decay, per step and relative to ``lr``.
        maximize: Ascend the objective instead.

    Raises:
        ValueError: No parameters, an ``lr`` or ``weight_decay`` that is negative or not finite, or a state of another
            rule is loaded.
        RuntimeError: A gradient is sparse.
    """

    def __init__(
        self,
        params: Params,
        rule: Rule,
        *,
        lr: float | Tensor = 1.0,
        weight_decay: float = 0.0,
        maximize: bool = False,
    ) -> None:
        self.rule = rule
        self._keys: dict[Tensor, str] = {}
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "maximize": maximize})
        self._hint_at_habit()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for register in on_subclass:
            register(cls)

    # Parameters

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in torch; a group may have its own ``lr``, ``weight_decay`` and ``maximize``."""
        for option in ("lr", "weight_decay"):
            value = param_group.get(option, self.defaults[option])
            if not (math.isfinite(float(value)) and float(value) >= 0):
                raise ValueError(f"{type(self).__name__}: {option} must be a finite number >= 0, got {value}")
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            self._adopt(self._named(group), named="param_names" in group)
        except Exception:  # whatever it was, the group is not taken in half
            self.param_groups.pop()
            raise

    def _named(self, group: dict[str, Any]) -> Tensors:
        """The group's parameters by their names, or by their positions; every key is unique in the optimizer."""
        named: Tensors = {}
        taken = set(self._keys.values())
        names = group.get("param_names") or [str(len(self._keys) + i) for i in range(len(group["params"]))]
        for name, param in zip(names, group["params"], strict=True):
            # torch allows the same name in several groups.
            key, number = name, 1
            while key in taken:
                number += 1
                key = f"{name} ({number})"
            named[key] = param
            taken.add(key)
        return named

    def _adopt(self, params: Tensors, *, named: bool) -> None:
        """Takes in the parameters of a new group under the names that the rule shall see."""
        self._keys.update((param, name) for name, param in params.items())

    def _hint_at_habit(self) -> None:
        habits = [group["lr"] for group in self.param_groups if 0 < float(group["lr"]) <= 0.01]
        if habits and type(self).__name__ not in _hinted:
            _hinted.add(type(self).__name__)
            warnings.warn(
                f"{type(self).__name__}: lr={float(habits[0]):g} multiplies updates that already have their size; "
                "lr=1.0 is the optimizer as it was trained, and so small a value nearly stops it",
                stacklevel=4,
            )

    # Step

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Takes one step.

        Args:
            closure: Re-evaluates the model and returns the loss.

        Returns:
            What the closure returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with_grad = [(group, [p for p in group["params"] if p.grad is not None]) for group in self.param_groups]
        grads: Tensors = {}
        for group, params in with_grad:
            for p in params:
                if p.grad.is_sparse:
                    raise RuntimeError(
                        f"{type(self).__name__}: the gradient of parameter {self._keys[p]!r} is sparse, which learned "
                        "rules do not take; build the layer with sparse=False"
                    )
            grads |= oriented({self._keys[p]: p.grad for p in params}, maximize=group["maximize"])
        if not grads:
            return loss
        params_by_key = {self._keys[p]: p for _, params in with_grad for p in params}
        self._follow_device(next(iter(params_by_key.values())).device)
        updates = self._step(grads, params_by_key)
        for group, params in with_grad:
            own = {self._keys[p]: p for p in params}
            moved = apply_updates(own, updates, lr=group["lr"], weight_decay=group["weight_decay"])
            for key, p in own.items():
                p.copy_(moved[key])
        return loss

    def _step(self, grads: Tensors, params: Tensors) -> Tensors:
        first = self.param_groups[0]["params"][0]
        own = {key: split_entry(self.state.get(p, {}))[0] for key, p in params.items()}
        shared = split_entry(self.state.get(first, {}))[1]
        fresh = {key: p for key, p in params.items() if not own[key]}
        if fresh:
            created = self.rule.init_state(fresh)
            own |= created.per_param
            shared = shared or created.shared
        state = RuleState(own, shared)
        updates = self.rule.step_(grads, state, params)
        for key, p in params.items():
            self.state[p].update(state.per_param[key])
        if state.shared:
            self.state[first].update(shared_entry(state.shared))
        return updates

    def _follow_device(self, device: torch.device) -> None:
        weight = next(self.rule.parameters(), None)
        if weight is not None and weight.device != device:
            self.rule.to(device)

    # State

    def state_dict(self) -> dict[str, Any]:
        """As in torch, with the rule in the first group: its class and sizes (JSON) and its tensors by name."""
        state_dict = super().state_dict()
        state_dict["param_groups"][0] |= {"rule": self._rule_label(), "rule_tensors": dict(self.rule.state_dict())}
        return state_dict

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from a saved state, exactly: parameters' states keep the dtypes in which they were saved.

        Raises:
            ValueError: It is no state of such an optimizer, or one of a rule of another class or other sizes. Nothing
                has been changed then.
        """
        seen: dict[str, Any] = {}

        def check(_: Optimizer, incoming: dict[str, Any]) -> None:
            self._check_loadable(incoming)
            seen.update(incoming)

        def restore(_: Optimizer) -> None:
            self._restore(seen)

        # Registered for this call only, so that they see what the user's own hooks made of the state, and the user's
        # see what these have restored.
        before = self.register_load_state_dict_pre_hook(check)
        after = self.register_load_state_dict_post_hook(restore, prepend=True)
        try:
            super().load_state_dict(state_dict)
        finally:
            before.remove()
            after.remove()

    def _rule_label(self) -> str:
        return json.dumps({"class": type(self.rule).__name__, "config": self.rule.config()})

    def _check_loadable(self, state_dict: Mapping[str, Any]) -> None:
        name = type(self).__name__
        groups = state_dict.get("param_groups") or [{}]
        label, tensors = groups[0].get("rule"), groups[0].get("rule_tensors")
        if not isinstance(label, str) or not isinstance(tensors, dict):
            raise ValueError(f"{name}: the state holds no rule; it is not a state_dict of such an optimizer")
        if label != self._rule_label():
            raise ValueError(f"{name}: the state is of the rule {label}, but this optimizer has {self._rule_label()}")
        own = {key: (tuple(value.shape), value.dtype) for key, value in self.rule.state_dict().items()}
        saved = {key: (tuple(value.shape), value.dtype) for key, value in tensors.items()}
        for key in own | saved:
            if own.get(key) != saved.get(key):
                raise ValueError(f"{name}: the rule's {key!r} is {saved.get(key)} in the state, {own.get(key)} here")

    def _restore(self, state_dict: Mapping[str, Any]) -> None:
        # torch has cast floating-point state to each parameter's dtype; take the saved values instead.
        saved_ids = [index for group in state_dict["param_groups"] for index in group["params"]]
        params = [p for group in self.param_groups for p in group["params"]]
        for index, p in zip(saved_ids, params, strict=True):
            if index in state_dict["state"]:
                saved = state_dict["state"][index]
                self.state[p] = {key: value.detach().to(p.device, copy=True) for key, value in saved.items()}
        self.rule.load_state_dict(self.param_groups[0].pop("rule_tensors"))
        self.param_groups[0].pop("rule")

    def __getstate__(self) -> dict[str, Any]:
        # torch keeps the three items it knows of; copies and pickles need the rule and the names too.
        return super().__getstate__() | {"rule": self.rule, "_keys": self._keys}


on_subclass: list[Callable[[type[RuleOptimizer]], None]] = []
"""Called with each new subclass; `learned_optim.higher_bridge` registers them with higher."""
