"""The rules: one file for each equation."""

from learned_optim.rules.lstm import LSTMRule
from learned_optim.rules.meta_sgd import MetaSGDRule
from learned_optim.rules.sgd import SGDRule

__all__ = ["LSTMRule", "MetaSGDRule", "SGDRule"]
