"""Races between optimizers: hand-designed ones tuned on validation problems, everybody compared on test problems."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

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


class Run(NamedTuple):
    """One optimizer on one problem.

    Attributes:
        losses: Training loss before each step, on its minibatch, shape (steps,).
        test_loss: After the last step, on data that no batch holds; NaN where the family has none.
    """

    losses: Tensor
    test_loss: Tensor


def train(family: ProblemFamily, make: MakeOptimizer, *, steps: int, seed: int, role: str = "test") -> Run:
    """Trains one problem in a plain PyTorch loop.

    Args:
        family: The family of the problem.
        make: Makes the optimizer.
        steps: Steps to take.
        seed: Of the problem and its batches: with ``role`` it names the same problem for every optimizer.
        role: ``"test"`` or ``"val"``; neither meets the problems of `LearnedOptimizerModule`.
    """
    problem = family.sample(seeded("race", role, seed))
    params = {name: p.clone().requires_grad_() for name, p in problem.params.items()}
    optimizer = make(list(params.items()))
    batches = seeded("race", role, seed, "batches")
    losses = torch.empty(steps)
    for step in range(steps):
        loss = family.loss(params, problem.batch(batches))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch has not typed it
        optimizer.step()
        losses[step] = loss.detach()
    with torch.no_grad():
        test_loss = family.test_loss(params)
    return Run(losses, torch.tensor(math.nan) if test_loss is None else test_loss)


def repeat(family: ProblemFamily, make: MakeOptimizer, *, steps: int, seeds: Iterable[int], role: str = "test") -> Run:
    """`train` on several seeds: losses of shape (seeds, steps), test losses of shape (seeds,)."""
    runs = [train(family, make, steps=steps, seed=seed, role=role) for seed in seeds]
    return Run(torch.stack([run.losses for run in runs]), torch.stack([run.test_loss for run in runs]))


def sweep(family: ProblemFamily, baseline: Baseline, *, steps: int, seeds: Sequence[int]) -> dict[float, Tensor]:
    """Losses on validation problems for each learning rate of the grid, shape (seeds, steps)."""
    return {
        lr: repeat(family, partial(_make, baseline, lr), steps=steps, seeds=seeds, role="val").losses
        for lr in baseline.grid
    }


def tune(losses: Mapping[float, Tensor], window: slice | None = None) -> Tuned:
    """Finds the learning rate with the lowest mean loss.

    Args:
        losses: What `sweep` returned.
        window: The steps whose mean loss counts; by default the last twentieth. Runs that are not finite there lose.
    """
    scores = {}
    for lr, runs in losses.items():
        steps = runs.shape[1]
        score = float(runs[:, window or slice(steps - max(steps // 20, 1), steps)].mean())
        scores[lr] = score if math.isfinite(score) else math.inf
    return Tuned(min(scores, key=lambda lr: scores[lr]), scores)


def _make(baseline: Baseline, lr: float, params: list[tuple[str, Tensor]]) -> Optimizer:
    return baseline.make(params, lr=lr)


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
) -> tuple[dict[str, Run], dict[str, Tuned]]:
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
        Runs by name, learned optimizers first; and how the baselines were tuned.
    """
    total = 2 * len(baselines) + len(learned)
    done = 0

    def report(what: str) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(what, done, total)

    tuned: dict[str, Tuned] = {}
    entries: dict[str, MakeOptimizer] = dict(learned)
    for name, baseline in baselines.items():
        tuned[name] = tune(sweep(family, baseline, steps=steps, seeds=tuning_seeds), window)
        entries[name] = partial(_make, baseline, tuned[name].lr)
        report(f"tuned {name}")
    runs: dict[str, Run] = {}
    for name, make in entries.items():
        runs[name] = repeat(family, make, steps=steps, seeds=seeds)
        report(f"ran {name}")
    return runs, tuned


def table(runs: Mapping[str, Run], at: Sequence[int], *, width: int = 10) -> str:
    """Mean training loss, and its standard deviation where there are several seeds, as lines of text.

    Args:
        runs: By name, of several seeds.
        at: Steps to show, counted from 1; the mean of the ``width`` steps that end there is taken.
        width: Steps to average, to smooth the noise of the minibatches.
    """
    lines = [f"{'':<22}" + "".join(f"step {step:<16}" for step in at)]
    for name, run in runs.items():
        ends = torch.stack([run.losses[:, max(step - width, 0) : step].mean(dim=1) for step in at])  # (columns, seeds)
        cells = [f"{row.mean():.4f}" + (f" +- {row.std():.4f}" if len(row) > 1 else "") for row in ends]
        lines.append(f"{name:<22}" + "".join(f"{cell:<21}" for cell in cells))
    return "\n".join(lines)


def draw(runs: Mapping[str, Run], path: Path, *, title: str, smooth: int = 5) -> None:
    """Draws mean loss curves with bands of one standard deviation over seeds; needs matplotlib.

    Args:
        runs: By name, of several seeds.
        path: A PNG file.
        title: Of the picture.
        smooth: Steps in the running mean.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, run in runs.items():
        curve = run.losses.unfold(1, smooth, 1).mean(dim=-1)  # (seeds, steps - smooth + 1)
        mean, spread = curve.mean(dim=0), curve.std(dim=0, correction=min(1, len(curve) - 1))
        x = torch.arange(smooth, run.losses.shape[1] + 1)
        learned = name not in BASELINES
        (line,) = axes.plot(x, mean, label=name, linewidth=2.5 if learned else 1.3, zorder=3 if learned else 2)
        axes.fill_between(x, mean - spread, mean + spread, alpha=0.15, color=line.get_color(), linewidth=0)
    axes.set(yscale="log", xlabel="step", ylabel=f"training loss (mean of {smooth} steps)", title=title)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
