"""Parameters that ``fully_shard`` spreads over processes (DTensors): their local parts, and tensors laid out like them.

A rule only ever sees local parts. What it remembers of a coordinate is kept as a DTensor beside the parameter, so that
distributed checkpoints save and reshard it; what it reduces over a tensor is completed by `completion`.
"""

from __future__ import annotations

import math
import sys
from types import FrameType
from typing import Any, cast

import torch
from torch import Tensor

from learned_optim.reduction import Shards
from learned_optim.types import Tensors

_ORDINARY = (Tensor, torch.nn.Parameter)
"""Most tensors, which need not be looked at."""


def is_sharded(tensor: Tensor) -> bool:
    """Whether it is a DTensor; told without importing torch.distributed."""
    return type(tensor) not in _ORDINARY and hasattr(tensor, "device_mesh")


def local(tensor: Tensor) -> Tensor:
    """The part of it that this process has; an ordinary tensor itself."""
    return cast(Any, tensor).to_local() if is_sharded(tensor) else tensor


def local_parts(tensors: Tensors, param: Tensor) -> Tensors:
    """The same of each of the tensors that lie beside a parameter."""
    return {key: local(value) for key, value in tensors.items()} if is_sharded(param) else tensors


def whole(tensor: Tensor) -> Tensor:
    """All of it; an ordinary tensor itself."""
    return cast(Any, tensor).full_tensor() if is_sharded(tensor) else tensor


def beside(value: Tensor, param: Tensor) -> Tensor:
    """A DTensor of which this process has ``value``, laid out like ``param``.

    Args:
        value: Shape ``local(param).shape + (...)``.
        param: A parameter; where it is an ordinary tensor, so is the result.
    """
    if not is_sharded(param):
        return value
    from torch.distributed.tensor import DTensor

    # Shape and stride are given because uneven shards do not tell them.
    shape = torch.Size((*param.shape, *value.shape[param.dim() :]))
    stride = torch.empty(shape, device="meta").stride()
    like = cast(Any, param)
    return DTensor.from_local(value, like.device_mesh, like.placements, run_check=False, shape=shape, stride=stride)


def distributed_like(full: Tensor, param: Tensor) -> Tensor:
    """``full``, the same on every process, laid out like ``param``; it itself where it is spread already."""
    if not is_sharded(param) or is_sharded(full):
        return full
    from torch.distributed.tensor import DTensor, Replicate

    like = cast(Any, param)
    # `distribute_tensor` knows fewer layouts than `redistribute`.
    everywhere = DTensor.from_local(full, like.device_mesh, [Replicate()] * len(like.placements), run_check=True)
    return cast(Tensor, everywhere.redistribute(placements=like.placements))


def aligned(grad: Tensor, param: Tensor) -> Tensor:
    """A gradient, laid out like its parameter: tensor parallelism may leave parts of it that are still to be summed."""
    if not is_sharded(param) or cast(Any, grad).placements == cast(Any, param).placements:
        return grad
    return cast(Tensor, cast(Any, grad).redistribute(placements=cast(Any, param).placements))


def numbers_of(param: Tensor) -> Tensor:
    """The number that each coordinate of this process's shard has in the whole parameter; a complex one counts as two,
    in a last dimension of their own."""
    shape = (*param.shape, 2) if param.is_complex() else param.shape
    whole = torch.arange(math.prod(shape), device=local(param).device).reshape(shape)
    return local(distributed_like(whole, param))


def completion(params: Tensors) -> Shards | None:
    """How sums over the shards of these parameters become sums over the whole: None where none is sharded."""
    sharded = {name: cast(Any, param) for name, param in params.items() if is_sharded(param)}
    if not sharded:
        return None
    from torch.distributed.tensor import DTensor, Partial, Replicate

    def complete(sums: Tensors) -> Tensors:
        # One collective for all tensors that are laid out alike.
        layouts: dict[tuple[Any, Any], list[str]] = {}
        for name in sums:
            if name in sharded:
                layouts.setdefault((sharded[name].device_mesh, sharded[name].placements), []).append(name)
        result = dict(sums)
        for (mesh, placements), names in layouts.items():
            part = torch.cat([sums[name].flatten() for name in names])
            # Whatever is not replicated is sharded in some way; not every way answers to `is_shard`.
            parts = [Replicate() if placement.is_replicate() else Partial() for placement in placements]
            total = DTensor.from_local(part, mesh, parts, run_check=False).full_tensor()
            start = 0
            for name in names:
                end = start + sums[name].numel()
                result[name], start = total[start:end].reshape(sums[name].shape).to(sums[name]), end
        return result

    return Shards(complete, lambda name: numbers_of(sharded[name]) if name in sharded else None)


def inside_partition() -> bool:
    """Whether the caller is being made by ZeroRedundancyOptimizer, which gives each process an optimizer of some of the
    tensors and does not say so."""
    if "torch.distributed.optim" not in sys.modules:
        return False
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if type(frame.f_locals.get("self")).__name__ == "ZeroRedundancyOptimizer":
            return True
        frame = frame.f_back
    return False
