"""The learning rate's course over a training."""

from __future__ import annotations

import math
from typing import Any

import pytorch_lightning as pl
import torch

SCHEDULES = ("constant", "cosine")


def check_schedule(schedule: str, owner: str) -> str:
    """The schedule, if there is one of that name; else ValueError in the owner's name."""
    if schedule not in SCHEDULES:
        raise ValueError(f"{owner}: schedule must be 'constant' or 'cosine', got {schedule!r}")
    return schedule


def scheduled(optimizer: torch.optim.Optimizer, schedule: str, trainer: pl.Trainer) -> Any:
    """What ``configure_optimizers`` returns: the rate constant, or on a cosine to zero over the trainer's steps."""
    if schedule == "constant":
        return optimizer
    total = int(trainer.estimated_stepping_batches)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * min(step / total, 1)))
    )
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
