"""ANIL and the options of MAML++ against plain autograd, one task after the other."""

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.testing import assert_close

from learned_optim import LSLRRule
from meta_init import MetaLearner, anil, maml, maml_plus_plus
from meta_init.learner import trainable
from tests.laws.test_meta_init import tasks

both = pytest.mark.parametrize("strategy", ["vmap", "loop"])


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 4)).double()


def slow(model, batch, rates, weights, adapts):
    """sum_k w_k L_query(theta_k), the rates of step k and tensor ``name`` being ``rates(name, k)``."""
    total = 0
    for i in range(len(batch.support.y)):
        params = {name: p for name, p in model.named_parameters() if adapts(name)}
        for k, weight in enumerate(weights):
            loss = nn.functional.cross_entropy(
                functional_call(model, params, (batch.support.x[i],)), batch.support.y[i]
            )
            grads = torch.autograd.grad(loss, list(params.values()), create_graph=True)
            params = {name: p - rates(name, k) * g for (name, p), g in zip(params.items(), grads, strict=True)}
            query = functional_call(model, params, (batch.query.x[i],))
            total = total + weight * nn.functional.cross_entropy(query, batch.query.y[i])
    return total / (i + 1)


def equal(learner, loss, batch):
    ours = learner.outer_loss(batch)[0]
    learned = list(learner.parameters())
    assert_close(ours, loss)
    assert_close(torch.autograd.grad(ours, learned), torch.autograd.grad(loss, learned))


@both
def test_anil_adapts_the_head_and_learns_the_body(strategy):
    model, batch = network(), tasks((5,))
    learner = anil(model, lr=0.3, steps=3, strategy=strategy)
    equal(learner, slow(model, batch, lambda name, k: 0.3, [0, 0, 1], lambda name: name.startswith("3.")), batch)
    assert set(learner.adapt(batch.support._replace(x=batch.support.x[0], y=batch.support.y[0])).params) == {
        "3.weight",
        "3.bias",
    }
    assert len(list(learner.parameters())) == len(list(model.parameters()))


def test_the_head_may_be_named():
    named = anil(network(), lr=0.3, head=["1.*", "3.weight"])
    assert list(trainable(named.model, named.adapts)) == ["1.weight", "1.bias", "3.weight"]
    assert anil(nn.Linear(5, 4), lr=0.3).adapts == "*"


@both
@pytest.mark.parametrize("weights", [[0.2, 0.3, 0.5], None])
def test_rates_per_layer_and_step_and_the_loss_of_every_step(strategy, weights):
    model, batch = network(), tasks((5,))
    learner = maml_plus_plus(model, lr=0.1, steps=3, strategy=strategy).double()
    learner.step_weights = weights
    with torch.no_grad():
        for i, rate in enumerate(learner.rule.parameters()):
            rate.add_(torch.tensor([0.1, 0.2, 0.3]) * (i + 1))
    alpha = learner.rule.alpha
    equal(learner, slow(model, batch, lambda name, k: alpha[name][k], weights or [0, 0, 1], lambda name: True), batch)


def test_steps_beyond_the_learned_ones_use_the_last_rate():
    rule = LSLRRule(["w"], 0.1, 2)
    with torch.no_grad():
        rule.alpha["w"].copy_(torch.tensor([1.0, 2.0]))
    params = {"w": torch.zeros(1)}
    state, taken = rule.init_state(params), []
    for _ in range(4):
        updates, state = rule({"w": torch.ones(1)}, state, params)
        taken.append(-float(updates["w"].detach()))
    assert taken == [1, 2, 2, 2]


BAD = {
    "steps of the rule": (lambda: LSLRRule(["w"], 0.1, 0), "steps >= 1"),
    "no name": (lambda: LSLRRule([], 0.1, 2), "at least one name"),
    "no such head": (lambda: anil(network(), lr=0.1, head="fc.*"), r"no parameter matches adapts='fc\.\*'; there are"),
    "weights": (lambda: MetaLearner(network(), maml(network(), lr=0.1).rule, step_weights=[1, 2]), "hold 1 numbers"),
}


@pytest.mark.parametrize("case", BAD)
def test_wrong_use_is_told(case):
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call()
