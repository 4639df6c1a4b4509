"""LightningModules that wrap meta-training."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_modules.data import TaskBatches, TaskDataModule, TaskLoader
    from lightning_modules.learn_init import MAMLModule
    from lightning_modules.learn_optimizer import LearnedOptimizerModule
    from lightning_modules.saving import AtomicCheckpointIO
    from lightning_modules.search import search_outer_lr

_HOME = {
    "AtomicCheckpointIO": "saving",
    "LearnedOptimizerModule": "learn_optimizer",
    "MAMLModule": "learn_init",
    "TaskBatches": "data",
    "TaskDataModule": "data",
    "TaskLoader": "data",
    "search_outer_lr": "search",
}
__all__ = [
    "AtomicCheckpointIO",
    "LearnedOptimizerModule",
    "MAMLModule",
    "TaskBatches",
    "TaskDataModule",
    "TaskLoader",
    "search_outer_lr",
]


def __getattr__(name: str) -> Any:
    # Imported when first used, so that the command line can do without Lightning what does not need it.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
