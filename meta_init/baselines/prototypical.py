"""Prototypical networks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from meta_init.baselines.metric import Embedded, MetricLearner


def to_prototypes(tasks: Embedded) -> Tensor:
    """-||f(x) - c_k||^2 for every query example x and class k, shape (T, Q, W); c_k is the mean of k's embeddings."""
    members = F.one_hot(tasks.labels, tasks.ways).to(tasks.support.dtype)  # (T, N, W)
    prototypes = (members / members.sum(1, keepdim=True)).transpose(1, 2) @ tasks.support  # (T, W, D)
    return -squared_distances(tasks.query, prototypes)


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """||a_i - b_j||^2 for a of shape (T, Q, D) and b of shape (T, N, D), shape (T, Q, N)."""
    # By products of matrices, which is what cdist would choose for many points, small distances drown in rounding.
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square()


def prototypical(encoder: nn.Module, *, statistics: str = "running") -> MetricLearner:
    """Prototypical networks: a class is the mean of its examples' embeddings, and the nearest one is chosen.

    c_k = mean of f(x) over the support examples of class k; p(y = k | x) = softmax over k of -||f(x) - c_k||^2; the
    loss is -log p(y | x), the mean over query examples.

    Args:
        encoder: f, such as `conv_encoder`.
        statistics: Of batch norm, see `MetricLearner`. The released code embeds a training episode's support and
            query set together, and tests with running statistics.

    Source: Snell et al. 2017, algorithm 1, https://arxiv.org/abs/1703.05175. The paper trains with more classes than it
    tests with, such as 60 for 5 and 20 (give training `Episodes` of their own), and halves Adam's learning rate 1e-3
    every 2,000 episodes; here a step may take several episodes.

    >>> learner = prototypical(nn.Flatten())
    """
    return MetricLearner(encoder, to_prototypes, statistics=statistics)
