"""Tasks: what a meta-learner learns from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

Inputs: TypeAlias = Any
"""A tensor, or a tuple or dict of tensors, as the model takes them: one argument, positional or keyword arguments."""


class Batch(NamedTuple):
    """Examples.

    Attributes:
        x: Inputs, the examples along the first axis (the second where tasks are stacked).
        y: Targets, likewise: integer labels, or values of the model's output shape.
    """

    x: Inputs
    y: Tensor


class Task(NamedTuple):
    """One task, or several stacked along a first axis T.

    Attributes:
        support: What the model adapts on.
        query: What the adapted model is judged on.
    """

    support: Batch
    query: Batch


class TaskSource(Protocol):
    """A distribution of tasks."""

    def sample(self, count: int, generator: torch.Generator) -> Task:
        """``count`` stacked tasks: the same ones for a generator in the same state."""


def supervised_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error for floating-point targets, mean cross-entropy for integer labels.

    Args:
        prediction: Shape (K, ...) of the targets, or (K, C) logits.
        target: Shape (K, ...), or (K,) labels.

    Raises:
        ValueError: The shapes of prediction and floating-point target differ; broadcasting would average over pairs.
    """
    if not target.is_floating_point():
        return F.cross_entropy(prediction, target)
    if prediction.shape != target.shape:
        raise ValueError(
            f"the model's output has shape {tuple(prediction.shape)}, but the targets {tuple(target.shape)}"
        )
    # Written out because F.mse_loss has no forward-over-reverse derivative.
    return (prediction - target).square().mean()


def count_tasks(tasks: Task | Sequence[Task]) -> int:
    """The number of tasks, after a look at their shapes.

    Raises:
        ValueError: There is none, or stacked tasks or examples differ in number; the message names the part.
    """
    if not isinstance(tasks, Task):
        if not tasks:
            raise ValueError("tasks is empty")
        for i, task in enumerate(tasks):
            if not isinstance(task, Task):
                raise TypeError(f"tasks must be a Task or a list of them, but its item {i} is a {type(task).__name__}")
            check_batch(task.support, f"tasks[{i}].support")
            check_batch(task.query, f"tasks[{i}].query")
        return len(tasks)
    counts = {name: _sizes(getattr(tasks, name), f"tasks.{name}", axis=0) for name in ("support", "query")}
    for name in ("support", "query"):
        if _sizes(getattr(tasks, name), f"tasks.{name}", axis=1) == 0:
            raise ValueError(f"tasks.{name} holds no example: its axis 1 has size 0")
    if counts["support"] != counts["query"]:
        raise ValueError(f"tasks.support has {counts['support']} tasks along axis 0, tasks.query {counts['query']}")
    if counts["support"] == 0:
        raise ValueError("tasks is empty: its first axis has size 0")
    return counts["support"]


def check_batch(batch: Batch, name: str) -> None:
    """Raises ValueError where x and y of one task's batch do not have the same number of examples, at least one."""
    if _sizes(batch, name, axis=0) == 0:
        raise ValueError(f"{name} holds no example")


def _sizes(batch: Batch, name: str, *, axis: int) -> int:
    what = "stacked tasks" if axis == 0 and name.startswith("tasks.") else "examples"
    leaves = [(f"{name}.x", leaf) for leaf in tree_leaves(batch.x)] + [(f"{name}.y", batch.y)]
    for part, leaf in leaves:
        if leaf.dim() <= axis:
            raise ValueError(f"{part} has shape {tuple(leaf.shape)}; its axis {axis} should count the {what}")
    sizes = {part: int(leaf.shape[axis]) for part, leaf in leaves}
    if len(set(sizes.values())) > 1 or len({int(leaf.shape[axis]) for _, leaf in leaves}) > 1:
        counted = ", ".join(f"{part} {tuple(leaf.shape)}" for part, leaf in leaves)
        raise ValueError(f"{name}: x and y differ in the number of {what} along axis {axis}: {counted}")
    return sizes[f"{name}.y"]
