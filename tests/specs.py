"""The tables that the laws run over: every rule and every optimizer, on one small problem."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from learned_optim import (
    AdagradRule,
    AdamRule,
    AdamWRule,
    HierarchicalRNNOptimizer,
    HierarchicalRNNRule,
    LSLRRule,
    LSTMOptimizer,
    LSTMRule,
    MetaLearnerLSTMRule,
    MetaSGD,
    MetaSGDRule,
    MomentumRule,
    RMSpropRule,
    Rule,
    RuleMap,
    RuleOptimizer,
    RuleState,
    SGDRule,
    Tensors,
)
from learned_optim.reduction import tensor_means

MakeRule = Callable[[Tensors], Rule]


def lstm(**options: object) -> MakeRule:
    return lambda params: LSTMRule(hidden_size=3, **{"output_scale": 0.1, **options})


def hierarchical(**options: object) -> MakeRule:
    """With rates so large that a few steps matter."""
    return lambda params: HierarchicalRNNRule(**{"sizes": (2, 3, 2), "time_scales": 2, "rates": (0.01, 0.1), **options})


class ClippedDescent(Rule):
    """Descent by gradients over a running mean of the whole network's squared gradient: a rule with shared state."""

    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(0.1))

    def init_state(self, params: Tensors, *, generator: torch.Generator | None = None) -> RuleState:
        reference = next(iter(params.values()), torch.zeros(()))
        return RuleState({name: {} for name in params}, {"mean": reference.new_zeros(())})

    def forward(self, grads: Tensors, state: RuleState, params: Tensors) -> tuple[Tensors, RuleState]:
        squares = tensor_means({name: grad.square() for name, grad in grads.items()}, params)
        square = torch.stack([*squares.values()]).mean()
        mean = 0.9 * state.shared["mean"] + 0.1 * square
        scale = torch.where(mean > 0, self.rate / (mean.clamp(min=1e-12).sqrt() + 1), 0.0)
        return {name: -scale * grad for name, grad in grads.items()}, RuleState(state.per_param, {"mean": mean})

    def config(self) -> dict[str, object]:
        return {}


RULES: dict[str, MakeRule] = {
    "sgd": lambda params: SGDRule(0.1),
    "meta_sgd": lambda params: MetaSGDRule(params, (0.05, 0.2)),
    "shared-state": lambda params: ClippedDescent(),
    "lslr": lambda params: LSLRRule(params, 0.1, 3),
    "momentum": lambda params: MomentumRule(0.1),
    "nesterov": lambda params: MomentumRule(0.05, 0.8, nesterov=True),
    "adagrad": lambda params: AdagradRule(0.1),
    "rmsprop": lambda params: RMSpropRule(0.02, 0.9),
    "adam": lambda params: AdamRule(0.05, (0.8, 0.95)),
    "adamw": lambda params: AdamWRule(0.05, weight_decay=0.1),
    "map": lambda params: RuleMap(
        {"matrices": LSTMRule(hidden_size=3), "rest": ClippedDescent()}, {"matrices": 2, "rest": "*"}
    ),
    "map-by-rank": lambda params: RuleMap(
        {"matrices": LSTMRule(hidden_size=3), "rest": LSTMRule("moments", 2)}, {"matrices": 2, "rest": "*"}
    ),
    "meta_learner_lstm": lambda params: MetaLearnerLSTMRule(3),
    "hierarchical": hierarchical(),
    "hierarchical-attention": hierarchical(sizes=(2, 2), time_scales=3, attention=True),
    "hierarchical-ablated": hierarchical(
        sizes=(3,),
        without=("input_scaling", "learned_decays", "products", "log_squares", "relative_rates", "learned_start"),
    ),
    "hierarchical-horizon": hierarchical(sizes=(2, 2), horizon=2),
    "hierarchical-invariant": hierarchical(sizes=(2, 2), invariant_steps=(0.05, 3), invariant_horizon=2),
    "hierarchical-bare-direction": hierarchical(time_scales=1, without=("dynamic_rates", "shortcut")),
    "lstm": lstm(),
    "lstm-one-layer": lstm(num_layers=1),
    "lstm-moves-unseen": lstm(move_unseen=True),
    "lstm-moments": lstm(features="moments"),
    "lstm-both-shortcut": lstm(features=("log_sign", "moments"), shortcut=True),
    "lstm-secants": lstm(features="plain", secants=2, shortcut=True),
    "lstm-moments-unbounded": lstm(features="moments", bounded=False),
    "lstm-plain": lstm(features=("plain", "step_count"), num_layers=1),
    "lstm-magnitude": lstm(features=("moments", "magnitude"), num_layers=1),
    "lstm-time-scales": lstm(features=("time_scales", "step_count"), shortcut=True),
    "lstm-horizon": lstm(horizon=2, num_layers=1),
    "lstm-counts-less": lstm(features=("moments", "step_count"), horizon=3, count_until=2, num_layers=1),
    "lstm-counts-to-horizon": lstm(features=("moments", "step_count"), horizon=2, num_layers=1),
    "lstm-normalised": lstm(features=("log_sign", "step_count"), normalised=True, num_layers=1),
    "lstm-normalised-moves-unseen": lstm(features="moments", normalised=True, num_layers=1, move_unseen=True),
}

OPTIMIZERS: dict[str, Callable[..., RuleOptimizer]] = {
    "RuleOptimizer-sgd": lambda params, **options: RuleOptimizer(params, SGDRule(0.1), **options),
    "RuleOptimizer-adam": lambda params, **options: RuleOptimizer(params, AdamRule(0.05), **options),
    "RuleOptimizer-network": lambda params, **options: RuleOptimizer(
        params, seeded_rule("shared-state", {}), **options
    ),
    "RuleOptimizer-map": lambda params, **options: RuleOptimizer(params, seeded_rule("map", {}), **options),
    "LSTMOptimizer": lambda params, **options: LSTMOptimizer(params, rule=seeded_rule("lstm", {}), **options),
    "LSTMOptimizer-moments": lambda params, **options: LSTMOptimizer(
        params, rule=seeded_rule("lstm-both-shortcut", {}), **options
    ),
    "LSTMOptimizer-normalised": lambda params, **options: LSTMOptimizer(
        params, rule=seeded_rule("lstm-normalised", {}), **options
    ),
    "LSTMOptimizer-secants": lambda params, **options: LSTMOptimizer(
        params, rule=seeded_rule("lstm-secants", {}), **options
    ),
    "LSTMOptimizer-horizon": lambda params, **options: LSTMOptimizer(
        params, rule=seeded_rule("lstm-counts-to-horizon", {}), **options
    ),
    "LSTMOptimizer-guarded": lambda params, **options: LSTMOptimizer(
        params, rule=seeded_rule("lstm", {}), guard=True, **options
    ),
    "HierarchicalRNNOptimizer": lambda params, **options: HierarchicalRNNOptimizer(
        params, rule=seeded_rule("hierarchical", {}), **options
    ),
    "HierarchicalRNNOptimizer-invariant": lambda params, **options: HierarchicalRNNOptimizer(
        params, rule=seeded_rule("hierarchical-invariant", {}), **options
    ),
    "HierarchicalRNNOptimizer-attention": lambda params, **options: HierarchicalRNNOptimizer(
        params, rule=seeded_rule("hierarchical-attention", {}), **options
    ),
    "MetaSGD": lambda params, **options: MetaSGD(params, alpha=0.1, **options),
}


def seeded_rule(name: str, params: Tensors, *, seed: int = 0) -> Rule:
    """The rule of that name in float64, its weights drawn under a seed and all of them non-zero."""
    torch.manual_seed(seed)
    rule = RULES[name](params).double()
    with torch.no_grad():
        for parameter in rule.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return rule


@dataclass
class SmallProblem:
    """Regression by a small network; its third input is always zero, so that three weights never see a gradient."""

    model: nn.Module
    x: Tensor
    y: Tensor

    @property
    def params(self) -> Tensors:
        return {name: p.detach().clone() for name, p in self.model.named_parameters()}

    def loss(self, params: Tensors) -> Tensor:
        return (functional_call(self.model, params, (self.x,)) - self.y).square().mean()


def small_problem(seed: int = 0, dtype: torch.dtype = torch.float64) -> SmallProblem:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1)).to(dtype)
    x = torch.randn(6, 3, dtype=dtype)
    x[:, 2] = 0
    return SmallProblem(model, x, torch.randn(6, 1, dtype=dtype))
