"""Small tensors one after the other as one: they cost the number of operations more than their size."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable

import torch
from torch import Tensor

from learned_optim.types import Tensors

SMALL = 4096
"""Tensors of fewer coordinates are put together."""


def small_together(tensors: Tensors, kind: Callable[[str], Hashable] | None = None) -> Iterable[list[str]]:
    """Names of tensors that can be taken `as_one`: small ones of one dtype, device and ``kind``; others are alone.

    While compiling all are alone, because the compiler puts together what it likes.
    """
    found: dict[Hashable, list[str]] = {}
    compiling = torch.compiler.is_compiling()
    for name, value in tensors.items():
        if compiling or value.numel() >= SMALL:
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
