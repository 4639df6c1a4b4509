"""How cost grows with tasks, inner steps and parameters."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from tests.benchmarks.measuring import Benchmark, Contender, Group, Missing, Setup
from tests.benchmarks.meta_gradients import ours, sine
from tests.benchmarks.optimizer_step import lstm, parameters, step

TASKS, STEPS, PARAMETERS = "tasks", "inner steps", "parameters"
POINTS = {
    TASKS: (1, 4, 16, 64, 256, 1024),
    STEPS: (1, 2, 5, 10, 20, 50, 100),
    PARAMETERS: (10**3, 10**4, 10**5, 10**6, 10**7),
}
BYTES = 1600
"""For a parameter at most: its state and what a step takes besides."""


def _step(coordinates: int, *, device: str) -> Callable[[], Any]:
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if device == "cpu" and coordinates * BYTES > available:
        raise Missing(f"The step of {coordinates:,} parameters may not fit into {available / 2**30:.0f} GiB.")
    return step(partial(lstm, device=device), parameters(coordinates, device=device))


def _groups(setup: Setup) -> dict[str, Group]:
    device = setup.device
    makers: dict[str, Callable[[int], Callable[[], Any]]] = {
        TASKS: lambda n: ours(sine(tasks=n, device=device)),
        STEPS: lambda n: ours(sine(steps=n, device=device)),
        PARAMETERS: partial(_step, device=device),
    }
    groups = {}
    for title, make in makers.items():
        points = POINTS[title][:2] if setup.quick else POINTS[title]
        # Each point is a problem of its own, so that there is nothing to compare.
        groups[title] = Group([Contender(str(n), lambda n=n, make=make: _alone(make(n))) for n in points])
    return groups


def _alone(call: Callable[[], Any]) -> Callable[[], None]:
    def without_result() -> None:
        call()

    return without_result


def points(group: Mapping[str, Any]) -> tuple[list[int], list[float]]:
    """Sizes and median seconds."""
    rows = group["rows"]
    return [int(name) for name in rows], [median(row["rounds"]) for row in rows.values()]


def slope(sizes: list[int], seconds: list[float]) -> float | None:
    """Of the line through the logarithms: 1 where cost is proportional to size. None for fewer than two points."""
    if len(sizes) < 2:
        return None
    x, y = ([math.log(value) for value in values] for values in (sizes, seconds))
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    moment = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return moment / sum((a - mean_x) ** 2 for a in x)


def slopes(groups: Mapping[str, Any]) -> list[tuple[str, float | None, float | None]]:
    """Title, slope of the whole curve and that of its last three points, where overhead counts least."""
    curves = [(title, *points(group)) for title, group in groups.items()]
    return [(title, slope(x, y), slope(x[-3:], y[-3:])) for title, x, y in curves]


def draw(groups: Mapping[str, Any], path: Path) -> None:
    """One panel a curve, both axes logarithmic."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.4), layout="constrained")
    panels = figure.subplots(1, len(groups), squeeze=False)[0]
    for axes, (title, whole, last), group in zip(panels, slopes(groups), groups.values(), strict=True):
        x, y = points(group)
        axes.loglog(x, [1000 * seconds for seconds in y], "o-")
        shown = ["-" if value is None else f"{value:.2f}" for value in (whole, last)]
        axes.set(xlabel=title, ylabel="ms", title=f"slope {shown[0]}, at the end {shown[1]}")
        axes.grid(visible=True, alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


BENCHMARKS = {
    "curves": Benchmark(
        "The eager meta-gradient of MAML on sine waves (10-shot; 25 tasks and one inner step where these do not vary) "
        "and the eager step of the LSTM optimizer on one tensor.",
        _groups,
    )
}
