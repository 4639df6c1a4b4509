"""Learned initialisations: MAML, first-order MAML, Meta-SGD and Reptile on any model."""

from meta_init.algorithms import ALGORITHMS, fomaml, maml, meta_sgd, reptile
from meta_init.learner import Adapted, Evaluation, MetaLearner
from meta_init.models import sine_mlp
from meta_init.sinusoids import Sinusoids
from meta_init.tasks import Batch, Task, TaskSource, supervised_loss

__all__ = [
    "ALGORITHMS",
    "Adapted",
    "Batch",
    "Evaluation",
    "MetaLearner",
    "Sinusoids",
    "Task",
    "TaskSource",
    "fomaml",
    "maml",
    "meta_sgd",
    "reptile",
    "sine_mlp",
    "supervised_loss",
]
