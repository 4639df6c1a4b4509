"""Which tensors are scale-invariant: the loss does not see their scale, as of weights before a normalisation.

Then the gradient is orthogonal to the tensor, and that tells them. Source: van Laarhoven 2017,
https://arxiv.org/abs/1706.05350.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from learned_optim.eager import may_look

ORTHOGONAL = 1e-4
"""Below which a squared cosine times the number of coordinates, on average 1 by chance, counts as 0."""

FIRST = 5
"""Steps before it is told. By chance one in a hundred is orthogonal, and later ones resemble those before them."""

REMEMBERED = 0.99
"""What a step that was not orthogonal counts for at the next: it is forgotten after a thousand."""


def products(grad: Tensor, theta: Tensor) -> Tensor:
    """g theta, g^2 and theta^2, shape (..., 3), of which `alignment` and `invariant` need the means over the tensor."""
    return torch.stack((grad * theta, grad.square(), theta.square()), dim=-1)


def alignment(means: Tensor, number: Tensor, before: Tensor) -> Tensor:
    """The largest n cos^2 of the steps so far, earlier ones for less.

    By chance it is 1 on average; where it is 0, rounding, and what a normalisation adds to variances, make less than
    `ORTHOGONAL` of it.

    Args:
        means: Of `products` over the tensor, shape (3,).
        number: n, its coordinates.
        before: The same a step ago, 0-dimensional, and 0 before the first. It stays where the gradient is zero, which
            tells nothing.
    """
    product, grad, theta = means.unbind()
    lengths = grad * theta
    seen = torch.where(lengths > 0, lengths, torch.ones_like(lengths))
    cosine = torch.where(lengths > 0, number * product.square() / seen, torch.ones_like(lengths)).clamp(max=1.0)
    return torch.where(grad > 0, torch.maximum(cosine.to(before.dtype), REMEMBERED * before), before)


def invariant(means: Tensor, aligned: Tensor, step: Tensor) -> Tensor:
    """Whether a tensor is scale-invariant, as far as gradients tell: a 0-dimensional bool tensor.

    Args:
        means: As above, of this step.
        aligned: The new `alignment`.
        step: t, from 1.
    """
    return (aligned < ORTHOGONAL) & (step >= FIRST) & (means[1] > 0)


def ruled_out(before: Iterable[Tensor]) -> bool:
    """Whether a look tells that at the next step no tensor can be `invariant`; False where none is allowed.

    Args:
        before: The `alignment` of each tensor.
    """
    aligned = [*before]
    return may_look(aligned) and not any(bool(REMEMBERED * each < ORTHOGONAL) for each in aligned)
