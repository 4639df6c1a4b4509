"""The eager driver: any rule as a ``torch.optim.Optimizer``."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, TypeAlias, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from learned_optim import entry
from learned_optim.devices import RuleOnDevices
from learned_optim.group_options import check_options, number
from learned_optim.guard import Guard
from learned_optim.moving import move_
from learned_optim.reduction import all_zero, completing
from learned_optim.rule import Rule, oriented, overwrite
from learned_optim.sharding import (
    aligned,
    beside,
    completion,
    distributed_like,
    inside_partition,
    is_sharded,
    local_parts,
)
from learned_optim.state_layout import begun, blank, check_state_dict, coordinate_keys, plain, state_bytes
from learned_optim.types import RuleState, Scalar, Tensors

Params: TypeAlias = Iterable[Tensor] | Iterable[tuple[str, Tensor]] | Iterable[dict[str, Any]]
"""What every torch optimizer takes: parameters, named parameters, or groups of either."""

_GIGABYTE = 2**30
_told: set[tuple[str, str]] = set()


def _only_begins(grads: Tensors, lr: Mapping[str, Scalar]) -> bool:
    """Whether it is a step without rate and without gradient: torch.distributed.checkpoint takes one to create the
    state, which shall be that of before the first step."""
    if torch.compiler.is_compiling():  # a look at values would break the graph
        return False
    rates = lr.values()
    return all((not isinstance(rate, Tensor) or rate.is_cpu) and rate == 0 for rate in rates) and bool(all_zero(grads))


@contextmanager
def _no_autocast(params: Tensors) -> Iterator[None]:
    """A step is the same inside of torch.autocast and outside."""
    with ExitStack() as stack:
        for kind in {p.device.type for p in params.values()}:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


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
        guard: Whether steps are kept within a trust region, with Adam to fall back on; see `Guard`, of which one may
            be given.

    A step whose gradients or updates are not finite is left out: parameters and state stay, ``skipped_steps`` counts.
    Complex parameters are treated as pairs of real ones. Parameters may be sharded by ``fully_shard``, and on several
    devices unless the rule looks across them.

    Raises:
        ValueError: No parameters, an ``lr`` or ``weight_decay`` that is negative or not finite, an implementation flag
            (``foreach``, ``fused``, ``capturable``, ``differentiable``), or a state of another rule is loaded.
        RuntimeError: A gradient is sparse.
        TypeError: A rule that looks across tensors inside ``ZeroRedundancyOptimizer``.
    """

    def __init__(
        self,
        params: Params,
        rule: Rule,
        *,
        lr: float | Tensor = 1.0,
        weight_decay: float = 0.0,
        maximize: bool = False,
        guard: bool | Guard = False,
    ) -> None:
        self.rule = rule
        self.guard = Guard() if guard is True else guard or None
        self._keys: dict[Tensor, str] = {}
        self._devices = RuleOnDevices()
        self._places: dict[Tensor, tuple[torch.dtype, torch.device]] = {}
        defaults = {"lr": lr, "weight_decay": weight_decay, "maximize": maximize}
        check_options(defaults, type(self).__name__)  # before the parameters, as in torch
        super().__init__(params, defaults)
        if self.rule.scope == "network" and inside_partition():
            raise TypeError(
                f"{type(self).__name__}: {type(self.rule).__name__} looks at all parameters together, and "
                "ZeroRedundancyOptimizer shows each process some of them; use fully_shard instead"
            )
        self._hint_at_habit()
        self._warn_of_memory()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for register in on_subclass:
            register(cls)

    # Parameters

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in torch; a group may have its own ``lr``, ``weight_decay`` and ``maximize``."""
        check_options(self.defaults | param_group, type(self).__name__)
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            seen = {key: p if is_sharded(p) else plain(p) for key, p in self._named(group).items()}
            self._adopt(seen, named="param_names" in group)
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
        """Takes in the parameters of the new group, as the rule shall see them and under its names for them."""
        self.rule.place(params)
        self._keys.update(zip(self.param_groups[-1]["params"], params, strict=True))

    def _once(self, topic: str, message: str) -> None:
        """Warns about a topic once for each class of optimizers."""
        name = type(self).__name__
        if (name, topic) not in _told:
            _told.add((name, topic))
            warnings.warn(f"{name}: {message}", stacklevel=5)

    def _hint_at_habit(self) -> None:
        habits = [float(group["lr"]) for group in self.param_groups if 0 < float(group["lr"]) <= 0.01]
        if habits:
            self._once(
                "lr",
                f"lr={habits[0]:g} multiplies updates that already have their size; "
                "lr=1.0 is the optimizer as it was trained, and so small a value nearly stops it",
            )

    def _warn_of_memory(self) -> None:
        params = {self._keys[p]: p for group in self.param_groups for p in group["params"]}
        own = sum(p.numel() * p.element_size() for p in params.values())
        if own < _GIGABYTE // 1000:
            return
        state = state_bytes(self.rule, self.guard, params)
        if state - own > _GIGABYTE:
            coordinates = sum(p.numel() for p in params.values())
            self._once(
                "memory",
                f"its state will take {state / _GIGABYTE:.1f} GiB, {state / coordinates:.0f} bytes for each of "
                f"{coordinates:,} coordinates; the parameters take {own / _GIGABYTE:.1f} GiB",
            )

    # Step

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Takes one step; none at all where a gradient or update is not finite.

        Args:
            closure: Re-evaluates the model and returns the loss.

        Returns:
            What the closure returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        owners: Tensors = {}
        grads: Tensors = {}
        lr: dict[str, Scalar] = {}
        weight_decay: dict[str, Scalar] = {}
        for group in self.param_groups:
            present = {self._keys[p]: p for p in group["params"] if p.grad is not None}
            self._refuse(present)
            grads |= oriented(
                {key: plain(aligned(p.grad, p)) for key, p in present.items()}, maximize=group["maximize"]
            )
            owners |= present
            lr |= dict.fromkeys(present, number(group["lr"]))
            weight_decay |= dict.fromkeys(present, number(group["weight_decay"]))
        if owners:
            with completing(completion(owners)), _no_autocast(owners):
                self._step(owners, grads, lr, weight_decay)
        return loss

    def _refuse(self, params: Tensors) -> None:
        for key, p in params.items():
            if p.is_meta:
                raise RuntimeError(f"{type(self).__name__}: parameter {key!r} is on the meta device and has no values")
            if p.grad is not None and p.grad.is_sparse:
                raise RuntimeError(
                    f"{type(self).__name__}: the gradient of parameter {key!r} is sparse, which learned "
                    "rules do not take; build the layer with sparse=False"
                )

    def _step(self, owners: Tensors, grads: Tensors, lr: dict[str, Scalar], weight_decay: dict[str, Scalar]) -> None:
        params = {key: plain(p) for key, p in owners.items()}
        state, memory = self._begun(owners, params)
        if _only_begins(grads, lr):
            return
        updates, finite = self._devices.step_(self.rule, grads, state, params)
        if self.guard is not None:
            updates, kept = self.guard(grads, updates, memory, lr=lr)
            for key, tensors in kept.items():
                overwrite(memory[key], tensors, where=finite.to(params[key].device))
        move_(params, updates, lr=lr, weight_decay=weight_decay, finite=finite)
        count = self.state[self._first()][entry.SKIPPED]
        count += ~finite.to(count.device)

    def _first(self) -> Tensor:
        return next(iter(self._keys))  # inside ZeroRedundancyOptimizer the first group may be empty

    def _begun(self, owners: Tensors, params: Tensors) -> tuple[RuleState, dict[str, Tensors]]:
        """The rule's state and the guard's memory of these parameters, begun where there is none."""
        self._carry_along(owners)
        network = self.state[self._first()]
        fresh = {key: params[key] for key, p in owners.items() if not entry.has_begun(self.state[p])}
        if fresh:
            created = begun(self.rule, self.guard, fresh)
            for key, tensors in created.per_param.items():
                spread = coordinate_keys(self.rule, self.guard, key, owners[key])
                self.state[owners[key]] |= {
                    name: beside(value, owners[key]) if name in spread else value for name, value in tensors.items()
                }
            for name, value in entry.prefixed(created.shared, entry.SHARED).items():
                network.setdefault(name, value)
        if entry.SKIPPED not in network:
            network[entry.SKIPPED] = torch.zeros((), dtype=torch.int64, device=self._first().device)
        own, memory = entry.divided({key: local_parts(self.state[p], p) for key, p in owners.items()})
        return RuleState(own, entry.part(network, entry.SHARED)), memory

    def _carry_along(self, owners: Tensors) -> None:
        """Where parameters changed their dtype or device since their state began, as by ``model.to``, so does it."""
        places = {p: (p.dtype, p.device) for p in owners.values()}
        moved = [p for p, place in places.items() if self._places.setdefault(p, place) != place]
        if not moved:
            return
        needed = blank(self.rule, self.guard, {key: p for p, key in self._keys.items()})
        for p in moved:
            own = needed.per_param[self._keys[p]] | entry.prefixed(needed.shared, entry.SHARED)
            for key, value in self.state[p].items():
                self.state[p][key] = value.to(p.device, own[key].dtype if key in own else value.dtype)
            self._places[p] = places[p]

    # State

    @property
    def skipped_steps(self) -> int:
        """How many steps were left out because a gradient or update was not finite. Reading it waits for the device."""
        if not self._keys:  # ZeroRedundancyOptimizer may leave a process without parameters
            return 0
        count = self.state.get(self._first(), {}).get(entry.SKIPPED)
        return 0 if count is None else int(count)

    def state_dict(self) -> dict[str, Any]:
        """As in torch, with the rule in the first group: its class and sizes (JSON) and its tensors by name."""
        if self.skipped_steps:
            self._once(
                "skipped",
                f"{self.skipped_steps} steps were left out because gradients or updates were not finite "
                "(optimizer.skipped_steps)",
            )

        def complete(_: Optimizer, state_dict: dict[str, Any]) -> None:
            state_dict["param_groups"][0] |= {"rule": self._rule_label(), "rule_tensors": dict(self.rule.state_dict())}

        # Registered for this call only, so that the user's own hooks see the whole state.
        handle = self.register_state_dict_post_hook(complete, prepend=True)
        try:
            return super().state_dict()
        finally:
            handle.remove()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from a saved state, exactly: parameters' states keep the dtypes in which they were saved.

        Raises:
            ValueError: It is no state of such an optimizer, or one of a rule of another class or other sizes. Nothing
                has been changed then.
        """
        if not isinstance(state_dict, dict):
            raise ValueError(f"{type(self).__name__}: not a state_dict, but a {type(state_dict).__name__}")
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
        guard = {} if self.guard is None else {"guard": self.guard.config()}
        return json.dumps(self.rule.described() | guard)

    def _check_loadable(self, state_dict: Mapping[str, Any]) -> None:
        groups = [[self._keys[p] for p in group["params"]] for group in self.param_groups]
        params = {key: p for p, key in self._keys.items()}
        try:
            check_state_dict(self.rule, self.guard, params, groups, state_dict, label=self._rule_label())
        except ValueError as error:
            raise ValueError(f"{type(self).__name__}: {error}") from error

    def _restore(self, state_dict: Mapping[str, Any]) -> None:
        # torch has cast floating-point state to each parameter's dtype; take the saved values instead.
        saved_ids = [index for group in state_dict["param_groups"] for index in group["params"]]
        params = [p for group in self.param_groups for p in group["params"]]
        for index, p in zip(saved_ids, params, strict=True):
            if index in state_dict["state"]:
                self.state[p] = self._taken_over(p, state_dict["state"][index])
        self._places = {}
        own = self.rule.state_dict()
        tensors = self.param_groups[0].pop("rule_tensors", {})
        self.rule.load_state_dict({key: distributed_like(value, own[key]) for key, value in tensors.items()})
        self.param_groups[0].pop("rule")

    def _taken_over(self, p: Tensor, saved: Tensors) -> Tensors:
        # Where one process has saved it and the parameter is sharded now, each process takes its part.
        spread = coordinate_keys(self.rule, self.guard, self._keys[p], p)
        placed = {key: distributed_like(value, p) if key in spread else value for key, value in saved.items()}
        return {key: value.detach().to(p.device, copy=True) for key, value in placed.items()}

    def __getstate__(self) -> dict[str, Any]:
        # torch keeps the three items it knows of; copies and pickles need the rule and the names too.
        return super().__getstate__() | {
            "rule": self.rule,
            "guard": self.guard,
            "_keys": self._keys,
            "_devices": RuleOnDevices(),
            "_places": self._places,
        }


on_subclass: list[Callable[[type[RuleOptimizer]], None]] = []
"""Called with each new subclass; `learned_optim.higher_bridge` registers them with higher."""
