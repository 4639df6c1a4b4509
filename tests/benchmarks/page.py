"""The page of results, made from the files beside it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tests.benchmarks import curves
from tests.benchmarks.measuring import Bar, quartiles, ratio
from tests.benchmarks.registry import BENCHMARKS

INTRODUCTION = """\
# Speed and memory

Made by `python -m tests.benchmarks --page` from the files beside this page. Contenders of a table were measured in
turns in one process: the median of their rounds with the quartiles, and the median over rounds of the ratio to the
contender in italics. *First call* is building, compiling and running once. *Difference* is the largest one between a
contender's result and that of the first in the table that has one, relative to its largest entry. *Peak* is how much
the resident memory grows in a call, in a fresh process after a first call. Freed memory is kept for the next call (see
[the documentation](../../README.md)), for all contenders alike.
"""


def load(folder: Path) -> dict[str, Any]:
    """The measurements in a folder by name, in the order of the benchmarks."""
    files = {name: folder / f"{name}.json" for name in BENCHMARKS}
    return {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}


def page(measurements: Mapping[str, Any]) -> str:
    """The page as Markdown."""
    bars = {name: _bars(name, measurement) for name, measurement in measurements.items()}
    parts = [INTRODUCTION, _table(("bar", "measured", "claimed", "met"), _summary(bars))]
    for name, measurement in measurements.items():
        machine = measurement["machine"]
        where = (
            f"{machine['chip']}, {machine['cores']} cores, {machine['threads']} threads, Python {machine['python']}, "
            f"torch {machine['torch']}"
        )
        head = f"## {name}\n\n{BENCHMARKS[name].about}\n\n`{measurement['command']}`; {where}.\n"
        parts += [head, *(_group(title, group) for title, group in measurement["groups"].items())]
        if measurement["facts"]:
            parts.append(_table(("number", "value"), [(text, f"{v:g}") for text, v in measurement["facts"].items()]))
        if name == "curves":
            rows = [
                (title, _number(whole), _number(last)) for title, whole, last in curves.slopes(measurement["groups"])
            ]
            parts += [_table(("cost over", "slope", "of the last three points"), rows), "![Curves](curves.png)\n"]
    return "\n".join(parts)


def _bars(name: str, measurement: Mapping[str, Any]) -> list[Bar]:
    benchmark = BENCHMARKS[name]
    return [*benchmark.bars(measurement["groups"]), *benchmark.fact_bars(measurement["facts"])]


def _summary(bars: Mapping[str, Iterable[Bar]]) -> list[tuple[str, ...]]:
    words = {True: "yes", False: "**no**", None: "not measured"}
    return [
        (
            f"[{name}](#{name}): {bar.text}",
            _number(bar.value),
            f"at {'most' if bar.at_most else 'least'} {bar.bound:g}",
            words[bar.met],
        )
        for name, own in bars.items()
        for bar in own
    ]


def _group(title: str, group: Mapping[str, Any]) -> str:
    reference, rows = group["reference"], group["rows"]
    keys = [key for key in ("first_call", "difference", "peak") if any(key in row for row in rows.values())]
    heads = {"first_call": "first call", "difference": "difference", "peak": "peak"}
    shown = {"first_call": _seconds, "difference": lambda value: f"{value:.0e}", "peak": _bytes}
    lines = []
    for name, row in rows.items():
        label = f"*{name}*" if name == reference else name
        low, middle, high = (_seconds(value) for value in quartiles(row["rounds"]))
        cells = [label, f"{middle} ({low} to {high})", str(len(row["rounds"]))]
        if reference:
            cells.append(_number(ratio(group, name, reference)))
        lines.append((*cells, *(shown[key](row[key]) if key in row else "" for key in keys)))
    head = [title, "time", "rounds", *(["ratio"] if reference else []), *(heads[key] for key in keys)]
    absent = [f"{name} did not take part: {reason.rstrip('.')}.\n" for name, reason in group["missing"].items()]
    return "\n".join([_table(head, lines), *absent])


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    columns = list(head)
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def _seconds(value: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if value >= 0.9995 * size:
            return f"{value / size:.3g} {unit}" if value < 999.5 else f"{value:,.0f} s"
    return f"{value * 1e6:.3g} µs"


def _bytes(value: float) -> str:
    return f"{value / 2**20:,.1f} MiB"
