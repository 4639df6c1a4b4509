"""What the processes of a training tell each other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only


def process() -> tuple[int, int]:
    """The number of this process and how many there are."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def anywhere(flag: Tensor) -> bool:
    """Whether it is set in any process, so that all do the same."""
    if process()[1] > 1:
        flag = flag.to(torch.int32)
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
    return bool(flag)


def everywhere(value: Tensor) -> Tensor:
    """The mean over processes."""
    if process()[1] > 1:
        torch.distributed.all_reduce(value)
    return value / process()[1]


def gathered(tree: Any) -> list[Any]:
    """What each process has, in the order of their numbers: trees of tensors, on the CPU where there are several."""
    world = process()[1]
    if world == 1:
        return [tree]
    parts: list[Any] = [None] * world
    torch.distributed.all_gather_object(parts, tree_map_only(Tensor, Tensor.cpu, tree))
    return parts
