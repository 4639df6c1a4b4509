"""Siamese networks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from meta_init.baselines.metric import Embedded, MetricLearner, of_the_best


class WeightedL1(nn.Module):
    """sum_d w_d |f(x)_d - f(x_i)_d| + b for every query example x and support example x_i, shape (T, Q, N).

    Args:
        size: D, of the embeddings.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weigh = nn.Linear(size, 1)

    def forward(self, tasks: Embedded) -> Tensor:
        """The logit of being of the same class."""
        scores: Tensor = self.weigh((tasks.query.unsqueeze(2) - tasks.support.unsqueeze(1)).abs())
        return scores.squeeze(-1)


def pair_losses(scores: Tensor, tasks: Embedded, targets: Tensor) -> Tensor:
    """Binary cross-entropy of all pairs of a query and a support example; same and different weigh one half each."""
    same = (targets.unsqueeze(2) == tasks.labels.unsqueeze(1)).to(scores.dtype)  # (T, Q, N)
    losses = F.binary_cross_entropy_with_logits(scores, same, reduction="none")
    halves = [(losses * kind).sum((1, 2)) / kind.sum((1, 2)).clamp(min=1) for kind in (same, 1 - same)]
    return torch.stack(halves).mean(0)


def siamese(encoder: nn.Module, *, size: int, statistics: str = "running") -> MetricLearner:
    """Siamese networks: a network learns whether two examples are of the same class; the most similar one decides.

    p(same | x, x') = sigmoid(sum_d w_d |f(x)_d - f(x')_d| + b); the loss is binary cross-entropy. A query example gets
    the label of the support example with the largest p.

    Args:
        encoder: f, of both twins. The paper's ends in a layer of 4,096 sigmoids.
        size: D, of the embeddings.
        statistics: Of batch norm, see `MetricLearner`.

    Source: Koch et al. 2015, section 3, https://www.cs.cmu.edu/~rsalakhu/papers/oneshot1.pdf. Deviations: the
    pairs are all of a query and a support example of an episode, where the paper draws pairs, as many of the same class
    as of two (here the two kinds weigh the same); the paper's encoder is larger, without batch norm, on 105 x 105
    pixels, with weight decay, learning rates of each layer and affine distortions; b is not in its formula.

    >>> learner = siamese(nn.Flatten(), size=784)
    """
    return MetricLearner(encoder, WeightedL1(size), decide=of_the_best, losses=pair_losses, statistics=statistics)
