"""What metric learners and classifiers do with an encoder."""

from __future__ import annotations

from torch import Tensor, nn


def embedded(encoder: nn.Module, x: Tensor) -> Tensor:
    """Embeddings of stacked tasks' inputs, (T, N, ...) to (T, N, D), all in one pass."""
    z: Tensor = encoder(x.flatten(0, 1))
    return z.reshape(*x.shape[:2], -1)


def without_running_statistics(encoder: nn.Module) -> str | None:
    """The name of a batch norm that has only the statistics of its batch, or None."""
    for name, module in encoder.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            return str(name)
    return None
