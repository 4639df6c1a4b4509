"""Learned initialisations: MAML, first-order MAML, Meta-SGD and Reptile on any model."""

from meta_init.algorithms import ALGORITHMS, fomaml, maml, meta_sgd, reptile
from meta_init.datasets import Classes, omniglot, split_classes
from meta_init.episodes import Episodes
from meta_init.learner import Adapted, Evaluation, MetaLearner
from meta_init.models import few_shot_conv, few_shot_mlp, sine_mlp
from meta_init.sinusoids import Sinusoids
from meta_init.tasks import Batch, Task, TaskSource, supervised_loss

__all__ = [
    "ALGORITHMS",
    "Adapted",
    "Batch",
    "Classes",
    "Episodes",
    "Evaluation",
    "MetaLearner",
    "Sinusoids",
    "Task",
    "TaskSource",
    "few_shot_conv",
    "few_shot_mlp",
    "fomaml",
    "maml",
    "meta_sgd",
    "omniglot",
    "reptile",
    "sine_mlp",
    "split_classes",
    "supervised_loss",
]
