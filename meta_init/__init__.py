"""Learned initialisations: MAML and its relatives on any model, tasks to learn from, and baselines."""

from meta_init.algorithms import ALGORITHMS, anil, fomaml, maml, maml_plus_plus, meta_learner_lstm, meta_sgd, reptile
from meta_init.class_batches import ClassBatches
from meta_init.compiled import CompiledGradient
from meta_init.datasets import (
    Classes,
    class_folders,
    mini_imagenet,
    omniglot,
    read_split,
    split_classes,
    tensor_classes,
    write_split,
)
from meta_init.episodes import Episodes
from meta_init.learner import Adapted, Evaluation, MetaLearner
from meta_init.models import conv_encoder, few_shot_conv, few_shot_mlp, sine_mlp
from meta_init.saving import load_initialisation, load_learner, save_learner
from meta_init.sinusoids import Sinusoids
from meta_init.sources import (
    mini_imagenet_batches,
    mini_imagenet_episodes,
    omniglot_batches,
    omniglot_classes,
    omniglot_episodes,
)
from meta_init.tasks import Batch, Task, TaskSource, as_tasks, supervised_loss

__all__ = [
    "ALGORITHMS",
    "Adapted",
    "Batch",
    "ClassBatches",
    "Classes",
    "CompiledGradient",
    "Episodes",
    "Evaluation",
    "MetaLearner",
    "Sinusoids",
    "Task",
    "TaskSource",
    "anil",
    "as_tasks",
    "class_folders",
    "conv_encoder",
    "few_shot_conv",
    "few_shot_mlp",
    "fomaml",
    "load_initialisation",
    "load_learner",
    "maml",
    "maml_plus_plus",
    "meta_learner_lstm",
    "meta_sgd",
    "mini_imagenet",
    "mini_imagenet_batches",
    "mini_imagenet_episodes",
    "omniglot",
    "omniglot_batches",
    "omniglot_classes",
    "omniglot_episodes",
    "read_split",
    "reptile",
    "save_learner",
    "sine_mlp",
    "split_classes",
    "supervised_loss",
    "tensor_classes",
    "write_split",
]
