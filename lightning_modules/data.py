"""Streams of tasks for Lightning: seeded, the same for any number of workers, resumable in the middle of an epoch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytorch_lightning as pl
from torch.utils.data import DataLoader, Dataset, Sampler

from learned_optim.seeds import seeded
from meta_init import Task, TaskSource


class TaskBatches(Dataset[Task]):
    """Meta-batches of a task source by their number: the n-th is always the same, whoever draws it.

    Args:
        tasks: The distribution of tasks.
        size: Tasks per meta-batch.
        seed: Of the stream.
        role: ``"train"``, ``"val"`` or ``"test"``: streams of different roles are unrelated.
    """

    def __init__(self, tasks: TaskSource, *, size: int, seed: int = 0, role: str = "train") -> None:
        self.tasks, self.size, self.seed, self.role = tasks, size, seed, role

    def __getitem__(self, index: int) -> Task:
        return self.tasks.sample(self.size, seeded(self.seed, self.role, index))


class _Numbers(Sampler[int]):
    """Counts on through the epochs, from the place where an interrupted epoch stopped."""

    def __init__(self, length: int, *, advance: bool) -> None:
        self.length, self.advance = length, advance
        self.epoch = 0
        self.done = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        first = self.epoch * self.length if self.advance else 0
        return iter(range(first + self.done, first + self.length))

    def __len__(self) -> int:
        return self.length


class TaskLoader(DataLoader[Any]):
    """A DataLoader over numbered items without end, such as `TaskBatches`, resumable in the middle of an epoch.

    Lightning saves and restores it through ``state_dict``.

    Args:
        items: ``items[n]`` for any n >= 0.
        length: Items per epoch.
        advance: Whether every epoch brings new items; off for validation.
        workers: Processes that make items.
    """

    def __init__(self, items: Dataset[Any], length: int, *, advance: bool = True, workers: int = 0) -> None:
        self.numbers = _Numbers(length, advance=advance)
        super().__init__(
            items, batch_size=None, sampler=self.numbers, num_workers=workers, persistent_workers=workers > 0
        )

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        items = super().__iter__()
        try:
            for item in items:
                self.numbers.done += 1
                yield item
        finally:
            self.numbers.done = 0

    def state_dict(self) -> dict[str, Any]:
        """How far this epoch has come; a complete one is the start of the next."""
        return {"done": self.numbers.done % self.numbers.length}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Lets the next iteration start where the saved one stopped."""
        self.numbers.done = state["done"]


class TaskDataModule(pl.LightningDataModule):
    """Tasks for fit, validate and test.

    Args:
        tasks: Training tasks.
        val_tasks: Validation tasks, by default ``tasks`` (other seeds).
        test_tasks: Test tasks, by default ``val_tasks`` (other seeds).
        meta_batch_size: Tasks per step.
        steps_per_epoch: Meta-batches per epoch.
        eval_tasks: Tasks for validation and for testing each.
        seed: Of all streams.
        workers: Processes that draw tasks.

    Raises:
        ValueError: A count is below 1.
    """

    def __init__(
        self,
        tasks: TaskSource,
        val_tasks: TaskSource | None = None,
        test_tasks: TaskSource | None = None,
        *,
        meta_batch_size: int = 4,
        steps_per_epoch: int = 1000,
        eval_tasks: int = 100,
        seed: int = 0,
        workers: int = 0,
    ) -> None:
        super().__init__()
        for name, count in {
            "meta_batch_size": meta_batch_size,
            "steps_per_epoch": steps_per_epoch,
            "eval_tasks": eval_tasks,
        }.items():
            if count < 1:
                raise ValueError(f"TaskDataModule: {name} must be >= 1, got {count}")
        self.tasks = tasks
        self.val_tasks = val_tasks or tasks
        self.test_tasks = test_tasks or self.val_tasks
        self.meta_batch_size, self.steps_per_epoch, self.eval_tasks = meta_batch_size, steps_per_epoch, eval_tasks
        self.seed, self.workers = seed, workers

    def train_dataloader(self) -> TaskLoader:
        batches = TaskBatches(self.tasks, size=self.meta_batch_size, seed=self.seed)
        return TaskLoader(batches, self.steps_per_epoch, workers=self.workers)

    def val_dataloader(self) -> TaskLoader:
        return self._evaluation(self.val_tasks, "val")

    def test_dataloader(self) -> TaskLoader:
        return self._evaluation(self.test_tasks, "test")

    def _evaluation(self, tasks: TaskSource, role: str) -> TaskLoader:
        batches = TaskBatches(tasks, size=self.eval_tasks, seed=self.seed, role=role)
        return TaskLoader(batches, 1, advance=False, workers=0)
