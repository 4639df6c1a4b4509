"""A race as a table and as a picture."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from learned_optim.race.result import Entry, Interval, RaceResult
from learned_optim.race.tuning import Tuning

FEW = 4
"""Of fewer seeds than these the picture shows every one."""


def table(result: RaceResult) -> str:
    """A Markdown table with a line for each optimizer, aligned as text too; without columns in which nothing stands."""
    to_best = (f"ratio to {result.best}", f"steps to {result.best}'s", f"s to {result.best}'s")
    results = ("training loss", "test loss", *to_best, "ms/step")
    header = ("optimizer", "setting", *results, "tuning runs", "tuning steps", "tuning s")
    columns = zip(header, *(_row(result, entry) for entry in result.entries), strict=True)
    aligned = []
    for name, *cells in columns:
        if any(cells):
            width = max(map(len, (name, *cells)))
            aligned.append([cell.ljust(width) for cell in (name, "-" * width, *cells)])
    return "\n".join(f"| {' | '.join(line)} |" for line in zip(*aligned, strict=True))


def page(result: RaceResult) -> str:
    """The table with a heading, and below it what its numbers mean and what is to be known about the tuning."""
    seeds = f"{len(result.seeds)} test problem" + ("s" if len(result.seeds) > 1 else "")
    lines = [f"# Race on {result.problem}", ""]
    lines += [f"`{result.command}`", ""] if result.command else []
    lines += [table(result), "", *(f"- {note}" for note in _notes(result, seeds))]
    return "\n".join(lines) + "\n"


def _row(result: RaceResult, entry: Entry) -> tuple[str, ...]:
    ratio = result.ratio(entry)
    steps, seconds = entry.median_steps_to_best, entry.median_seconds_to_best
    if result.best is None:
        reached = ("", "")
    elif math.isfinite(steps):
        reached = (f"{steps:.4g}{_some(entry)}", f"{seconds:.2g}")
    else:
        reached = (f"more than {result.steps}{_some(entry)}" if entry.reached else "never", "")
    return (
        entry.name,
        _setting(entry.setting),
        _mean(Interval.of(entry.final)) + (f", {len(entry.diverged)} diverged" if entry.diverged else ""),
        _mean(Interval.of(entry.test)) if entry.test else "",
        "" if ratio is None else "1" if entry.name == result.best else _between(ratio),
        *reached,
        f"{1e3 * sum(entry.seconds_per_step) / len(entry.seconds_per_step):.2g}",
        *_cost(entry),
    )


def _some(entry: Entry) -> str:
    count = len(entry.final)
    return f" ({entry.reached} of {count} seeds)" if 0 < entry.reached < count else ""


def _cost(entry: Entry) -> tuple[str, str, str]:
    if entry.tuning is None:
        return ("untuned", "", "") if entry.hand_designed else ("0", "0", "0")
    return f"{entry.tuning.runs:,}", f"{entry.tuning.steps:,}", f"{entry.tuning.seconds:.2g}"


def _setting(setting: Mapping[str, float]) -> str:
    return ", ".join(f"{option} {value:g}" for option, value in setting.items())


def _mean(value: Interval) -> str:
    return f"{value.mean:.4g}" + (f" +- {value.high - value.mean:.2g}" if math.isfinite(value.high) else "")


def _between(value: Interval) -> str:
    return f"{value.mean:.3g}" + (f" [{value.low:.3g}, {value.high:.3g}]" if math.isfinite(value.high) else "")


def _notes(result: RaceResult, seeds: str) -> list[str]:
    last = "the last step" if result.window == 1 else f"the last {result.window} of {result.steps} steps"
    if len(result.seeds) > 1:
        notes = [
            f"Training loss: mean over {last}, on {seeds} that tuning has not seen; +- and "
            "brackets are 95 % intervals over the problems (Student's t)."
        ]
    else:
        notes = [f"Training loss: mean over {last}, on one test problem, so that there are no intervals."]
    if result.best is not None:
        notes += [
            f"{result.best} has the lowest training loss of the hand-designed optimizers on these very problems. "
            "Ratios to it are geometric means; losses below a thousandth of the initial loss count as that.",
            f"Steps and seconds are medians, until the mean over {result.window} steps is as low as "
            f"{result.best}'s at its end on the same problem; seconds leave evaluation out.",
        ]
    tuned = [_search(entry.name, entry.tuning) for entry in result.entries if entry.tuning is not None]
    untuned = [entry.name for entry in result.entries if entry.hand_designed and entry.tuning is None]
    if tuned:
        count = len(result.tuning_seeds)
        notes.append(f"Tuned on {count} other problem{'s' if count > 1 else ''}: " + "; ".join(tuned) + ".")
    if untuned:
        notes.append(f"Not tuned: {', '.join(untuned)}; a comparison with them says little.")
    machine = ", ".join(f"{key} {value}" for key, value in result.machine.items())
    return [*notes, f"Measured with {machine}."]


def _search(name: str, tuning: Tuning) -> str:
    where = "" if tuning.inside else ", and the best is not inside what was tried"
    return f"{name} among {len(tuning.trials)} settings{where}"


def draw(result: RaceResult, path: str | os.PathLike[str], *, title: str | None = None) -> None:
    """Draws the training loss of each optimizer as a PNG file; see `draw_curves`.

    Args:
        result: A race.
        path: The file.
        title: Of the picture; by default the problem's name.

    Raises:
        ImportError: matplotlib is not installed.
    """
    draw_curves(
        {entry.name: entry.curves for entry in result.entries},
        path,
        marks=result.marks,
        learned={entry.name for entry in result.entries if not entry.hand_designed},
        title=result.problem if title is None else title,
        ylabel="training loss" + (f" (mean of {result.smooth} steps)" if result.smooth > 1 else ""),
    )


def draw_curves(
    curves: Mapping[str, Sequence[Sequence[float]]],
    path: str | os.PathLike[str],
    *,
    marks: Sequence[int],
    learned: Collection[str] = (),
    title: str = "",
    ylabel: str = "training loss",
) -> None:
    """Draws the means of curves over seeds as a PNG file.

    Around each mean lies its 95 % interval; of fewer than four seeds, which would make it too wide to tell anything,
    each seed's own curve is drawn instead.

    Args:
        curves: By name for each seed the loss at ``marks``.
        path: The file.
        marks: Steps.
        learned: Names to set off by a thick line.
        title: Of the picture.
        ylabel: What the losses are.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    shown = []
    for name, seeds in curves.items():
        points = [Interval.of(values) for values in zip(*seeds, strict=True)]
        means = [point.mean if math.isfinite(point.mean) else math.nan for point in points]
        shown += [mean for mean in means if math.isfinite(mean)]
        bold = name in learned
        (line,) = axes.plot(marks, means, label=name, linewidth=2.5 if bold else 1.3, zorder=3 if bold else 2)
        colour = line.get_color()
        if len(seeds) < FEW:
            axes.plot(marks, list(zip(*seeds, strict=True)), color=colour, alpha=0.4, linewidth=0.6)
        else:
            low, high = [point.low for point in points], [point.high for point in points]
            axes.fill_between(marks, low, high, alpha=0.15, color=colour, linewidth=0)
    axes.set(xlabel="step", ylabel=ylabel, title=title)
    if shown and min(shown) > 0:
        first = max(seeds[0][0] for seeds in curves.values())
        bottom, top = min(shown) / 1.1, 1.1 * min(max(shown), 3 * first)
        axes.set(yscale="log", ylim=(bottom, top))
        axes.yaxis.set_major_formatter("{x:g}")
        # Between powers of ten there is room for numbers only where these are few.
        axes.yaxis.set_minor_formatter("{x:g}" if top < 20 * bottom else NullFormatter())
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
