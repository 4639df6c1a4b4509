"""The meta-learner LSTM: the paper's formulas, its start, and its place as an inner rule."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from learned_optim import MetaLearnerLSTMRule, RuleOptimizer, load_checkpoint, save_checkpoint, unroll
from learned_optim.cells import parameter_cell
from learned_optim.sampled import SampledUpdate
from meta_init import Batch, MetaLearner, Sinusoids, Task, sine_mlp
from tests.specs import seeded_rule, small_problem

SCALES = (1e-6, 1e-3, 1.0, 1e2, 1.0, 0.0)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def row_times(row, values):
    return sum(w * z for w, z in zip(row, values, strict=True))


def slow_meta_learner_lstm(rule, theta, grads):
    """theta after each step of one coordinate, a transcription of the paper, one number at a time."""
    size = rule.hidden_size
    weight, bias = rule.weight.tolist(), rule.bias.tolist()
    (w_i, w_f), (b_i, b_f) = rule.gate_weight.tolist(), rule.gate_bias.tolist()
    hidden, cell, i, f = [0.0] * size, [0.0] * size, 0.0, 0.0
    path, seen = [], rule.move_unseen
    for g in grads:
        seen = seen or g != 0
        if seen:
            x = [math.log(abs(g)) / 10, math.copysign(1, g)] if abs(g) >= math.exp(-10) else [-1, math.exp(10) * g]
            joined = [*x, *hidden]
            gate = [row_times(row, joined) + b for row, b in zip(weight, bias, strict=True)]
            for j in range(size):
                cell_i, cell_f, cell_g, cell_o = (gate[k * size + j] for k in range(4))
                cell[j] = sigmoid(cell_f) * cell[j] + sigmoid(cell_i) * math.tanh(cell_g)
                hidden[j] = sigmoid(cell_o) * math.tanh(cell[j])
            i = sigmoid(row_times(w_i, [*hidden, theta, i]) + b_i)
            f = sigmoid(row_times(w_f, [*hidden, theta, f]) + b_f)
            theta = f * theta - i * g
        path.append(theta)
    return path


@pytest.mark.parametrize("move_unseen", [False, True])
def test_equal_to_the_slow_reference_over_100_steps(move_unseen):
    """On gradients of all scales, with zeros at the start of some coordinates, in the middle and throughout."""
    rule = seeded_rule("meta_learner_lstm", {})
    rule.move_unseen = move_unseen
    torch.manual_seed(1)
    grads = torch.randn(100, len(SCALES), dtype=torch.float64) * torch.tensor(SCALES, dtype=torch.float64)
    grads[:7, 4] = grads[40:50, 2:4] = 0
    start = torch.randn(len(SCALES), dtype=torch.float64)
    params = {"p": start}
    state, ours = rule.init_state(params), []
    for grad in grads:
        updates, state = rule({"p": grad}, state, params)
        params = {"p": params["p"] + updates["p"].detach()}
        ours.append(params["p"])
    paths = [slow_meta_learner_lstm(rule, start[k].item(), grads[:, k].tolist()) for k in range(len(SCALES))]
    assert_close(torch.stack(ours, dim=1), torch.tensor(paths, dtype=torch.float64), rtol=1e-9, atol=1e-12)
    assert torch.equal(ours[-1][5], start[5]) != move_unseen
    assert not torch.equal(ours[-1][:5], start[:5])


@torch.no_grad()
@pytest.mark.parametrize("grad", [1e-6, 0.01, -1.0, 30.0])
def test_the_start_is_gradient_descent_with_rate_sigmoid_of_b_i(grad):
    """Up to the decay 1 - sigmoid(b_F), and to weights of at most 0.01."""
    for seed in range(20):
        torch.manual_seed(seed)
        rule = MetaLearnerLSTMRule().double()
        params = {"p": torch.tensor([0.0, 1.0], dtype=torch.float64)}
        state = rule.init_state(params)
        for _ in range(5):
            updates, state = rule({"p": torch.full_like(params["p"], grad)}, state, params)
            rate, decay = torch.sigmoid(rule.gate_bias[0]), torch.sigmoid(-rule.gate_bias[1])
            # A weight of 0.01 on theta and one on the gate itself change a gate's odds by 2 per cent at most.
            expected = torch.stack((-rate * grad, -rate * grad - decay))
            assert_close(updates["p"], expected, rtol=0, atol=0.025 * (float(rate) * abs(grad) + float(decay)))


def test_first_values_are_those_of_the_code():
    torch.manual_seed(0)
    rules = [MetaLearnerLSTMRule() for _ in range(100)]
    biases = torch.stack([rule.gate_bias.detach() for rule in rules])
    assert -5 <= biases[:, 0].min() < -4.9
    assert -4.1 < biases[:, 0].max() <= -4
    assert 4 <= biases[:, 1].min() < 4.1
    assert 4.9 < biases[:, 1].max() <= 5
    for name in ("weight", "bias", "gate_weight"):
        values = torch.cat([getattr(rule, name).detach().flatten() for rule in rules])
        assert -0.01 <= values.min() < -0.0099
        assert 0.0099 < values.max() <= 0.01


def test_gates_lie_between_zero_and_one_and_the_new_value_between_theta_and_a_step():
    torch.manual_seed(0)
    hidden, param, grad = torch.randn(50, 4), torch.randn(50), 10 * torch.randn(50)
    update, gates = parameter_cell(hidden, param, grad, torch.rand(50, 2), 3 * torch.randn(2, 6), torch.randn(2))
    assert bool(((gates >= 0) & (gates <= 1)).all())
    i, f = gates.unbind(dim=-1)
    assert_close(param + update, f * param - i * grad)


def test_a_decay_far_below_rounding_is_kept():
    """f - 1 = -sigmoid(-30) is zero when it is computed from f in float32."""
    zero = torch.zeros(1)
    bias = torch.tensor([0.0, 30.0])
    update, _ = parameter_cell(torch.zeros(1, 2), zero + 1, zero, torch.zeros(1, 2), torch.zeros(2, 4), bias)
    assert_close(update, torch.tensor([-sigmoid(-30.0)]))


def test_a_checkpoint_goes_on_alike(tmp_path):
    torch.manual_seed(0)
    rule = MetaLearnerLSTMRule(5, move_unseen=True).double()
    save_checkpoint(tmp_path / "rule.safetensors", rule)
    loaded = load_checkpoint(tmp_path / "rule.safetensors")
    assert loaded.config() == rule.config() == {"hidden_size": 5, "move_unseen": True}
    problem = small_problem()
    ends = [
        unroll(r, problem.loss, problem.params, r.init_state(problem.params), steps=5).params for r in (rule, loaded)
    ]
    assert_close(ends[0], ends[1], rtol=0, atol=0)


def test_parameters_of_other_precision():
    """State and arithmetic are of the weights' dtype, updates come to the parameter in its own."""
    p = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    optimizer = RuleOptimizer([p], MetaLearnerLSTMRule(3))
    p.grad = torch.full_like(p, 30.0)
    optimizer.step()
    assert p.dtype == torch.bfloat16
    assert p[0] < 1
    assert {key: value.dtype for key, value in optimizer.state[p].items() if key in ("cell_0", "gates")} == {
        "cell_0": torch.float32,
        "gates": torch.float32,
    }


def test_sampled_meta_gradients_are_unbiased_where_the_rule_reads_theta():
    """Exactly: the mean over all samples of one coordinate is the plain meta-gradient."""
    rule = seeded_rule("meta_learner_lstm", {})
    with torch.no_grad():
        rule.gate_bias.copy_(torch.tensor([-2.0, 1.0]))
    start = {"p": torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)}
    target = torch.tensor([0.3, 0.7, -1.0], dtype=torch.float64)

    def loss(params):
        return (params["p"] - target).square().sum()

    def meta_gradient(update, state):
        unrolled = unroll(update, loss, start, state, steps=6, first_order=True)
        return torch.autograd.grad(unrolled.losses.sum() + loss(unrolled.params), list(rule.parameters()))

    state = rule.init_state(start)
    samples = []
    for chosen in range(3):
        update = SampledUpdate(rule, start, count=1, generator=torch.Generator())
        update.index = {"p": torch.tensor([chosen])}
        samples.append(meta_gradient(update, update.extend(state)))
    means = tuple(torch.stack(parts).mean(dim=0) for parts in zip(*samples, strict=True))
    assert_close(means, meta_gradient(rule, state))


# As the inner rule of a learner


def sine_learner(**options):
    torch.manual_seed(0)
    return MetaLearner(sine_mlp(8).double(), MetaLearnerLSTMRule(4).double(), steps=3, **options)


def waves(count, seed):
    tasks = Sinusoids().sample(count, torch.Generator().manual_seed(seed))
    return Task(*(Batch(part.x.double(), part.y.double()) for part in tasks))


@pytest.mark.parametrize("first_order", [True, False])
def test_meta_gradients_are_finite_and_vmap_is_a_loop(first_order):
    """With dead ReLUs, whose gradients are exactly zero."""
    found = []
    for strategy in ("vmap", "loop"):
        learner = sine_learner(first_order=first_order, strategy=strategy)
        with torch.no_grad():
            learner.model[0].bias[:2] = -100.0
        learner.outer_loss(waves(4, 1))[0].backward()
        found.append({name: p.grad for name, p in learner.named_parameters()})
    assert_close(found[0], found[1])
    assert {"rule.weight", "rule.bias", "rule.gate_weight", "rule.gate_bias", "model.0.weight"} <= set(found[0])
    for name, grad in found[0].items():
        assert bool(torch.isfinite(grad).all()), name
        assert grad.abs().sum() > 0, name
    assert not found[0]["model.0.bias"][:2].any()


def test_orders_differ_only_by_the_graph_of_the_gradients():
    first, exact = (sine_learner(first_order=order).outer_loss(waves(4, 1))[0] for order in (True, False))
    assert_close(first, exact)


def test_a_few_dozen_updates_learn_the_initialisation_and_the_rule():
    torch.manual_seed(0)
    learner = MetaLearner(sine_mlp(20).double(), MetaLearnerLSTMRule(8).double(), steps=5, first_order=True)
    fresh, untrained_rule = waves(200, 1), copy.deepcopy(learner.rule)
    untrained = learner.evaluate(fresh).losses.mean(dim=0)
    optimizer = torch.optim.Adam(
        [{"params": learner.model.parameters(), "lr": 1e-2}, {"params": learner.rule.parameters(), "lr": 5e-2}]
    )
    for step in range(60):
        loss, _ = learner.outer_loss(waves(10, 100 + step))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(learner.parameters(), 0.25)  # as in the authors' code
        optimizer.step()
    trained = learner.evaluate(fresh).losses.mean(dim=0)
    assert trained[0] < 0.85 * untrained[0]
    assert trained[5] < 0.75 * untrained[5]
    learner.rule = untrained_rule
    assert trained[5] < 0.95 * learner.evaluate(fresh).losses.mean(dim=0)[5]
