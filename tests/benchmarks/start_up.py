"""How long the import takes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from statistics import median
from typing import Any

from tests.benchmarks.measuring import Bar, Benchmark, Contender, Group, Setup, Timed

TITLE = "fresh processes"
TORCH, OURS = "import torch", "import learned_optim, after torch"


def seconds(module: str, after: str) -> Callable[[], Timed]:
    """Of an import in a fresh process that has imported something else before."""
    code = f"import {after}, time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"

    def call() -> Timed:
        out = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True).stdout
        return Timed(float(out), None)

    return call


def _groups(setup: Setup) -> dict[str, Group]:
    rows = [
        Contender(TORCH, partial(seconds, "torch", "sys"), slow_start=True),
        Contender(OURS, partial(seconds, "learned_optim", "torch")),
    ]
    return {TITLE: Group(rows, TORCH)}


def _bars(groups: Mapping[str, Any]) -> list[Bar]:
    rounds = groups[TITLE]["rows"].get(OURS, {}).get("rounds")
    return [Bar("seconds of import learned_optim beyond import torch", median(rounds) if rounds else None, 0.15)]


BENCHMARKS = {
    "import": Benchmark("`import learned_optim` in a process that has imported torch already.", _groups, _bars)
}
