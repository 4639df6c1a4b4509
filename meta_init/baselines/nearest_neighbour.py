"""The nearest neighbour, on pixels or on features."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from meta_init.baselines.matching import cosines
from meta_init.baselines.metric import Embedded, MetricLearner, of_the_best
from meta_init.baselines.pretrain import Pretrained
from meta_init.baselines.prototypical import squared_distances
from meta_init.learner import Evaluation
from meta_init.tasks import Batch, Task

SIMILARITIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cosine": cosines,
    "euclidean": lambda a, b: -squared_distances(a, b),
}
"""Of (T, Q, D) and (T, N, D), shape (T, Q, N)."""


def nearest_neighbour(
    encoder: nn.Module | None = None, *, similarity: str = "cosine", statistics: str = "running"
) -> MetricLearner:
    """The label of the most similar support example: the baseline without learning.

    Args:
        encoder: Whose outputs are compared, such as that of a `Pretrained`; by default the inputs themselves.
        similarity: ``"cosine"``, or ``"euclidean"``: the negative squared distance.
        statistics: Of batch norm, see `MetricLearner`.

    The loss is the cross-entropy of the best similarity of each class. It is there to complete the interface: with
    inputs themselves there is nothing to train, and similarities are no calibrated logits.

    Raises:
        ValueError: An unknown similarity.

    Source: Vinyals et al. 2016, section 4.1, with the cosine on pixels and on features of a classifier of the training
    classes; Ravi and Larochelle 2017, section 5.1, on features.

    >>> learner = nearest_neighbour(similarity="euclidean")
    """
    if similarity not in SIMILARITIES:
        raise ValueError(f"nearest_neighbour: unknown similarity {similarity!r}; there are {sorted(SIMILARITIES)}")
    alike = SIMILARITIES[similarity]

    def compare(tasks: Embedded) -> Tensor:
        return of_the_best(alike(tasks.query, tasks.support), tasks)

    return MetricLearner(nn.Flatten() if encoder is None else encoder, compare, statistics=statistics)


class PretrainedNeighbour(Pretrained):
    """A classifier of all training classes whose features' nearest neighbour names the class in a new task.

    `outer_loss` is that of `Pretrained`. A new task changes nothing: `adapt` and `evaluate` are those of
    `nearest_neighbour` on the encoder's outputs, with batch norm by running statistics.

    Args:
        encoder: From inputs (N, ...) to embeddings; it is held, not copied.
        size: D, of the embeddings.
        classes: How many global labels there are.
        similarity: See `nearest_neighbour`.

    Raises:
        ValueError: A count below 1, an unknown similarity, or a batch norm without running statistics.

    Source: Ravi and Larochelle 2017, section 5.1, "nearest neighbour".

    >>> learner = PretrainedNeighbour(nn.Flatten(), size=784, classes=1200)
    """

    def __init__(self, encoder: nn.Module, *, size: int, classes: int, similarity: str = "cosine") -> None:
        super().__init__(encoder, size=size, classes=classes, head_only=True)
        self.similarity = similarity
        self._judge()  # which looks at similarity

    def evaluate(self, tasks: Task | Sequence[Task], steps: int | None = None) -> Evaluation:
        """See `MetricLearner.evaluate`."""
        return self._judge().evaluate(tasks, steps)

    def adapt(self, support: Batch, steps: int | None = None) -> Callable[[Tensor], Tensor]:
        """See `MetricLearner.adapt`; ``steps`` is without effect."""
        return self._judge().adapt(support)

    def extra_repr(self) -> str:
        return f"similarity={self.similarity!r}"

    def _judge(self) -> MetricLearner:
        return nearest_neighbour(self.encoder, similarity=self.similarity)
