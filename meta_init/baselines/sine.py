"""The oracle of sine waves: a network that is told which wave it is to draw."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from meta_init.baselines.pretrain import Pooled, pretrained_on_all
from meta_init.sinusoids import CONVENTIONS, Sinusoids, Waves
from meta_init.tasks import Batch, Task


class OracleSinusoids:
    """The tasks of a `Sinusoids`, with the wave's parameters beside every x.

    x becomes (x, parameters): those of amplitude A, frequency w and phase b in y = A sin(w x + b) that the convention
    draws, in this order. A generator in the same state gives the same waves and points as ``waves.sample``.

    Args:
        waves: Which tasks.

    Attributes:
        names: The parameters told, such as ``("amplitude", "phase")`` for ``"maml"``.

    Source: Finn et al. 2017, section 5.1, the oracle. Deviation: its released code tells the phase of sin(x - phase),
    here it is that of sin(x + phase), its negative.
    """

    def __init__(self, waves: Sinusoids) -> None:
        ranges = CONVENTIONS[waves.convention]
        self.names = tuple(name for name in Waves._fields if ranges[name][0] < ranges[name][1])
        self.waves = waves

    @property
    def inputs(self) -> int:
        """The size of an input: x and the parameters."""
        return 1 + len(self.names)

    def sample(self, count: int, generator: torch.Generator) -> Task:
        """Draws ``count`` tasks: x of shape (count, K, inputs), y of shape (count, K, 1)."""
        (support, query), waves = self.waves.sample_with_waves(count, generator)
        told = [getattr(waves, name) for name in self.names]
        return Task(_beside(support, told), _beside(query, told))


def _beside(batch: Batch, told: list[Tensor]) -> Batch:
    return Batch(torch.cat([batch.x, *(one.expand_as(batch.x) for one in told)], -1), batch.y)


def oracle(inputs: int, *, hidden: int = 40) -> Pooled:
    """The network of `sine_mlp` with more inputs, trained on all tasks of an `OracleSinusoids`.

    It knows the task and does not adapt: its steps are of size 0, so that every column of ``evaluate(tasks)`` is alike.

    Args:
        inputs: ``OracleSinusoids(...).inputs``.
        hidden: Units of each of the two hidden layers.

    Source: see `OracleSinusoids`.

    >>> learner = oracle(OracleSinusoids(Sinusoids("maml")).inputs)
    """
    model = nn.Sequential(
        nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1)
    )
    return pretrained_on_all(model, lr=0.0)
