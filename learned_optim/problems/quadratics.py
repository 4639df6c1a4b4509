"""Random quadratic functions."""

from __future__ import annotations

import torch
from torch import Tensor

from learned_optim.problems.base import Problem, ProblemFamily
from learned_optim.types import Minibatch, Tensors

DISTRIBUTIONS = ("gaussian", "uniform")


class Quadratics(ProblemFamily):
    """f(theta) = ||W theta - y||^2 with W and y drawn anew for each problem.

    Args:
        size: Dimensions of theta and y.
        distribution: ``"gaussian"``: W, y and theta_0 are standard Gaussian. ``"uniform"``: the entries of W and y are
            uniform in [0, 1) and those of theta_0 Gaussian with standard deviation 0.01.

    Raises:
        ValueError: ``size`` is not positive, or an unknown distribution.

    Source: Andrychowicz et al. 2016, section 3.1 (10 dimensions), which draws W and y from a Gaussian and leaves
    theta_0 open (from memory). ``"uniform"`` is what the authors' code draws
    (github.com/google-deepmind/learning-to-learn).
    """

    def __init__(self, size: int = 10, *, distribution: str = "gaussian") -> None:
        if size < 1:
            raise ValueError(f"Quadratics: size must be >= 1, got {size}")
        if distribution not in DISTRIBUTIONS:
            raise ValueError(f"Quadratics: unknown distribution {distribution!r}; there are {list(DISTRIBUTIONS)}")
        self.size = size
        self.distribution = distribution

    def sample(self, generator: torch.Generator) -> Problem:
        uniform = self.distribution == "uniform"
        draw = torch.rand if uniform else torch.randn
        w = draw(self.size, self.size, generator=generator)
        y = draw(self.size, generator=generator)
        theta = torch.randn(self.size, generator=generator)
        return Problem({"theta": 0.01 * theta if uniform else theta}, lambda _: (w, y))

    def loss(self, params: Tensors, batch: Minibatch) -> Tensor:
        w, y = batch
        residual: Tensor = w @ params["theta"] - y
        return residual.square().sum()
