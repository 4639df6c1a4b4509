"""Families by name, for the command line and for tables."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from learned_optim.problems.base import ProblemFamily
from learned_optim.problems.corpus import CORPUS, MIXTURES, NORMALISED
from learned_optim.problems.images import ImageClassification
from learned_optim.problems.networks import conv_net, mlp, recurrent, res_net, transformer
from learned_optim.problems.quadratics import Quadratics
from learned_optim.problems.synthetic import Bowls, Rosenbrock
from learned_optim.problems.wrappers import ConvexMix, NoisyGradients, Rescaled, SparseGradients, Transformed
from learned_optim.problems.zoo import ADDED

_NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "mlp": mlp,
    "mlp-40": partial(mlp, (40,)),
    "mlp-2-layers": partial(mlp, (20, 20)),
    "mlp-relu": partial(mlp, activation="relu"),
    "softmax": partial(mlp, ()),
    "conv": conv_net,
    "resnet": res_net,
    "gru": recurrent,
    "transformer": transformer,
}
"""For 28 x 28 grey images."""

_CIFAR = {"cifar10": 10, "cifar5": 5, "cifar2": 2, "cifar10-batch-1": 10, "cifar5-batch-1": 5, "cifar2-batch-1": 2}
"""Classes of the sets of 32 x 32 colour images."""


def _images(images: str, model: Callable[[], nn.Module], start_std: float | None = None) -> ProblemFamily:
    return ImageClassification(images, model, start_std=start_std)


def _cifar_conv(outputs: int) -> Callable[[], nn.Module]:
    return partial(conv_net, norm=True, hidden_norm=True, size=32, colours=3, outputs=outputs)


PROBLEMS: dict[str, Callable[[], ProblemFamily]] = {
    "quadratics": Quadratics,
    "quadratics-uniform": partial(Quadratics, distribution="uniform"),
    "quadratics-noisy": lambda: NoisyGradients(Quadratics()),
    "quadratics-sparse": lambda: SparseGradients(Quadratics(), density=0.1),
    "quadratics-rescaled": lambda: Rescaled(Quadratics()),
    "quadratics-convex": lambda: ConvexMix(Quadratics()),
    "quadratics-log": lambda: Transformed(Quadratics()),
    "bowls": Bowls,
    "bowls-noisy": lambda: NoisyGradients(Bowls(), std=0.1),
    "rosenbrock": Rosenbrock,
    "rosenbrock-10": partial(Rosenbrock, 10),
    **{f"mnist-{name}": partial(_images, "mnist", network) for name, network in _NETWORKS.items()},
    "mnist-mlp-normal-start": partial(_images, "mnist", mlp, 0.1),
    "mnist-mlp-rescaled": lambda: Rescaled(ImageClassification("mnist")),
    "mnist-mlp-convex": lambda: ConvexMix(ImageClassification("mnist")),
    "fashion-mlp": partial(_images, "fashion-mnist", mlp),
    "fashion-t10k-mlp": partial(_images, "fashion-mnist-t10k", mlp),
    "digits-mlp": partial(_images, "digits", mlp),
    **{f"{name}-conv": partial(_images, name, _cifar_conv(classes)) for name, classes in _CIFAR.items()},
    "cifar10-resnet": partial(_images, "cifar10", partial(res_net, size=32, colours=3)),
    **ADDED,
    **{f"corpus-{name}": family for name, family in CORPUS.items()},
    **MIXTURES,
    **NORMALISED,
}
"""Families by name; nothing is read before one is called, and then what it needs of `learned_optim.data.IMAGE_SETS`.

``cifar10-conv``, ``cifar5-conv`` and ``cifar2-conv`` are the network of Andrychowicz et al. 2016 on CIFAR-10 and its
subsets; ``fashion-t10k-mlp`` and those with ``batch-1`` need one published file only. ``mnist-mlp-normal-start`` starts
from N(0, 0.1).
"""
