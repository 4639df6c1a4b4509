"""The networks of the papers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn


def sine_mlp(hidden: int = 40) -> nn.Sequential:
    """1-40-40-1 with ReLU, as in Finn et al. 2017, section 5.1. PyTorch's default initialisation."""
    return nn.Sequential(nn.Linear(1, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1))


def few_shot_conv(
    ways: int, *, filters: int = 64, size: int = 28, channels: int = 1, blocks: int = 4, pool: bool = False
) -> nn.Sequential:
    """Blocks of a 3x3 convolution of stride 2, batch norm and ReLU, the mean over space, and a linear layer.

    With ``pool`` 2x2 max-pools in place of strides, and all of space in place of its mean, as on mini-ImageNet:
    ``few_shot_conv(5, filters=32, size=84, channels=3, pool=True)``.

    Args:
        ways: Classes.
        filters: Of each convolution.
        size: Of the square images.
        channels: Of the images, shape (size, size) for 1, else (channels, size, size).
        blocks: How many.
        pool: See above.

    Raises:
        ValueError: With ``pool``, see `conv_encoder`.

    Source: Finn et al. 2017, section 5.2; PyTorch's default initialisation in place of Glorot's.
    """
    if pool:
        encoder = conv_encoder(filters=filters, size=size, channels=channels, blocks=blocks)
        return nn.Sequential(*encoder, nn.Linear(filters * (size >> blocks) ** 2, ways))
    layers: list[nn.Module] = [nn.Unflatten(-2, (1, size))] if channels == 1 else []
    for before in (channels, *[filters] * (blocks - 1)):
        layers += [nn.Conv2d(before, filters, 3, stride=2, padding=1), nn.BatchNorm2d(filters), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(filters, ways))


def conv_encoder(*, filters: int = 64, size: int = 28, channels: int = 1, blocks: int = 4) -> nn.Sequential:
    """Blocks of a 3x3 convolution, batch norm, ReLU and 2x2 max-pool, flattened: the embedding of the metric learners.

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


def few_shot_mlp(ways: int, hidden: Sequence[int] = (256, 128, 64, 64), *, inputs: int = 784) -> nn.Sequential:
    """The network without convolutions: hidden layers with batch norm and ReLU, and a linear layer.

    Source: Finn et al. 2017, section 5.2, for Omniglot; PyTorch's default initialisation.
    """
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise((inputs, *hidden)):
        layers += [nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(hidden[-1], ways))
