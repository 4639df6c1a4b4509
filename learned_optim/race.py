"""Races between optimizers: hand-designed ones tuned on validation problems, everybody compared on test problems."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.optim import Optimizer

from learned_optim.problems import ProblemFamily
from learned_optim.seeds import seeded

MakeOptimizer: TypeAlias = Callable[[list[tuple[str, Tensor]]], Optimizer]
"""Makes an optimizer of named parameters."""

Progress: TypeAlias = Callable[[str, int, int], None]
"""Told of ``(what, done, total)``."""


@dataclass(frozen=True)
class Baseline:
    """A hand-designed optimizer and the learning rates among which it is tuned.

    Attributes:
        make: ``make(params, lr)``.
        grid: Learning rates, ascending.
    """

    make: Callable[..., Optimizer]
    grid: tuple[float, ...]


def third_decades(low: float, high: float) -> tuple[float, ...]:
    """low, 2.2 low, 4.6 low, 10 low, ... up to high: three values per factor of ten."""
    count = round(3 * math.log10(high / low))
    return tuple(float(f"{low * 10 ** (i / 3):.2g}") for i in range(count + 1))


def _nag(params: Any, lr: float) -> Optimizer:
    return torch.optim.SGD(params, lr=lr, momentum=0.9, nesterov=True)


BASELINES: dict[str, Baseline] = {
    "Adam": Baseline(torch.optim.Adam, third_decades(1e-3, 1.0)),
    "RMSprop": Baseline(torch.optim.RMSprop, third_decades(1e-4, 0.1)),
    "Adagrad": Baseline(torch.optim.Adagrad, third_decades(1e-2, 1.0)),
    "NAG": Baseline(_nag, third_decades(1e-2, 10.0)),
    "SGD": Baseline(torch.optim.SGD, third_decades(1e-1, 10.0)),
}
"""The lecture's hand-designed optimizers; NAG with momentum 0.9, the others with torch's defaults."""


@dataclass(frozen=True)
class Tuned:
    """The outcome of a learning-rate search.

    Attributes:
        lr: The best rate.
        scores: Mean validation loss for each rate of the grid.
        inside: Whether the best is no end of the grid.
    """

    lr: float
    scores: dict[float, float]
    inside: bool = field(init=False)

    def __post_init__(self) -> None:
        rates = list(self.scores)
        object.__setattr__(self, "inside", self.lr not in (rates[0], rates[-1]))


def train(family: ProblemFamily, make: MakeOptimizer, *, steps: int, seed: int, role: str = "test") -> Tensor:
    """Trains one problem in a plain PyTorch loop.

    Args:
        family: The family of the problem.
        make: Makes the optimizer.
        steps: Steps to take.
        seed: Of the problem and its batches: with ``role`` it names the same problem for every optimizer.
        role: ``"test"`` or ``"val"``; neither meets the problems of `LearnedOptimizerModule`.

    Returns:
        The training loss before each step, shape (steps,).
    """
    problem = family.sample(seeded("race", role, seed))
    params = {name: p.clone().requires_grad_() for name, p in problem.params.items()}
    optimizer = make(list(params.items()))
    batches = seeded("race", role, seed, "batches")
    losses = torch.empty(steps)
    for step in range(steps):
        loss = family.loss(params, problem.batch(batches))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses[step] = loss.detach()
    return losses


def tune(
    family: ProblemFamily, baseline: Baseline, *, steps: int, seeds: Iterable[int], window: slice | None = None
) -> Tuned:
    """Finds the learning rate with the lowest mean loss on validation problems.

    Args:
        family: The family of problems.
        baseline: What to tune.
        steps: Steps of each run.
        seeds: Validation seeds.
        window: The steps whose mean loss counts; by default the last twentieth. Runs that are not finite there lose.
    """
    window = window or slice(steps - max(steps // 20, 1), steps)
    seeds = list(seeds)
    scores = {}
    for lr in baseline.grid:
        runs = [
            train(family, lambda params, lr=lr: baseline.make(params, lr=lr), steps=steps, seed=seed, role="val")
            for seed in seeds
        ]
        score = float(torch.stack(runs)[:, window].mean())
        scores[lr] = score if math.isfinite(score) else math.inf
    return Tuned(min(scores, key=lambda lr: scores[lr]), scores)


def race(
    family: ProblemFamily,
    learned: Mapping[str, MakeOptimizer],
    *,
    steps: int = 200,
    seeds: Sequence[int] = (0, 1, 2),
    baselines: Mapping[str, Baseline] = BASELINES,
    tuning_seeds: Sequence[int] = (0, 1, 2),
    window: slice | None = None,
    progress: Progress | None = None,
) -> tuple[dict[str, Tensor], dict[str, Tuned]]:
    """Tunes the baselines, then lets all run on the same test problems.

    Args:
        family: The family of problems.
        learned: Optimizers that are not tuned, by name.
        steps: Steps of each run.
        seeds: Test seeds.
        baselines: Optimizers to tune, by name.
        tuning_seeds: Validation seeds.
        window: See `tune`.
        progress: Told of each finished optimizer.

    Returns:
        Losses by name, shape (seeds, steps), learned optimizers first; and how the baselines were tuned.
    """
    total = 2 * len(baselines) + len(learned)
    done = 0

    def report(what: str) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(what, done, total)

    tuned: dict[str, Tuned] = {}
    for name, baseline in baselines.items():
        tuned[name] = tune(family, baseline, steps=steps, seeds=tuning_seeds, window=window)
        report(f"tuned {name}")
    entries: dict[str, MakeOptimizer] = dict(learned)
    for name, baseline in baselines.items():
        entries[name] = lambda params, make=baseline.make, lr=tuned[name].lr: make(params, lr=lr)  # type: ignore[misc]
    losses: dict[str, Tensor] = {}
    for name, make in entries.items():
        losses[name] = torch.stack([train(family, make, steps=steps, seed=seed) for seed in seeds])
        report(f"ran {name}")
    return losses, tuned


def table(losses: Mapping[str, Tensor], at: Sequence[int], *, width: int = 10) -> str:
    """Mean and standard deviation over seeds of the training loss, as lines of text.

    Args:
        losses: By name, shape (seeds, steps).
        at: Steps to show, counted from 1; the mean of the ``width`` steps that end there is taken.
        width: Steps to average, to smooth the noise of the minibatches.
    """
    lines = [f"{'':<22}" + "".join(f"step {step:<16}" for step in at)]
    for name, runs in losses.items():
        ends = torch.stack([runs[:, max(step - width, 0) : step].mean(dim=1) for step in at])  # (columns, seeds)
        cells = [f"{row.mean():.4f} +- {row.std(correction=min(1, len(row) - 1)):.4f}" for row in ends]
        lines.append(f"{name:<22}" + "".join(f"{cell:<21}" for cell in cells))
    return "\n".join(lines)


def draw(losses: Mapping[str, Tensor], path: Path, *, title: str, smooth: int = 5) -> None:
    """Draws mean loss curves with bands of one standard deviation over seeds; needs matplotlib.

    Args:
        losses: By name, shape (seeds, steps).
        path: A PNG file.
        title: Of the picture.
        smooth: Steps in the running mean.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, runs in losses.items():
        curve = runs.unfold(1, smooth, 1).mean(dim=-1)  # (seeds, steps - smooth + 1)
        mean, spread = curve.mean(dim=0), curve.std(dim=0, correction=min(1, len(runs) - 1))
        x = torch.arange(smooth, runs.shape[1] + 1)
        learned = name not in BASELINES
        (line,) = axes.plot(x, mean, label=name, linewidth=2.5 if learned else 1.3, zorder=3 if learned else 2)
        axes.fill_between(x, mean - spread, mean + spread, alpha=0.15, color=line.get_color(), linewidth=0)
    axes.set(yscale="log", xlabel="step", ylabel=f"training loss (mean of {smooth} steps)", title=title)
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
