"""What an optimizer is trained and tested on: families of problems."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from learned_optim.types import Minibatch, Tensors


class Problem(NamedTuple):
    """One problem: a start and a stream of batches.

    Attributes:
        params: theta_0 by name.
        batch: ``batch(generator)`` draws one minibatch: tensors, or tuples and dicts of them.
    """

    params: Tensors
    batch: Callable[[torch.Generator], Minibatch]


class ProblemFamily(ABC):
    """A distribution of problems that share the shapes of their parameters and one loss function.

    Sharing them lets several problems be stacked and run at once with vmap.
    """

    @abstractmethod
    def sample(self, generator: torch.Generator) -> Problem:
        """Draws a problem: the same one for a generator in the same state."""

    @abstractmethod
    def loss(self, params: Tensors, batch: Minibatch) -> Tensor:
        """The loss of ``params`` on a batch, a scalar; pure."""

    def test_loss(self, params: Tensors) -> Tensor | None:
        """The loss on data that no batch holds, where the family has such data."""
        return None

    def to(self, device: torch.device | str) -> None:
        """Moves what data the family holds, so that batches need no copying from one device to another.

        Problems stay the same, and are drawn on the CPU; whoever runs them moves parameters and batches.
        """
        return  # a family may hold none


class Families(tuple[ProblemFamily, ...]):
    """Several families, as what a function makes that configuration files name."""
