"""Functions that are hard in ways of their own: badly conditioned bowls, bent valleys."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from learned_optim.problems.base import Problem, ProblemFamily
from learned_optim.types import Minibatch, Tensors


def log_uniform(bounds: tuple[float, float], shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Numbers whose logarithm is uniform between those of the ``bounds``."""
    low, high = (math.log(bound) for bound in bounds)
    return torch.exp(low + (high - low) * torch.rand(shape, generator=generator))


def check_range(bounds: tuple[float, float], what: str) -> tuple[float, float]:
    """The bounds of `log_uniform`, as a tuple.

    Raises:
        ValueError: They are not two positive numbers in ascending order.
    """
    if len(bounds) != 2 or not 0 < bounds[0] <= bounds[1] < math.inf:
        raise ValueError(f"{what} must be (low, high) with 0 < low <= high, got {tuple(bounds)}")
    return bounds[0], bounds[1]


class Bowls(ProblemFamily):
    """f(theta) = 1/2 sum_i lambda_i (Q (theta - optimum))_i^2: quadratics of a chosen condition.

    The curvatures lambda_i fall from 1 to 1/condition in equal ratios; the condition, the rotation Q, the optimum and
    theta_0 are drawn for each problem, the last two from a standard Gaussian.

    Args:
        size: Dimensions of theta, at least 2.
        condition: Range of lambda_1 / lambda_n, log-uniform.
        rotated: Whether there is a rotation; without it the coordinates are independent.

    Raises:
        ValueError: ``size`` is below 2, or the range is not (low, high) with 1 <= low <= high.

    Source: in the spirit of Wichrowska et al. 2017, section 4, and their code, whose bowl has two dimensions, a
    condition and an angle given in advance, and its optimum at 0.
    """

    def __init__(self, size: int = 10, *, condition: tuple[float, float] = (1.0, 1e4), rotated: bool = True) -> None:
        if size < 2:
            raise ValueError(f"Bowls: size must be >= 2, got {size}")
        self.condition = check_range(condition, "Bowls: condition")
        if self.condition[0] < 1:
            raise ValueError(f"Bowls: condition must be >= 1, got {self.condition}")
        self.size, self.rotated = size, rotated

    def sample(self, generator: torch.Generator) -> Problem:
        condition = log_uniform(self.condition, (), generator)
        root = condition ** (-torch.linspace(0, 0.5, self.size))  # (n,): square roots of the curvatures
        matrix = torch.diag(root)
        if self.rotated:
            matrix = matrix @ torch.linalg.qr(torch.randn(self.size, self.size, generator=generator)).Q
        optimum = torch.randn(self.size, generator=generator)
        theta = torch.randn(self.size, generator=generator)
        return Problem({"theta": theta}, lambda _: (matrix, optimum))

    def loss(self, params: Tensors, batch: Minibatch) -> Tensor:
        matrix, optimum = batch
        distance: Tensor = matrix @ (params["theta"] - optimum)
        return 0.5 * distance.square().sum()


class Rosenbrock(ProblemFamily):
    """f(theta) = sum_i a (z_{i+1} - z_i^2)^2 + (1 - z_i)^2 with z = theta - shift: a bent valley with flat ground.

    Steepness and shift are drawn for each problem, so that no optimizer can learn where the minimum is.

    Args:
        size: Dimensions of theta, at least 2.
        steepness: Range of a, log-uniform; 100 in the classical function.

    theta_0 and the shift are standard Gaussian.

    Raises:
        ValueError: ``size`` is below 2, or the range makes no sense.

    Source: Rosenbrock 1960; Wichrowska et al. 2017 have the function in two dimensions, not shifted (from memory).
    """

    def __init__(self, size: int = 2, *, steepness: tuple[float, float] = (1.0, 100.0)) -> None:
        if size < 2:
            raise ValueError(f"Rosenbrock: size must be >= 2, got {size}")
        self.size = size
        self.steepness = check_range(steepness, "Rosenbrock: steepness")

    def sample(self, generator: torch.Generator) -> Problem:
        steepness = log_uniform(self.steepness, (), generator)
        shift = torch.randn(self.size, generator=generator)
        theta = torch.randn(self.size, generator=generator)
        return Problem({"theta": theta}, lambda _: (steepness, shift))

    def loss(self, params: Tensors, batch: Minibatch) -> Tensor:
        steepness, shift = batch
        z = params["theta"] - shift
        valley = (z[1:] - z[:-1].square()).square()  # (n - 1,)
        out: Tensor = (steepness * valley + (1 - z[:-1]).square()).sum()
        return out
