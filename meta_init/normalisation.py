"""Which statistics normalisation layers use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


def norms_with_statistics(model: nn.Module) -> list[nn.modules.batchnorm._NormBase]:
    """Batch and instance norm, which may keep running statistics."""
    return [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._NormBase)]


@contextmanager
def norms_by(model: nn.Module, *, batch: bool) -> Iterator[None]:
    """Norms by the statistics of the batch at hand, or by running ones, whatever ``train()`` and ``eval()`` say.

    Running statistics are not written.
    """
    norms = norms_with_statistics(model)
    before = [(norm.training, norm.track_running_stats) for norm in norms]
    for norm in norms:
        norm.training, norm.track_running_stats = batch, norm.track_running_stats and not batch
    try:
        yield
    finally:
        for norm, (training, tracked) in zip(norms, before, strict=True):
            norm.training, norm.track_running_stats = training, tracked
