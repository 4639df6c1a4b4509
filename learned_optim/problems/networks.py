"""Small networks to train and test optimizers on, each for flat or square grey images with PyTorch's initialisation."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

ACTIVATIONS: dict[str, type[nn.Module]] = {"sigmoid": nn.Sigmoid, "relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}


def mlp(
    hidden: tuple[int, ...] = (20,), activation: str = "sigmoid", *, inputs: int = 784, outputs: int = 10
) -> nn.Module:
    """A multilayer perceptron on flattened images; with no hidden layer a softmax regression.

    The default is the 784-20-10 network of Andrychowicz et al. 2016, section 3.2.

    Raises:
        ValueError: An unknown activation.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"mlp: unknown activation {activation!r}; there are {sorted(ACTIVATIONS)}")
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise((inputs, *hidden)):
        layers += [nn.Linear(before, after), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers, nn.Linear((inputs, *hidden)[-1], outputs))


def conv_net(channels: int = 16, hidden: int = 32, *, norm: bool = False, outputs: int = 10) -> nn.Module:
    """Three 3x3 convolutions with 2x2 max-pooling and ReLU, and a hidden layer, on 28 x 28 grey images.

    Source: Andrychowicz et al. 2016, section 3.3, for the layers; with ``norm`` their batch normalisation, here always
    by the statistics of the batch.
    """
    layers: list[nn.Module] = [nn.Unflatten(1, (1, 28))]
    for before in (1, channels, channels):
        layers.append(nn.Conv2d(before, channels, 3, padding=1))
        if norm:
            layers.append(nn.BatchNorm2d(channels, track_running_stats=False))
        layers += [nn.ReLU(), nn.MaxPool2d(2)]
    head = [nn.Flatten(), nn.Linear(channels * 3 * 3, hidden), nn.ReLU(), nn.Linear(hidden, outputs)]
    return nn.Sequential(*layers, *head)


class _Recurrent(nn.Module):
    def __init__(self, hidden: int, outputs: int) -> None:
        super().__init__()
        self.cell = nn.GRU(28, hidden, batch_first=True)
        self.head = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.cell(x)[0][:, -1])
        return out


def recurrent(hidden: int = 20, *, outputs: int = 10) -> nn.Module:
    """A GRU that reads a 28 x 28 image row by row, and a linear layer on its last state."""
    return _Recurrent(hidden, outputs)


class _Transformer(nn.Module):
    def __init__(self, width: int, layers: int, heads: int, outputs: int) -> None:
        super().__init__()
        self.embed = nn.Linear(28, width)
        self.position = nn.Parameter(0.02 * torch.randn(28, width))
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.blocks(self.embed(x) + self.position).mean(dim=1))
        return out


def transformer(width: int = 16, layers: int = 2, *, heads: int = 2, outputs: int = 10) -> nn.Module:
    """A pre-norm transformer encoder on the 28 rows of an image, averaged before a linear layer."""
    return _Transformer(width, layers, heads, outputs)
