"""Streams of tasks for Lightning: seeded, the same for any number of workers, resumable in the middle of an epoch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytorch_lightning as pl
from torch.utils.data import DataLoader, Dataset

from learned_optim.seeds import seeded
from lightning_modules.processes import process
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


class TaskLoader:
    """An endless stream in epochs: the items of a numbered dataset, one after the other, resumable anywhere.

    Lightning takes it wherever it takes a DataLoader, and saves and restores the position with its checkpoints. With
    several processes each takes every n-th item.

    Args:
        items: ``items[n]`` for any n >= 0, such as `TaskBatches`.
        length: Items per epoch and process.
        advance: Whether every epoch goes on with new items; off for validation.
        workers: Processes that make items. The stream is the same for any number of them.
    """

    def __init__(self, items: Dataset[Any], length: int, *, advance: bool = True, workers: int = 0) -> None:
        self.items, self.length, self.advance, self.workers = items, length, advance, workers
        self.position = 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Any]:
        first = self.position if self.advance else 0
        rank, world = process()
        numbers = [n * world + rank for n in range(first, first + self.length)]
        for item in DataLoader(self.items, batch_size=None, sampler=numbers, num_workers=self.workers):
            if self.advance:
                self.position += 1
            yield item

    def state_dict(self) -> dict[str, Any]:
        """How many items all processes together have had, so that any number of them can go on."""
        return {"position": self.position * process()[1]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from there, with no item a second time."""
        self.position = math.ceil(state["position"] / process()[1])


class TaskDataModule(pl.LightningDataModule):
    """Tasks for fit, validate and test.

    Args:
        tasks: Training tasks.
        val_tasks: Validation tasks, by default ``tasks`` (other seeds).
        test_tasks: Test tasks, by default ``val_tasks`` (other seeds).
        meta_batch_size: Tasks per step.
        steps_per_epoch: Meta-batches per epoch and process.
        eval_tasks: Tasks for validation and for testing each. Several processes share them, in whole batches: the
            numbers are those of one process where the number of batches is a multiple of the number of processes.
        eval_batch_size: How many of them at once; by default all.
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
        eval_batch_size: int | None = None,
        seed: int = 0,
        workers: int = 0,
    ) -> None:
        super().__init__()
        for name, count in {
            "meta_batch_size": meta_batch_size,
            "steps_per_epoch": steps_per_epoch,
            "eval_tasks": eval_tasks,
            "eval_batch_size": 1 if eval_batch_size is None else eval_batch_size,
        }.items():
            if count < 1:
                raise ValueError(f"TaskDataModule: {name} must be >= 1, got {count}")
        self.tasks = tasks
        self.val_tasks = val_tasks or tasks
        self.test_tasks = test_tasks or self.val_tasks
        self.meta_batch_size, self.steps_per_epoch, self.eval_tasks = meta_batch_size, steps_per_epoch, eval_tasks
        self.eval_batch_size = eval_batch_size or eval_tasks
        if eval_tasks % self.eval_batch_size:
            raise ValueError(
                f"TaskDataModule: eval_batch_size must divide eval_tasks, got {eval_batch_size}, {eval_tasks}"
            )
        self.seed, self.workers = seed, workers

    def train_dataloader(self) -> TaskLoader:
        batches = TaskBatches(self.tasks, size=self.meta_batch_size, seed=self.seed)
        return TaskLoader(batches, self.steps_per_epoch, workers=self.workers)

    def val_dataloader(self) -> TaskLoader:
        return self._evaluation(self.val_tasks, "val")

    def test_dataloader(self) -> TaskLoader:
        return self._evaluation(self.test_tasks, "test")

    def _evaluation(self, tasks: TaskSource, role: str) -> TaskLoader:
        batches = TaskBatches(tasks, size=self.eval_batch_size, seed=self.seed, role=role)
        # Every process takes as many, because they gather what they have found.
        length = math.ceil(self.eval_tasks / self.eval_batch_size / process()[1])
        return TaskLoader(batches, length, advance=False, workers=0)
