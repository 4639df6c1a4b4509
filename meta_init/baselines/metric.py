"""One learner for all methods that compare embeddings: a choice of comparison, decision and loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from meta_init.baselines.encoders import without_running_statistics
from meta_init.learner import Evaluation
from meta_init.normalisation import norms_by
from meta_init.tasks import Batch, Task, as_tasks, check_batch, count_tasks

STATISTICS = ("running", "episode")

_EXAMPLES_AT_ONCE = 1024
"""How many examples an evaluation embeds in one pass: what fits into caches, and bounds the memory."""


class Embedded(NamedTuple):
    """Tasks whose examples have been embedded.

    Attributes:
        support: Shape (T, N, D).
        labels: Of the support set, shape (T, N).
        query: Shape (T, Q, D).
        ways: W, the number of classes of each task.
    """

    support: Tensor
    labels: Tensor
    query: Tensor
    ways: int


Compare = Callable[[Embedded], Tensor]
"""Scores of every query example, shape (T, Q, ...): by class, or by example of the support set."""

Decide = Callable[[Tensor, Embedded], Tensor]
"""``decide(scores, tasks)``: logits of the classes, shape (T, Q, W)."""

Losses = Callable[[Tensor, Embedded, Tensor], Tensor]
"""``losses(scores, tasks, targets)`` with targets (T, Q): one loss for each task, shape (T,)."""


def as_logits(scores: Tensor, tasks: Embedded) -> Tensor:
    """For scores by class, which are logits already."""
    return scores


def of_the_best(scores: Tensor, tasks: Embedded) -> Tensor:
    """From scores by support example, (T, Q, N), the best of each class, (T, Q, W)."""
    classes = tasks.labels.unsqueeze(1).expand_as(scores)
    best = scores.new_full((*scores.shape[:2], tasks.ways), -torch.inf)
    return best.scatter_reduce(-1, classes, scores, "amax")


def cross_entropies(scores: Tensor, tasks: Embedded, targets: Tensor) -> Tensor:
    """For scores by class: the mean over the query set of -log softmax(scores)[target]."""
    return F.cross_entropy(scores.transpose(1, 2), targets, reduction="none").mean(1)


class MetricLearner(nn.Module):
    """Labels a query example by comparing its embedding with those of the support set; it has no inner steps.

    It is trained and judged as `MetaLearner` is::

        loss, logs = learner.outer_loss(tasks)
        loss.backward()

    Inputs are tensors; labels of a task are 0, ..., W - 1, and each has an example in the support set.

    Batch norm. With ``statistics="running"`` training embeds support and query sets of all tasks in one pass, by the
    statistics of that pass in training mode; `evaluate` and `adapt` use the running statistics, whatever
    ``train()`` and ``eval()`` say, so that no example depends on another. ``"episode"`` uses the statistics of support
    and query set of one task together, always: then, as in `MetaLearner`, a prediction depends on the examples that it
    is made with, which helps. `MetaLearner` differs in taking those of the support set and of the query set each.

    Args:
        encoder: From inputs (N, ...) to embeddings; more than one axis of these is flattened. It is held, not copied.
        compare: Scores of the query examples; a module where it has parameters of its own.
        decide: Logits of the classes from the scores.
        losses: What is minimised, from the scores.
        statistics: Of batch norm, ``"running"`` or ``"episode"``.

    Raises:
        ValueError: Unknown statistics, or a batch norm of the encoder has no running ones.
    """

    def __init__(
        self,
        encoder: nn.Module,
        compare: Compare,
        *,
        decide: Decide = as_logits,
        losses: Losses = cross_entropies,
        statistics: str = "running",
    ) -> None:
        super().__init__()
        if statistics not in STATISTICS:
            raise ValueError(f"MetricLearner: unknown statistics {statistics!r}; there are {STATISTICS}")
        bare = without_running_statistics(encoder)
        if statistics == "running" and bare is not None:
            raise ValueError(
                f"MetricLearner: the encoder's batch norm {bare!r} keeps no running statistics; use "
                "statistics='episode'"
            )
        self.encoder = encoder
        self.compare = compare
        self.decide = decide
        self.losses = losses
        self.statistics = statistics

    def outer_loss(self, tasks: Task | Sequence[Task]) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar to minimise, and what to log.

        Args:
            tasks: Stacked tasks, or a list of single ones whose sizes may differ.

        Returns:
            The mean over tasks of the loss on the query set, and detached ``query_loss``, the same, and ``accuracy``.

        Raises:
            ValueError: Shapes that do not fit, or labels that are not 0, ..., W - 1, each with a support example; the
                message names the part.
        """
        groups = stacked(tasks)
        ways = [count_ways(group, name) for name, group in groups]
        results = [
            self._judged(one, group.query.y)
            for one, (_, group) in zip(self._embedded([group for _, group in groups], ways), groups, strict=True)
        ]
        loss = torch.cat([losses for losses, _ in results]).mean()
        accuracy = torch.cat([right for _, right in results]).mean()
        return loss, {"query_loss": loss.detach(), "accuracy": accuracy}

    @torch.no_grad()
    def evaluate(self, tasks: Task | Sequence[Task], steps: int | None = None) -> Evaluation:
        """Losses and accuracies on the query sets, shape (T, 1) each; without a graph.

        Args:
            tasks: As for `outer_loss`.
            steps: Without effect, there being no inner steps; here so that all learners are called alike.

        Raises:
            ValueError: See `outer_loss`.
        """
        results = []
        for name, group in stacked(tasks):
            ways = count_ways(group, name)
            for part in slices(group):
                with norms_by(self.encoder, batch=False):
                    (one,) = self._embedded([part], [ways])
                results.append(self._judged(one, part.query.y))
        losses, accuracies = (torch.cat(column).unsqueeze(1) for column in zip(*results, strict=True))  # (T, 1)
        return Evaluation(losses, accuracies)

    def adapt(self, support: Batch) -> Callable[[Tensor], Tensor]:
        """A predictor for one task: inputs of shape (Q, ...) to logits (Q, W), without a graph.

        It keeps the support set and embeds it at every call, so that it follows an encoder that is trained on.

        Args:
            support: One task's examples, without a task axis.

        Raises:
            ValueError: See `outer_loss`.
        """
        check_batch(support, "support")
        support = Batch(support.x.unsqueeze(0), support.y.unsqueeze(0))
        ways = count_ways(Task(support, support), "", query=False)
        return partial(self._predicted, support, ways)

    def extra_repr(self) -> str:
        return f"statistics={self.statistics!r}"

    @torch.no_grad()
    def _predicted(self, support: Batch, ways: int, x: Tensor) -> Tensor:
        with norms_by(self.encoder, batch=False):
            # The query labels are not looked at.
            (one,) = self._embedded([Task(support, Batch(x.unsqueeze(0), support.y))], [ways])
        return self.decide(self.compare(one), one)[0]

    def _embedded(self, groups: Sequence[Task], ways: Sequence[int]) -> list[Embedded]:
        if self.statistics == "episode":
            with norms_by(self.encoder, batch=True):
                parts = [self._by_task(group) for group in groups]
        else:
            batches = [batch.x for group in groups for batch in group]
            z = self.encoder(torch.cat([x.flatten(0, 1) for x in batches]))
            single = torch.split(z, [x.shape[0] * x.shape[1] for x in batches])
            shaped = [part.reshape(*x.shape[:2], -1) for part, x in zip(single, batches, strict=True)]
            parts = list(zip(shaped[::2], shaped[1::2], strict=True))
        return [
            Embedded(support, group.support.y.long(), query, count)
            for (support, query), group, count in zip(parts, groups, ways, strict=True)
        ]

    def _by_task(self, group: Task) -> tuple[Tensor, Tensor]:
        x = torch.cat([group.support.x, group.query.x], 1)
        z = torch.stack([self.encoder(one).flatten(1) for one in x])  # (T, N + Q, D)
        shots = group.support.x.shape[1]
        return z[:, :shots], z[:, shots:]

    def _judged(self, tasks: Embedded, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and share of right labels of each task, (T,) both."""
        scores = self.compare(tasks)
        right = self.decide(scores.detach(), tasks).argmax(-1) == targets
        return self.losses(scores, tasks, targets.long()), right.float().mean(1)


def stacked(tasks: Task | Sequence[Task]) -> list[tuple[str, Task]]:
    """Stacked tasks as they are, a list of single ones as one stack each, and a name of each for messages."""
    tasks = as_tasks(tasks)
    count_tasks(tasks)
    groups = (
        [("tasks.", tasks)]
        if isinstance(tasks, Task)
        else [(f"tasks[{i}].", tree_map(lambda leaf: leaf.unsqueeze(0), task)) for i, task in enumerate(tasks)]
    )
    for name, group in groups:
        for part, batch in group._asdict().items():
            if not isinstance(batch.x, Tensor):
                raise ValueError(f"{name}{part}.x is a {type(batch.x).__name__}; an encoder takes one tensor")
    return groups


def slices(tasks: Task) -> Iterator[Task]:
    """Stacked tasks, so many at a time that their examples go through a network at once."""
    each = tasks.support.y.shape[1] + tasks.query.y.shape[1]
    size = max(1, _EXAMPLES_AT_ONCE // each)
    for start in range(0, tasks.support.y.shape[0], size):
        yield tree_map(lambda leaf, start=start: leaf[start : start + size], tasks)


def count_ways(tasks: Task, name: str = "tasks.", *, query: bool = True) -> int:
    """W, the number of classes of each stacked task, after a look at the labels.

    Args:
        tasks: Stacked tasks, labels of shape (T, N) and (T, Q).
        name: What to put before ``support`` and ``query`` in messages.
        query: Whether to look at the query labels.

    Raises:
        ValueError: Labels of a support set that are not 0, ..., W - 1, each with an example, or not the same W in all
            tasks; or query labels beyond them.
    """
    parts = {f"{name}support.y" if name else "support.y": tasks.support.y} | (
        {f"{name}query.y": tasks.query.y} if query else {}
    )
    for part, labels in parts.items():
        if labels.is_floating_point() or labels.dtype == torch.bool or labels.dim() != 2:
            raise ValueError(
                f"{part} must hold one integer label for each example, got {labels.dtype} of shape "
                f"{tuple(labels.shape)}"
            )
    (where, support), *others = parts.items()
    ways = int(support.max()) + 1
    present = F.one_hot(support.long().clamp(min=0), max(ways, 1)).amax(1)  # (T, W)
    # One look at the values, since each makes a GPU wait; the reasons are sought only where something is wrong.
    right = present.bool().all() & (support >= 0).all()
    for _, labels in others:
        right = right & ((labels >= 0) & (labels < ways)).all()
    if not bool(right):
        raise ValueError(_wrong_labels(where, support, present, others, ways))
    return ways


def _wrong_labels(where: str, support: Tensor, present: Tensor, others: list[tuple[str, Tensor]], ways: int) -> str:
    for task, labels in enumerate(support.tolist()):
        if min(labels) < 0:
            return f"{where} of task {task} has label {min(labels)}; a task's labels must be 0, ..., ways - 1"
        missing = [label for label in range(max(labels)) if label not in labels]
        if missing:
            return (
                f"{where} of task {task} has no example of label {missing[0]}, but one of label {max(labels)}; "
                "a task's labels must be 0, ..., ways - 1, each with an example in its support set"
            )
    tops = support.amax(1).tolist()
    for task, top in enumerate(tops):
        if top + 1 != ways:
            return (
                f"{where} has labels up to {top} in task {task} and up to {ways - 1} in task {tops.index(ways - 1)}; "
                "stack only tasks of as many classes, or pass a list of single tasks"
            )
    part, labels = others[0]
    task, example = ((labels < 0) | (labels >= ways)).nonzero()[0].tolist()
    return (
        f"{part} of task {task} has label {int(labels[task, example])}, but its support set only labels 0 to {ways - 1}"
    )
