"""Families of problems to train and test optimizers on."""

from learned_optim.problems.base import Problem, ProblemFamily
from learned_optim.problems.images import ImageClassification
from learned_optim.problems.networks import conv_net, mlp, recurrent, transformer
from learned_optim.problems.quadratics import Quadratics

__all__ = [
    "ImageClassification",
    "Problem",
    "ProblemFamily",
    "Quadratics",
    "conv_net",
    "mlp",
    "recurrent",
    "transformer",
]
