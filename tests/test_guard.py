"""The guard: bounds, trust, Adam to fall back on, and that it says so."""

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from docs.examples.guard_table import markdown
from learned_optim import Guard, LSTMOptimizer, LSTMRule, Rule, RuleOptimizer, RuleState, SGDRule, read_guard
from tests.specs import small_problem


class Constant(Rule):
    """Always the same update: a rule to be told off."""

    scope = "coordinate"

    def __init__(self, value):
        super().__init__()
        self.value = value

    def init_state(self, params, *, generator=None):
        return RuleState({name: {} for name in params}, {})

    def forward(self, grads, state, params):
        return {name: torch.full_like(grad, self.value) for name, grad in grads.items()}, state

    def config(self):
        return {"value": self.value}


def descend(optimizer, p, loss, steps):
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        value = loss(p)
        value.backward()
        optimizer.step()
        losses.append(float(value.detach()))
    return losses


def bowl(p):
    return 0.5 * p.square().sum()


def test_steps_are_bounded_and_the_bound_follows_the_trust():
    guard = Guard()
    p = nn.Parameter(torch.full((3,), 5.0, dtype=torch.float64))
    optimizer = RuleOptimizer([p], Constant(-1.0), guard=guard)
    for step in range(40):
        before = p.detach().clone()
        descend(optimizer, p, bowl, 1)
        bound = guard.adam_lr * math.exp(float(optimizer.state[p]["guard.trust"]))
        assert_close(before - p.detach(), torch.full_like(before, bound))
        # Descending all the time, the trust grows to its most.
        assert bound == pytest.approx(min(0.01 * math.exp(0.15 * step * 1.15 / 2), 0.1), rel=0.2)
    assert bound == pytest.approx(guard.adam_lr * guard.most)


def test_small_steps_pass_untouched():
    problem = small_problem()
    models = [copy.deepcopy(problem.model) for _ in range(2)]
    for model, guard in zip(models, (False, True), strict=True):
        optimizer = RuleOptimizer(model.parameters(), SGDRule(1e-3), guard=guard)
        for _ in range(20):
            optimizer.zero_grad()
            (model(problem.x) - problem.y).square().mean().backward()
            optimizer.step()
    assert_close(list(models[0].parameters()), list(models[1].parameters()), rtol=0, atol=0)


@pytest.mark.parametrize("value", [0.3, -30.0, 1e30])
def test_a_harmful_rule_is_replaced_by_a_fresh_adam_for_good(value):
    """From the step that exhausts the trust on, the parameter is moved as by torch's Adam, begun there."""
    p = nn.Parameter(torch.tensor([0.02, -0.01, 0.015], dtype=torch.float64))
    optimizer = RuleOptimizer([p], Constant(value), guard=True)
    start = float(bowl(p.detach()))
    for _ in range(200):
        before = p.detach().clone()
        descend(optimizer, p, bowl, 1)
        if optimizer.state[p]["guard.trust"] == 0:
            break
    assert optimizer.state[p]["guard.trust"] == 0
    assert (before - torch.tensor([0.02, -0.01, 0.015])).abs().max() < 0.08
    q = nn.Parameter(before.clone())
    adam = torch.optim.Adam([q], lr=1e-3)
    descend(adam, q, bowl, 1)
    for _ in range(50):
        assert_close(p, q, rtol=0, atol=1e-12)
        descend(adam, q, bowl, 1)
        descend(optimizer, p, bowl, 1)
    assert descend(optimizer, p, bowl, 200)[-1] < max(start, 1e-5)


@pytest.mark.parametrize(("lr", "expected"), [(1.0, 1e-3), (50.0, 1e-3), (0.5, 5e-4), (torch.tensor(0.25), 2.5e-4)])
def test_after_the_hand_over_a_schedule_still_counts_and_a_large_lr_does_not(lr, expected):
    guard = Guard()
    state = guard.init_state({"p": torch.zeros(2)})
    state["p"]["trust"].zero_()
    grads = {"p": torch.tensor([2.0, -3.0])}
    updates, _ = guard(grads, {"p": torch.ones(2)}, state, lr=lr)
    assert_close(lr * updates["p"], torch.tensor([-expected, expected]), rtol=1e-5, atol=0)


def test_lr_zero_and_zero_gradients_leave_the_memory():
    guard = Guard()
    state = guard.init_state({"p": torch.zeros(2)})
    for grad, lr in ((torch.zeros(2), 1.0), (torch.ones(2), 0.0)):
        updates, new = guard({"p": grad}, {"p": torch.zeros(2)}, state, lr=lr)
        assert_close(new["p"], state["p"], rtol=0, atol=0)
        assert_close(lr * updates["p"], torch.zeros(2))


def test_bundled_checkpoints_are_guarded_and_own_rules_are_not():
    params = list(nn.Linear(2, 1).parameters())
    assert LSTMOptimizer(params).guard == read_guard("default")
    assert LSTMOptimizer(params, checkpoint="mnist-mlp@1").guard == Guard()
    assert LSTMOptimizer(params, checkpoint="mnist-mlp", guard=False).guard is None
    assert LSTMOptimizer(params, rule=LSTMRule()).guard is None
    assert LSTMOptimizer(params, rule=LSTMRule(), guard=Guard(most=20.0)).guard.most == 20.0


def test_a_state_with_a_guard_does_not_fit_an_optimizer_without():
    params = list(nn.Linear(2, 1).parameters())
    state = LSTMOptimizer(params, checkpoint="mnist-mlp").state_dict()
    with pytest.raises(ValueError, match="guard"):
        LSTMOptimizer(params, checkpoint="mnist-mlp", guard=False).load_state_dict(state)


RESULTS = Path(__file__).parent.parent / "docs" / "results" / "guard.json"


def test_the_published_table_is_its_record_and_keeps_the_promise():
    record = json.loads(RESULTS.read_text())
    assert markdown(record) == RESULTS.with_suffix(".md").read_text()
    assert record["guard"] == Guard().config()
    outside = [row for row in record["rows"] if not row["problem"].startswith("training family")]
    assert len({row["problem"] for row in outside}) >= 12
    for row in record["rows"]:
        for run in row["guarded"]:
            assert math.isfinite(run["end"])
            assert run["end"] <= run["start"] * (0.9 if row["lr"] == 1 else 1.0), row
    family = [row for row in record["rows"] if row["problem"].startswith("training family") and row["lr"] == 1]
    guarded, without = (sum(run["end"] for run in family[0][label]) for label in ("guarded", "without"))
    assert guarded <= 1.02 * without
