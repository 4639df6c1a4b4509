"""The search for the best setting of a hand-designed optimizer."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TypeAlias

from learned_optim.race.entrants import Entrant
from learned_optim.race.training import Job, Run, final_losses

RunJobs: TypeAlias = Callable[[Sequence[Job]], Iterable[Run]]
"""Does jobs, and returns their runs in the same order."""

ROUNDS = 12
"""How often the search moves on: four decades of learning rates."""

_Point: TypeAlias = tuple[int, ...]
"""A setting, as places on the ladders."""


@dataclass(frozen=True)
class Trial:
    """A setting that was tried, and the mean of its final losses on the validation problems, or infinity."""

    setting: dict[str, float]
    loss: float


@dataclass(frozen=True)
class Tuning:
    """The outcome of a search and what it cost.

    Attributes:
        trials: All settings that were tried, in their order.
        inside: Whether the best has neighbours on every side, and all of them were tried. Where an option's best value
            is zero there is nothing beyond.
        runs: Training runs spent.
        steps: Their steps altogether.
        seconds: The wall-clock of these steps.
    """

    trials: tuple[Trial, ...]
    inside: bool
    runs: int
    steps: int
    seconds: float

    @property
    def best(self) -> Trial:
        """The trial with the lowest loss; the first of several."""
        return min(self.trials, key=lambda trial: trial.loss)


def tune(
    entrant: Entrant,
    run: RunJobs,
    *,
    steps: int,
    seeds: Sequence[int],
    window: int,
    rounds: int = ROUNDS,
    device: str | None = None,
) -> Tuning:
    """Finds the setting with the lowest mean final loss on validation problems.

    First the learning rates in ``entrant.scan`` are tried, with the other options at their defaults. Then, from the
    best setting so far, its neighbours are tried, until none of them is better: those that differ by one place in the
    learning rate, in one other option, or in both at once. So the best is inside what was tried wherever the first
    rates lay, learning rate and momentum move together as they must, and both cost some 20 settings instead of a full
    grid.

    Args:
        entrant: An optimizer with ladders.
        run: Trains.
        steps: Steps of each run.
        seeds: Validation seeds.
        window: The last steps whose mean loss counts. A setting with a loss among them that is not finite loses.
        rounds: How often to move on from the best at most.
        device: See `train`.
    """
    ladders = list(entrant.ladders.values())
    scores: dict[_Point, float] = {}
    seconds = 0.0
    wanted = _first(entrant)
    for _ in range(1 + rounds):
        new = [point for point in wanted if point not in scores]
        if not new:
            break
        jobs = [
            Job(entrant.make, _setting(entrant, point), steps, seed, "val", device) for point in new for seed in seeds
        ]
        runs = list(run(jobs))
        seconds += steps * sum(float(one.seconds) for one in runs)
        for i, point in enumerate(new):
            own = runs[i * len(seeds) : (i + 1) * len(seeds)]
            score = sum(float(final_losses(one.losses, window)) for one in own) / len(seeds)
            scores[point] = score if math.isfinite(score) else math.inf
        # Where everything diverges, the lowest rate is the one to move on from.
        best = min(scores, key=lambda point: (scores[point], point))
        wanted = _around(best, ladders)
    inside = all(point in scores for point in wanted) and all(
        0 < place < len(ladder) - 1 or ladder[place] == 0 for place, ladder in zip(best, ladders, strict=True)
    )
    trials = tuple(Trial(_setting(entrant, point), score) for point, score in scores.items())
    count = len(scores) * len(seeds)
    return Tuning(trials, inside, count, count * steps, seconds)


def _first(entrant: Entrant) -> list[_Point]:
    (_, ladder), *others = entrant.ladders.items()
    low, high = entrant.scan or (ladder[0], ladder[-1])
    start = tuple(values.index(entrant.setting[option]) for option, values in others)
    return [(place, *start) for place, value in enumerate(ladder) if low <= value <= high]


def _around(point: _Point, ladders: Sequence[tuple[float, ...]]) -> list[_Point]:
    near = [
        [near for near in (place - 1, place, place + 1) if 0 <= near < len(ladder)]
        for place, ladder in zip(point, ladders, strict=True)
    ]
    others = point[1:]
    return [new for new in product(*near) if sum(map(operator.ne, new[1:], others)) <= 1]


def _setting(entrant: Entrant, point: _Point) -> dict[str, float]:
    tuned = {option: ladder[place] for (option, ladder), place in zip(entrant.ladders.items(), point, strict=True)}
    return {**entrant.setting, **tuned}
