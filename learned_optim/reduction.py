"""Sums over whole tensors: the one place where a tensor that is spread over processes is made whole again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import torch
from torch import Tensor

from learned_optim.types import Tensors

Complete: TypeAlias = Callable[[Tensors], Tensors]
"""Takes what this process has summed over its shard of each parameter, returns the sums over all shards."""

_complete: Complete | None = None


@contextmanager
def completing(complete: Complete | None) -> Iterator[None]:
    """While it lasts `totals` are over all shards. The eager driver enters it for sharded parameters."""
    global _complete
    outer, _complete = _complete, complete
    try:
        yield
    finally:
        _complete = outer


def totals(sums: Tensors) -> Tensors:
    """Completes sums over the coordinates of parameters.

    A rule that looks at a whole tensor or network sums over the coordinates that it is given and passes the sums
    through here, all at once; then it works on shards without further code.

    Args:
        sums: By parameter name, each summed over the coordinates that this process has.

    Returns:
        The same over all coordinates; in one process ``sums`` itself.
    """
    return sums if _complete is None else _complete(sums)


def tensor_means(values: Tensors, params: Tensors) -> Tensors:
    """The mean over the coordinates of each parameter, whole also where the parameter is sharded; 0 if it has none.

    Args:
        values: By parameter name, shape ``param.shape + (...)``.
        params: The parameters by name, at least those of ``values``.

    Returns:
        Shape (...).
    """
    sums = {
        name: torch.cat(
            [
                value.flatten(0, params[name].dim() - 1).sum(dim=0).flatten()
                if params[name].dim()
                else value.flatten(),
                value.new_full((1,), params[name].numel()),
            ]
        )
        for name, value in values.items()
    }
    whole = totals(sums)
    return {
        name: (whole[name][:-1] / whole[name][-1].clamp(min=1)).reshape(value.shape[params[name].dim() :])
        for name, value in values.items()
    }


def anywhere(flags: Tensors) -> Tensors:
    """Whether any coordinate of each tensor is marked, on all shards: 0-dimensional bool tensors.

    Args:
        flags: By parameter name, bool tensors.
    """
    return {name: count > 0 for name, count in totals({name: f.any().float() for name, f in flags.items()}).items()}


def all_finite(tensors: Tensors) -> Tensor:
    """Whether all coordinates are finite, on all shards: a 0-dimensional bool tensor, without asking the host.

    Args:
        tensors: By parameter name, at least one.
    """
    return ~_any(anywhere({name: ~torch.isfinite(value) for name, value in tensors.items()}))


def all_zero(tensors: Tensors) -> Tensor:
    """Whether all coordinates are zero, likewise."""
    return ~_any(anywhere({name: value != 0 for name, value in tensors.items()}))


def _any(flags: Tensors) -> Tensor:
    device = next(iter(flags.values())).device
    return torch.stack([flag.to(device) for flag in flags.values()]).any()
