"""Random numbers that depend on what they are for, and on nothing else."""

from __future__ import annotations

import hashlib

import torch


def seeded(*purpose: int | str) -> torch.Generator:
    """A generator for one purpose, such as ``seeded(seed, "train", episode)``.

    Different purposes give unrelated streams, so that problems for training, validation and testing never meet, and
    the n-th of them can be drawn without drawing those before: by any worker, and after any interruption.
    """
    digest = hashlib.sha256(repr(purpose).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
