"""Few-shot regression on sine waves."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from meta_init.tasks import Batch, Task


class Waves(NamedTuple):
    """y = A sin(w x + b): amplitude, frequency and phase, shape (T, 1, 1) each for T waves."""

    amplitude: Tensor
    frequency: Tensor
    phase: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Values at x, shape (T, K, 1)."""
        return self.amplitude * torch.sin(self.frequency * x + self.phase)


_PI = math.pi

CONVENTIONS: dict[str, dict[str, tuple[float, float]]] = {
    # Finn et al. 2017: y = A sin(x - phase).
    "maml": {"amplitude": (0.1, 5.0), "frequency": (1.0, 1.0), "phase": (-_PI, 0.0)},
    # Li et al. 2017.
    "meta_sgd": {"amplitude": (0.1, 5.0), "frequency": (0.8, 1.2), "phase": (0.0, _PI)},
    # EE807, lecture 17: y = A sin(w x).
    "lecture": {"amplitude": (0.1, 5.0), "frequency": (0.0, _PI), "phase": (0.0, 0.0)},
}
"""The ranges from which each convention draws uniformly."""


class Sinusoids:
    """Tasks of fitting one wave from ``shots`` points; x is uniform in [-5, 5].

    Args:
        convention: ``"maml"``: y = A sin(x - b) with A in [0.1, 5], b in [0, pi]. ``"meta_sgd"``: y = A sin(w x + b),
            also w in [0.8, 1.2]. ``"lecture"``: y = A sin(w x), w in [0, pi].
        shots: K, points in the support set.
        queries: Points in the query set; by default K, as in the released code of MAML.

    Raises:
        ValueError: An unknown convention, or a count below 1.

    Source: Finn et al. 2017, section 5.1; Li et al. 2017, section 4.1.
    """

    def __init__(self, convention: str = "maml", *, shots: int = 10, queries: int | None = None) -> None:
        if convention not in CONVENTIONS:
            raise ValueError(f"Sinusoids: unknown convention {convention!r}; there are {sorted(CONVENTIONS)}")
        queries = shots if queries is None else queries
        if shots < 1 or queries < 1:
            raise ValueError(f"Sinusoids: shots and queries must be >= 1, got {shots} and {queries}")
        self.convention, self.shots, self.queries = convention, shots, queries

    def waves(self, count: int, generator: torch.Generator) -> Waves:
        """Draws ``count`` waves."""
        ranges = CONVENTIONS[self.convention]
        return Waves(*(_uniform(ranges[part], (count, 1, 1), generator) for part in Waves._fields))

    def sample(self, count: int, generator: torch.Generator) -> Task:
        """Draws ``count`` tasks: x and y of shape (count, K, 1)."""
        return self.sample_with_waves(count, generator)[0]

    def sample_with_waves(self, count: int, generator: torch.Generator) -> tuple[Task, Waves]:
        """The tasks of `sample`, and the waves that they are taken from."""
        waves = self.waves(count, generator)
        x = _uniform((-5.0, 5.0), (count, self.shots + self.queries, 1), generator)
        y, k = waves(x), self.shots
        return Task(Batch(x[:, :k], y[:, :k]), Batch(x[:, k:], y[:, k:])), waves


def _uniform(bounds: tuple[float, float], shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return bounds[0] + (bounds[1] - bounds[0]) * torch.rand(shape, generator=generator)
