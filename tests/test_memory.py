"""What the state costs, as the documents say and as one is warned."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from learned_optim import (
    Guard,
    HierarchicalRNNRule,
    LSTMOptimizer,
    LSTMRule,
    MetaLearnerLSTMRule,
    MetaSGDRule,
    RuleOptimizer,
    SGDRule,
    rule_optimizer,
)
from learned_optim.rules.classical import AdagradRule, AdamRule, MomentumRule
from learned_optim.state_layout import state_bytes

DOCUMENT = Path(__file__).parent.parent / "docs" / "optimizers.md"

SETUPS = {
    "`SGDRule`, `MetaSGDRule`": (SGDRule(0.1), None),
    "`MomentumRule`, `AdagradRule`, `RMSpropRule`": (MomentumRule(0.1), None),
    "`AdamRule`, `AdamWRule`": (AdamRule(), None),
    "`LSTMRule`, log/sign, 2 x 20 units": (LSTMRule(), None),
    "`LSTMRule`, moments, 2 x 20 units": (LSTMRule("moments"), None),
    "`LSTMRule`, moments, 1 x 10 units": (LSTMRule("moments", 10, 1), None),
    "`LSTMRule`, moments, 2 x 20 units, 5 secants, as `quadratic`": (LSTMRule("moments", secants=5), None),
    "`MetaLearnerLSTMRule`, 20 units": (MetaLearnerLSTMRule(), None),
    "`HierarchicalRNNRule`": (HierarchicalRNNRule(), None),
    "`HierarchicalRNNRule`, attention": (HierarchicalRNNRule(attention=True), None),
    "any rule, for the guard besides": (SGDRule(0.1), Guard()),
}


@pytest.mark.parametrize("name", SETUPS)
def test_the_document_states_the_bytes_for_each_coordinate(name):
    rule, guard = SETUPS[name]
    params = {"p": torch.zeros(1000)}
    state = state_bytes(rule, guard, params)
    real = rule.init_state(params).per_param["p"] | (guard.init_state(params)["p"] if guard else {})
    assert state == sum(value.numel() * value.element_size() for value in real.values())
    (line,) = [line for line in DOCUMENT.read_text().splitlines() if line.startswith(f"| {name} |")]
    assert re.search(r"\| (\d+) \|$", line)[1] == str(state // 1000)


def test_the_named_alternatives_take_the_same():
    params = {"p": torch.zeros(1000)}
    assert state_bytes(MetaSGDRule(params), None, params) == 0
    assert state_bytes(AdagradRule(0.1), None, params) == state_bytes(MomentumRule(0.1), None, params)


def test_a_state_of_gigabytes_is_announced_once(recwarn, monkeypatch):
    monkeypatch.setattr(rule_optimizer, "_told", set())
    large = nn.Linear(2048, 4096, device="meta")  # 8.4 million coordinates, without data
    with pytest.warns(UserWarning, match=r"its state will take 2.5 GiB, 320 bytes for each of 8,392,704 coordinates"):
        LSTMOptimizer(large.parameters(), rule=LSTMRule())
    LSTMOptimizer(large.parameters(), rule=LSTMRule())
    RuleOptimizer(large.parameters(), AdamRule())
    LSTMOptimizer(nn.Linear(1000, 1000).parameters(), rule=LSTMRule())
    assert not recwarn.list
