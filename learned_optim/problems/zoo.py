"""The zoo: problems of many kinds to test optimizers on, which those that are to carry over are not trained on.

They are small, so that 500 steps take seconds on one core. None has the network or the data of a family of the
synthetic corpus. Losses are at least 0, so that ratios of them mean something.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from learned_optim.problems.base import ProblemFamily
from learned_optim.problems.images import ImageClassification
from learned_optim.problems.network_problems import NetworkProblems, Pair
from learned_optim.problems.networks import conv_net, mlp, recurrent, res_net, transformer

# Data


def adding(generator: torch.Generator) -> Pair:
    """Sequences of numbers, two of them marked, and the sum of these: x of shape (512, 10, 2), y of shape (512, 1).

    Source: Hochreiter & Schmidhuber 1997, experiment 4, at its easiest: 10 steps, and a mark in each half.
    """
    values = torch.rand(512, 10, generator=generator)
    marks = F.one_hot(torch.randint(5, (512, 2), generator=generator), 5).flatten(1).float()  # (512, 10)
    return torch.stack((values, marks), dim=-1), (values * marks).sum(dim=1, keepdim=True)


def friedman(generator: torch.Generator, *, outliers: float = 0.0) -> Pair:
    """Points in five dimensions and a smooth function of them: x of shape (512, 5), y of shape (512, 1).

    Args:
        generator: Draws.
        outliers: The probability of a y to be off by 10 standard deviations, on average.

    Source: Friedman 1991, section 4.3, without its five inputs that do not matter, and with mean 0 and variance 1.
    """
    x = torch.rand(512, 5, generator=generator)
    y = 10 * torch.sin(torch.pi * x[:, 0] * x[:, 1]) + 20 * (x[:, 2] - 0.5).square() + 10 * x[:, 3] + 5 * x[:, 4]
    noise = torch.randn(512, generator=generator)
    wrong = torch.rand(512, generator=generator) < outliers
    return x, ((y - 14.4) / 4.9 + torch.where(wrong, 10.0, 0.1) * noise).unsqueeze(1)


def counts(generator: torch.Generator) -> Pair:
    """Counts whose expectation depends on eight Gaussian numbers: x of shape (512, 8), y of shape (512, 1)."""
    x = torch.randn(512, 8, generator=generator)
    weights = torch.randn(8, 2, generator=generator) / 8**0.5
    rates = torch.exp(torch.tanh(x @ weights).sum(dim=1, keepdim=True))
    return x, torch.poisson(rates, generator=generator)


def ratings(generator: torch.Generator) -> Pair:
    """600 noisy entries of a 40 x 30 matrix of rank 3: x of shape (600, 2) has their places, y (600,) their values."""
    left, right = torch.randn(40, 3, generator=generator), torch.randn(30, 3, generator=generator)
    places = torch.stack([torch.randint(size, (600,), generator=generator) for size in (40, 30)], dim=1)
    exact = (left[places[:, 0]] * right[places[:, 1]]).sum(dim=1)
    return places, exact + 0.1 * torch.randn(600, generator=generator)


def oscillation(generator: torch.Generator) -> Pair:
    """A damped oscillation, measured 40 times with errors of 0.02: times and values of shape (40, 1)."""
    truth = Oscillator()
    with torch.no_grad():
        truth.theta.add_(0.4 * torch.randn(4, generator=generator))
        times = torch.linspace(0, 10, 40).unsqueeze(1)
        return times, truth(times) + 0.02 * torch.randn(40, 1, generator=generator)


# Networks, other than those of `learned_optim.problems.networks`, and losses


class Factors(nn.Module):
    """The entries of a 40 x 30 matrix of rank ``rank``, at places of shape (N, 2); returns shape (N,)."""

    def __init__(self, rank: int = 3) -> None:
        super().__init__()
        self.left, self.right = nn.Parameter(0.3 * torch.randn(40, rank)), nn.Parameter(0.3 * torch.randn(30, rank))

    def forward(self, places: Tensor) -> Tensor:
        return (self.left[places[:, 0]] * self.right[places[:, 1]]).sum(dim=1)


class Oscillator(nn.Module):
    """exp(a - exp(b) t) cos(exp(c) t + d): what is to be found is theta = (a, b, c, d)."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor([0.0, -2.0, 0.0, 0.0]))

    def forward(self, times: Tensor) -> Tensor:
        height, damping, frequency, phase = self.theta.unbind()
        return torch.exp(height - damping.exp() * times) * torch.cos(frequency.exp() * times + phase)


def layer_norm_net() -> nn.Module:
    """Two hidden layers with layer norm, on images of 14 x 14."""
    hidden = [nn.Sequential(nn.Linear(before, 24), nn.LayerNorm(24), nn.GELU()) for before in (196, 24)]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(24, 10))


def poisson_deviance(log_rates: Tensor, y: Tensor) -> Tensor:
    """2 (y log(y / mu) - y + mu), the mean over counts y: Poisson's -log likelihood, 0 where log mu = log y."""
    return 2 * (torch.xlogy(y, y) - y * log_rates - y + log_rates.exp()).mean()


class Autoencoding(ImageClassification):
    """The same images as inputs and, flattened, as targets."""

    def prepared(self, x: Tensor, y: Tensor) -> Pair:
        pixels = x.float() / 255
        return pixels, pixels.flatten(1)


# Families


def _adding() -> ProblemFamily:
    return NetworkProblems(partial(recurrent, 16, size=2, outputs=1), adding, batch_size=32)


def _digits(
    model: Callable[[], nn.Module], loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy
) -> ProblemFamily:
    return ImageClassification("digits", model, loss=loss, pool=4, batch_size=64)


def _conv() -> ProblemFamily:
    return ImageClassification("mnist", partial(conv_net, 8, 16, size=14), pool=2, batch_size=32)


def _cifar(model: Callable[[], nn.Module], pool: int = 1) -> ProblemFamily:
    return ImageClassification("cifar10-batch-1", model, pool=pool, batch_size=16)


def _fashion(model: Callable[[], nn.Module]) -> ProblemFamily:
    return ImageClassification("fashion-mnist-t10k", model, pool=2, batch_size=32)


def _autoencoding() -> ProblemFamily:
    model = partial(mlp, (24, 6, 24), "gelu", inputs=49, outputs=49)
    return Autoencoding("mnist", model, pool=4, batch_size=64, loss=F.mse_loss)


def _deep() -> ProblemFamily:
    return NetworkProblems(partial(mlp, (8,) * 6, "tanh", inputs=5, outputs=1), friedman, batch_size=32)


def _huber() -> ProblemFamily:
    model = partial(mlp, (24,), "gelu", inputs=5, outputs=1)
    return NetworkProblems(model, partial(friedman, outliers=0.1), loss=F.huber_loss, batch_size=32)


def _counts() -> ProblemFamily:
    model = partial(mlp, (12,), "sigmoid", inputs=8, outputs=1)
    return NetworkProblems(model, counts, loss=poisson_deviance, batch_size=32)


ADDED: dict[str, Callable[[], ProblemFamily]] = {
    "digits-tanh": partial(_digits, partial(mlp, (32,), "tanh", inputs=49)),
    "digits-hinge": partial(_digits, partial(mlp, (), inputs=49), loss=F.multi_margin_loss),
    "mnist-conv-pooled": _conv,
    "mnist-autoencoder": _autoencoding,
    "fashion-layer-norm": partial(_fashion, layer_norm_net),
    "fashion-transformer": partial(_fashion, partial(transformer, 16, 1, size=14)),
    "cifar10-conv-small": partial(_cifar, partial(conv_net, 8, norm=True, hidden_norm=True, size=32, colours=3)),
    "cifar10-resnet-pooled": partial(_cifar, partial(res_net, 8, size=16, colours=3), pool=2),
    "adding-gru": _adding,
    "friedman-deep": _deep,
    "friedman-huber": _huber,
    "counts-poisson": _counts,
    "ratings-factors": lambda: NetworkProblems(Factors, ratings, batch_size=64),
    "oscillations": lambda: NetworkProblems(Oscillator, oscillation),
}
"""What the zoo has beside problems that are in `PROBLEMS` anyhow."""

ZOO = ("mnist-mlp", "mnist-mlp-relu", "mnist-mlp-2-layers", "mnist-softmax", "fashion-t10k-mlp", *ADDED)
"""The names of its problems in `PROBLEMS`."""
