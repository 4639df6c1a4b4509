"""Who takes part in a race: hand-designed optimizers by name, and learned ones by their checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop

from learned_optim.checkpoint import load_checkpoint, read_guard
from learned_optim.optimizers import HierarchicalRNNOptimizer, LSTMOptimizer, MetaSGD
from learned_optim.race.errors import RaceError
from learned_optim.race.training import MakeOptimizer
from learned_optim.rule import Rule
from learned_optim.rule_optimizer import RuleOptimizer
from learned_optim.rules import HierarchicalRNNRule, LSTMRule, MetaSGDRule


def third_decades(low: float, high: float) -> tuple[float, ...]:
    """low, 2.2 low, 4.6 low, 10 low, ... up to high: three values per factor of ten."""
    count = round(3 * math.log10(high / low))
    return tuple(float(f"{low * 10 ** (i / 3):.2g}") for i in range(count + 1))


RATES = third_decades(1e-8, 1e4)
MOMENTA = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998)
DECAYS = (0.0, 0.01, 0.1, 1.0)


@dataclass(frozen=True)
class Entrant:
    """An optimizer that takes part, and how it is tuned.

    Attributes:
        name: For reports.
        make: ``make(params, **setting)``.
        setting: The options that it runs with where it is not tuned.
        ladders: For each option that can be tuned the values it can have, ascending; none where nothing is tuned. All
            but the first option begin at their value in ``setting``.
        scan: Of the first ladder, the lowest and the highest value that tuning begins with; None for all.
        hand_designed: Whether it is one of those that a learned optimizer is compared with.
    """

    name: str
    make: MakeOptimizer
    setting: Mapping[str, float] = field(default_factory=dict)
    ladders: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    scan: tuple[float, float] | None = None
    hand_designed: bool = True

    def fixed(self, lr: float) -> Entrant:
        """The same with a learning rate that is not tuned."""
        return replace(self, name=f"{self.name}@{lr:g}", setting={**self.setting, "lr": lr}, ladders={})


def _momentum(params: Any, *, lr: float, momentum: float) -> Optimizer:
    return SGD(params, lr=lr, momentum=momentum)


def _nag(params: Any, *, lr: float, momentum: float) -> Optimizer:
    return SGD(params, lr=lr, momentum=momentum, nesterov=momentum > 0)


def _adam(params: Any, *, lr: float, beta1: float) -> Optimizer:
    return Adam(params, lr=lr, betas=(beta1, 0.999))


def _adamw(params: Any, *, lr: float, beta1: float, weight_decay: float) -> Optimizer:
    return AdamW(params, lr=lr, betas=(beta1, 0.999), weight_decay=weight_decay)


_RATE = {"lr": RATES}
_MOMENTUM = {"lr": RATES, "momentum": MOMENTA}
_BETA = {"lr": RATES, "beta1": MOMENTA}

BASELINES: dict[str, Entrant] = {
    "sgd": Entrant("SGD", SGD, {"lr": 1e-3}, _RATE, (0.1, 10.0)),
    "momentum": Entrant("momentum", _momentum, {"lr": 1e-3, "momentum": 0.9}, _MOMENTUM, (0.022, 2.2)),
    "nag": Entrant("NAG", _nag, {"lr": 1e-3, "momentum": 0.9}, _MOMENTUM, (0.022, 2.2)),
    "adagrad": Entrant("Adagrad", Adagrad, {"lr": 1e-2}, _RATE, (0.01, 1.0)),
    "rmsprop": Entrant("RMSprop", RMSprop, {"lr": 1e-2}, _RATE, (1e-3, 0.1)),
    "adam": Entrant("Adam", _adam, {"lr": 1e-3, "beta1": 0.9}, _BETA, (1e-3, 0.1)),
    "adamw": Entrant(
        "AdamW",
        _adamw,
        {"lr": 1e-3, "beta1": 0.9, "weight_decay": 0.01},
        {**_BETA, "weight_decay": DECAYS},
        (1e-3, 0.1),
    ),
}
"""The hand-designed optimizers by their names on the command line. Untuned, they have torch's defaults, and momentum
0.9 where torch has none. Options without a ladder keep torch's defaults: each would multiply the cost of tuning."""


def _of_checkpoint(params: Any, *, checkpoint: str) -> Optimizer:
    rule = load_checkpoint(checkpoint)
    if isinstance(rule, MetaSGDRule):
        return MetaSGD(params, rule=rule)  # its rates find their parameters by name
    return RuleOptimizer(params, rule, guard=read_guard(checkpoint) or False)


def _named(kind: str, title: str, needed: type[Rule], make: MakeOptimizer, checkpoint: str) -> Entrant:
    rule = load_checkpoint(checkpoint)
    if not isinstance(rule, needed):
        found = f"holds no {needed.__name__} but a {type(rule).__name__}"
        raise RaceError(f"{kind}:{checkpoint} {found}; use rule:{checkpoint}")
    return Entrant(f"{title} ({checkpoint})", partial(make, checkpoint=checkpoint), hand_designed=False)


def _rule(checkpoint: str) -> Entrant:
    kind = type(load_checkpoint(checkpoint)).__name__
    return Entrant(f"{kind} ({checkpoint})", partial(_of_checkpoint, checkpoint=checkpoint), hand_designed=False)


def _without_training(params: Any, *, checkpoint: str) -> Optimizer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        rule = Rule.rebuilt(load_checkpoint(checkpoint).described())
    return RuleOptimizer(params, rule, guard=read_guard(checkpoint) or False)


def _untrained(checkpoint: str) -> Entrant:
    rule = load_checkpoint(checkpoint)
    if not isinstance(rule, (LSTMRule, HierarchicalRNNRule)):
        raise RaceError(f"untrained:{checkpoint} holds a {type(rule).__name__}, which has no weights to begin with")
    return Entrant(f"untrained ({checkpoint})", partial(_without_training, checkpoint=checkpoint), hand_designed=False)


LEARNED: dict[str, Callable[[str], Entrant]] = {
    "lstm": partial(_named, "lstm", "LSTM", LSTMRule, LSTMOptimizer),
    "hierarchical": partial(_named, "hierarchical", "hierarchical RNN", HierarchicalRNNRule, HierarchicalRNNOptimizer),
    "rule": _rule,
    "untrained": _untrained,
}
"""What can be made of a checkpoint: ``lstm:NAME`` by `LSTMOptimizer`, ``hierarchical:NAME`` by
`HierarchicalRNNOptimizer`, ``rule:NAME`` whatever its rule is; with the guard that it has by default.
``untrained:NAME`` is the same rule with weights as its training could begin with, drawn under a seed."""


def entrant(name: str) -> Entrant:
    """The optimizer of a name.

    Args:
        name: A key of `BASELINES`, with ``@RATE`` behind it for a fixed learning rate; or one of `LEARNED` with the
            name of a checkpoint, bundled or a file.

    Raises:
        RaceError: There is no such optimizer, or no such rate.
        CheckpointError: There is no such checkpoint; the message lists the bundled ones.
    """
    kind, is_checkpoint, checkpoint = name.partition(":")
    if is_checkpoint and kind in LEARNED:
        return LEARNED[kind](checkpoint)
    base, has_rate, rate = name.partition("@")
    if base not in BASELINES:
        raise RaceError(
            f"unknown optimizer {name!r}; there are {', '.join(BASELINES)} (with a fixed learning rate: adam@0.01), "
            f"and {', '.join(f'{kind}:NAME' for kind in LEARNED)} for a checkpoint"
        )
    if not has_rate:
        return BASELINES[base]
    try:
        lr = float(rate)
    except ValueError:
        lr = math.nan
    if not 0 < lr < math.inf:
        raise RaceError(f"{name!r}: a learning rate must be a finite number > 0, got {rate!r}")
    return BASELINES[base].fixed(lr)
