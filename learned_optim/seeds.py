"""Random numbers that depend on what they are for, and on nothing else."""

from __future__ import annotations

import hashlib
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T", int, Tensor)


def seeded(*purpose: int | str) -> torch.Generator:
    """A generator for one purpose, such as ``seeded(seed, "train", episode)``.

    Different purposes give unrelated streams, so that problems for training, validation and testing never meet, and
    the n-th of them can be drawn without drawing those before: by any worker, and after any interruption.
    """
    digest = hashlib.sha256(repr(purpose).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def scattered(numbers: Tensor, *stream: int) -> Tensor:
    """A random-looking number in [0, 1) for each whole number, always the same one for the same stream.

    It is arithmetic alone, and thus works under vmap and torch.compile, gives the same on every device, and a part of a
    tensor gets what it gets within the whole.

    Args:
        numbers: int64, from 0 on, any shape.
        stream: Different ones give unrelated numbers.

    Returns:
        Float32 of the same shape, in steps of 2^-24.

    Source: a common hash of 32 bits, two multiplications by 0x45d9f3b between shifts of 16 (T. Mueller), from memory.
    """
    key = 0x9E3779B9
    for part in stream:
        key = _mixed(key ^ part)
    return (_mixed(numbers ^ key) >> 8).float() / 2**24


def _mixed(x: T) -> T:
    x = x & (2**32 - 1)
    for _ in range(2):
        x = ((x ^ (x >> 16)) * 0x45D9F3B) & (2**32 - 1)
    return x ^ (x >> 16)
