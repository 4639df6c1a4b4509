"""Learned optimizers as drop-in ``torch.optim.Optimizer`` subclasses, and the means to train them."""

from learned_optim.rule import Rule, apply_updates, bind
from learned_optim.rules import LSTMRule, MetaSGDRule, SGDRule
from learned_optim.types import RuleState, Tensors
from learned_optim.unroll import Unrolled, detached, meta_loss, unroll

__all__ = [
    "LSTMRule",
    "MetaSGDRule",
    "Rule",
    "RuleState",
    "SGDRule",
    "Tensors",
    "Unrolled",
    "apply_updates",
    "bind",
    "detached",
    "meta_loss",
    "unroll",
]
