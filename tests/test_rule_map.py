"""Different rules for different parameters."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from learned_optim import (
    AdamRule,
    LSTMRule,
    MetaSGDRule,
    RuleMap,
    RuleOptimizer,
    SGDRule,
    load_checkpoint,
    save_checkpoint,
)


def conv_and_dense():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 4 * 4, 3)).double()


def step(model, optimizer):
    optimizer.zero_grad()
    x = torch.linspace(-1, 1, 5 * 36, dtype=torch.float64).reshape(5, 1, 6, 6)
    model(x).square().sum().backward()
    optimizer.step()


ASSIGN = {
    "by rank": {"conv": 4, "dense": "*"},
    "by ranks": {"conv": [4], "dense": [1, 2]},
    "by name": {"conv": "0.*", "dense": "3.*"},
    "mixed": {"conv": ["0.weight"], "dense": [2, "?.bias"]},
}


@pytest.mark.parametrize("name", ASSIGN)
def test_each_parameter_is_moved_by_its_rule_alone(name):
    """As two optimizers, each of its parameters."""
    model, other = conv_and_dense(), conv_and_dense()
    rules = {"conv": LSTMRule(hidden_size=3).double(), "dense": AdamRule(0.05)}
    mapped = RuleMap(rules, ASSIGN[name])
    optimizer = RuleOptimizer(model.named_parameters(), mapped)
    parts = {"conv": [], "dense": []}
    for key, p in other.named_parameters():
        parts[mapped.route(key, p)].append(p)
    assert len(parts["conv"]) == (2 if name == "by name" else 1)
    others = [RuleOptimizer(parts[key], rules[key]) for key in rules]
    for _ in range(4):
        step(model, optimizer)
        for one in others:
            one.zero_grad()
        step(other, others[0])
        others[1].step()
    assert_close(list(model.parameters()), list(other.parameters()), rtol=0, atol=1e-12)


def test_checkpoints_nest(tmp_path):
    params = dict(conv_and_dense().named_parameters())
    inner = RuleMap({"a": SGDRule(0.1), "b": LSTMRule("moments", 2)}, {"a": 1, "b": "*"})
    rule = RuleMap(
        {"conv": inner, "rates": MetaSGDRule({"3.weight": params["3.weight"]}, 0.2)}, {"rates": "3.weight", "conv": "*"}
    )
    save_checkpoint(tmp_path / "map.safetensors", rule, record={"for": "conv nets"})
    loaded = load_checkpoint(tmp_path / "map.safetensors")
    assert loaded.config() == rule.config()
    assert_close(dict(loaded.state_dict()), dict(rule.state_dict()), rtol=0, atol=0)
    models = [conv_and_dense() for _ in range(2)]
    for model, one in zip(models, (rule, loaded), strict=True):
        optimizer = RuleOptimizer(model.named_parameters(), one)
        for _ in range(3):
            step(model, optimizer)
        # A group holds the parameters' names and numbers, no rule.
        assert not any(isinstance(value, nn.Module) for group in optimizer.param_groups for value in group.values())
    assert_close(list(models[0].parameters()), list(models[1].parameters()), rtol=0, atol=0)


def test_the_order_of_assignment_survives_a_checkpoint(tmp_path):
    rule = RuleMap({"b": SGDRule(0.1), "a": SGDRule(0.2)}, {"b": "*", "a": "*"})
    save_checkpoint(tmp_path / "map", rule)
    assert load_checkpoint(tmp_path / "map").route("anything", torch.zeros(2)) == "b"


def test_parts_that_begin_later_get_their_state():
    model = conv_and_dense()
    model[3].requires_grad_(False)
    rule = RuleMap({"conv": LSTMRule(hidden_size=3).double(), "dense": AdamRule()}, {"conv": "0.*", "dense": "*"})
    optimizer = RuleOptimizer(model.named_parameters(), rule)
    before = copy.deepcopy(model[3])
    step(model, optimizer)
    assert_close(list(model[3].parameters()), list(before.parameters()), rtol=0, atol=0)
    model[3].requires_grad_(True)
    step(model, optimizer)
    assert optimizer.state[model[3].weight]["step"] == 1
    assert not torch.equal(model[3].weight, before.weight)


BAD = {
    "no rules": (lambda: RuleMap({}, {}), "same names"),
    "other names": (lambda: RuleMap({"a": SGDRule(0.1)}, {"b": "*"}), r"same names, got \['a'\], \['b'\]"),
    "no rule": (lambda: RuleMap({"a": 0.1}, {"a": "*"}), r"rules\['a'\] must be a Rule, got float"),
    "odd entry": (lambda: RuleMap({"a": SGDRule(0.1)}, {"a": [0.5]}), r"assign\['a'\] must hold patterns"),
    "no match": (
        lambda: RuleOptimizer(nn.Linear(2, 1).parameters(), RuleMap({"a": SGDRule(0.1)}, {"a": "weight"})),
        "no rule for parameter '0' of 2 dimensions.*named parameters",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        call()
