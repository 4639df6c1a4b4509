"""What the meta-gradient through a long inner loop keeps in memory, and what recomputing it costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from learned_optim.flat_memory import AT_ONCE
from tests.benchmarks.measuring import Bar, Benchmark, Contender, Group, Setup, over, ratio
from tests.benchmarks.meta_gradients import Problem, conv, images, ours

PLAIN, FLAT = "plain", "flat_memory=True"
TIMED_STEPS = 20


def mlp(*, steps: int, shots: int = 16) -> Problem:
    """The 784-20-10 network on one task of as many synthetic images in its support set as in its query set."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 20), nn.Sigmoid(), nn.Linear(20, 10))
    return images(model, tasks=1, steps=steps, ways=8, shots=shots, lr=0.01)


NETWORKS: dict[str, tuple[Callable[..., Problem], int]] = {
    "784-20-10, batch of 128": (mlp, 1000),
    # Beyond so many steps the plain one needs more memory than many machines have.
    "conv, 5-way 1-shot": (partial(conv, tasks=1), 100),
}
"""Problems by number of steps, and up to how many of them the plain inner loop is tried."""


def contender(make: Callable[..., Problem], steps: int, *, flat: bool) -> Callable[[], Any]:
    """The eager meta-gradient."""
    return ours(make(steps=steps), flat_memory=flat)


def _title(name: str, steps: int) -> str:
    return f"{name}, {steps} inner steps"


def _groups(setup: Setup) -> dict[str, Group]:
    groups = {}
    networks: Any = {"784-20-10": (partial(mlp, shots=1), 2)} if setup.quick else NETWORKS
    for name, (make, longest) in networks.items():
        for steps in (2,) if setup.quick else (10, TIMED_STEPS, 100, 1000):
            rows = [
                Contender(label, partial(contender, make, steps, flat=flat), memory=True)
                for label, flat in ((PLAIN, False), (FLAT, True))
                if flat or steps <= longest
            ]
            groups[_title(name, steps)] = Group(rows, PLAIN)
    return groups


def _boundaries(name: str, steps: int) -> int:
    """The parameters that are stored, in bytes: what a recomputation has to start from."""
    make, _ = NETWORKS[name]
    stretches = max(math.ceil((steps - 1) / AT_ONCE) - 1, 0)  # the last one's graph is kept
    return stretches * sum(p.numel() * p.element_size() for p in make(steps=1).model.parameters())


def _bars(groups: Mapping[str, Any]) -> list[Bar]:
    bars = []
    for name in NETWORKS:
        peaks = [groups.get(_title(name, k), {"rows": {}})["rows"].get(FLAT, {}).get("peak") for k in (1000, 10)]
        beyond, before = [
            None if peak is None else max(peak - _boundaries(name, k), 0)
            for k, peak in zip((1000, 10), peaks, strict=True)
        ]
        timed = groups.get(_title(name, TIMED_STEPS))
        bars += [
            Bar(
                f"peak at 1,000 steps over that at 10, beyond the stored boundaries, {name}",
                over(beyond, before),
                1.5,
            ),
            Bar(f"time of flat_memory over plain at {TIMED_STEPS} steps, {name}", ratio(timed, FLAT, PLAIN), 1.5),
        ]
    return bars


BENCHMARKS = {
    "memory": Benchmark(
        "Time and peak memory of the second-order meta-gradient of one task through many inner steps, eager.",
        _groups,
        _bars,
    )
}
