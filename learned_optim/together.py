"""Small tensors one after the other as one: they cost the number of operations more than their size."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from learned_optim.types import Tensors

SMALL = 4096
"""Tensors of fewer coordinates are put together."""


def small(tensor: Tensor) -> bool:
    """Whether a tensor is put together with others."""
    return tensor.numel() < SMALL


def small_together(tensors: Tensors, kind: Callable[[str], Hashable] | None = None) -> Iterable[list[str]]:
    """Names of tensors that can be taken `as_one`: small ones of one dtype, device and ``kind``; others are alone.

    While compiling all are alone, because the compiler puts together what it likes.
    """
    found: dict[Hashable, list[str]] = {}
    compiling = torch.compiler.is_compiling()
    for name, value in tensors.items():
        if compiling or not small(value):
            found[name] = [name]
        else:
            found.setdefault((value.dtype, value.device, kind and kind(name)), []).append(name)
    return found.values()


def as_one(tensors: Iterable[Tensor]) -> Tensor:
    """All coordinates, shape (n,); of a single tensor the tensor itself."""
    parts = [*tensors]
    if len(parts) == 1:
        return parts[0]
    return torch.cat([part if part.dim() == 1 else part.reshape(-1) for part in parts])


def joined_(tensors: Sequence[Tensor], rest: torch.Size) -> Tensor:
    """Contiguous tensors one after the other, without a copy: what is written into the result is in them.

    Where they do not lie so in memory, they are moved there, staying the tensors that they are; the next call finds
    them in place.

    Args:
        tensors: On CPU, of one dtype, none of them empty.
        rest: The last dimensions of each.

    Returns:
        Shape (n, *rest).
    """
    if len(tensors) == 1:
        return tensors[0].reshape(-1, *rest)
    first, numbers = tensors[0], [tensor.numel() for tensor in tensors]
    ends = [*accumulate(numbers, initial=0)]
    start, size = first.data_ptr(), first.element_size()
    reached = first.storage_offset() + ends[-1] <= first.untyped_storage().nbytes() // size
    if reached and [tensor.data_ptr() for tensor in tensors] == [start + size * end for end in ends[:-1]]:
        return first.as_strided((ends[-1],), (1,)).view(-1, *rest)
    whole = torch.cat([tensor.reshape(-1) for tensor in tensors])
    for tensor, part in zip(tensors, torch.split(whole, numbers), strict=True):
        tensor.data = part.view(tensor.shape)
    return whole.view(-1, *rest)
