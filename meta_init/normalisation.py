"""Normalisation layers whose second derivatives are right under vmap.

vmap splits the backward of torch's fused normalisation into simpler operations that take the saved mean and inverse
deviation for constants. Differentiating it once more, from outside vmap, then silently gives wrong numbers for batch,
layer and instance norm (found with torch 2.13; reported as pytorch/functorch issue 534), and exact MAML wrong
meta-gradients. Inside `differentiable_twice` the same layers are computed from means and squares, which every transform
differentiates correctly. Models need not change.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class differentiable_twice(TorchFunctionMode):
    """A context in which the normalisation functions of ``torch.nn.functional`` are made of simpler operations."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _PLAIN.get(func, func)(*args, **(kwargs or {}))


def _normalised(x: Tensor, dims: list[int], eps: float) -> Tensor:
    centred = x - x.mean(dims, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(dims, keepdim=True) + eps)


def _scaled(x: Tensor, weight: Tensor | None, bias: Tensor | None, shape: Sequence[int]) -> Tensor:
    x = x if weight is None else x * weight.reshape(shape)
    return x if bias is None else x + bias.reshape(shape)


def _per_channel(x: Tensor) -> list[int]:
    return [1, x.shape[1], *[1] * (x.dim() - 2)]


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not training or running_mean is not None:  # running statistics are constants already, and may be written to
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    return _scaled(_normalised(input, [0, *range(2, input.dim())], eps), weight, bias, _per_channel(input))


def _instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not use_input_stats or running_mean is not None:
        return F.instance_norm(input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)
    return _scaled(_normalised(input, list(range(2, input.dim())), eps), weight, bias, _per_channel(input))


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    return _scaled(_normalised(input, list(range(-len(normalized_shape), 0)), eps), weight, bias, normalized_shape)


def _group_norm(
    input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    grouped = input.reshape(input.shape[0], num_groups, -1)
    return _scaled(_normalised(grouped, [2], eps).reshape(input.shape), weight, bias, _per_channel(input))


_PLAIN: dict[Callable[..., Any], Callable[..., Any]] = {
    F.batch_norm: _batch_norm,
    F.instance_norm: _instance_norm,
    F.layer_norm: _layer_norm,
    F.group_norm: _group_norm,
}
