"""Layers whose second derivatives are right under vmap.

vmap splits the backward of torch's fused normalisation into simpler operations that take the saved mean and inverse
deviation for constants. Differentiating it once more, from outside vmap, then silently gives wrong numbers for batch,
layer and instance norm (found with torch 2.13; reported as pytorch/functorch issue 534), and exact MAML wrong
meta-gradients. Inside `differentiable_twice` the same layers are computed from means and squares, which every transform
differentiates correctly. Models need not change. The same goes for the padding row of an embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from learned_optim.eager import transformed


class differentiable_twice(TorchFunctionMode):
    """A context in which the normalisation functions of ``torch.nn.functional`` are made of simpler operations."""

    @classmethod
    def where_needed(cls) -> AbstractContextManager[Any]:
        """The context inside torch.func's transforms; outside nothing, where torch's own are right, and faster."""
        return cls() if transformed() else nullcontext()

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


def _channel_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    dims: list[int] | None,
    eps: float,
) -> Tensor:
    """Normalises over ``dims``, or by the running statistics where it is None; these are never written."""
    shape = _per_channel(input)
    if dims is not None:
        return _scaled(_normalised(input, dims, eps), weight, bias, shape)
    if running_mean is None or running_var is None:
        raise ValueError("normalisation by running statistics needs running_mean and running_var")
    centred = input - running_mean.reshape(shape)
    return _scaled(centred * torch.rsqrt(running_var.reshape(shape) + eps), weight, bias, shape)


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
    dims = [0, *range(2, input.dim())] if training else None
    return _channel_norm(input, running_mean, running_var, weight, bias, dims, eps)


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
    dims = list(range(2, input.dim())) if use_input_stats else None
    return _channel_norm(input, running_mean, running_var, weight, bias, dims, eps)


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    return _scaled(_normalised(input, list(range(-len(normalized_shape), 0)), eps), weight, bias, normalized_shape)


def _group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Tensor:
    grouped = input.reshape(input.shape[0], num_groups, -1)
    return _scaled(_normalised(grouped, [2], eps).reshape(input.shape), weight, bias, _per_channel(input))


def _embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    """vmap's embedding gives the padding row a gradient; here it has none. Renormalisation has no derivative at all."""
    rows = F.embedding(input, weight, None, max_norm, *args, **kwargs)
    if padding_idx is None:
        return rows
    padding = input == padding_idx % weight.shape[0]
    return torch.where(padding.unsqueeze(-1), rows.detach(), rows)


_PLAIN: dict[Callable[..., Any], Callable[..., Any]] = {
    F.batch_norm: _batch_norm,
    F.instance_norm: _instance_norm,
    F.layer_norm: _layer_norm,
    F.group_norm: _group_norm,
    F.embedding: _embedding,
    torch.layer_norm: _layer_norm,
    torch.group_norm: _group_norm,
    # torch's own order of arguments, and a flag for cuDNN at the end.
    torch.batch_norm: lambda x, w, b, mean, var, training, m, eps, _: _batch_norm(x, mean, var, w, b, training, m, eps),
    torch.instance_norm: lambda x, w, b, mean, var, own, m, eps, _: _instance_norm(x, mean, var, w, b, own, m, eps),
}
