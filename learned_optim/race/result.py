"""What a race came to: the numbers of every seed, their means and intervals, and the file that keeps them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import NormalDist, median
from typing import Any, NamedTuple

from learned_optim.data import write_atomically
from learned_optim.race.errors import RaceError
from learned_optim.race.tuning import Trial, Tuning

FORMAT = "learned_optim.race"
FLOOR = 1e-3
"""What losses are floored at before they are compared, in units of the initial loss."""


class Interval(NamedTuple):
    """A mean over seeds and its 95 % confidence interval; with a single seed, or where a value is not finite, the
    ends are NaN."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Interval:
        """By Student's t distribution, which allows for the spread being guessed from few values."""
        count = len(values)
        mean = sum(values) / count
        if count == 1 or not math.isfinite(mean):
            return cls(mean, math.nan, math.nan)
        variance = sum((value - mean) ** 2 for value in values) / (count - 1)
        half = student(count - 1) * math.sqrt(variance / count)
        return cls(mean, mean - half, mean + half)


_STUDENT = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)


def student(freedom: int) -> float:
    """The 97.5 % point of Student's t distribution with so many degrees of freedom, to three decimals.

    Source: beyond 10 the expansion of Abramowitz & Stegun 1964, 26.7.5.
    """
    if freedom <= len(_STUDENT):
        return _STUDENT[freedom - 1]
    z = NormalDist().inv_cdf(0.975)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


@dataclass(frozen=True)
class Entry:
    """One optimizer in a race. Sequences over seeds have the order of ``RaceResult.seeds``.

    Attributes:
        name: Its name.
        hand_designed: Whether learned optimizers are compared with it.
        setting: The options it ran with; empty for a learned optimizer.
        tuning: How they were found; None where they were not tuned.
        curves: For each seed the smoothed training loss at ``RaceResult.marks``.
        final: Training loss, the mean over the last ``RaceResult.window`` steps.
        test: Loss on held-out data after the last step; None where the family has none.
        diverged: The seeds with a training loss that is not finite.
        steps_to_best: Steps until the mean over the last ``window`` steps (at the start, over those there are) is no
            larger than the best baseline's final loss on the same seed, floored as in `RaceResult.ratio`; None for
            never, and in its place where there is no such baseline.
        seconds_per_step: Wall-clock, batches included, evaluation not.
    """

    name: str
    hand_designed: bool
    setting: dict[str, float]
    tuning: Tuning | None
    curves: tuple[tuple[float, ...], ...]
    final: tuple[float, ...]
    test: tuple[float, ...] | None
    diverged: tuple[int, ...]
    steps_to_best: tuple[int | None, ...] | None
    seconds_per_step: tuple[float, ...]

    @property
    def reached(self) -> int:
        """On how many seeds the best baseline's final loss was reached."""
        return sum(steps is not None for steps in self.steps_to_best or ())

    @property
    def median_steps_to_best(self) -> float:
        """Median over seeds of the steps to the best baseline's final loss, where never counts as infinite."""
        return median(math.inf if steps is None else steps for steps in self.steps_to_best or (None,))

    @property
    def median_seconds_to_best(self) -> float:
        """The same in seconds of the same runs."""
        if self.steps_to_best is None:
            return math.inf
        pairs = zip(self.steps_to_best, self.seconds_per_step, strict=True)
        return median(math.inf if steps is None else steps * seconds for steps, seconds in pairs)


@dataclass(frozen=True)
class RaceResult:
    """A race: everything that its table and its picture show.

    Attributes:
        problem: Its name.
        command: What was run; empty for a race from Python.
        steps: Steps of each run.
        seeds: Of the test problems.
        tuning_seeds: Of the validation problems; empty where nothing was tuned.
        window: Final losses are means of so many steps.
        smooth: Points of curves are means of so many steps.
        marks: The steps, counted from 1, at which these means end.
        machine: Where it ran.
        initial: For each seed the first training loss, the same for all optimizers.
        best: The hand-designed optimizer with the lowest mean final loss on the test problems; None without one.
        entries: In the order in which they were named.
    """

    problem: str
    command: str
    steps: int
    seeds: tuple[int, ...]
    tuning_seeds: tuple[int, ...]
    window: int
    smooth: int
    marks: tuple[int, ...]
    machine: dict[str, Any]
    initial: tuple[float, ...]
    best: str | None
    entries: tuple[Entry, ...]

    def entry(self, name: str) -> Entry:
        """The entry of a name.

        Raises:
            KeyError: There is none.
        """
        for entry in self.entries:
            if entry.name == name:
                return entry
        raise KeyError(name)

    def tunings(self, *, steps: int, tuning_seeds: Sequence[int]) -> dict[str, Tuning]:
        """What tuning has found, by names of optimizers, for `race` to take over; nothing where runs of other lengths
        or other problems were tuned on."""
        if (self.steps, self.tuning_seeds) != (steps, tuple(tuning_seeds)):
            return {}
        return {entry.name: entry.tuning for entry in self.entries if entry.tuning is not None}

    def ratio(self, entry: Entry) -> Interval | None:
        """Final loss in units of the best baseline's, geometric mean over seeds, with its interval.

        Both losses are floored at a thousandth of the initial loss of their seed, so that no ratio is made of losses
        that are as good as zero. A run that is not finite makes it infinite. None without a baseline, and where an
        initial loss is not positive.
        """
        if self.best is None or not all(loss > 0 for loss in self.initial):
            return None
        logs = self.log_ratios(entry, self.entry(self.best))
        mean, low, high = Interval.of(logs)
        return Interval(math.exp(mean), math.exp(low), math.exp(high))

    def log_ratios(self, entry: Entry, to: Entry, *, ceiling: float = math.inf) -> list[float]:
        """For each seed the logarithm of an entry's final loss over another's.

        Args:
            entry: Whose loss is above the line.
            to: Whose loss is below it.
            ceiling: In units of the initial loss, what a final loss counts as at most, and one that is not finite.

        Returns:
            Logarithms; both losses are floored as in `ratio`.

        Raises:
            ValueError: An initial loss is not positive.
        """
        return [
            math.log(_bounded(own, start, ceiling)) - math.log(_bounded(other, start, ceiling))
            for own, other, start in zip(entry.final, to.final, self.initial, strict=True)
        ]

    def to_json(self) -> dict[str, Any]:
        """As JSON values: all fields, numbers that are not finite as strings, and a summary of means and intervals."""
        summary = {
            entry.name: {
                "final": _six_digits(Interval.of(entry.final)),
                "test": _six_digits(Interval.of(entry.test)) if entry.test else None,
                "ratio": _six_digits(ratio) if (ratio := self.ratio(entry)) else None,
                "steps_to_best": entry.median_steps_to_best if self.best else None,
                "seconds_to_best": entry.median_seconds_to_best if self.best else None,
                "curve": [_six_digits(Interval.of(values)) for values in zip(*entry.curves, strict=True)],
            }
            for entry in self.entries
        }
        written: dict[str, Any] = _plain({"format": FORMAT, **asdict(self), "summary": summary})
        return written

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes `to_json` to a file, atomically; `load_result` reads it."""
        write_atomically(path, (json.dumps(self.to_json()) + "\n").encode())


def load_result(path: str | os.PathLike[str]) -> RaceResult:
    """Reads what `RaceResult.save` wrote.

    Raises:
        RaceError: It is no such file.
    """
    try:
        record = json.loads(Path(path).read_bytes())
        if record["format"] != FORMAT:
            raise ValueError(f"its format is {record['format']!r}")
        return _result(record)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RaceError(f"{path} holds no race ({type(error).__name__}: {error})") from error


def _bounded(loss: float, initial: float, ceiling: float) -> float:
    return min(max(loss, FLOOR * initial), ceiling * initial) if math.isfinite(loss) else ceiling * initial


def _six_digits(interval: Interval) -> dict[str, float]:
    return {end: float(f"{value:.6g}") for end, value in interval._asdict().items()}


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no word for it
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def _numbers(values: Sequence[Any]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def _result(record: Mapping[str, Any]) -> RaceResult:
    own = {name: record[name] for name in RaceResult.__dataclass_fields__}
    own |= {name: tuple(own[name]) for name in ("seeds", "tuning_seeds", "marks")}
    own |= {"initial": _numbers(own["initial"]), "entries": tuple(map(_entry, own["entries"]))}
    return RaceResult(**own)


def _entry(record: Mapping[str, Any]) -> Entry:
    own = {name: record[name] for name in Entry.__dataclass_fields__}
    own |= {name: _numbers(own[name]) for name in ("final", "seconds_per_step")}
    own |= {
        "curves": tuple(map(_numbers, own["curves"])),
        "test": None if own["test"] is None else _numbers(own["test"]),
        "tuning": None if own["tuning"] is None else _tuning(own["tuning"]),
        "diverged": tuple(own["diverged"]),
        "steps_to_best": None if own["steps_to_best"] is None else tuple(own["steps_to_best"]),
    }
    return Entry(**own)


def _tuning(record: Mapping[str, Any]) -> Tuning:
    trials = tuple(Trial(trial["setting"], float(trial["loss"])) for trial in record["trials"])
    return Tuning(**{**record, "trials": trials})
