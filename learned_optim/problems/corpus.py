"""The synthetic corpus: small families of many kinds, to train optimizers on that are to carry over to others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import nn
from torch.nn import functional as F

from learned_optim.problems.base import Families, ProblemFamily
from learned_optim.problems.drawn_data import GaussianClasses, GaussianImages, SineCurves
from learned_optim.problems.network_problems import NetworkProblems
from learned_optim.problems.networks import conv_net, mlp, res_net
from learned_optim.problems.quadratics import Quadratics
from learned_optim.problems.synthetic import Bowls, Rosenbrock
from learned_optim.problems.wrappers import ConvexMix, NoisyGradients, Rescaled, SparseGradients, Transformed


def _classes(hidden: tuple[int, ...], activation: str = "relu") -> ProblemFamily:
    model = partial(mlp, hidden, activation, inputs=10, outputs=3)
    return NetworkProblems(model, GaussianClasses(), loss=F.cross_entropy, batch_size=16)


def _sines() -> ProblemFamily:
    return NetworkProblems(partial(mlp, (16, 16), "relu", inputs=1, outputs=1), SineCurves(), batch_size=16)


CORPUS: dict[str, Callable[[], ProblemFamily]] = {
    "quadratics": Quadratics,
    "bowls": partial(Bowls, 20),
    "rosenbrock": Rosenbrock,
    "classes-tanh": partial(_classes, (8,), "tanh"),
    "bowls-any-unit": lambda: Rescaled(Bowls(), coordinates=None, overall=(1e-3, 1e3)),
    "bowls-noisy": lambda: NoisyGradients(Bowls(), std=0.1),
    "classes-logistic": partial(_classes, ()),
    "quadratics-log": lambda: Transformed(Quadratics(), "log"),
    "rosenbrock-10": partial(Rosenbrock, 10),
    "quadratics-sparse": lambda: SparseGradients(Quadratics(), density=0.1),
    "sines-relu": _sines,
    "rosenbrock-convex": lambda: ConvexMix(Rosenbrock(4)),
    "bowls-square": lambda: Transformed(Bowls(), "square", scale=(1e-2, 1e2)),
    "classes-relu-any-unit": lambda: Rescaled(_classes((8,)), coordinates=None, overall=(0.1, 10.0)),
}
"""Its families by name; in `PROBLEMS` with ``corpus-`` before it. None has data from outside, none has images.

Source: in the spirit of the corpus of Wichrowska et al. 2017, section 4.
"""


def _clouds(
    model: Callable[[], nn.Module], *, inputs: int, spread: float, batch_size: int, examples: int = 2000
) -> ProblemFamily:
    """Ten clouds that overlap: what is learned from a minibatch is noisy to the end."""
    data = GaussianClasses(inputs, 10, examples=examples, spread=spread)
    return NetworkProblems(model, data, loss=F.cross_entropy, batch_size=batch_size)


def _mixtures(
    hidden: tuple[int, ...],
    activation: str = "relu",
    *,
    norm: bool = False,
    inputs: int,
    **data: Any,
) -> ProblemFamily:
    model = partial(mlp, hidden, activation, norm=norm, inputs=inputs, outputs=10)
    return _clouds(model, inputs=inputs, **data)


MIXTURES: dict[str, Callable[[], ProblemFamily]] = {
    "mixtures-sigmoid": partial(_mixtures, (24,), "sigmoid", inputs=100, spread=3.0, batch_size=64),
    "mixtures-relu": partial(_mixtures, (24, 24), "relu", inputs=64, spread=3.0, batch_size=32),
    "mixtures-tanh": partial(_mixtures, (32,), "tanh", inputs=64, spread=2.0, batch_size=32),
    "mixtures-logistic": partial(_mixtures, (), inputs=100, spread=2.0, batch_size=64),
    "mixtures-sigmoid-2-layers": partial(_mixtures, (20, 20), "sigmoid", inputs=49, spread=2.5, batch_size=64),
    "mixtures-relu-1-layer": partial(_mixtures, (16,), inputs=100, spread=3.0, batch_size=128),
    "mixtures-tanh-3-layers": partial(_mixtures, (12, 12, 12), "tanh", inputs=30, spread=1.5, batch_size=32),
}
"""Networks of some thousand parameters on drawn data, beside the corpus; in `PROBLEMS` by these names."""


def _images(make: Callable[..., nn.Module], *, spread: float, **options: Any) -> ProblemFamily:
    """The clouds as images of 8 x 8, whose pixels have nothing to do with each other."""

    def model() -> nn.Module:
        return nn.Sequential(nn.Unflatten(1, (8, 8)), make(size=8, **options))

    return _clouds(model, inputs=64, spread=spread, batch_size=64, examples=10000)


def _textures() -> ProblemFamily:
    """A residual network on images that hardly tell their classes: for long its gradients are mostly noise."""
    model = partial(res_net, 6, size=16, colours=3)
    return NetworkProblems(model, GaussianImages(16, spread=20.0), loss=F.cross_entropy, batch_size=64)


NORMALISED: dict[str, Callable[[], ProblemFamily]] = {
    "normalised-relu": partial(_mixtures, (24, 24), norm=True, inputs=64, spread=5.0, batch_size=64, examples=10000),
    "normalised-conv": partial(_images, conv_net, channels=6, hidden=16, norm=True, hidden_norm=True, spread=2.5),
    "normalised-tanh": partial(
        _mixtures, (32,), "tanh", norm=True, inputs=100, spread=6.0, batch_size=32, examples=10000
    ),
    "normalised-residual": partial(_images, res_net, channels=4, spread=3.5),
    "normalised-textures": _textures,
}
"""Networks with batch normalisation on drawn data, likewise; in `PROBLEMS` by these names."""


_BROAD = (
    "mixtures-sigmoid",
    "mixtures-relu",
    "sines-relu",
    "mixtures-tanh",
    "mixtures-sigmoid-2-layers",
    "quadratics-sparse",
    "mixtures-sigmoid",
    "mixtures-logistic",
    "classes-tanh",
    "mixtures-relu-1-layer",
    "mixtures-relu",
    "bowls-noisy",
    "mixtures-tanh-3-layers",
    "classes-logistic",
)


def broad_corpus(*, normalised: bool = False) -> Families:
    """The networks of `MIXTURES`, two of them twice, and among them families of the synthetic corpus that are smooth
    enough for exact meta-gradients through hundreds of steps.

    Args:
        normalised: Whether those of `NORMALISED` follow.

    >>> len(broad_corpus()), len(broad_corpus(normalised=True))
    (14, 19)
    """
    names = (*_BROAD, *(NORMALISED if normalised else ()))
    return Families((CORPUS | MIXTURES | NORMALISED)[name]() for name in names)


def synthetic_corpus(names: Sequence[str] | None = None) -> Families:
    """The families of the synthetic corpus, all small: up to 321 parameters, and no data from outside.

    Args:
        names: Of those to take, in this order; by default all of `CORPUS`.

    Raises:
        ValueError: There is no family of a name.

    >>> len(synthetic_corpus()), len(synthetic_corpus(["bowls", "rosenbrock"]))
    (14, 2)
    """
    names = list(CORPUS) if names is None else names
    unknown = [name for name in names if name not in CORPUS]
    if unknown:
        raise ValueError(f"synthetic_corpus: no family {unknown[0]!r}; there are {', '.join(CORPUS)}")
    return Families(CORPUS[name]() for name in names)
