"""The synthetic corpus: small families of many kinds, to train optimizers on that are to carry over to others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch.nn import functional as F

from learned_optim.problems.base import Families, ProblemFamily
from learned_optim.problems.drawn_data import GaussianClasses, SineCurves
from learned_optim.problems.network_problems import NetworkProblems
from learned_optim.problems.networks import mlp
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
