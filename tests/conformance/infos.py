"""Our optimizers in the terms of PyTorch's own table, ``torch.testing._internal.common_optimizers``."""

from collections.abc import Callable

import torch
from torch import nn
from torch.optim.lr_scheduler import (
    ConstantLR,
    LinearLR,
    ReduceLROnPlateau,
    StepLR,
)
from torch.testing._internal.common_optimizers import (
    ErrorOptimizerInput,
    OptimizerErrorEnum,
    OptimizerInfo,
    OptimizerInput,
    get_error_inputs_for_all_optims,
)

from learned_optim import (
    AdagradRule,
    AdamRule,
    AdamWRule,
    HierarchicalRNNOptimizer,
    HierarchicalRNNRule,
    LSTMOptimizer,
    LSTMRule,
    MetaSGD,
    MomentumRule,
    RMSpropRule,
    Rule,
    RuleMap,
    RuleOptimizer,
    SGDRule,
)
from tests.specs import ClippedDescent

FLAGS = ("foreach", "fused", "capturable", "differentiable")
"""The flags by which torch's optimizers choose an implementation; ours have one."""


def optim_inputs(device: object, dtype: torch.dtype | None = None) -> list[OptimizerInput]:
    """The options under which the checks run, each input fresh because schedulers write into a tensor lr."""
    kwargs = {
        "default": {},
        "non-default lr": {"lr": 0.5},
        "tensor lr": {"lr": torch.tensor(0.5)},
        "weight_decay": {"weight_decay": 1e-3},
        "maximize": {"weight_decay": 1e-3, "maximize": True},
    }
    return [OptimizerInput(params=None, kwargs=options, desc=desc) for desc, options in kwargs.items()]


def _at_construction(desc: str, regex: str, *, params: object = None, **kwargs: object) -> ErrorOptimizerInput:
    params = [nn.Parameter(torch.randn(2, 3))] if params is None else params
    return ErrorOptimizerInput(OptimizerInput(params, kwargs, desc), error_type=ValueError, error_regex=regex)


def _in_a_group(desc: str, regex: str, **options: object) -> ErrorOptimizerInput:
    return _at_construction(desc, regex, params=[{"params": [nn.Parameter(torch.randn(2, 3))], **options}])


def optim_error_inputs(device: object, dtype: torch.dtype) -> list[ErrorOptimizerInput]:
    """Torch's error inputs for every optimizer, and those of our options."""
    sparse = nn.Parameter(torch.randn(3, 2, dtype=dtype))
    sparse.grad = torch.ones(3, 2, dtype=dtype).to_sparse()
    meta = nn.Parameter(torch.randn(3, 2, dtype=dtype, device="meta"))
    meta.grad = torch.zeros_like(meta)
    return [
        *get_error_inputs_for_all_optims(device, dtype),
        _at_construction("no parameters", "empty parameter list", params=[]),
        _at_construction("negative lr", "lr must be a finite number >= 0, got -1.0", lr=-1.0),
        _at_construction("NaN lr", "lr must be a finite number >= 0, got nan", lr=float("nan")),
        _at_construction("negative tensor lr", "lr must be a finite number >= 0", lr=torch.tensor(-1.0)),
        _at_construction("weight_decay", "weight_decay must be a finite number >= 0, got -1", weight_decay=-1),
        _at_construction("maximize", "maximize must be True or False, got 'yes'", maximize="yes"),
        _in_a_group("lr of a group", "lr must be a finite number >= 0, got -2", lr=-2),
        *[_in_a_group(flag, f"{flag}=True is not supported; leave it out", **{flag: True}) for flag in FLAGS],
        ErrorOptimizerInput(
            OptimizerInput([sparse], {}, "sparse gradient"),
            error_on=OptimizerErrorEnum.STEP_ERROR,
            error_type=RuntimeError,
            error_regex="the gradient of parameter '0' is sparse",
        ),
    ]


def learned(features: str | tuple[str, ...] = ("log_sign", "moments")) -> LSTMRule:
    """A small LSTM rule that descends, with the same weights at each call and none of them zero."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        rule = LSTMRule(features, hidden_size=3, shortcut=True)
        for weight in rule.parameters():
            weight.add_(0.02 * torch.randn_like(weight))
    return rule


def hierarchical() -> HierarchicalRNNRule:
    """A small hierarchical rule that descends, with the same weights at each call and most of them not zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return HierarchicalRNNRule((3, 4, 4), 2, rates=(0.02, 0.1))


MAKERS: dict[str, Callable[..., RuleOptimizer]] = {
    "LSTMOptimizer": lambda params, **options: LSTMOptimizer(params, "mnist-mlp", **options),
    "LSTMOptimizer-rule": lambda params, **options: LSTMOptimizer(params, rule=learned(), **options),
    "LSTMOptimizer-guard": lambda params, **options: LSTMOptimizer(params, rule=learned(), guard=True, **options),
    "HierarchicalRNNOptimizer": lambda params, **options: HierarchicalRNNOptimizer(
        params, rule=hierarchical(), **options
    ),
    "MetaSGD": lambda params, **options: MetaSGD(params, alpha=0.02, **options),
}
RULES: dict[str, Callable[[], Rule]] = {
    "SGDRule": lambda: SGDRule(0.02),
    "MomentumRule": lambda: MomentumRule(0.005, 0.8),
    "AdagradRule": lambda: AdagradRule(0.05),
    "RMSpropRule": lambda: RMSpropRule(0.01),
    "AdamRule": lambda: AdamRule(0.02),
    "AdamWRule": lambda: AdamWRule(0.02),
    "RuleMap": lambda: RuleMap(
        {"matrices": learned("moments"), "rest": AdamRule(0.02)}, {"matrices": [2, 3], "rest": "*"}
    ),
    "network rule": ClippedDescent,
}
COLUMNS = {
    "LSTMOptimizer": '`LSTMOptimizer(params, "mnist-mlp")`, guarded as bundled checkpoints are by default',
    "LSTMOptimizer-rule": "`LSTMOptimizer(params, rule=...)`, unguarded",
    "LSTMOptimizer-guard": "the same with `guard=True`",
    "HierarchicalRNNOptimizer": "`HierarchicalRNNOptimizer(params, rule=...)`",
    "MetaSGD": "`MetaSGD(params, alpha=0.02)`",
    **{name: f"`RuleOptimizer(params, {name}(...))`" for name in RULES},
    "RuleMap": "`RuleOptimizer` with an `LSTMRule` for matrices and an `AdamRule` for the rest",
    "network rule": "`RuleOptimizer` with a rule that looks at all parameters together (`tests/specs.py`)",
}
"""What stands at the head of each column of the table, and what it means."""


def _info(name: str, make: Callable[..., RuleOptimizer]) -> OptimizerInfo:
    def optim_cls(params, **options):
        return make(params, **options)

    optim_cls.__name__ = name
    return OptimizerInfo(
        optim_cls,
        optim_inputs_func=optim_inputs,
        optim_error_inputs_func=optim_error_inputs,
        scheduler_inputs=(
            [lambda opt: ConstantLR(opt, factor=0.4, total_iters=4), lambda opt: LinearLR(opt, 0.9, total_iters=4)],
            [lambda opt: StepLR(opt, gamma=0.9, step_size=10), lambda opt: ReduceLROnPlateau(opt)],
        ),
        supported_impls=(),
        not_og_supported_flags=(),
        supports_sparse=False,
        has_capturable_arg=False,
        supports_complex=True,
        supports_multiple_devices=name not in ("network rule", "HierarchicalRNNOptimizer"),
    )


def _over(rule: Callable[[], Rule]) -> Callable[..., RuleOptimizer]:
    return lambda params, **options: RuleOptimizer(params, rule(), **options)


OPTIMIZERS: dict[str, OptimizerInfo] = {
    name: _info(name, make) for name, make in {**MAKERS, **{name: _over(rule) for name, rule in RULES.items()}}.items()
}
