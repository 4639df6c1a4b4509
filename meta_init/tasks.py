"""Tasks: what a meta-learner learns from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves, tree_map

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
        ValueError: The shapes of prediction and floating-point target differ, where broadcasting would average over
            pairs; or a label is none of 0, ..., C - 1.
    """
    if not target.is_floating_point():
        try:
            return F.cross_entropy(prediction, target.long())  # which torch takes in 64 bits alone
        except IndexError as error:
            if prediction.dim() < 2:
                raise  # not about labels, but about axes that are not there
            count = prediction.shape[1]
            raise ValueError(
                f"labels must be from 0 to {count - 1}, since the model has {count} outputs: {error}"
            ) from error
    if prediction.shape != target.shape:
        raise ValueError(
            f"the model's output has shape {tuple(prediction.shape)}, but the targets {tuple(target.shape)}"
        )
    # Written out because F.mse_loss has no forward-over-reverse derivative.
    return (prediction - target).square().mean()


_PARTS = (("train", "test"), ("support", "query"))
"""What torchmeta's splitters call support and query set."""


def as_tasks(batch: Any) -> Task | Sequence[Task]:
    """What a loader yields, as tasks: torchmeta's dicts become a `Task`, everything else is handed back as it is.

    Args:
        batch: ``{"train": (x, y), "test": (x, y)}`` or ``{"support": (x, y), "query": (x, y)}``, each pair stacked
            along a first axis T, as torchmeta's BatchMetaDataLoader yields it; or a `Task` or a list of them.

    Returns:
        Tasks, float64 (NumPy's default, which torchmeta's toy problems have) in torch's default dtype.

    Raises:
        ValueError: A dict with other keys.
        TypeError: A part is no pair of inputs and targets, or holds what is no tensor.

    >>> x = torch.zeros(4, 10, 1, dtype=torch.float64)
    >>> as_tasks({"train": (x, x), "test": (x, x)}).query.x.dtype
    torch.float32
    """
    if not isinstance(batch, Mapping):
        tasks: Task | Sequence[Task] = batch  # if it is something else, count_tasks says what is wrong with it
        return tasks
    for names in _PARTS:
        if set(batch) == set(names):
            return Task(*(_pair(batch[name], f"batch[{name!r}]") for name in names))
    raise ValueError(
        f"a batch of tasks must have the keys 'train' and 'test', or 'support' and 'query', got {list(batch)}"
    )


def _pair(part: Any, name: str) -> Batch:
    if not isinstance(part, (tuple, list)) or len(part) != 2:
        raise TypeError(f"{name} must be a pair of inputs and targets, got a {type(part).__name__}")
    for what, value in zip(("inputs", "targets"), part, strict=True):
        odd = [leaf for leaf in tree_leaves(value) if not isinstance(leaf, Tensor)]
        if odd:
            raise TypeError(
                f"{name}: its {what} must be tensors, but hold {odd[0]!r:.60}; labels are made numbers by a transform, "
                f"in torchmeta target_transform=Categorical(ways)"
            )
    if not isinstance(part[1], Tensor):
        raise TypeError(f"{name}: its targets must be one tensor, got a {type(part[1]).__name__}")
    return Batch(*tree_map(_in_default_precision, tuple(part)))


def _in_default_precision(value: Tensor) -> Tensor:
    return value.to(torch.get_default_dtype()) if value.dtype == torch.float64 else value


def count_tasks(tasks: Task | Sequence[Task]) -> int:
    """The number of tasks, after a look at their shapes.

    Raises:
        ValueError: There is none, or stacked tasks or examples differ in number; the message names the part.
    """
    if isinstance(tasks, Task) and _fits(tasks.support, tasks.query):
        return len(tasks.support.y)
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


def _fits(support: Batch, query: Batch) -> bool:
    """Whether a quick look at ordinary stacked tasks finds nothing wrong; what is wrong takes longer to tell."""
    sizes = [
        part.y.shape[:2]
        for part in (support, query)
        if type(part) is Batch
        and isinstance(part.x, Tensor)
        and isinstance(part.y, Tensor)
        and part.x.dtype != torch.uint8
        and part.x.shape[:2] == part.y.shape[:2]
        and part.y.dim() > 1
        and part.y.shape[0] * part.y.shape[1] > 0
    ]
    return len(sizes) == 2 and sizes[0][0] == sizes[1][0]


def check_labels(tasks: Task | Sequence[Task]) -> None:
    """Raises ValueError where a query set asks for a class of which its support set has no example."""
    for task in [tasks] if isinstance(tasks, Task) else tasks:
        support, query = task.support.y, task.query.y
        if query.is_floating_point() or query.dim() != (2 if isinstance(tasks, Task) else 1):
            continue  # no labels, or more than one an example
        known = (query.unsqueeze(-1) == support.unsqueeze(-2)).any(dim=-1)  # (..., Q)
        if not bool(known.all()):
            raise ValueError(f"a query set has the label {int(query[~known][0])}, but its support set no example of it")


def check_batch(batch: Batch, name: str) -> None:
    """Raises ValueError where x and y of one task's batch do not have the same number of examples, at least one.

    TypeError where it is no `Batch`, or its pictures are bytes.
    """
    if _sizes(batch, name, axis=0) == 0:
        raise ValueError(f"{name} holds no example")


def _sizes(batch: Batch, name: str, *, axis: int) -> int:
    if not isinstance(batch, Batch):
        raise TypeError(f"{name} must be a Batch(x, y), got a {type(batch).__name__}")
    what = "stacked tasks" if axis == 0 and name.startswith("tasks.") else "examples"
    leaves = [(f"{name}.x", leaf) for leaf in tree_leaves(batch.x)] + [(f"{name}.y", batch.y)]
    for part, leaf in leaves:
        if not isinstance(leaf, Tensor):
            raise TypeError(f"{part} must hold tensors, got a {type(leaf).__name__}")
        if part.endswith(".x") and leaf.dtype == torch.uint8:
            raise TypeError(f"{part} holds bytes (uint8), of which no model learns; scale them: x.float() / 255")
        if leaf.dim() <= axis:
            raise ValueError(f"{part} has shape {tuple(leaf.shape)}; its axis {axis} should count the {what}")
    sizes = {part: int(leaf.shape[axis]) for part, leaf in leaves}
    if len(set(sizes.values())) > 1 or len({int(leaf.shape[axis]) for _, leaf in leaves}) > 1:
        counted = ", ".join(f"{part} {tuple(leaf.shape)}" for part, leaf in leaves)
        raise ValueError(f"{name}: x and y differ in the number of {what} along axis {axis}: {counted}")
    return sizes[f"{name}.y"]
