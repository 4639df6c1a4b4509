"""Whole trainings of the Meta-SGD table's models, by Lightning and by a loop over higher."""

from __future__ import annotations

import re
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from meta_init import Episodes, MetaLearner, Sinusoids, few_shot_conv, sine_mlp, supervised_loss, tensor_classes
from meta_init.tasks import TaskSource
from tests.benchmarks.measuring import Bar, Benchmark, Contender, Group, Setup, Timed, over, quartiles

CONFIGS = Path(__file__).parents[2] / "docs" / "configs" / "few-shot"
COMPARED = 2
"""Iterations whose losses are compared: before an update and after it. In float64 whole trainings agree to rounding; in
float32 Adam's first steps, of full length whatever the size of a gradient, soon lead networks with norms elsewhere."""
EAGER, COMPILED, HIGHER = "ours, Lightning", "ours, Lightning, compiled", "higher"


class Training(NamedTuple):
    """One row of the table.

    Attributes:
        model: Makes the network.
        tasks: What it learns from.
        lr: First value of the rates, or their range.
        outer_lr: Adam's.
        batch: Tasks an iteration.
        iterations: Of the whole training.
    """

    model: Callable[[], nn.Module]
    tasks: TaskSource
    lr: Any
    outer_lr: float
    batch: int
    iterations: int


def sine() -> Training:
    """As in docs/examples/sine_table.py, 10-shot."""
    return Training(sine_mlp, Sinusoids("meta_sgd", shots=10), (0.005, 0.1), 1e-3, 4, 60_000)


def omniglot(name: str = "omniglot-5w1s-meta-sgd") -> Training:
    """As in a configuration, with random images in place of the characters: as many of them, turned as they are."""
    text = (CONFIGS / f"{name}.yaml").read_text()
    numbers = {name: float(value) for name, value in re.findall(r"^\s*(\w+): ([\d.]+)$", text, flags=re.MULTILINE)}
    pictures = torch.randint(256, (1100 * 20, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    characters = tensor_classes("random", pictures, torch.arange(1100).repeat_interleave(20))
    episodes = Episodes(characters, ways=5, shots=1, rotations="view")
    batch, iterations = int(numbers["meta_batch_size"]), int(numbers["max_steps"])
    return Training(partial(few_shot_conv, 5), episodes, numbers["lr"], numbers["outer_lr"], batch, iterations)


TRAININGS = {"sine, 10-shot": sine, "Omniglot, 5-way 1-shot, convolutional": omniglot}


def learner(training: Training, **options: Any) -> Any:
    """The module that is trained; the same first weights and rates each time."""
    from lightning_modules import MAMLModule

    torch.manual_seed(0)
    options = {"algorithm": "meta_sgd"} | options
    return MAMLModule(training.model(), lr=training.lr, outer_lr=training.outer_lr, **options)


def with_lightning(
    make: Callable[[], Training], iterations: int, *, accelerator: str = "cpu", workers: int = 0, **options: Any
) -> Callable[[], Timed]:
    """Iterations after the first of a fit, with its loader, its log and everything."""
    import pytorch_lightning as pl
    from pytorch_lightning.loggers import CSVLogger

    from lightning_modules import TaskDataModule

    training = make()
    module = learner(training, **options)

    class Clock(pl.Callback):
        def __init__(self) -> None:
            self.times: list[float] = []
            self.losses: list[float] = []

        def on_train_batch_end(self, trainer: Any, _module: Any, outputs: Any, *_: Any) -> None:
            if accelerator == "gpu" and trainer.global_step in (1, iterations):
                torch.cuda.synchronize()
            self.times.append(time.perf_counter())
            if len(self.losses) < COMPARED:
                self.losses.append(float(outputs["loss"]))

    def call() -> Timed:
        clock = Clock()
        sizes = {"meta_batch_size": training.batch, "steps_per_epoch": iterations}
        data = TaskDataModule(training.tasks, **sizes, workers=workers)
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about this short fit without validation
            trainer = pl.Trainer(
                accelerator=accelerator,
                devices=1,
                callbacks=[clock],
                max_steps=iterations,
                logger=CSVLogger(folder),
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                num_sanity_val_steps=0,
                limit_val_batches=0,
            )
            trainer.fit(module, data)
        return _timed(clock.times, clock.losses)

    return call


def with_higher(make: Callable[[], Training], iterations: int) -> Callable[[], Timed]:
    """The same iterations as one writes them with higher, the rates as its differentiable options of SGD."""
    import higher

    from lightning_modules.data import TaskBatches

    training = make()
    own: MetaLearner = learner(training).learner
    model, (*rates,) = own.model, own.rule.parameters()
    optimizer = torch.optim.SGD([{"params": [p]} for p in model.parameters()], lr=1.0)
    outer = torch.optim.Adam(own.parameters(), lr=training.outer_lr)
    batches = TaskBatches(training.tasks, size=training.batch)

    def call() -> Timed:
        times, losses = [], []
        for i in range(iterations):
            tasks = batches[i]
            outer.zero_grad()
            total = torch.zeros(())
            for xs, ys, xq, yq in zip(*tasks.support, *tasks.query, strict=True):
                options = {"copy_initial_weights": False, "override": {"lr": rates}}
                with higher.innerloop_ctx(model, optimizer, **options) as (fast, inner):
                    inner.step(supervised_loss(fast(xs), ys))
                    loss = supervised_loss(fast(xq), yq) / training.batch
                    loss.backward()
                    total += loss.detach()
            outer.step()
            times.append(time.perf_counter())
            if len(losses) < COMPARED:
                losses.append(float(total))
        return _timed(times, losses)

    return call


def _timed(times: list[float], losses: list[float]) -> Timed:
    """Seconds an iteration, and the first losses."""
    return Timed((times[-1] - times[0]) / (len(times) - 1), [torch.tensor(losses)])


# The benchmark


def _groups(setup: Setup) -> dict[str, Group]:
    groups = {}
    for name, make in TRAININGS.items():
        few = 3 if setup.quick else 10 if "conv" in name else 100
        if setup.quick and "conv" in name:
            continue
        rows = [
            Contender(HIGHER, partial(with_higher, make, few), peer=True),
            Contender(EAGER, partial(with_lightning, make, few)),
            Contender(COMPILED, partial(with_lightning, make, few, compile=True), slow_start=True),
        ]
        groups[name] = Group(rows, HIGHER)
    return groups


def hours(group: Mapping[str, Any], name: str, iterations: int) -> float | None:
    """Of a whole training, compiling included."""
    row = group["rows"].get(name)
    return None if row is None else (row["first_call"] + iterations * quartiles(row["rounds"])[1]) / 3600


def _bars(groups: Mapping[str, Any]) -> list[Bar]:
    bars = []
    for name, make in TRAININGS.items():
        if name in groups:
            theirs, mine = (hours(groups[name], each, make().iterations) for each in (HIGHER, COMPILED))
            text = f"whole training times faster than with higher, {name}"
            bars.append(Bar(text, over(theirs, mine), 20, at_most=False))
    return bars


BENCHMARKS = {
    "training": Benchmark(
        "One iteration of trainings of the Meta-SGD table, in Lightning's Trainer with its loader and log, and in a "
        "loop over higher with the same tasks. The whole training is the first call, compiling included, and as many "
        "iterations as are configured.",
        _groups,
        _bars,
    )
}
