"""Bad input: one line that names the culprit."""

import pytest
import torch
from torch import nn

from learned_optim import (
    CheckpointError,
    HierarchicalRNNRule,
    LSTMOptimizer,
    LSTMRule,
    MetaLearnerLSTMRule,
    MetaSGD,
    MetaSGDRule,
    RuleOptimizer,
    SGDRule,
    load_checkpoint,
    save_checkpoint,
    unroll,
)
from learned_optim.data import mnist, read_idx
from learned_optim.problems import ImageClassification, mlp
from meta_init import Batch, MetaLearner, Sinusoids, Task, maml, sine_mlp

NAN = float("nan")


def params():
    return list(nn.Linear(3, 2).parameters())


def named():
    return list(nn.Linear(3, 2).named_parameters())


def rule():
    return LSTMRule(hidden_size=3)


def task(**parts):
    whole = {"sx": (2, 5, 1), "sy": (2, 5, 1), "qx": (2, 4, 1), "qy": (2, 4, 1), **parts}
    sx, sy, qx, qy = (torch.zeros(shape) for shape in whole.values())
    return Task(Batch(sx, sy), Batch(qx, qy))


def learner():
    return maml(sine_mlp(4), lr=0.01)


def label(y, strategy):
    labels = torch.tensor([[0, 1, y]] * 2)
    part = Batch(torch.zeros(2, 3, 4), labels)
    maml(nn.Linear(4, 3), lr=0.1, strategy=strategy).outer_loss(Task(part, part))


def loss(p):
    return p["a"].sum()


def add_group_to_given_rates():
    optimizer = MetaSGD(params(), rule=MetaSGDRule(dict(named())))
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})


def load_state_of_another_rule():
    state = RuleOptimizer(params(), SGDRule(0.1)).state_dict()
    LSTMOptimizer(params(), rule=rule()).load_state_dict(state)


def load_state_of_another_size():
    state = LSTMOptimizer(params(), rule=LSTMRule(hidden_size=4)).state_dict()
    LSTMOptimizer(params(), rule=rule()).load_state_dict(state)


def load_state_of_another_precision():
    state = LSTMOptimizer(params(), rule=rule().double()).state_dict()
    LSTMOptimizer(params(), rule=rule()).load_state_dict(state)


def load_state_of_adam():
    LSTMOptimizer(params(), rule=rule()).load_state_dict(torch.optim.Adam(params()).state_dict())


def meta_sgd_from_an_lstm_file(tmp_path):
    save_checkpoint(tmp_path / "lstm", rule())
    MetaSGD(params(), checkpoint=tmp_path / "lstm")


def sparse_gradient():
    embedding = nn.Embedding(5, 2, sparse=True)
    optimizer = LSTMOptimizer(embedding.parameters(), rule=rule())
    embedding(torch.tensor([1])).sum().backward()
    optimizer.step()


CASES = {
    "label too large": (
        lambda: label(3, "vmap"),
        ValueError,
        "labels must be from 0 to 2, since the model has 3 outputs",
    ),
    "negative label": (lambda: label(-1, "loop"), ValueError, "labels must be from 0 to 2, since .* -1"),
    "empty parameters": (lambda: LSTMOptimizer([], rule=rule()), ValueError, "empty parameter list"),
    "negative lr": (lambda: LSTMOptimizer(params(), rule=rule(), lr=-1.0), ValueError, "lr must be .* got -1.0"),
    "NaN lr": (lambda: MetaSGD(params(), lr=NAN), ValueError, "MetaSGD: lr must be .* got nan"),
    "group lr": (lambda: MetaSGD([{"params": params(), "lr": -2}]), ValueError, "lr must be .* got -2"),
    "weight decay": (lambda: MetaSGD(params(), weight_decay=-1), ValueError, "weight_decay must be"),
    "lr by position": (lambda: LSTMOptimizer(params(), 1e-3), TypeError, r"got 0.001; did you mean lr="),
    "rule by position": (lambda: MetaSGD(params(), rule()), TypeError, r"did you mean rule="),
    "a range of three": (lambda: MetaSGD(params(), alpha=(1, 2, 3)), ValueError, "alpha must be"),
    "negative alpha": (lambda: MetaSGD(params(), alpha=-0.1), ValueError, "alpha must be .* got -0.1"),
    "a range for MAML": (lambda: maml(sine_mlp(), lr=(0.1, 0.2)), ValueError, r"lr must be .* got \(0.1, 0.2\)"),
    "another precision": (load_state_of_another_precision, ValueError, "float64"),
    "a tuple for a task": (
        lambda: learner().outer_loss(tuple(task())),
        TypeError,
        "its item 0 is a Batch",
    ),
    "stacked, empty support": (
        lambda: learner().outer_loss(task(sx=(2, 0, 1), sy=(2, 0, 1))),
        ValueError,
        "tasks.support holds no example",
    ),
    "both": (lambda: LSTMOptimizer(params(), checkpoint="mnist-mlp", rule=rule()), ValueError, "not both"),
    "hierarchical sizes": (lambda: HierarchicalRNNRule((3, 0)), ValueError, r"sizes must be .* got \(3, 0\)"),
    "four levels": (lambda: HierarchicalRNNRule((3, 3, 3, 3)), ValueError, "one to three numbers"),
    "no time scale": (
        lambda: HierarchicalRNNRule(time_scales=0),
        ValueError,
        "time_scales must be from 1 to 20, got 0",
    ),
    "rates from zero": (lambda: HierarchicalRNNRule(rates=(0, 1)), ValueError, r"above 0, got \(0, 1\)"),
    "no step to the horizon": (lambda: LSTMRule(horizon=0), ValueError, "horizon must be a whole number .* got 0"),
    "a count to nowhere": (
        lambda: LSTMRule("step_count", count_until=0),
        ValueError,
        "count_until must be a whole number .* got 0",
    ),
    "until without a count": (lambda: LSTMRule(count_until=9), ValueError, "count_until=9 needs .*'step_count'"),
    "half a step": (lambda: HierarchicalRNNRule(horizon=2.5), ValueError, "horizon must be .* got 2.5"),
    "no invariant steps": (
        lambda: HierarchicalRNNRule(invariant_steps=(0, 500)),
        ValueError,
        r"invariant_steps must be .* got \(0, 500\)",
    ),
    "invariant steps that are no pair": (
        lambda: HierarchicalRNNRule(invariant_steps=(0.1,)),
        ValueError,
        r"invariant_steps must be a pair .* got \(0.1,\)",
    ),
    "invariant steps without their number": (
        lambda: HierarchicalRNNRule(invariant_steps=(0.1, None)),
        ValueError,
        r"invariant_steps must be a pair .* got \(0.1, None\)",
    ),
    "invariant steps that are a number": (
        lambda: HierarchicalRNNRule(invariant_steps=0.1),
        ValueError,
        "invariant_steps must be a pair .* got 0.1",
    ),
    "invariant steps to no horizon": (
        lambda: HierarchicalRNNRule(invariant_steps=(0.1, 0)),
        ValueError,
        "invariant_steps: horizon must be .* got 0",
    ),
    "a horizon of no invariant steps": (
        lambda: HierarchicalRNNRule(invariant_horizon=100),
        ValueError,
        "invariant_steps tell of, and these are None; got 100",
    ),
    "invariant steps without a shortcut": (
        lambda: HierarchicalRNNRule(invariant_steps=(0.1, 5), without=("shortcut",)),
        ValueError,
        "invariant_steps go along the shortcut",
    ),
    "a horizon of no rates": (
        lambda: HierarchicalRNNRule(without=("dynamic_rates",), horizon=3),
        ValueError,
        "without 'dynamic_rates' there are none; got 3 and None",
    ),
    "options of another rule": (
        lambda: load_checkpoint("quadratic", options={"legs": 2}),
        CheckpointError,
        "no LSTMRule can be made from its configuration with {'legs': 2}",
    ),
    "options of other weights": (
        lambda: load_checkpoint("quadratic", options={"hidden_size": 2}),
        CheckpointError,
        r"tensor 'weights.0' has shape \(80, .*, but its LSTMRule needs \(8, ",
    ),
    "unknown part": (lambda: HierarchicalRNNRule(without=("legs",)), ValueError, r"unknown parts \['legs'\]"),
    "wrong rule": (lambda: LSTMOptimizer(params(), rule=SGDRule(0.1)), ValueError, "needs an LSTMRule, got SGDRule"),
    "rate shapes": (
        lambda: MetaSGD(params(), rule=MetaSGDRule({"a": torch.zeros(2), "b": torch.zeros(2)})),
        ValueError,
        r"parameter 'a' has shape \(2, 3\), its rates \(2,\)",
    ),
    "too few rates": (
        lambda: MetaSGD(params(), rule=MetaSGDRule({"a": torch.zeros(2, 3)})),
        ValueError,
        "rates for only 1",
    ),
    "rates left over": (
        lambda: MetaSGD(params()[:1], rule=MetaSGDRule(dict(named()))),
        ValueError,
        r"rates for \['bias'\]",
    ),
    "rates by other names": (
        lambda: MetaSGD(named(), rule=MetaSGDRule({"weight": torch.zeros(2, 3), "shift": torch.zeros(2)})),
        ValueError,
        "no rates for parameter 'bias'",
    ),
    "new group": (add_group_to_given_rates, ValueError, "has none for a new group"),
    "other rule's state": (load_state_of_another_rule, ValueError, "SGDRule.*LSTMRule"),
    "other size's state": (load_state_of_another_size, ValueError, '"hidden_size": 4'),
    "Adam's state": (load_state_of_adam, ValueError, "holds no rule"),
    "sparse": (sparse_gradient, RuntimeError, "is sparse"),
    "alpha": (lambda: MetaSGD(params(), alpha=(0.2, 0.1)), ValueError, "alpha must be"),
    "no parameters for rates": (lambda: MetaSGDRule({}), ValueError, "params is empty"),
    "sgd lr": (lambda: SGDRule(NAN), ValueError, "SGDRule: lr must be .* got nan"),
    "features": (lambda: LSTMRule("log"), ValueError, r"unknown features \['log'\].*log_sign"),
    "hidden size": (lambda: LSTMRule(hidden_size=0), ValueError, "hidden_size"),
    "hidden size of the meta-learner": (
        lambda: MetaLearnerLSTMRule(0),
        ValueError,
        "MetaLearnerLSTMRule: hidden_size must be >= 1, got 0",
    ),
    "negative secants": (lambda: LSTMRule(secants=-1), ValueError, "secants must be a whole number from 0 .* got -1"),
    "half a secant": (lambda: LSTMRule(secants=2.5), ValueError, "secants must be a whole number from 0 .* got 2.5"),
    "output scale": (lambda: LSTMRule(output_scale=0.0), ValueError, "output_scale must be"),
    "unroll steps": (
        lambda: unroll(SGDRule(0.1), loss, {"a": torch.ones(1)}, SGDRule(0.1).init_state({}), steps=-1),
        ValueError,
        "steps must be a whole number >= 0, got -1",
    ),
    "unroll batches": (
        lambda: unroll(
            SGDRule(0.1), lambda p, b: loss(p), {"a": torch.ones(1)}, SGDRule(0.1).init_state({}), steps=3, batches=[0]
        ),
        ValueError,
        "batches ended after 1 of 3 steps",
    ),
    "unroll loss": (
        lambda: unroll(SGDRule(0.1), lambda p: p["a"], {"a": torch.ones(2)}, SGDRule(0.1).init_state({}), steps=1),
        ValueError,
        r"must return a scalar, got shape \(2,\)",
    ),
    "learner steps": (lambda: maml(sine_mlp(), lr=0.1, steps=0), ValueError, "steps must be .* >= 1, got 0"),
    "adapt steps": (lambda: learner().adapt(Batch(torch.ones(3, 1), torch.ones(3, 1)), -1), ValueError, "got -1"),
    "strategy": (lambda: maml(sine_mlp(), lr=0.1, strategy="fast"), ValueError, "unknown strategy 'fast'"),
    "inner lr": (lambda: maml(sine_mlp(), lr=-0.1), ValueError, "lr must be"),
    "nothing to adapt": (
        lambda: MetaLearner(sine_mlp().requires_grad_(False), SGDRule(0.1)),
        ValueError,
        "nothing can adapt",
    ),
    "support sizes": (lambda: learner().outer_loss(task(sy=(2, 6, 1))), ValueError, r"tasks.support: x and y differ"),
    "query sizes": (lambda: learner().outer_loss(task(qx=(2, 3, 1))), ValueError, r"tasks.query: x and y differ"),
    "task counts": (
        lambda: learner().outer_loss(task(qx=(3, 4, 1), qy=(3, 4, 1))),
        ValueError,
        "2 tasks .* tasks.query 3",
    ),
    "no task axis": (lambda: learner().outer_loss(task(sy=(2,))), ValueError, r"tasks.support.y has shape \(2,\)"),
    "no tasks": (lambda: learner().outer_loss([]), ValueError, "tasks is empty"),
    "empty support": (
        lambda: learner().adapt(Batch(torch.ones(0, 1), torch.ones(0, 1))),
        ValueError,
        "support holds no example",
    ),
    "a pair for a support set": (
        lambda: learner().adapt((torch.ones(2, 1), torch.ones(2, 1))),
        TypeError,
        r"support must be a Batch\(x, y\), got a tuple",
    ),
    "arrays": (
        lambda: learner().adapt(Batch(torch.ones(2, 1).numpy(), torch.ones(2, 1))),
        TypeError,
        "support.x must hold tensors, got a ndarray",
    ),
    "bytes": (
        lambda: learner().adapt(Batch(torch.ones(2, 1, dtype=torch.uint8), torch.ones(2, 1))),
        TypeError,
        r"support.x holds bytes \(uint8\), of which no model learns; scale them: x.float\(\) / 255",
    ),
    "target shape": (
        lambda: maml(sine_mlp(), lr=0.1, strategy="loop").outer_loss(task(sy=(2, 5), qy=(2, 4))),
        ValueError,
        r"output has shape \(5, 1\), but the targets \(5,\)",
    ),
    "convention": (lambda: Sinusoids("finn"), ValueError, "unknown convention 'finn'"),
    "shots": (lambda: Sinusoids(shots=0), ValueError, "shots and queries must be >= 1"),
    "images": (lambda: ImageClassification("minst"), ValueError, "unknown images 'minst'.*mnist"),
    "activation": (lambda: mlp(activation="swish"), ValueError, "unknown activation 'swish'"),
    "no data": (lambda: mnist("/nowhere"), FileNotFoundError, "LEARNED_OPTIM_DATA"),
    "no IDX": (lambda: read_idx(b"\x89PNG"), ValueError, "not an IDX file"),
    "short IDX": (lambda: read_idx(b"\0\0\x08\x01\0\0\0\x05abc"), ValueError, r"must have 13 bytes, got 11"),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input(name):
    call, kind, message = CASES[name]
    with pytest.raises(kind, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_another_rule(tmp_path):
    with pytest.raises(ValueError, match="needs a MetaSGDRule, got LSTMRule"):
        meta_sgd_from_an_lstm_file(tmp_path)


def test_a_refused_state_changes_nothing():
    optimizer = LSTMOptimizer(params(), rule=rule())
    before = [p.detach().clone() for p in optimizer.rule.parameters()]
    with pytest.raises(ValueError, match="holds no rule"):
        optimizer.load_state_dict(torch.optim.Adam(params(), lr=0.5).state_dict())
    assert optimizer.param_groups[0]["lr"] == 1.0
    assert all(torch.equal(p, q) for p, q in zip(optimizer.rule.parameters(), before, strict=True))


def test_a_refused_group_is_not_added():
    optimizer = MetaSGD(params(), rule=MetaSGDRule(dict(named())))
    with pytest.raises(ValueError, match="new group"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})
    assert len(optimizer.param_groups) == 1


def test_a_habitual_learning_rate_gets_one_hint(recwarn, monkeypatch):
    from learned_optim import rule_optimizer

    monkeypatch.setattr(rule_optimizer, "_told", set())
    with pytest.warns(UserWarning, match="lr=1.0 is the optimizer as it was trained"):
        LSTMOptimizer(params(), rule=rule(), lr=1e-3)
    LSTMOptimizer(params(), rule=rule(), lr=1e-3)
    LSTMOptimizer(params(), rule=rule(), lr=0.5)
    assert not recwarn.list
