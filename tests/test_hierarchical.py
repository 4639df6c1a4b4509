"""The hierarchical RNN optimizer: the paper's formulas one number at a time, who takes part in means, and its start."""

import copy
import logging
import math
import re
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.testing import assert_close

from learned_optim import (
    HierarchicalRNNOptimizer,
    HierarchicalRNNRule,
    LSTMRule,
    RuleOptimizer,
    RuleState,
    apply_updates,
    load_checkpoint,
    read_guard,
    save_checkpoint,
    unroll,
)
from learned_optim.cells import gru_cell
from learned_optim.instances import Instances
from learned_optim.invariance import ruled_out
from learned_optim.problems import Quadratics
from learned_optim.rules.hierarchical import PARTS
from learned_optim.seeds import scattered
from lightning_modules import LearnedOptimizerModule
from tests.slow_hierarchical import Slow
from tests.specs import seeded_rule, small_problem

logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
DOCUMENT = Path(__file__).parent.parent / "docs" / "hierarchical.md"


def small_rule(**options):
    torch.manual_seed(0)
    rule = HierarchicalRNNRule(**{"sizes": (3, 4, 2), "rates": (1e-3, 1e-1), **options}).double()
    with torch.no_grad():
        for weight in rule.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    return rule


# The slow reference

CASES = {
    "whole": {},
    "two levels": {"sizes": (3, 4)},
    "one level": {"sizes": (3,)},
    "two time scales": {"time_scales": 2},
    "one time scale": {"time_scales": 1},
    "attention": {"attention": True},
    "horizon": {"horizon": 30},
    "invariant steps": {"invariant_steps": (1e-3, 60)},
    "attention, horizon and invariant steps": {"attention": True, "horizon": 30, "invariant_steps": (1e-3, 60)},
    "invariant horizon": {"horizon": 70, "invariant_steps": (1e-3, 60), "invariant_horizon": 20},
    "bare attention": {"attention": True, "without": ("dynamic_rates",)},
    "moves unseen": {"move_unseen": True},
    **{f"without {part}": {"without": (part,)} for part in PARTS},
    "without any": {"without": tuple(PARTS), "sizes": (3,), "time_scales": 1},
}


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_equal_to_the_slow_reference_over_100_steps(case):
    """Gradients of all scales, zero at first, in between or throughout; one tensor, a matrix, is absent for a while."""
    rule = small_rule(**CASES[case])
    torch.manual_seed(1)
    scales = torch.tensor([1e-6, 1e-3, 1.0, 1e2, 0.0], dtype=torch.float64)
    p, q, dead = torch.randn(100, 5).double() * scales, torch.randn(100, 2, 3).double(), torch.zeros(100, 2).double()
    p[:7, 3] = p[40:50, 1:3] = 0
    q[:3] = 0
    q[:50, 0, 2] = 0
    q[:50, 1, 1] = -q[:50, 0, 0] / 3  # orthogonal to q until 80
    q[50:80, 0, 2] = -(q[50:80, 0, 0] + 3 * q[50:80, 1, 1])
    params = {
        "p": torch.zeros(5).double(),
        "q": torch.tensor([[1.0, 0, 1], [0, 3, 0]]).double(),
        "dead": torch.zeros(2).double(),
    }
    state = rule.init_state(params)
    slow = Slow(rule, state)
    for t in range(100):
        grads = {"p": p[t], "q": q[t], "dead": dead[t]}
        if 20 <= t < 30:
            del grads["q"]
        updates, state = rule(grads, state, params)
        expected = slow.step(grads, params)
        theirs = {
            name: torch.tensor(values, dtype=torch.float64).reshape(grads[name].shape)
            for name, values in expected.items()
        }
        assert_close(updates, theirs, rtol=1e-9, atol=1e-12)
    assert bool((updates["p"][:4] != 0).all())
    assert bool(updates["dead"].any()) == rule.move_unseen
    if len(rule.sizes) > 2:
        assert_close(state.shared["network"], torch.tensor(slow.N, dtype=torch.float64), rtol=1e-9, atol=1e-12)


def test_the_cell_equals_torchs_where_resetting_before_the_weights_is_resetting_after():
    """With candidate weights of h on the diagonal and no bias there."""
    torch.manual_seed(0)
    theirs = nn.GRUCell(3, 4, dtype=torch.float64)
    with torch.no_grad():
        theirs.weight_hh[8:] = torch.diag(torch.randn(4))
        theirs.bias_hh[8:] = 0
    x, h = torch.randn(7, 3, dtype=torch.float64), torch.randn(7, 4, dtype=torch.float64)
    weight = torch.cat((theirs.weight_ih, theirs.weight_hh), dim=1)
    assert_close(gru_cell(x, h, weight, theirs.bias_ih + theirs.bias_hh), theirs(x, h))


# Means


def run(rule, grads, state, params, steps=5):
    for t in range(steps):
        updates, state = rule({name: (t + 1.0) * grad for name, grad in grads.items()}, state, params)
    return updates, state


@torch.no_grad()
@pytest.mark.parametrize("others", ["absent", "zero"])
def test_what_has_no_gradient_takes_no_part(others):
    """Neither a tensor without one, nor one of zeros, nor further coordinates of zeros."""
    rule = small_rule()
    params = {"p": torch.zeros(3).double(), "q": torch.zeros(2).double(), "idle": torch.zeros(4).double()}
    grads = {name: torch.randn(value.shape).double() for name, value in params.items()}
    alone = {name: params[name] for name in ("p", "q")}
    state = rule.init_state(params)
    expected = run(rule, {name: grads[name] for name in alone}, rule.init_state(alone), alone)
    if others == "absent":
        del grads["idle"]
    else:
        grads["idle"].zero_()
    updates, new = run(rule, grads, state, params)
    for name in alone:
        assert_close(updates[name], expected[0][name], rtol=0, atol=0)
    assert_close(new.shared, expected[1].shared, rtol=0, atol=0)
    assert_close(new.per_param["idle"], state.per_param["idle"], rtol=0, atol=0)

    wide = {name: torch.cat((value, torch.zeros(3).double())) for name, value in alone.items()}
    start = rule.init_state(wide)
    for name in alone:
        start.per_param[name]["log_rate"][: len(alone[name])] = state.per_param[name]["log_rate"]
    padded = {name: torch.cat((grads[name], torch.zeros(3).double())) for name in alone}
    for name, update in run(rule, padded, start, wide)[0].items():
        assert_close(update[: len(alone[name])], expected[0][name])
        assert not update[len(alone[name]) :].any()


@torch.no_grad()
def test_the_network_sees_all_tensors_alike():
    """Whatever their order: not the last one alone."""
    rule = small_rule()
    params = {name: torch.zeros(3).double() for name in "abc"}
    grads = {name: torch.randn(3).double() for name in params}
    state = rule.init_state(params)
    updates, new = run(rule, grads, state, params)
    turned, turned_new = run(rule, {name: grads[name] for name in "cba"}, state, params)
    assert_close(turned_new.shared, new.shared)
    for name in params:
        assert_close(turned[name], updates[name])
        other = run(rule, grads | {name: 2 - grads[name]}, state, params)[1]
        assert not torch.allclose(other.shared["network"], new.shared["network"])


@torch.no_grad()
def test_the_direction_is_normalised_over_its_tensor():
    rule = small_rule(rates=(1e-2, 1e-2))
    rule.rate.weight.zero_()
    rule.rate.bias.zero_()
    params = {"p": torch.zeros(50).double(), "q": torch.zeros(4, 5).double()}
    updates, _ = run(
        rule, {name: torch.randn(p.shape).double() for name, p in params.items()}, rule.init_state(params), params
    )
    for update in updates.values():
        assert_close(update.square().mean().sqrt(), 1e-2 * rule.rate_offset.exp())


def normalised_network(norm):
    """Ten weights and a bias behind them, on data of its own; the loss does not see the scale of normalised weights."""
    torch.manual_seed(0)
    params = {"weight": torch.randn(5, 2).double(), "bias": torch.zeros(2).double()}
    x, y = torch.randn(20, 5).double(), torch.randn(20, 2).double()

    def loss(params):
        z = x @ params["weight"]
        z = (z - z.mean(dim=0)) / z.std(dim=0) if norm else z
        return (z + params["bias"] - y).square().mean()

    return loss, params


@pytest.mark.parametrize("norm", [True, False])
def test_steps_of_weights_before_a_normalisation_are_relative_to_them(norm):
    """And no others: without a normalisation nothing changes at all."""
    loss, start = normalised_network(norm)
    rates = (0.1, 0.2)
    relative, free = small_rule(rates=rates, invariant_steps=(1e-3, 15)), small_rule(rates=rates)
    found = [unroll(rule, loss, start, rule.init_state(start), steps=20).params for rule in (relative, free)]
    if not norm:
        assert_close(found[0], found[1], rtol=0, atol=0)
        return
    params, state = start, relative.init_state(start)
    for t in range(1, 21):
        after, state = unroll(relative, loss, params, state, steps=1)[:2]
        moved = {name: (after[name] - params[name]).square().mean().sqrt() for name in params}
        asked = 1e-3 * min(1, 15 / t) * params["weight"].square().mean().sqrt()
        if t < 5:  # nothing to tell by as yet
            assert moved["weight"] > 2 * asked
            told = after["weight"].norm()
        else:
            assert_close(moved["weight"], asked, rtol=1e-6, atol=0)
        assert moved["bias"] > 1e-3
        params = after
    assert found[1]["weight"].norm() > 1.2 * told  # what would come of it
    assert params["weight"].norm() < 1.03 * told


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("norm", [True, False])
def test_what_a_look_at_numbers_tells_changes_nothing(norm, zeros):
    loss, params = normalised_network(norm)
    rule = small_rule(invariant_steps=(1e-3, 15), invariant_horizon=5)
    looking = recorded = rule.init_state(params)
    for _ in range(9):
        grads = torch.func.grad(loss)(params)
        if zeros:
            grads["bias"] = torch.zeros_like(grads["bias"])
        with torch.no_grad():
            updates, looking = rule(grads, looking, params)
        others, recorded = rule(grads, recorded, params)  # while gradients are recorded there is no look
        assert_close(updates, others, rtol=0, atol=0)
        assert_close(tuple(looking), tuple(recorded), rtol=0, atol=0)
        params = apply_updates(params, updates)
    with torch.no_grad():
        assert ruled_out(own["alignment"] for own in looking.per_param.values()) == (not norm and not zeros)


@torch.no_grad()
def test_the_scale_of_gradients_does_not_matter():
    rule = small_rule()
    params = {"p": torch.zeros(20).double()}
    grad = torch.randn(20).double()
    updates = [run(rule, {"p": scale * grad}, rule.init_state(params), params)[0]["p"] for scale in (1.0, 1e3)]
    assert_close(updates[1], updates[0], rtol=1e-6, atol=0)  # up to the 1e-8 beside root mean squares


# Learning rates


def test_first_rates_are_drawn_within_their_range_and_differ_by_tensor():
    rule = HierarchicalRNNRule()
    params = {str(i): torch.zeros(400, 5) for i in range(50)}
    logs = torch.stack([own["log_rate"] for own in rule.init_state(params).per_param.values()]).flatten(1)
    low, high = math.log(1e-6), math.log(1e-2)
    assert low <= logs.min() < logs.max() <= high
    middle, deviation = (low + high) / 2, (high - low) / 2 / math.sqrt(12)  # of each half
    assert_close(logs.std(dim=1), torch.full((50,), deviation), rtol=0.05, atol=0)
    assert_close(logs.mean(dim=1).std(), torch.tensor(deviation), rtol=0.2, atol=0)
    assert abs(float(logs.mean()) - middle) < 3 * deviation / math.sqrt(50)
    assert logs.unique().numel() > 0.97 * logs.numel()  # of 2^24 numbers, some of them twice by chance


def test_first_rates_are_those_of_the_generator_or_always_the_same():
    rule = HierarchicalRNNRule()
    params = {"p": torch.zeros(3, 4), "q": torch.zeros(5)}

    def drawn(seed=None):
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        state = rule.init_state(params, generator=generator)
        return torch.cat([own["log_rate"].flatten() for own in state.per_param.values()])

    random = torch.get_rng_state()
    assert torch.equal(drawn(), drawn())
    assert torch.equal(drawn(3), drawn(3))
    assert not bool((drawn(3) == drawn(4)).any())
    assert not bool((drawn(3) == drawn()).any())
    assert torch.equal(random, torch.get_rng_state())
    batched = torch.vmap(rule.init_state)({name: p.expand(2, *p.shape) for name, p in params.items()})
    assert_close(batched.per_param["p"]["log_rate"][1].flatten(), drawn()[:12], rtol=0, atol=0)


def test_scattered_numbers_look_random_and_parts_get_what_they_get_in_the_whole():
    numbers = torch.arange(2**16)
    streams = torch.stack([scattered(numbers, *stream) for stream in ((0,), (1,), (0, 0), (0, 1), (1, 0))])
    assert_close(scattered(numbers[1234:4321].reshape(-1, 9), 1), streams[1, 1234:4321].reshape(-1, 9), rtol=0, atol=0)
    counts = torch.stack([torch.histc(stream, 64, 0, 1) for stream in streams])
    chi_square = ((counts - 1024).square() / 1024).sum(dim=1)
    assert bool((chi_square < 63 + 5 * math.sqrt(2 * 63)).all())
    correlations = torch.corrcoef(torch.cat((streams, streams.roll(1, dims=1), streams.roll(28, dims=1))))
    apart = correlations - torch.eye(len(correlations))
    assert float(apart.abs().max()) < 5 / 2**8


def test_problems_of_meta_training_have_rates_of_their_own():
    rule = HierarchicalRNNRule(sizes=(2, 2, 2))
    first, again = (Instances(Quadratics(3), (0, "train", 1), range(4)).start(rule)[1] for _ in range(2))
    other = Instances(Quadratics(3), (0, "train", 1), [3]).start(rule)[1]
    (own,) = first.per_param.values()
    assert len({tuple(row.flatten().tolist()) for row in own["log_rate"]}) == 4
    assert_close(tuple(first), tuple(again), rtol=0, atol=0)
    assert_close(next(iter(other.per_param.values()))["log_rate"][0], own["log_rate"][3], rtol=0, atol=0)


def test_log_rates_end_and_keep_their_slope_there():
    rule = small_rule(sizes=(3,))
    params = {"p": torch.zeros(2).double()}
    state = rule.init_state(params)
    state.per_param["p"]["log_rate"] = torch.tensor([40.0, -40.0]).double()
    updates, new = rule({"p": torch.ones(2).double()}, state, params)
    ends = torch.tensor([33.0, -33.0]).double()
    memory = torch.sigmoid(rule.rate_memory)
    assert_close(new.per_param["p"]["log_rate"], memory * ends * 40 / 33 + (1 - memory) * ends)
    sizes = updates["p"].abs().log()
    assert float((sizes[0] - sizes[1]).detach()) == pytest.approx(66, abs=8)
    (slope,) = torch.autograd.grad(new.per_param["p"]["log_rate"].sum(), rule.rate.bias)
    assert_close(slope, 2 * (1 - memory).reshape(1).detach())


# Start, attention, precision


@torch.no_grad()
def test_the_untrained_rule_descends():
    for seed in range(5):
        torch.manual_seed(seed)
        rule = HierarchicalRNNRule(rates=(0.01, 0.1)).double()
        params = {"p": torch.randn(30).double()}
        result = unroll(rule, lambda p: p["p"].square().sum(), params, rule.init_state(params), steps=50)
        assert result.losses[-1] < 0.5 * result.losses[0]


@torch.no_grad()
def test_first_weights_are_those_of_the_code():
    torch.manual_seed(0)
    rule = HierarchicalRNNRule(attention=True)
    assert [tuple(weight.shape) for weight in rule.weights] == [(30, 22), (60, 42), (60, 40)]
    for weight in (*rule.weights, *rule.maps.values()):
        assert float(weight.std()) == pytest.approx(0.5 * weight.shape[1] ** -0.5, rel=0.1)
    assert [float(bias[0]) for bias in rule.biases] == pytest.approx([2.2] * 3)
    assert all(float(first.abs().max()) <= 1 for first in rule.firsts)
    assert rule.decays.bias.tolist() == pytest.approx([2.2, 3.2])
    assert torch.equal(rule.directions[0], rule.directions[1])
    assert not torch.equal(rule.shortcuts[0], rule.shortcuts[1])
    assert float(rule.shortcuts.mean()) == pytest.approx(0.25, abs=0.1)
    assert not rule.rate.weight.any()
    assert (float(rule.rate_memory), float(rule.rate_offset)) == pytest.approx((3.2, -1.0))
    assert sum(weight.numel() for weight in HierarchicalRNNRule().parameters()) == 8229


@torch.no_grad()
@pytest.mark.parametrize("lr", [1.0, 0.5])
def test_attention_settles_on_the_sum_of_the_steps(lr):
    """theta moves by its own steps, whatever the point ahead of it; here on the same gradients as without attention."""
    ahead, plain = small_rule(attention=True), small_rule()
    own = {
        name: weight[:1] if name in ("directions", "shortcuts") else weight for name, weight in ahead.named_parameters()
    }
    plain.load_state_dict(own)
    starts = {"p": torch.zeros(4).double(), "q": torch.zeros(2, 2).double()}
    gradients = [{name: torch.randn(p.shape).double() for name, p in starts.items()} for _ in range(6)]
    ends = []
    for rule in (ahead, plain):
        params, state = starts, rule.init_state(starts)
        for grads in gradients:
            updates, state = rule(grads, state, params)
            params = {name: p + lr * updates[name] for name, p in params.items()}
        ends.append((params, rule.settled(params, state, lr=lr)))
    assert_close(ends[0][1], ends[1][0])
    assert ends[1][1] is ends[1][0]
    assert not torch.allclose(ends[0][0]["p"], ends[1][0]["p"])


def test_parameters_of_other_precision():
    p = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    torch.manual_seed(0)
    optimizer = HierarchicalRNNOptimizer([p], rule=HierarchicalRNNRule(rates=(0.1, 0.1)))
    p.grad = torch.full_like(p, 30.0)
    optimizer.step()
    assert p.dtype == torch.bfloat16
    assert bool((p < 1).all())
    assert {v.dtype for key, v in optimizer.state[p].items() if key != "skipped"} == {torch.float32}


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12])
def test_float32_gradients_of_any_size_have_finite_meta_gradients(scale):
    torch.manual_seed(0)
    rule = HierarchicalRNNRule(attention=True)
    start = {"p": torch.tensor([1.0, -2.0, 0.0])}
    result = unroll(rule, lambda p: scale * p["p"].square().sum(), start, rule.init_state(start), steps=5)
    grads = torch.autograd.grad(result.params["p"].sum(), list(rule.parameters()))
    assert all(bool(torch.isfinite(grad).all()) for grad in grads)
    assert result.params["p"][2] == 0


def test_each_part_is_a_part():
    """Leaving it out changes the updates; all that is left has an influence."""
    problem = small_problem()
    whole = small_rule(time_scales=3)
    for part in PARTS:
        rule = small_rule(time_scales=3, without=(part,))
        own = rule.state_dict()
        fitting = {name: value for name, value in whole.state_dict().items() if name in own}
        rule.load_state_dict(
            {name: own[name] if own[name].shape != value.shape else value for name, value in fitting.items()}
        )
        ends = [
            unroll(each, problem.loss, problem.params, each.init_state(problem.params), steps=4)
            for each in (whole, rule)
        ]
        assert not torch.allclose(ends[0].losses, ends[1].losses, rtol=1e-8), part
        for name, weight in rule.named_parameters():
            (slope,) = torch.autograd.grad(ends[1].losses[-1], weight, retain_graph=True)
            assert bool(slope.any()), f"{name} without {part}"


# As an optimizer


def test_the_optimizer_takes_a_file_and_its_rule_alone(tmp_path):
    rule = small_rule(without=("products",), attention=True)
    save_checkpoint(tmp_path / "h", rule)
    models = [copy.deepcopy(small_problem().model) for _ in range(2)]
    ours = HierarchicalRNNOptimizer(models[0].parameters(), tmp_path / "h")
    theirs = RuleOptimizer(models[1].parameters(), rule)
    assert ours.guard is None
    assert ours.rule.config() == rule.config()
    for model, optimizer in zip(models, (ours, theirs), strict=True):
        for _ in range(3):
            optimizer.zero_grad()
            (model(small_problem().x) - small_problem().y).square().mean().backward()
            optimizer.step()
    assert_close(list(models[0].parameters()), list(models[1].parameters()), rtol=0, atol=0)

    with pytest.raises(ValueError, match="needs a HierarchicalRNNRule, got LSTMRule; use RuleOptimizer"):
        HierarchicalRNNOptimizer(models[0].parameters(), rule=LSTMRule())


def test_by_default_it_is_the_bundled_one():
    ours = HierarchicalRNNOptimizer([torch.nn.Parameter(torch.ones(2))])
    assert_close(dict(ours.rule.state_dict()), dict(load_checkpoint("hierarchical").state_dict()), rtol=0, atol=0)
    assert ours.guard == read_guard("hierarchical")


def test_first_states_enter_where_a_cell_begins_and_never_again():
    rule = seeded_rule("hierarchical", {})
    params = {"p": torch.zeros(3).double()}
    _, state = run(rule, {"p": torch.ones(3).double()}, rule.init_state(params), params, steps=2)
    before, _ = rule({"p": torch.ones(3).double()}, state, params)
    with torch.no_grad():
        for first in rule.firsts:
            first.add_(1.0)
    after, _ = rule({"p": torch.ones(3).double()}, state, params)
    assert_close(after, before, rtol=0, atol=0)
    fresh = RuleState({"p": rule.init_state(params).per_param["p"]}, state.shared)
    assert not torch.equal(rule({"p": torch.ones(3).double()}, fresh, params)[0]["p"], before["p"])


def test_a_few_dozen_updates_teach_it_to_descend_faster():
    torch.manual_seed(0)
    rule = HierarchicalRNNRule((4, 4, 4), 2)
    module = LearnedOptimizerModule(
        Quadratics(5), rule, horizon=20, window=10, instances=8, objective="log", outer_lr=0.01, val_instances=32
    )

    def held_out():
        with torch.no_grad():
            return float(module._held_out("val", 0).mean())

    before = held_out()
    run = pl.Trainer(
        max_steps=60,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        gradient_clip_val=1.0,
        limit_val_batches=0,
    )
    run.fit(module)
    assert module._skipped == 0
    assert held_out() < 0.85 * before


# The document


def test_the_document_names_every_part():
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", DOCUMENT.read_text(), flags=re.MULTILINE)
    assert dict(rows) == PARTS


BYTES = {
    "`HierarchicalRNNRule`": HierarchicalRNNRule,
    "`HierarchicalRNNRule`, attention": lambda: HierarchicalRNNRule(attention=True),
    "`HierarchicalRNNRule`, invariant steps, as bundled": lambda: load_checkpoint("hierarchical"),
}


@pytest.mark.parametrize("row", BYTES)
def test_the_state_takes_what_the_documentation_says(row):
    params = {"p": torch.zeros(1000)}
    own = BYTES[row]().init_state(params).per_param["p"]
    number = sum(value.nbytes for value in own.values() if value.shape[:1] == (1000,)) // 1000
    assert f"| {row} | {number} |" in DOCUMENT.with_name("optimizers.md").read_text()
