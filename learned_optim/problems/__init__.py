"""Families of problems to train and test optimizers on."""

from learned_optim.problems.base import Problem, ProblemFamily
from learned_optim.problems.images import ImageClassification, mlp
from learned_optim.problems.quadratics import Quadratics

__all__ = ["ImageClassification", "Problem", "ProblemFamily", "Quadratics", "mlp"]
