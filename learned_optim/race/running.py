"""A race from its entrants to its result."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from learned_optim.problems import ProblemFamily
from learned_optim.race.entrants import Entrant, entrant
from learned_optim.race.errors import RaceError
from learned_optim.race.families import problem_family
from learned_optim.race.result import FLOOR, Entry, RaceResult
from learned_optim.race.training import Job, MakeOptimizer, Run, final_losses, stacked, trailing_mean
from learned_optim.race.tuning import RunJobs, Tuning
from learned_optim.race.tuning import tune as search
from learned_optim.race.workers import workers
from learned_optim.seeds import seeded

Progress: TypeAlias = Callable[[str, int, int], None]
"""Told of ``(what, done, planned)`` after each training run; more are planned while the tuning goes on."""

POINTS = 100
"""Points of a curve at most."""

Optimizers: TypeAlias = Iterable[str | Entrant] | Mapping[str, str | Entrant | MakeOptimizer]


def race(
    problem: str | ProblemFamily,
    optimizers: Optimizers,
    *,
    steps: int = 200,
    seeds: int | Sequence[int] = 5,
    tune: bool = False,
    tuning_seeds: int | Sequence[int] = 3,
    tunings: Mapping[str, Tuning] | None = None,
    window: int | None = None,
    jobs: int = 1,
    device: str | None = None,
    progress: Progress | None = None,
    name: str | None = None,
    command: str = "",
) -> RaceResult:
    """Tunes the hand-designed optimizers on validation problems, then lets all run on the same test problems.

    Args:
        problem: A family of problems, or its name; see `problem_family`.
        optimizers: Names (see `entrant`) or `Entrant`s; or a mapping from names for the report to these, or to any
            ``make(params)`` that returns a ``torch.optim.Optimizer``, which counts as a learned optimizer.
        steps: Steps of each run.
        seeds: Test problems, each an initialisation and its batches: their number or their seeds.
        tune: Whether optimizers that can be tuned are; else they run with torch's defaults.
        tuning_seeds: Validation problems: their number or their seeds.
        tunings: By names of optimizers, what tuning them on these validation problems has found before; they are not
            tuned again.
        window: Final losses are means over so many last steps, in tuning and in the report; by default a tenth.
        jobs: Processes to train in. With more than one, what is not given by name must be picklable, and a script
            needs ``if __name__ == "__main__"``.
        device: Where problems are trained, such as ``"cuda"``; by default where they are.
        progress: Told of each finished run.
        name: Of the problem, for reports.
        command: What was run, for reports.

    Raises:
        RaceError: A value is out of range, there is no such problem or optimizer, or an optimizer cannot be made for
            the problem.
        CheckpointError: There is no such checkpoint.
        FileNotFoundError: Data of the problem are missing.

    >>> result = race("quadratics", ["sgd@0.01", "adam@0.1"], steps=20, seeds=2)
    >>> [entry.name for entry in result.entries]
    ['SGD@0.01', 'Adam@0.1']
    """
    _whole(steps=steps, jobs=jobs)
    test, validation = _seeds("seeds", seeds), _seeds("tuning_seeds", tuning_seeds)
    window = max(steps // 10, 1) if window is None else window
    _whole(window=window)
    if window > steps:
        raise RaceError(f"window must be at most steps, {steps}, got {window}")
    entrants = _entrants(optimizers)
    family = problem_family(problem) if isinstance(problem, str) else problem
    where, has_test = _tried(family, entrants, test[0])
    where = where if device is None else _device(device)

    count = _Count(progress, planned=len(entrants) * len(test))
    known, tunings = dict(tunings or {}), {}
    settings: dict[str, dict[str, float]] = {}
    runs: dict[str, Run] = {}
    with workers(family if jobs == 1 else problem, jobs) as run:
        for one in entrants:
            settings[one.name] = dict(one.setting)
            if tune and one.ladders:
                if one.name in known:
                    tunings[one.name] = known[one.name]
                else:
                    trials = count.planning(run, f"tuning {one.name}")
                    tunings[one.name] = search(one, trials, steps=steps, seeds=validation, window=window, device=device)
                settings[one.name] = tunings[one.name].best.setting
        for one in entrants:
            todo = [Job(one.make, settings[one.name], steps, seed, device=device) for seed in test]
            runs[one.name] = stacked(count.counting(run(todo), f"running {one.name}"))

    finals = {one.name: final_losses(runs[one.name].losses, window) for one in entrants if one.hand_designed}
    finals = {key: final for key, final in finals.items() if final.isfinite().all()}
    best = min(finals, key=lambda key: float(finals[key].mean())) if finals else None
    initial = next(iter(runs.values())).losses[:, 0]
    target = None if best is None else torch.maximum(finals[best], FLOOR * initial)
    smooth, marks = max(steps // 20, 1), _marks(steps)
    entries = []
    for one in entrants:
        losses, test_loss, seconds = runs[one.name]
        means = trailing_mean(losses, window)
        lost = ~losses.isfinite().all(dim=1)
        entries.append(
            Entry(
                name=one.name,
                hand_designed=one.hand_designed,
                setting=settings[one.name],
                tuning=tunings.get(one.name),
                curves=tuple(map(_rounded, trailing_mean(losses, smooth)[:, torch.tensor(marks) - 1])),
                final=_rounded(means[:, -1]),
                test=_rounded(test_loss) if has_test else None,
                diverged=tuple(torch.tensor(test)[lost].tolist()),
                steps_to_best=None if target is None else steps_to_reach(means, target),
                seconds_per_step=_rounded(seconds),
            )
        )
    return RaceResult(
        problem=name or (problem if isinstance(problem, str) else type(problem).__name__),
        command=command,
        steps=steps,
        seeds=test,
        tuning_seeds=validation if tunings else (),
        window=window,
        smooth=smooth,
        marks=marks,
        machine=_machine(where, jobs),
        initial=_rounded(initial),
        best=best,
        entries=tuple(entries),
    )


def steps_to_reach(smoothed: Tensor, target: Tensor) -> tuple[int | None, ...]:
    """For each seed the first step, counted from 1, at which its loss is no larger than its target; None for never.

    Args:
        smoothed: Losses, shape (seeds, steps).
        target: Shape (seeds,).
    """
    there = smoothed <= target.unsqueeze(1)  # (seeds, steps); a loss that is not a number never is
    return tuple(int(row.int().argmax()) + 1 if row.any() else None for row in there)


class _Count:
    """Counts runs and tells of them."""

    def __init__(self, progress: Progress | None, planned: int) -> None:
        self.progress, self.done, self.planned = progress, 0, planned

    def counting(self, runs: Iterable[Run], what: str) -> Iterator[Run]:
        for run in runs:
            self.done += 1
            if self.progress is not None:
                self.progress(what, self.done, self.planned)
            yield run

    def planning(self, run: RunJobs, what: str) -> RunJobs:
        def planned(todo: Sequence[Job]) -> Iterator[Run]:
            self.planned += len(todo)
            return self.counting(run(todo), what)

        return planned


def _entrants(optimizers: Optimizers) -> list[Entrant]:
    if isinstance(optimizers, str):
        raise RaceError(f"optimizers must be a list of names, got the string {optimizers!r}")
    if isinstance(optimizers, Mapping):
        named = [_named(name, given) for name, given in optimizers.items()]
    else:
        named = [entrant(given) if isinstance(given, str) else given for given in optimizers]
    if not named:
        raise RaceError("optimizers is empty: name at least one, such as adam or lstm:mnist-mlp")
    names = [one.name for one in named]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise RaceError(f"optimizers: {', '.join(twice)} is named more than once")
    return named


def _named(name: str, given: str | Entrant | MakeOptimizer) -> Entrant:
    if isinstance(given, str):
        given = entrant(given)
    if isinstance(given, Entrant):
        return Entrant(name, given.make, given.setting, given.ladders, given.scan, given.hand_designed)
    return Entrant(name, given, hand_designed=False)


def _tried(family: ProblemFamily, entrants: Iterable[Entrant], seed: int) -> tuple[torch.device, bool]:
    """Makes every optimizer once, so that one that does not fit fails before hours of tuning; the device of the
    problems, and whether they have a test loss."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        problem = family.sample(seeded("race", "test", seed))
        for one in entrants:
            params = [(name, p.clone().requires_grad_()) for name, p in problem.params.items()]
            try:
                one.make(params, **one.setting)
            except (TypeError, ValueError) as error:
                raise RaceError(f"{one.name} cannot be made for this problem: {error}") from error
        has_test = family.test_loss(problem.params) is not None
    return next(iter(problem.params.values())).device, has_test


def _device(name: str) -> torch.device:
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise RaceError(f"device must be one that there is here, got {name!r}: {str(error).splitlines()[0]}") from error


def _whole(**values: Any) -> None:
    for name, value in values.items():
        if not isinstance(value, int) or value < 1:
            raise RaceError(f"{name} must be a whole number >= 1, got {value!r}")


def _seeds(name: str, given: int | Sequence[int]) -> tuple[int, ...]:
    if isinstance(given, int):
        _whole(**{name: given})
        return tuple(range(given))
    seeds = tuple(given)
    if not seeds or len(set(seeds)) < len(seeds):
        raise RaceError(f"{name} must be different seeds, at least one, got {list(seeds)}")
    return seeds


def _marks(steps: int) -> tuple[int, ...]:
    count = min(steps, POINTS)
    return tuple(math.ceil(steps * (i + 1) / count) for i in range(count))


def _rounded(values: Tensor) -> tuple[float, ...]:
    """Six digits, which is what float32 losses have; so a table is the same before and after its file."""
    return tuple(float(f"{value:.6g}") for value in values.tolist())


def _machine(device: torch.device, jobs: int) -> dict[str, Any]:
    chip = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} {platform.machine()}"
    parts = {"torch": torch.__version__, "device": chip, "cores": os.cpu_count()}
    return {**parts, "threads": torch.get_num_threads(), "jobs": jobs}
