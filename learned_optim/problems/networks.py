"""Small networks to train and test optimizers on, with PyTorch's initialisation.

Their ``size`` and ``colours`` are those of the square images: shape (N, size, size) for one colour, as in MNIST, else
(N, colours, size, size); CIFAR-10 has ``size=32, colours=3``. Norms always use the statistics of the batch.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ACTIVATIONS: dict[str, type[nn.Module]] = {"sigmoid": nn.Sigmoid, "relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}


def mlp(
    hidden: tuple[int, ...] = (20,),
    activation: str = "sigmoid",
    *,
    norm: bool = False,
    inputs: int = 784,
    outputs: int = 10,
) -> nn.Module:
    """A multilayer perceptron on flattened images; with no hidden layer a softmax regression.

    The default is the 784-20-10 network of Andrychowicz et al. 2016, section 3.2. For CIFAR-10: ``inputs=3072``. With
    ``norm`` each hidden layer's inputs are normalised over the batch.

    Raises:
        ValueError: An unknown activation.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"mlp: unknown activation {activation!r}; there are {sorted(ACTIVATIONS)}")
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise((inputs, *hidden)):
        layers.append(nn.Linear(before, after))
        if norm:
            layers.append(nn.BatchNorm1d(after, track_running_stats=False))
        layers.append(ACTIVATIONS[activation]())
    return nn.Sequential(*layers, nn.Linear((inputs, *hidden)[-1], outputs))


class _Times(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def tied_mlp(
    pool: int, hidden: tuple[int, ...] = (20,), activation: str = "sigmoid", *, size: int = 28, outputs: int = 10
) -> nn.Module:
    """`mlp` with the weights of ``pool`` x ``pool`` pixels tied: on pooled images, a small copy of the full network.

    It is given means over squares of pixels, and takes their sums: a weight then has the gradient that those of its
    square have together, and a step by u does what a step by u of each of them would do. At the start the hidden units'
    inputs are spread as widely as those of ``mlp(hidden, activation, inputs=size**2)``.

    Args:
        pool: Pixels a side, see `ImageClassification`.
        hidden: Units of the hidden layers.
        activation: See `mlp`.
        size: Of the images before they are pooled.
        outputs: Classes.

    Raises:
        ValueError: An unknown activation.
    """
    net = mlp(tuple(hidden), activation, inputs=(size // pool) ** 2, outputs=outputs)
    first = next(layer for layer in net.modules() if isinstance(layer, nn.Linear))
    with torch.no_grad():
        first.weight.mul_(1 / pool**2)
        first.bias.mul_(1 / pool)
    return nn.Sequential(_Times(float(pool**2)), net)


class _ChannelsLast(nn.Module):
    """The same images (N, C, H, W), laid out in memory as (N, H, W, C), as convolutions on CPU like them best."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)  # vmap does not know memory formats


def _as_channels(size: int, colours: int) -> nn.Module:
    """What gives images of one colour their axis of channels, and those of several their layout in memory."""
    return nn.Unflatten(1, (1, size)) if colours == 1 else _ChannelsLast()


def conv_net(
    channels: int = 16,
    hidden: int = 32,
    *,
    norm: bool = False,
    hidden_norm: bool = False,
    kernel: int = 3,
    size: int = 28,
    colours: int = 1,
    outputs: int = 10,
) -> nn.Module:
    """Three convolutions with 2x2 max-pooling and ReLU, and a hidden layer, on square images.

    The network of the literature on CIFAR-10 is ``conv_net(norm=True, hidden_norm=True, size=32, colours=3)``.

    Args:
        channels: Filters of each convolution.
        hidden: Units of the hidden layer.
        norm: Batch normalisation after each convolution, by the statistics of the batch.
        hidden_norm: The same in the hidden layer.
        kernel: Height and width of the filters, odd.
        size: Of the images, at least 8.
        colours: Of the images.
        outputs: Classes.

    Raises:
        ValueError: The images are too small, or the kernel is even.

    Source: Andrychowicz et al. 2016, section 3.3: three convolutional layers with max-pooling, a layer of 32 hidden
    units, ReLU, batch normalisation throughout. In the authors' code there are 16 filters, the kernel is 5 (here 3),
    and batch normalisation has no learned scale, only a shift.
    """
    if size < 8:
        raise ValueError(f"conv_net: three max-pools halve images of size {size} to nothing; size must be >= 8")
    if kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"conv_net: kernel must be odd, so that images keep their size, got {kernel}")
    layers: list[nn.Module] = [_as_channels(size, colours)]
    for before in (colours, channels, channels):
        layers.append(nn.Conv2d(before, channels, kernel, padding=kernel // 2))
        if norm:
            layers.append(nn.BatchNorm2d(channels, track_running_stats=False))
        layers += [nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Flatten(), nn.Linear(channels * (size // 8) ** 2, hidden)]
    if hidden_norm:
        layers.append(nn.BatchNorm1d(hidden, track_running_stats=False))
    return nn.Sequential(*layers, nn.ReLU(), nn.Linear(hidden, outputs))


class _Residual(nn.Module):
    """x + two normalised convolutions of x, of which the first may halve the image."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        stride = 1 if before == after else 2
        self.body = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(after, track_running_stats=False),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, padding=1, bias=False),
            nn.BatchNorm2d(after, track_running_stats=False),
        )
        self.shortcut: nn.Module = nn.Identity()
        if before != after:
            self.shortcut = nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.shortcut(x) + self.body(x))


def res_net(channels: int = 16, blocks: int = 1, *, size: int = 28, colours: int = 1, outputs: int = 10) -> nn.Module:
    """A residual network: a convolution, three stages of ``blocks`` blocks, the mean over space, a linear layer.

    Args:
        channels: Filters of the first stage; each stage has twice as many, on images of half the size.
        blocks: In each stage: 6 blocks + 2 layers in all.
        size: Of the images.
        colours: Of the images.
        outputs: Classes.

    Source: He et al. 2016, section 4.2, whose smallest is ``res_net(16, 3, size=32, colours=3)``. Deviation: shortcuts
    that change the shape are 1x1 convolutions in place of strides and zeros.
    """
    widths = [channels, *(channels << stage for stage in range(3) for _ in range(blocks))]
    layers = [
        _as_channels(size, colours),
        nn.Conv2d(colours, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels, track_running_stats=False),
        nn.ReLU(),
        *(_Residual(before, after) for before, after in pairwise(widths)),
    ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], outputs))


def _rows(x: Tensor) -> Tensor:
    """The rows of images, with all their colours: shape (N, size, colours * size)."""
    return x if x.dim() == 3 else x.transpose(1, 2).flatten(2)


class _Recurrent(nn.Module):
    def __init__(self, hidden: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.cell = nn.GRU(inputs, hidden, batch_first=True)
        self.head = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        # In plain arithmetic: vmap has no rule for nn.GRU itself.
        weight_x, weight_h, bias_x, bias_h = self.cell.all_weights[0]
        inputs = F.linear(_rows(x), weight_x, bias_x)  # (N, size, 3 H)
        state = inputs.new_zeros(len(x), self.cell.hidden_size)
        for row in inputs.unbind(dim=1):
            reset, keep, new = row.chunk(3, dim=-1)  # (N, H) each
            reset_h, keep_h, new_h = F.linear(state, weight_h, bias_h).chunk(3, dim=-1)
            new = torch.tanh(new + torch.sigmoid(reset + reset_h) * new_h)
            state = torch.lerp(new, state, torch.sigmoid(keep + keep_h))
        out: Tensor = self.head(state)
        return out


def recurrent(hidden: int = 20, *, size: int = 28, colours: int = 1, outputs: int = 10) -> nn.Module:
    """A GRU that reads an image row by row, and a linear layer on its last state."""
    return _Recurrent(hidden, size * colours, outputs)


class _Transformer(nn.Module):
    def __init__(self, width: int, layers: int, heads: int, size: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.embed = nn.Linear(inputs, width)
        self.position = nn.Parameter(0.02 * torch.randn(size, width))
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.blocks(self.embed(_rows(x)) + self.position).mean(dim=1))
        return out


def transformer(
    width: int = 16, layers: int = 2, *, heads: int = 2, size: int = 28, colours: int = 1, outputs: int = 10
) -> nn.Module:
    """A pre-norm transformer encoder on the rows of an image, averaged before a linear layer."""
    return _Transformer(width, layers, heads, size, size * colours, outputs)
