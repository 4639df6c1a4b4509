"""Contenders measured in turns: what else the machine does meets all of them, and ratios are those of a round."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median, quantiles
from typing import Any, NamedTuple

import torch

ROUNDS = 100
"""At most so many; slow contenders take part in fewer, the first ones."""
FEWEST_ROUNDS = 3
SECONDS = 8.0
"""What one contender may take in all, beyond its fewest rounds."""
SAMPLE = 0.01
"""Calls are repeated until they take so many seconds, because clocks and the machine jitter."""
TOLERANCE = 1e-2
"""Results that differ by more than this share of their largest entry are not of the same function. In float32 a ReLU
that rounding tips over makes 1e-3, where the same in float64 agrees to 1e-14."""

KEEPING = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 32)}
"""Freed memory is kept for the next call, as the documentation recommends; for all contenders alike (glibc)."""
RETURNING = {"MALLOC_MMAP_THRESHOLD_": str(1 << 16), "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_ARENA_MAX": "1"}
"""Freed memory goes back to the system at once, so that what is resident is what is in use (glibc)."""


class Setup(NamedTuple):
    """How to measure.

    Attributes:
        quick: Everything tiny, and no contender that takes long to start.
        peers: Whether other packages take part.
        device: Of the torch contenders.
        seconds: What one contender may take in all, beyond its fewest rounds.
    """

    quick: bool = False
    peers: bool = True
    device: str = "cpu"
    seconds: float = SECONDS


class Missing(Exception):
    """A contender cannot take part; the message is a sentence that says why."""


class Timed(NamedTuple):
    """The result of a call that has measured itself, because only a part of it counts.

    Attributes:
        seconds: For one iteration.
        result: What is compared.
    """

    seconds: float
    result: Any


class Contender(NamedTuple):
    """One way to compute something.

    Attributes:
        name: In tables.
        build: Prepares, and returns what is measured: a function whose result is a tree of arrays, equal for all
            contenders of a group in its first call, or None. ImportError or `Missing`: it does not take part.
        slow_start: Leaves it out of quick runs.
        peer: Whether it is of another package.
        memory: Whether its peak memory is measured, too.
    """

    name: str
    build: Callable[[], Callable[[], Any]]
    slow_start: bool = False
    peer: bool = False
    memory: bool = False


class Group(NamedTuple):
    """Contenders that are measured in turns.

    Attributes:
        contenders: Of which the first that returns a result is what the others are compared with.
        reference: The contender that the ratios of the table are against.
    """

    contenders: Sequence[Contender]
    reference: str | None = None


class Bar(NamedTuple):
    """A claim.

    Attributes:
        text: Of what.
        value: None where it could not be measured.
        bound: Of the value.
        at_most: Whether it is an upper bound.
    """

    text: str
    value: float | None
    bound: float
    at_most: bool = True

    @property
    def met(self) -> bool | None:
        """None where it could not be measured."""
        if self.value is None:
            return None
        return self.value <= self.bound if self.at_most else self.value >= self.bound


class Benchmark(NamedTuple):
    """Groups of contenders, and what is claimed of them.

    Attributes:
        about: What is measured, in a sentence or two.
        groups: By title.
        bars: Of the measured groups, see `measured`.
        facts: Numbers beside the times and peaks, by text.
        fact_bars: What is claimed of these.
        device: Where it is measured by default.
    """

    about: str
    groups: Callable[[Setup], dict[str, Group]]
    bars: Callable[[Mapping[str, Any]], list[Bar]] = lambda groups: []
    facts: Callable[[Setup], dict[str, float]] = lambda setup: {}
    fact_bars: Callable[[Mapping[str, float]], list[Bar]] = lambda facts: []
    device: str = "cpu"


def measured(group: Group, setup: Setup, *, peak: Callable[[Contender], float | None]) -> dict[str, Any]:
    """One group as JSON: for each contender its rounds in seconds, first call, difference and peak memory in bytes.

    Args:
        group: The contenders.
        setup: How.
        peak: Measures a contender's peak memory.

    Raises:
        ValueError: Contenders do not compute the same.
    """
    rows: dict[str, Any] = {}
    missing: dict[str, str] = {}
    calls: dict[str, Callable[[], Any]] = {}
    expected: torch.Tensor | None = None
    for contender in group.contenders:
        if (setup.quick and contender.slow_start) or (contender.peer and not setup.peers):
            continue
        row: dict[str, Any] = {}
        try:
            start = time.perf_counter()
            call = contender.build()
            result = _result(call())
            _wait(setup)
            row["first_call"] = _rounded(time.perf_counter() - start)
            if result is not None:
                expected = result if expected is None else expected
                row["difference"] = _rounded(_difference(result, expected, contender.name))
            if contender.memory and not setup.quick:
                row["peak"] = peak(contender)
        except (ImportError, Missing) as error:
            missing[contender.name] = str(error)
            continue
        rows[contender.name], calls[contender.name] = row, call
    for name, samples in _in_turns(calls, setup).items():
        rows[name]["rounds"] = samples
    return {"reference": group.reference, "rows": rows, "missing": missing}


def _in_turns(calls: Mapping[str, Callable[[], Any]], setup: Setup) -> dict[str, list[float]]:
    rounds, repeats = {}, {}
    for name, call in calls.items():
        if setup.quick:
            repeats[name] = rounds[name] = 1
            continue
        start = time.perf_counter()
        call()
        _wait(setup)
        elapsed = time.perf_counter() - start
        repeats[name] = max(1, int(SAMPLE / elapsed))
        rounds[name] = min(max(int(setup.seconds / (elapsed * repeats[name])), FEWEST_ROUNDS), ROUNDS)
    samples: dict[str, list[float]] = {name: [] for name in calls}
    gc.collect()
    for i in range(max(rounds.values(), default=0)):
        present = [name for name in calls if i < rounds[name]]
        first = i % len(present)  # nobody always comes after the same one
        for name in present[first:] + present[:first]:
            samples[name].append(_rounded(_seconds(calls[name], repeats[name], setup)))
    return samples


def _seconds(call: Callable[[], Any], repeats: int, setup: Setup) -> float:
    """For one call."""
    _wait(setup)
    start = time.perf_counter()
    for _ in range(repeats):
        result = call()
    _wait(setup)
    elapsed = time.perf_counter() - start
    return result.seconds if isinstance(result, Timed) else elapsed / repeats


def _wait(setup: Setup) -> None:
    if setup.device.startswith("cuda"):
        torch.cuda.synchronize()


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _result(result: Any) -> torch.Tensor | None:
    if isinstance(result, Timed):
        result = result.result
    if result is None:
        return None
    return torch.cat([torch.as_tensor(leaf).detach().double().cpu().flatten() for leaf in result])


def _difference(result: torch.Tensor, expected: torch.Tensor, name: str) -> float:
    difference = float((result - expected).abs().max() / expected.abs().max())
    if not difference <= TOLERANCE:
        raise ValueError(f"{name} does not compute what the others do: it is off by {difference:.2g} of the largest")
    return difference


# What is said of the rounds


def quartiles(rounds: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile."""
    low, middle, high = quantiles(rounds, n=4, method="inclusive") if len(rounds) > 1 else [rounds[0]] * 3
    return low, middle, high


def ratio(group: Mapping[str, Any] | None, name: str, other: str) -> float | None:
    """The median over common rounds of the time of one contender over that of another; None where one is missing."""
    rows = {} if group is None else group["rows"]
    pair = [rows.get(each, {}).get("rounds") for each in (name, other)]
    if not all(pair):
        return None
    return median(mine / theirs for mine, theirs in zip(*pair, strict=False))


def over(value: float | None, other: float | None) -> float | None:
    """Their quotient, where both were measured."""
    return value / other if value is not None and other else None


# Memory


def peak_growth(build: Callable[[], Callable[[], Any]]) -> int:
    """How many bytes the resident memory of this process grows in a call at most, after a first call that warms up.

    The median of three calls, of one where a call takes seconds.

    Raises:
        Missing: The system does not tell.
    """
    call = build()
    call()
    growths: list[int] = []
    start = time.perf_counter()
    while len(growths) < 3 and (not growths or time.perf_counter() - start < SECONDS):
        gc.collect()
        with suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        try:
            Path("/proc/self/clear_refs").write_text("5")  # the peak so far, of compiling for instance, is forgotten
            before = _resident("VmRSS")
            call()
            growths.append(_resident("VmHWM") - before)
        except OSError as error:
            raise Missing(f"the system does not tell the peak of memory: {error}") from error
    return sorted(growths)[len(growths) // 2]


def _resident(what: str) -> int:
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what)]
    return int(line.split()[1]) * 1024


# The machine


def alone(arguments: Sequence[str], *, threads: int, environment: Mapping[str, str] = KEEPING) -> str:
    """Runs ``python -m tests.benchmarks`` with these arguments in a process with so many cores; what it printed.

    Raises:
        CalledProcessError: It failed.
    """
    with_threads = {**os.environ, **environment, "OMP_NUM_THREADS": str(threads), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "tests.benchmarks", *arguments]
    cores = sorted(_cores())[:threads]
    before = _cores()
    _keep_to(cores)  # inherited; for peers that choose their own number of threads
    try:
        process = subprocess.run(command, env=with_threads, stdout=subprocess.PIPE, text=True, check=True)
    finally:
        _keep_to(before)
    return process.stdout


def _cores() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def _keep_to(cores: Sequence[int] | set[int]) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)


def machine(setup: Setup) -> dict[str, Any]:
    """What the numbers depend on."""
    chip = platform.machine()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        chip = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), chip)
    if setup.device.startswith("cuda"):
        chip = torch.cuda.get_device_name()
    return {
        "chip": chip,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
