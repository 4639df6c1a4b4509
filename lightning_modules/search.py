"""A learning rate for meta-training, found by short trainings."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytorch_lightning as pl

from lightning_modules.learn_init import MAMLModule
from lightning_modules.learn_optimizer import LearnedOptimizerModule


class Searched(NamedTuple):
    """The outcome of a search.

    Attributes:
        best: The learning rate with the lowest loss.
        losses: By learning rate, in the order in which they were tried; infinite where the training diverged.
        inside: Whether the best is neither the lowest nor the highest: else try further ones.
    """

    best: float
    losses: dict[float, float]
    inside: bool


def search_outer_lr(
    module: LearnedOptimizerModule | MAMLModule,
    rates: Sequence[float],
    *,
    steps: int,
    datamodule: pl.LightningDataModule | None = None,
    monitor: str = "val/loss",
    **trainer: Any,
) -> Searched:
    """Trains a copy of the module with each learning rate for so many steps, and validates it.

    Args:
        module: It stays as it is, and is not given the best rate: ``module.outer_lr = search_outer_lr(...).best``.
        rates: Learning rates to try.
        steps: Of each training; a cosine schedule falls to zero over them.
        datamodule: Where the module needs one.
        monitor: What is compared after the last step, lower being better.
        **trainer: Further arguments of the Trainers, such as ``gradient_clip_val``.

    Raises:
        ValueError: There is no rate, ``monitor`` is not logged, or every training diverged.

    Source: Andrychowicz et al. 2016, section 3, choose the learning rate of phi by random search; here a list.
    """
    if not rates:
        raise ValueError("search_outer_lr: rates is empty; give at least one")
    losses: dict[float, float] = {}
    for rate in rates:
        one = copy.deepcopy(module)
        one.outer_lr = rate
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False} | trainer
        run = pl.Trainer(max_steps=steps, enable_model_summary=False, limit_val_batches=0, **quiet)
        run.fit(one, datamodule=datamodule)
        check = pl.Trainer(enable_model_summary=False, **quiet)
        (found,) = check.validate(one, datamodule=datamodule, verbose=False)
        if monitor not in found:
            raise ValueError(f"search_outer_lr: {monitor!r} is not logged; there are {sorted(found)}")
        losses[rate] = found[monitor] if math.isfinite(found[monitor]) else math.inf
    best = min(losses, key=lambda rate: losses[rate])
    if math.isinf(losses[best]):
        raise ValueError(f"search_outer_lr: every training diverged, with rates {list(losses)}; try lower ones")
    return Searched(best, losses, min(losses) < best < max(losses))
