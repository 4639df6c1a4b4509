"""What the state of an optimizer will look like, known before it exists: its size, and whether a saved one fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from learned_optim import entry
from learned_optim.group_options import OPTIONS, check_options
from learned_optim.guard import Guard
from learned_optim.rule import Rule
from learned_optim.sharding import is_sharded, local
from learned_optim.types import RuleState, Tensors


def plain(tensor: Tensor) -> Tensor:
    """What a rule sees of a tensor: this process's shard of it, and a complex one as pairs of real numbers."""
    here = local(tensor)
    return torch.view_as_real(here) if here.is_complex() else here


def begun(rule: Rule, guard: Guard | None, params: Tensors) -> RuleState:
    """The first state of these parameters, the guard's memory beside the rule's."""
    state = rule.init_state(params)
    memory = {} if guard is None else guard.init_state(params)
    per_param = {key: state.per_param[key] | entry.prefixed(memory.get(key, {}), entry.GUARD) for key in params}
    return RuleState(per_param, state.shared)


def blank(rule: Rule, guard: Guard | None, params: Tensors) -> RuleState:
    """`begun` as tensors without data."""
    sizes = {key: torch.empty(p.shape, dtype=p.dtype, device="meta") for key, p in params.items()}
    return begun(rule, guard, {key: plain(size) for key, size in sizes.items()})


def coordinate_keys(rule: Rule, guard: Guard | None, key: str, param: Tensor) -> set[str]:
    """The keys of what is remembered of each coordinate of a parameter, and therefore sharded with it."""
    if not is_sharded(param) or param.dim() == 0:
        return set()
    shapes = []
    for more in (0, 1):  # what grows with the parameter
        size = torch.empty(param.shape[0] + more, *param.shape[1:], dtype=param.dtype, device="meta")
        own = blank(rule, guard, {key: size}).per_param[key]
        shapes.append({name: value.shape for name, value in own.items()})
    return {name for name, shape in shapes[0].items() if shape != shapes[1][name]}


def state_bytes(rule: Rule, guard: Guard | None, params: Tensors) -> int:
    """The memory that the state of these parameters takes, in bytes."""
    tensors = [value for own in blank(rule, guard, params).per_param.values() for value in own.values()]
    return sum(value.numel() * value.element_size() for value in tensors)


def check_state_dict(
    rule: Rule,
    guard: Guard | None,
    params: Tensors,
    groups: Sequence[Sequence[str]],
    state_dict: Mapping[str, Any],
    *,
    label: str,
) -> None:
    """Refuses a saved ``state_dict`` that does not fit.

    Args:
        rule: The rule.
        guard: The guard, if any.
        params: All parameters by name, in order.
        groups: The names of each group's parameters.
        state_dict: With the rule's label and tensors in its first group.
        label: What the label must be.

    Raises:
        ValueError: What does not fit.
    """
    saved, state = state_dict.get("param_groups"), state_dict.get("state")
    if not (isinstance(saved, list) and isinstance(state, dict) and all(isinstance(group, dict) for group in saved)):
        raise ValueError("not a state_dict: it has no list 'param_groups' and dict 'state'")
    # A rule without tensors may have lost their empty dict on the way.
    found, tensors = (saved or [{}])[0].get("rule"), (saved or [{}])[0].get("rule_tensors", {})
    if not isinstance(found, str) or not isinstance(tensors, dict):
        raise ValueError("the state holds no rule; it is not a state_dict of such an optimizer")
    if found != label:
        raise ValueError(f"the state is of the rule {found!r}, but this optimizer has {label}")
    sizes = [len(group["params"]) if isinstance(group.get("params"), list) else None for group in saved]
    if sizes != [len(names) for names in groups]:
        raise ValueError(
            f"the state has groups of {sizes} parameters, but this optimizer of {[len(g) for g in groups]}"
        )
    for i, group in enumerate(saved):
        for option in OPTIONS:
            if option not in group:
                raise ValueError(f"group {i} of the state has no {option!r}")
        check_options(group, f"group {i} of the state")
    indices = [index for group in saved for index in group["params"]]
    if len(params) < len(indices):  # torch lets a group hold a parameter twice, and warns
        twice = [name for names in groups for name in names]
        pairs = dict(zip(map(str, indices), twice, strict=True))
        if len(pairs) == len(params) and [pairs[str(i)] for i in indices] == twice:
            indices = [i for place, i in enumerate(indices) if i not in indices[:place]]
    compare("the rule", tensors, rule.state_dict())
    check_state(rule, guard, params, indices, state)


def check_state(
    rule: Rule, guard: Guard | None, params: Tensors, indices: Sequence[Any], state: Mapping[Any, Any]
) -> None:
    """Refuses a saved state that does not fit.

    Args:
        rule: The rule.
        guard: The guard, if any.
        params: All parameters by name, in order.
        indices: The numbers under which ``state`` has them.
        state: Entries by number; a parameter that has made no step has none.

    Raises:
        ValueError: What does not fit.
    """
    if not all(isinstance(index, (int, str)) for index in indices):
        raise ValueError(f"the groups must hold numbers or names of parameters, got {indices!r:.100}")
    if len(set(indices)) != len(indices) or set(state) - set(indices):
        raise ValueError(f"the state is of parameters {list(state)}, but its groups have {indices}")
    needed = blank(rule, guard, params)
    shared = entry.prefixed(needed.shared, entry.SHARED) | {entry.SKIPPED: torch.zeros((), dtype=torch.int64)}
    for place, (index, key) in enumerate(zip(indices, params, strict=True)):
        found = state.get(index, {})
        if place == 0 and isinstance(found, dict) and all(isinstance(name, str) for name in found):
            own = entry.of_parameter(found)
            network = {name: value for name, value in found.items() if name not in own}
            if network:
                compare("the network", network, shared)
            found = own
        if found != {}:
            compare(f"parameter {key!r}", found, needed.per_param[key])


def compare(whose: str, found: Any, needed: Tensors) -> None:
    """Refuses tensors of other names, shapes or dtypes than those needed.

    Raises:
        ValueError: What differs.
    """
    if not isinstance(found, dict):
        raise ValueError(f"the state of {whose} must be a dict of tensors, got a {type(found).__name__}")
    for key, value in found.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"the state of {whose} must be a dict of tensors, but {key!r} is a {type(value).__name__}")
        if value.is_meta or value.layout is not torch.strided:
            raise ValueError(f"{key!r} of {whose} must be an ordinary tensor, but is {value.layout} on {value.device}")
    for key in [*needed, *found]:
        theirs, ours = [
            f"{list(tensors[key].shape)} of {tensors[key].dtype}" if key in tensors else "missing"
            for tensors in (found, needed)
        ]
        if theirs != ours:
            raise ValueError(f"{key!r} of {whose} is {theirs} in the state, but {ours} here")
