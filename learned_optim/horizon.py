"""The number of steps after which a learned rule takes less and less of them."""

from __future__ import annotations

import torch
from torch import Tensor


def checked_horizon(name: str, given: object, what: str = "horizon") -> int | None:
    """The horizon of a rule of that class, or another number of steps of it.

    Raises:
        ValueError: It is not a whole number >= 1.
    """
    if given is None:
        return None
    if not isinstance(given, int) or isinstance(given, bool) or given < 1:
        raise ValueError(f"{name}: {what} must be a whole number of steps >= 1, or None, got {given!r}")
    return given


def within(horizon: int, step: Tensor, dtype: torch.dtype) -> Tensor:
    """min(1, horizon / t): what a step counts for.

    Rates that fall as 1 / t are those of stochastic approximation (Robbins & Monro 1951): however noisy gradients are,
    what they do to the parameters dies out, and the parameters still get anywhere.

    Args:
        horizon: Steps, at least 1.
        step: t, from 1, 0-dimensional.
        dtype: Of the result.
    """
    return (horizon / step.to(dtype)).clamp(max=1.0)
