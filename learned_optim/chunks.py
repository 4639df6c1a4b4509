"""A coordinatewise rule's step in pieces that stay in the processor's cache."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import chain

import torch
from torch import Tensor

from learned_optim.compiling import compiled_step, step
from learned_optim.eager import may_look
from learned_optim.reduction import largest
from learned_optim.rule import Rule
from learned_optim.together import as_one, joined_, small, small_together
from learned_optim.types import RuleState, Tensors

CHUNK = 4096
"""Coordinates at a time."""

LARGE = 1e18
"""Squares of gradients up to here are finite, also in sums of a few."""

_ALL = "all"


def steps_in_chunks(rule: Rule, grads: Tensors, state: RuleState) -> bool:
    """Whether `step_in_chunks` can take this step: eagerly, on CPU, with finite numbers in ordinary tensors."""
    values = [*grads.values()]
    if not may_look(values) or any(grad.numel() == 0 for grad in values):
        return False
    own = chain.from_iterable(state.per_param[name].values() for name in grads)
    if len({grad.dtype for grad in values}) > 1 or not all(map(Tensor.is_contiguous, own)):
        return False
    most = largest(as_one(grads[name] for name in names) for names in small_together(grads)).max()
    return bool(most < LARGE) and _finite(rule.parameters())


def _finite(tensors: Iterable[Tensor]) -> bool:
    values = [*tensors]
    return not values or math.isfinite(float(largest(values).max()))


def step_in_chunks(rule: Rule, grads: Tensors, state: RuleState, *, compiled: bool = False) -> Tensors:
    """`Rule.step_` of a coordinatewise rule without shared state: large tensors are cut up, small ones put together.

    Nothing is allocated that grows with the model, but for the updates.

    Args:
        rule: Its ``forward`` is what is computed.
        grads: Finite, see `steps_in_chunks`.
        state: Its tensors are written in place: per coordinate of shape ``grad.shape + (...)``, and ``"step"`` per
            tensor.
        compiled: Whether whole chunks go through one compiled function.

    Returns:
        The updates. They are finite unless the state is not; then it is left as it is for the coordinates of the chunk,
        and goes on for others.
    """
    dtype = next((weight.dtype for weight in rule.parameters()), next(iter(grads.values())).dtype)
    updates: Tensors = {}
    for names in _of_one_age(state.per_param, grads):
        owns = {name: state.per_param[name] for name in names}
        keys = [key for key in owns[names[0]] if key != "step"]
        clocks = [own["step"] for own in owns.values() if "step" in own]
        clock = {"step": clocks[0].clone()} if clocks else {}
        parts = []
        for run in _runs(names, grads, owns):
            flat = as_one(grads[name].reshape(-1) for name in run)
            of_run = torch.empty(flat.numel(), dtype=dtype)
            rest = {key: owns[run[0]][key].shape[grads[run[0]].dim() :] for key in keys}
            parts.append([flat, of_run, *(joined_([owns[name][key] for name in run], rest[key]) for key in keys)])
            shares = torch.split(of_run, [grads[name].numel() for name in run])
            updates.update(zip(run, shares, strict=True))
        for pieces in _chunks(parts):
            grad, _, *values = (same[0] if len(same) == 1 else torch.cat(same) for same in zip(*pieces, strict=True))
            own = dict(zip(keys, values, strict=True)) | clock
            take = compiled_step() if compiled and grad.numel() == CHUNK else step
            out, new = take(rule, {_ALL: grad}, RuleState({_ALL: own}, state.shared))
            after = [out[_ALL]]
            if _finite(after):
                after += [new.per_param[_ALL][key] for key in keys]
            sizes = [piece[0].numel() for piece in pieces]
            places = [piece[place] for place in range(1, len(after) + 1) for piece in pieces]
            values = after if len(pieces) == 1 else [part for value in after for part in torch.split(value, sizes)]
            torch._foreach_copy_(places, values)
        if clocks:
            torch._foreach_copy_(clocks, [new.per_param[_ALL]["step"]] * len(clocks))
    return {name: updates[name] if grad.dim() == 1 else updates[name].view(grad.shape) for name, grad in grads.items()}


def _of_one_age(per_param: dict[str, Tensors], grads: Tensors) -> Iterable[list[str]]:
    """The names of tensors, those whose steps are counted alike together."""
    groups: dict[float | None, list[str]] = {}
    for name in grads:
        clock = per_param[name].get("step")
        groups.setdefault(None if clock is None else float(clock), []).append(name)
    return groups.values()


def _runs(names: list[str], grads: Tensors, per_param: dict[str, Tensors]) -> Iterator[list[str]]:
    """The names in their order, neighbours together that are `small` and whose states have the same dtypes."""
    run: list[str] = []
    last: list[torch.dtype] = []
    for name in names:
        dtypes = [value.dtype for value in per_param[name].values()] if small(grads[name]) else []
        if run and not (dtypes and dtypes == last):
            yield run
            run = []
        run.append(name)
        last = dtypes
    yield run


def _chunks(flat: list[list[Tensor]]) -> Iterator[list[list[Tensor]]]:
    """Pieces of the tensors of several parameters, of `CHUNK` coordinates together, or less at the end."""
    pieces: list[list[Tensor]] = []
    room = CHUNK
    for tensors in flat:
        size, start = tensors[0].numel(), 0  # ``len`` of a tensor takes far longer
        while start < size:
            taken = min(room, size - start)
            pieces.append(tensors if taken == size else [tensor[start : start + taken] for tensor in tensors])
            start, room = start + taken, room - taken
            if room == 0:
                yield pieces
                pieces, room = [], CHUNK
    if pieces:
        yield pieces
