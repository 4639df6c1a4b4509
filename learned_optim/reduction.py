"""Sums over whole tensors: the one place where a tensor that is spread over processes is made whole again."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from learned_optim.eager import may_look
from learned_optim.together import as_one, small_together
from learned_optim.types import Tensors

APART = 2**17
"""Of so many coordinates tensors are summed one by one; below, they are copied together and summed at once."""


class Shards(NamedTuple):
    """How parameters are spread over processes.

    Attributes:
        complete: Takes what this process has summed over its shard of each parameter, returns the sums over all shards.
        numbers: `numbered` of the parameter of that name; None where it is not sharded.
    """

    complete: Callable[[Tensors], Tensors]
    numbers: Callable[[str], Tensor | None]


_shards: Shards | None = None


@contextmanager
def completing(shards: Shards | None) -> Iterator[None]:
    """While it lasts `totals` are over all shards. The eager driver enters it for sharded parameters."""
    global _shards
    outer, _shards = _shards, shards
    try:
        yield
    finally:
        _shards = outer


def totals(sums: Tensors) -> Tensors:
    """Completes sums over the coordinates of parameters.

    A rule that looks at a whole tensor or network sums over the coordinates that it is given and passes the sums
    through here, all at once; then it works on shards without further code.

    Args:
        sums: By parameter name, each summed over the coordinates that this process has.

    Returns:
        The same over all coordinates; in one process ``sums`` itself.
    """
    return sums if _shards is None else _shards.complete(sums)


def numbered(name: str, param: Tensor) -> Tensor:
    """The number of each coordinate in the whole parameter, row by row: what is computed from it is the same on shards.

    Args:
        name: The parameter's name.
        param: The parameter, or this process's shard of it; on the meta device its own shape is all that counts.

    Returns:
        int64, of the shape of ``param``.
    """
    numbers = None if _shards is None or param.is_meta else _shards.numbers(name)
    return torch.arange(param.numel(), device=param.device).reshape(param.shape) if numbers is None else numbers


def tensor_means(values: Tensors, params: Tensors) -> Tensors:
    """The mean over the coordinates of each parameter, whole also where the parameter is sharded; 0 if it has none.

    Args:
        values: By parameter name, shape ``param.shape + (...)``.
        params: The parameters by name, at least those of ``values``.

    Returns:
        Shape (...).
    """
    means = _means({name: [value] for name, value in values.items()}, params)
    return {name: mean.reshape(values[name].shape[params[name].dim() :]) for name, mean in means.items()}


def _means(values: Mapping[str, Sequence[Tensor]], params: Tensors) -> Tensors:
    """Likewise of several tensors for each parameter, shape (F,), of one tensor's after the other's."""
    whole = totals({name: _summed(parts, params[name]) for name, parts in values.items()})
    return {name: sums[:-1] / sums[-1].clamp(min=1) for name, sums in whole.items()}


def _summed(parts: Sequence[Tensor], param: Tensor) -> Tensor:
    """Sums over the coordinates, and their number."""
    if len(parts) > 1 and param.numel() < APART:
        parts = [torch.cat([*parts], dim=-1)]
    if param.dim():
        parts = [part.flatten(0, param.dim() - 1).sum(dim=0) for part in parts]
    return torch.cat([*(part.flatten() for part in parts), parts[0].new_full((1,), param.numel())])


def marked_means(values: Mapping[str, Sequence[Tensor]], marks: Tensors, params: Tensors) -> tuple[Tensors, Tensors]:
    """Means over the marked coordinates of each parameter, likewise whole; 0 where none is marked.

    Args:
        values: By parameter name tensors of shapes ``param.shape + (...,)``, F numbers of a coordinate together.
        marks: Bool tensors of the parameters' shapes.
        params: The parameters by name.

    Returns:
        The means, shape (F,), of one tensor's after the other's, and whether any coordinate is marked, 0-dimensional.
    """
    both: dict[str, list[Tensor]] = {}
    everywhere = all_marked(marks.values())
    for name, parts in values.items():
        mark = marks[name].unsqueeze(-1)
        counted = parts if everywhere else [torch.where(mark, part, 0.0) for part in parts]
        both[name] = [*counted, mark.to(parts[0].dtype)]
    whole = _means(both, params)  # (F + 1,)
    shares = {name: mean[-1] for name, mean in whole.items()}
    means = {name: mean[:-1] / torch.where(shares[name] > 0, shares[name], 1.0) for name, mean in whole.items()}
    return means, {name: share > 0 for name, share in shares.items()}


def all_marked(marks: Iterable[Tensor]) -> bool:
    """Whether a look tells that all coordinates are marked; False where none is allowed.

    Args:
        marks: Bool tensors.
    """
    tensors = [*marks]
    return may_look(tensors) and all(bool(mark.all()) for mark in tensors)


def network_mean(values: Tensors, marks: Tensors) -> Tensor:
    """The mean over the marked coordinates of all parameters together, likewise whole; 0 where none is marked.

    Args:
        values: By parameter name, of the parameters' shapes.
        marks: Bool tensors likewise.
    """
    sums = {
        name: torch.stack((torch.where(marks[name], value, 0.0).sum(), marks[name].sum().to(value.dtype)))
        for name, value in values.items()
    }
    both = torch.stack([*totals(sums).values()]).sum(dim=0)
    return both[0] / both[1].clamp(min=1)


def all_finite(tensors: Tensors) -> Tensor:
    """Whether all coordinates are finite, on all shards: a 0-dimensional bool tensor, without asking the host.

    Args:
        tensors: By parameter name, at least one.
    """
    return ~_anywhere(lambda largest: ~torch.isfinite(largest), tensors)


def all_zero(tensors: Tensors) -> Tensor:
    """Whether all coordinates are zero, likewise."""
    return ~_anywhere(lambda largest: largest != 0, tensors)


def largest(tensors: Iterable[Tensor]) -> Tensor:
    """The largest magnitude in each tensor, NaN where there is one, and 0 in an empty one: shape (number,)."""
    values = [*tensors]
    kinds: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for place, value in enumerate(values):
        if value.numel():
            kinds.setdefault((value.device, value.dtype), []).append(place)
    result = torch.zeros(len(values), dtype=torch.float64, device=values[0].device)
    for places in kinds.values():
        norms = torch.stack(torch._foreach_norm([values[place] for place in places], math.inf))
        if len(places) == len(values):
            return norms
        result[places] = norms.to(result)
    return result


def _anywhere(mark: Callable[[Tensor], Tensor], tensors: Tensors) -> Tensor:
    """Whether any tensor's largest magnitude is marked, on any shard."""
    if _shards is None:
        return mark(largest(as_one(tensors[name] for name in names) for names in small_together(tensors))).any()
    marks = mark(largest(tensors.values()))
    counts = totals(dict(zip(tensors, marks.float().unbind(), strict=True)))
    return torch.stack([count.to(marks.device) for count in counts.values()]).any()
