"""The rules: one file for each equation."""

from learned_optim.rules.classical import AdagradRule, AdamRule, AdamWRule, MomentumRule, RMSpropRule
from learned_optim.rules.hierarchical import HierarchicalRNNRule
from learned_optim.rules.lslr import LSLRRule
from learned_optim.rules.lstm import LSTMRule
from learned_optim.rules.map import RuleMap
from learned_optim.rules.meta_learner_lstm import MetaLearnerLSTMRule
from learned_optim.rules.meta_sgd import MetaSGDRule
from learned_optim.rules.sgd import SGDRule

__all__ = [
    "AdagradRule",
    "AdamRule",
    "AdamWRule",
    "HierarchicalRNNRule",
    "LSLRRule",
    "LSTMRule",
    "MetaLearnerLSTMRule",
    "MetaSGDRule",
    "MomentumRule",
    "RMSpropRule",
    "RuleMap",
    "SGDRule",
]
