"""The same meta-gradient in JAX: the layers that the networks of the benchmarks have, and MAML over them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from torch import nn

from meta_init import Task

Layer = Callable[[list[Any], Any], Any]


def _linear(params: list[Any], x: Any) -> Any:
    return x @ params[0].T + params[1]


def _conv(layer: nn.Conv2d) -> Layer:
    padding = [(pad, pad) for pad in layer.padding]

    def call(params: list[Any], x: Any) -> Any:
        layout = ("NCHW", "OIHW", "NCHW")
        return (
            lax.conv_general_dilated(x, params[0], layer.stride, padding, dimension_numbers=layout)
            + params[1][None, :, None, None]
        )

    return call


def _batch_norm(layer: nn.BatchNorm2d) -> Layer:
    def call(params: list[Any], x: Any) -> Any:
        mean, variance = x.mean((0, 2, 3), keepdims=True), x.var((0, 2, 3), keepdims=True)
        scale, shift = (p[None, :, None, None] for p in params)
        return (x - mean) * lax.rsqrt(variance + layer.eps) * scale + shift

    return call


LAYERS: dict[type[nn.Module], Callable[[Any], Layer]] = {
    nn.Linear: lambda layer: _linear,
    nn.ReLU: lambda layer: lambda params, x: jax.nn.relu(x),
    nn.Flatten: lambda layer: lambda params, x: x.reshape(len(x), -1),
    nn.Unflatten: lambda layer: lambda params, x: x[:, None],
    nn.AdaptiveAvgPool2d: lambda layer: lambda params, x: x.mean((2, 3), keepdims=True),
    nn.Conv2d: _conv,
    nn.BatchNorm2d: _batch_norm,
}


def _loss(prediction: Any, target: Any) -> Any:
    if jnp.issubdtype(target.dtype, jnp.floating):
        return jnp.square(prediction - target).mean()
    return -jnp.take_along_axis(jax.nn.log_softmax(prediction), target[:, None], axis=1).mean()


def meta_gradient(model: nn.Sequential, tasks: Task, *, lr: float, steps: int) -> Callable[[], list[Any]]:
    """jit(grad(vmap)) of MAML's outer loss at the weights of a torch model."""
    layers = [LAYERS[type(layer)](layer) for layer in model]
    params = [[jnp.asarray(p.detach().numpy()) for p in layer.parameters()] for layer in model]
    support, query = ([jnp.asarray(part.numpy()) for part in batch] for batch in tasks)

    def loss(params: Any, x: Any, y: Any) -> Any:
        for layer, own in zip(layers, params, strict=True):
            x = layer(own, x)
        return _loss(x, y)

    def task_loss(params: Any, xs: Any, ys: Any, xq: Any, yq: Any) -> Any:
        for _ in range(steps):
            grads = jax.grad(loss)(params, xs, ys)
            params = jax.tree.map(lambda p, g: p - lr * g, params, grads)
        return loss(params, xq, yq)

    def outer(params: Any, *tasks: Any) -> Any:
        return jax.vmap(task_loss, in_axes=(None, 0, 0, 0, 0))(params, *tasks).mean()

    compiled = jax.jit(jax.grad(outer))

    def call() -> list[Any]:
        return jax.block_until_ready(jax.tree.leaves(compiled(params, *support, *query)))

    return call
