"""Matching networks."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from meta_init.baselines.metric import Embedded, MetricLearner


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """Cosine similarity of a (T, Q, D) and b (T, N, D), shape (T, Q, N); 0 with a vector of zeros."""
    return _unit(a) @ _unit(b).transpose(1, 2)


def _unit(x: Tensor) -> Tensor:
    length = x.norm(dim=-1, keepdim=True)
    # An embedding behind ReLU can be all zeros; dividing by a small number would blow up its gradient.
    return x / torch.where(length > 0, length, 1.0)


class FullContext(nn.Module):
    """Full context embeddings: an example is embedded in view of the whole support set.

    Support: g(x_i) = g'(x_i) + forward and backward state of an LSTM that runs over g'(x_1), ..., g'(x_N).
    Query: an LSTM that reads the support set K times: h_k, c_k = LSTM([f'(x), r_k], h_{k-1}, c_{k-1}), then f'(x) is
    added to h_k; r_k = sum_i softmax_i(h_{k-1} . g(x_i)) g(x_i); h_0 = f'(x), c_0 = 0; f(x) = h_K.

    The order of the support set matters: `Episodes` sorts it by class.

    Args:
        size: D, of the encoder's embeddings.
        reads: K >= 1. The paper does not tell its number.

    Raises:
        ValueError: ``reads`` below 1.

    Source: Vinyals et al. 2016, section 2.1.2 and appendix A. Deviation: r_k is an input of the LSTM instead of a part
    of its state, which is the same linear map.
    """

    def __init__(self, size: int, *, reads: int = 5) -> None:
        super().__init__()
        if reads < 1:
            raise ValueError(f"FullContext: reads must be >= 1, got {reads}")
        self.over_support = nn.LSTM(size, size, bidirectional=True, batch_first=True)
        self.over_query = nn.LSTMCell(2 * size, size)
        self.reads = reads

    def forward(self, tasks: Embedded) -> Embedded:
        """The same tasks with new embeddings of the same shapes."""
        states = self.over_support(tasks.support)[0]  # (T, N, 2 D)
        support = tasks.support + sum(states.chunk(2, dim=-1))
        hidden = query = tasks.query
        cell = torch.zeros_like(query).flatten(0, 1)  # (T Q, D)
        for _ in range(self.reads):
            read = (hidden @ support.transpose(1, 2)).softmax(-1) @ support  # (T, Q, D)
            inputs = torch.cat([query, read], -1).flatten(0, 1)
            state, cell = self.over_query(inputs, (hidden.flatten(0, 1), cell))
            hidden = query + state.view_as(query)
        return tasks._replace(support=support, query=hidden)


class Attention(nn.Module):
    """log P(y | x, S), shape (T, Q, W), with P(y | x, S) = sum_i softmax_i(s cos(f(x), g(x_i))) y_i.

    Args:
        scale: s, finite and > 0.
        context: From embeddings to embeddings, such as `FullContext`.

    Raises:
        ValueError: ``scale`` is not finite or not > 0.
    """

    def __init__(self, scale: float = 1.0, context: Callable[[Embedded], Embedded] | None = None) -> None:
        super().__init__()
        if not (math.isfinite(scale) and scale > 0):
            raise ValueError(f"Attention: scale must be a finite number > 0, got {scale}")
        self.scale, self.context = scale, context

    def forward(self, tasks: Embedded) -> Tensor:
        """Log-probabilities."""
        tasks = tasks if self.context is None else self.context(tasks)
        attention = (self.scale * cosines(tasks.query, tasks.support)).log_softmax(-1)  # (T, Q, N)
        members = F.one_hot(tasks.labels, tasks.ways).bool().transpose(1, 2).unsqueeze(1)  # (T, 1, W, N)
        return attention.unsqueeze(2).masked_fill(~members, -torch.inf).logsumexp(-1)


def matching(
    encoder: nn.Module,
    *,
    scale: float = 1.0,
    context: Callable[[Embedded], Embedded] | None = None,
    statistics: str = "running",
) -> MetricLearner:
    """Matching networks: the labels of the support set, weighted by attention.

    P(y | x, S) = sum_i a(x, x_i) y_i with a(x, x_i) = softmax over i of cos(f(x), g(x_i)); the loss is -log P, the mean
    over query examples.

    Args:
        encoder: Of support and query set, f' = g'.
        scale: Multiplies the cosines; 1 in the paper, with which P stays below 0.65 for 5 classes and below 0.28 for 20
            (one shot). Reimplementations use up to 100.
        context: ``FullContext(size)`` for full context embeddings, which the paper found to help on mini-ImageNet and
            not on Omniglot. None: f = f', g = g'.
        statistics: Of batch norm, see `MetricLearner`.

    Source: Vinyals et al. 2016, sections 2.1 and 4.1, https://arxiv.org/abs/1606.04080. Deviation: no fine-tuning on
    the support set, which the paper also tries.

    >>> learner = matching(nn.Flatten(), context=FullContext(64))
    """
    return MetricLearner(encoder, Attention(scale, context), statistics=statistics)
