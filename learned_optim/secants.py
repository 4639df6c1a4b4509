"""What the last steps tell of a function's curvature: the direction of limited-memory BFGS, tensor by tensor.

A secant is a pair of the way from one point to the next, s, and the difference of the gradients there, y. On a
quadratic function y = H s with its Hessian H; a few secants tell which ways are steep and which are flat.

Source: Liu & Nocedal 1989; Chen et al. 2014 for its form in inner products, which are summed over shards at once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from learned_optim.reduction import totals
from learned_optim.types import Tensors

CURVED = 1e-5
"""Secants whose s and y have a smaller cosine are left out: the function is not convex there, or it is rounding."""

REACH = 10.0
"""A direction is at most so many times as long as the longest s that is remembered."""


def init_secants(param: Tensor, number: int, *, dtype: torch.dtype) -> Tensors:
    """The memory of one parameter before the first step: ``moves`` and ``changes`` (s and y, the newest last), shape
    ``param.shape + (number,)``, and the last point and gradient, ``theta`` and ``grad``, of the parameter's shape."""
    zeros = torch.zeros(*param.shape, number, dtype=dtype, device=param.device)
    last = torch.zeros_like(param, dtype=dtype)
    return {"moves": zeros, "changes": zeros.clone(), "theta": last, "grad": last.clone()}


def quasi_newton(
    grads: Tensors, memory: dict[str, Tensors], params: Tensors, begun: Tensors
) -> tuple[Tensors, dict[str, Tensors]]:
    """-B g, with the approximate inverse Hessian B of limited-memory BFGS; and the new memory.

    Where there is no secant yet, B = 1 / max(1, |g|). Every tensor has its own B.

    Args:
        grads: g by parameter name.
        memory: By parameter name, see `init_secants`.
        params: By name, at least those of ``grads``.
        begun: By parameter name, whether the memory holds a point already: 0-dimensional bool tensors.

    Returns:
        Directions of the gradients' shapes, and the memory by parameter name.
    """
    vectors: Tensors = {}
    after: dict[str, Tensors] = {}
    for name, grad in grads.items():
        old, theta = memory[name], params[name].to(grad.dtype)
        move, change = (
            torch.where(begun[name], now - old[key], 0.0).unsqueeze(-1)
            for key, now in (("theta", theta), ("grad", grad))
        )
        moves = torch.cat((old["moves"][..., 1:], move), dim=-1)
        changes = torch.cat((old["changes"][..., 1:], change), dim=-1)
        after[name] = {"moves": moves, "changes": changes, "theta": theta, "grad": grad}
        basis = torch.cat((moves, changes, grad.unsqueeze(-1)), dim=-1)
        vectors[name] = basis.reshape(grad.numel(), basis.shape[-1])  # (n, 2 m + 1)
    products = totals({name: each.t() @ each for name, each in vectors.items()})
    directions = {name: -(vectors[name] @ _weights(products[name])).view(grad.shape) for name, grad in grads.items()}
    return directions, after


def _weights(products: Tensor) -> Tensor:
    """B g as a sum of the s, the y and g: the two loops of the algorithm, on weights in the place of vectors.

    Args:
        products: The inner products of s_1, ..., s_m, y_1, ..., y_m and g, shape (2 m + 1, 2 m + 1).

    Returns:
        Shape (2 m + 1,).
    """
    m = len(products) // 2
    squares = products.diagonal()
    curvatures = products.diagonal(m)[:m]  # s y
    lengths = squares[:m] * squares[m : 2 * m]
    usable = (curvatures > 0) & (curvatures.square() > CURVED**2 * lengths)
    safe = torch.where(usable, curvatures, 1.0)
    inverse = torch.where(usable, 1 / safe, 0.0)
    units = torch.eye(len(products), dtype=products.dtype, device=products.device).unbind()

    weights = units[-1]
    shares: dict[int, Tensor] = {}
    for i in reversed(range(m)):
        shares[i] = inverse[i] * (products[i] @ weights)
        weights = weights - shares[i] * units[m + i]
    scale = squares[-1].clamp(min=1.0).rsqrt()
    for i in range(m):
        scale = torch.where(usable[i], safe[i] / torch.where(usable[i], squares[m + i], 1.0), scale)
    weights = scale * weights
    for i in range(m):
        weights = weights + (shares[i] - inverse[i] * (products[m + i] @ weights)) * units[i]

    length, reach = weights @ products @ weights, REACH**2 * squares[:m].amax()
    far = (reach > 0) & (length > reach)
    return weights * torch.where(far, reach / torch.where(far, length, 1.0), 1.0).sqrt()
