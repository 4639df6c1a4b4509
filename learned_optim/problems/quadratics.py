"""Random quadratic functions."""

from __future__ import annotations

import torch
from torch import Tensor

from learned_optim.problems.base import Problem, ProblemFamily
from learned_optim.types import Minibatch, Tensors


class Quadratics(ProblemFamily):
    """f(theta) = ||W theta - y||^2 with W and y drawn anew for each problem from a standard Gaussian.

    Args:
        size: Dimensions of theta and y.

    Source: Andrychowicz et al. 2016, section 3.1 (10 dimensions). theta_0 is standard Gaussian too, 0.1 times that
    in the authors' code.
    """

    def __init__(self, size: int = 10) -> None:
        self.size = size

    def sample(self, generator: torch.Generator) -> Problem:
        w = torch.randn(self.size, self.size, generator=generator)
        y = torch.randn(self.size, generator=generator)
        theta = torch.randn(self.size, generator=generator)
        return Problem({"theta": theta}, lambda _: (w, y))

    def loss(self, params: Tensors, batch: Minibatch) -> Tensor:
        w, y = batch
        residual: Tensor = w @ params["theta"] - y
        return residual.square().sum()
