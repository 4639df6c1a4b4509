"""The hand-designed optimizers as rules are those of torch.optim."""

import copy

import pytest
import torch
from torch.testing import assert_close

from learned_optim import (
    AdagradRule,
    AdamRule,
    AdamWRule,
    MomentumRule,
    RMSpropRule,
    RuleOptimizer,
    SGDRule,
    bind,
    unroll,
)
from tests.specs import small_problem

PAIRS = {
    "SGD": (lambda: SGDRule(0.1), lambda p: torch.optim.SGD(p, lr=0.1)),
    "momentum": (lambda: MomentumRule(0.05), lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9)),
    "Nesterov": (
        lambda: MomentumRule(0.05, 0.8, nesterov=True),
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.8, nesterov=True),
    ),
    "Adagrad": (lambda: AdagradRule(0.1), lambda p: torch.optim.Adagrad(p, lr=0.1)),
    "Adagrad, started": (
        lambda: AdagradRule(0.1, eps=1e-3, initial_accumulator_value=0.5),
        lambda p: torch.optim.Adagrad(p, lr=0.1, eps=1e-3, initial_accumulator_value=0.5),
    ),
    "RMSprop": (lambda: RMSpropRule(0.01), lambda p: torch.optim.RMSprop(p, lr=0.01)),
    "RMSprop, alpha": (lambda: RMSpropRule(0.02, 0.9, eps=1e-4), lambda p: torch.optim.RMSprop(p, 0.02, 0.9, 1e-4)),
    "Adam": (AdamRule, torch.optim.Adam),
    "Adam, betas": (
        lambda: AdamRule(0.05, (0.8, 0.95), eps=1e-4),
        lambda p: torch.optim.Adam(p, 0.05, (0.8, 0.95), 1e-4),
    ),
    "AdamW": (AdamWRule, torch.optim.AdamW),
    "AdamW, decay": (lambda: AdamWRule(0.05, weight_decay=0.3), lambda p: torch.optim.AdamW(p, 0.05, weight_decay=0.3)),
}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equal_to_torch_over_100_steps(name, dtype):
    """On minibatches, with a weight that never has a gradient."""
    make_rule, make_theirs = PAIRS[name]
    problem = small_problem(dtype=dtype)
    models = [copy.deepcopy(problem.model) for _ in range(2)]
    optimizers = [RuleOptimizer(models[0].parameters(), make_rule()), make_theirs(models[1].parameters())]
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        chosen = torch.randint(6, (3,), generator=generator)
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            (model(problem.x[chosen]) - problem.y[chosen]).square().mean().backward()
            optimizer.step()
    ours, theirs = (list(model.parameters()) for model in models)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5}[dtype]
    assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    assert not torch.equal(ours[0], problem.model[0].weight)


@pytest.mark.parametrize("name", PAIRS)
def test_meta_gradients_are_finite_where_gradients_are_zero(name):
    """A dead ReLU network: TorchOpt's Adam and RMSprop give NaN there."""
    rule = PAIRS[name][0]()
    params = {"w": torch.tensor([[1.0, -1.0], [-1.0, 0.5]], dtype=torch.float64, requires_grad=True)}
    x = torch.tensor([1.0, 2.0], dtype=torch.float64)

    def loss(theta):
        return torch.relu(theta["w"] @ x).square().sum()

    final = unroll(bind(rule, {}), loss, params, rule.init_state(params), steps=3).params
    (slope,) = torch.autograd.grad(loss(final) + final["w"].sum(), params["w"])
    assert bool(torch.isfinite(slope).all())
    assert slope.abs().sum() > 0
