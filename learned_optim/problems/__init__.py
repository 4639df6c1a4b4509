"""Families of problems to train and test optimizers on."""

from learned_optim.problems.base import Families, Problem, ProblemFamily
from learned_optim.problems.corpus import CORPUS, MIXTURES, NORMALISED, broad_corpus, synthetic_corpus
from learned_optim.problems.drawn_data import GaussianClasses, GaussianImages, SineCurves
from learned_optim.problems.images import ImageClassification
from learned_optim.problems.named import PROBLEMS
from learned_optim.problems.network_problems import NetworkProblems
from learned_optim.problems.networks import conv_net, mlp, recurrent, res_net, tied_mlp, transformer
from learned_optim.problems.quadratics import Quadratics
from learned_optim.problems.synthetic import Bowls, Rosenbrock
from learned_optim.problems.wrappers import ConvexMix, NoisyGradients, Rescaled, SparseGradients, Transformed
from learned_optim.problems.zoo import ZOO

__all__ = [
    "CORPUS",
    "MIXTURES",
    "NORMALISED",
    "PROBLEMS",
    "ZOO",
    "Bowls",
    "ConvexMix",
    "Families",
    "GaussianClasses",
    "GaussianImages",
    "ImageClassification",
    "NetworkProblems",
    "NoisyGradients",
    "Problem",
    "ProblemFamily",
    "Quadratics",
    "Rescaled",
    "Rosenbrock",
    "SineCurves",
    "SparseGradients",
    "Transformed",
    "broad_corpus",
    "conv_net",
    "mlp",
    "recurrent",
    "res_net",
    "synthetic_corpus",
    "tied_mlp",
    "transformer",
]
