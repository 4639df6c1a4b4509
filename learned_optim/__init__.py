"""Learned optimizers as drop-in ``torch.optim.Optimizer`` subclasses, and the means to train them."""

from importlib.util import find_spec as _find_spec

from learned_optim.checkpoint import (
    CheckpointError,
    available_checkpoints,
    load_checkpoint,
    read_guard,
    read_model,
    read_record,
    save_checkpoint,
)
from learned_optim.data import data_root, download_file, write_atomically
from learned_optim.guard import Guard
from learned_optim.normalisation import differentiable_twice
from learned_optim.optimizers import HierarchicalRNNOptimizer, LSTMOptimizer, MetaSGD
from learned_optim.pickles import read_pickle
from learned_optim.rule import Rule, apply_updates, bind
from learned_optim.rule_optimizer import RuleOptimizer
from learned_optim.rules import (
    AdagradRule,
    AdamRule,
    AdamWRule,
    HierarchicalRNNRule,
    LSLRRule,
    LSTMRule,
    MetaLearnerLSTMRule,
    MetaSGDRule,
    MomentumRule,
    RMSpropRule,
    RuleMap,
    SGDRule,
)
from learned_optim.types import RuleState, Tensors
from learned_optim.unroll import Unrolled, detached, meta_loss, unroll

__all__ = [
    "AdagradRule",
    "AdamRule",
    "AdamWRule",
    "CheckpointError",
    "Guard",
    "HierarchicalRNNOptimizer",
    "HierarchicalRNNRule",
    "LSLRRule",
    "LSTMOptimizer",
    "LSTMRule",
    "MetaLearnerLSTMRule",
    "MetaSGD",
    "MetaSGDRule",
    "MomentumRule",
    "RMSpropRule",
    "Rule",
    "RuleMap",
    "RuleOptimizer",
    "RuleState",
    "SGDRule",
    "Tensors",
    "Unrolled",
    "apply_updates",
    "available_checkpoints",
    "bind",
    "data_root",
    "detached",
    "differentiable_twice",
    "download_file",
    "load_checkpoint",
    "meta_loss",
    "read_guard",
    "read_model",
    "read_pickle",
    "read_record",
    "save_checkpoint",
    "unroll",
    "write_atomically",
]

if _find_spec("higher") is not None:
    # Registers the optimizers with higher, and adds `inner_loop`.
    from learned_optim.higher_bridge import inner_loop

    __all__ += ["inner_loop"]
