"""Networks from images to vectors."""

from __future__ import annotations

from torch import Tensor, nn


def conv_encoder(*, filters: int = 64, size: int = 28, channels: int = 1, blocks: int = 4) -> nn.Sequential:
    """Blocks of a 3x3 convolution, batch norm, ReLU and 2x2 max-pool: the embedding of the metric learners.

    On CPU ``few_shot_conv(...)[:-1]``, with strides in place of max-pools, is faster.

    Args:
        filters: Of each convolution.
        size: Of the square images.
        channels: Of the images, shape (size, size) for 1, else (channels, size, size).
        blocks: How many; each halves the size, rounding down.

    Returns:
        A network with outputs of shape (N, filters * (size // 2**blocks)**2): 64 numbers for 28 x 28 pixels.

    Raises:
        ValueError: The images are too small for so many blocks.

    Source: Vinyals et al. 2016, section 4.1; Snell et al. 2017, section 3.1. PyTorch's default initialisation.

    >>> few = conv_encoder(filters=8, size=16)
    >>> sum(p.numel() for p in few.parameters())
    1896
    """
    if size >> blocks < 1:
        raise ValueError(
            f"conv_encoder: {blocks} blocks halve images of size {size} to nothing; size must be >= {2**blocks}"
        )
    layers: list[nn.Module] = [nn.Unflatten(-2, (1, size))] if channels == 1 else []
    for before in (channels, *[filters] * (blocks - 1)):
        layers += [nn.Conv2d(before, filters, 3, padding=1), nn.BatchNorm2d(filters), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten())


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
