"""Pretraining on everything at once, then fine-tuning: what learned initialisations must beat."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from learned_optim import SGDRule
from meta_init.baselines.encoders import embedded, without_running_statistics
from meta_init.baselines.metric import count_ways, slices, stacked
from meta_init.learner import Evaluation, MetaLearner
from meta_init.normalisation import norms_by
from meta_init.tasks import Batch, Task, as_tasks, check_batch, count_tasks, supervised_loss


def pooled(tasks: Task | Sequence[Task]) -> Batch:
    """All examples of all tasks, support and query sets, as one batch.

    Raises:
        ValueError: See `count_tasks`.
    """
    tasks = as_tasks(tasks)
    count_tasks(tasks)
    groups = [tree_map(lambda leaf: leaf.flatten(0, 1), tasks)] if isinstance(tasks, Task) else tasks
    batches = [batch for group in groups for batch in group]
    batch: Batch = tree_map(lambda *leaves: torch.cat(leaves), *batches)
    return batch


class Pooled(MetaLearner):
    """One model trained on the pooled data of all tasks, as if they were one; fine-tuned on a new one.

    `outer_loss` is the loss of the model itself on all examples, support and query sets alike; `adapt` and `evaluate`
    are those of a `MetaLearner`: gradient steps from there.
    """

    def outer_loss(self, tasks: Task | Sequence[Task]) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean loss of all examples; as detached ``query_loss`` too, and ``accuracy`` where targets are labels.

        Raises:
            ValueError: See `count_tasks`.
        """
        batch = pooled(tasks)
        prediction = self.predict({}, {}, batch.x)
        loss = self.loss(prediction, batch.y)
        logs = {"query_loss": loss.detach()}
        if not batch.y.is_floating_point():
            logs["accuracy"] = (prediction.detach().argmax(1) == batch.y).float().mean()
        return loss, logs


def pretrained_on_all(
    model: nn.Module, *, lr: float, steps: int = 1, loss: Callable[[Any, Tensor], Tensor] = supervised_loss
) -> Pooled:
    """Pretraining for tasks whose targets mean the same in all of them, such as sine waves.

    Args:
        model: Any module; it is held and trained in place.
        lr: Of gradient descent on a new task's support set.
        steps: Of it, by default.
        loss: Of prediction and target. See `supervised_loss`.

    Source: Finn et al. 2017, section 5.1, the baseline that pretrains on all tasks and fine-tunes with SGD, its step
    size tuned.

    >>> learner = pretrained_on_all(nn.Linear(1, 1), lr=0.01)
    """
    return Pooled(model, SGDRule(lr), loss=loss, steps=steps, first_order=True)


class Pretrained(nn.Module):
    """A classifier of all training classes whose last layer is replaced and fine-tuned for a new task.

    `outer_loss` is the mean cross-entropy over all examples, of support and query sets alike, under their global labels
    (see `ClassBatches`). For a new task the last layer starts anew at zero, so that every class is as likely and the
    first step moves it alone, and gradient descent on the support set follows.

    Batch norm. While pretraining, as in any classifier: by batch statistics in training mode. With ``head_only``,
    features are taken by running statistics. Fine-tuning all parameters goes by the statistics of the support set, and
    judging by those of the query set, as in `MetaLearner`.

    Args:
        encoder: From inputs (N, ...) to embeddings; it is held, not copied.
        size: D, of the embeddings.
        classes: How many global labels there are.
        lr: Of gradient descent on a new task's support set.
        steps: Of it, by default.
        head_only: Fine-tunes the last layer alone, on features that stay; otherwise all parameters.

    Raises:
        ValueError: ``steps`` below 1, a count below 1, an ``lr`` that is negative or not finite, or with ``head_only``
            a batch norm without running statistics.

    Source: Ravi and Larochelle 2017, section 5.1, "fine-tuning". Deviations: its step sizes and numbers of steps are
    searched for on validation tasks, here they are given; whether its new layer starts at zero is not told.

    >>> learner = Pretrained(nn.Flatten(), size=784, classes=1200, lr=0.1, steps=5, head_only=True)
    """

    def __init__(
        self,
        encoder: nn.Module,
        *,
        size: int,
        classes: int,
        lr: float = 0.01,
        steps: int = 10,
        head_only: bool = False,
    ) -> None:
        super().__init__()
        if min(size, classes) < 1:
            raise ValueError(f"Pretrained: size and classes must be >= 1, got {size} and {classes}")
        bare = without_running_statistics(encoder)
        if head_only and bare is not None:
            raise ValueError(
                f"Pretrained: the encoder's batch norm {bare!r} keeps no running statistics, which head_only=True needs"
            )
        self.encoder = encoder
        self.head = nn.Linear(size, classes)
        self.lr, self.steps, self.head_only = lr, steps, head_only
        self._fine_tuning(1)  # which looks at lr and steps

    def outer_loss(self, tasks: Task | Sequence[Task]) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean cross-entropy of all examples; detached, the same as ``query_loss``, and ``accuracy``.

        Raises:
            ValueError: Shapes that do not fit, or labels that are not global labels.
        """
        x, y = pooled(tasks)
        classes = self.head.out_features
        if y.is_floating_point() or not bool(((y >= 0) & (y < classes)).all()):
            raise ValueError(
                f"Pretrained: labels must be integers from 0 to {classes - 1}, got {y.dtype} from {y.min()} to "
                f"{y.max()}; set classes= to how many there are"
            )
        logits = self.head(self.encoder(x).flatten(1))
        loss = F.cross_entropy(logits, y.long())
        return loss, {"query_loss": loss.detach(), "accuracy": (logits.argmax(1) == y).float().mean()}

    def evaluate(self, tasks: Task | Sequence[Task], steps: int | None = None) -> Evaluation:
        """Query losses and accuracies after 0, 1, ..., S = ``steps`` steps from a new last layer; without a graph.

        Raises:
            ValueError: See `MetricLearner.outer_loss`.
        """
        results = []
        for name, group in stacked(tasks):
            learner = self._fine_tuning(count_ways(group, name))
            for part in slices(group):
                support, query = part
                parts = Task(support._replace(x=self._inputs(support.x)), query._replace(x=self._inputs(query.x)))
                results.append(learner.evaluate(parts, self.steps if steps is None else steps))
        losses, accuracies = zip(*results, strict=True)
        return Evaluation(torch.cat(losses), torch.cat(accuracies))

    def adapt(self, support: Batch, steps: int | None = None) -> Callable[[Tensor], Tensor]:
        """A predictor fine-tuned on one task: inputs of shape (Q, ...) to logits (Q, W), without a graph.

        Args:
            support: One task's examples, without a task axis.
            steps: Of gradient descent, by default as given.

        Raises:
            ValueError: See `MetricLearner.outer_loss`.
        """
        check_batch(support, "support")
        labels = Batch(support.x, support.y.unsqueeze(0))
        learner = self._fine_tuning(count_ways(Task(labels, labels), "", query=False))
        adapted = learner.adapt(Batch(self._inputs(support.x.unsqueeze(0))[0], support.y), steps)
        return lambda x: adapted(self._inputs(x.unsqueeze(0))[0])

    def extra_repr(self) -> str:
        return f"lr={self.lr}, steps={self.steps}, head_only={self.head_only}"

    def _inputs(self, x: Tensor) -> Tensor:
        """What fine-tuning takes: the inputs, or their features (T, N, D)."""
        if not self.head_only:
            return x
        with torch.no_grad(), norms_by(self.encoder, batch=False):
            return embedded(self.encoder, x)

    def _fine_tuning(self, ways: int) -> MetaLearner:
        """Gradient descent from the encoder and a new last layer, or from that alone."""
        weight = self.head.weight
        # Outside inference mode, whose tensors torch.func could not differentiate.
        with torch.inference_mode(False):
            head = nn.Linear(weight.shape[1], ways, device=weight.device, dtype=weight.dtype)
            for param in head.parameters():
                nn.init.zeros_(param)
        model = head if self.head_only else nn.Sequential(self.encoder, nn.Flatten(), head)
        return MetaLearner(model, SGDRule(self.lr), steps=self.steps, first_order=True)
