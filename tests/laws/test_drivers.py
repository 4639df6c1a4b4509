"""The three drivers compute the same: eager, unroll and higher."""

import copy
import io
import pickle

import higher
import pytest
import torch
from torch.testing import assert_close

from learned_optim import Guard, LSTMOptimizer, LSTMRule, MetaSGD, RuleOptimizer, SGDRule, inner_loop, unroll
from tests.specs import OPTIMIZERS, RULES, seeded_rule, small_problem

rules = pytest.mark.parametrize("name", RULES)
optimizers = pytest.mark.parametrize("name", OPTIMIZERS)

GUARD = Guard(adam_lr=0.02, first=1.5, most=3.0, rate=0.5)  # tight enough to bound and to hand over within four steps
SETTINGS = {
    "plain": ({}, {}),
    "lr": ({"lr": 0.7}, {}),
    "weight_decay": ({"lr": 0.5, "weight_decay": 0.1}, {}),
    "maximize": ({"maximize": True}, {}),
    "guard": ({"guard": GUARD}, {}),
    "guard, large lr": ({"guard": GUARD, "lr": 30.0}, {"lr": 20.0}),
    "two groups": ({"lr": 0.5}, {"lr": 1.5, "weight_decay": 0.2}),
}


def groups(model, second):
    """All parameters in one group, or the last layer in a group of its own with other options."""
    if not second:
        return list(model.named_parameters())
    first, last = model[0], model[2]
    return [
        {"params": [(f"0.{k}", p) for k, p in first.named_parameters()]},
        {"params": [(f"2.{k}", p) for k, p in last.named_parameters()], **second},
    ]


def run_unroll(rule, problem, options, second, steps, first_order=False):
    params = {key: p.clone().requires_grad_() for key, p in problem.params.items()}
    options = dict(options)
    for option, default in (("lr", 1.0), ("weight_decay", 0.0)):
        value = options.get(option, default)
        options[option] = {k: second.get(option, value) if k.startswith("2.") else value for k in params}
    result = unroll(
        rule, problem.loss, params, rule.init_state(params), steps=steps, first_order=first_order, **options
    )
    meta = torch.autograd.grad(problem.loss(result.params), [*params.values(), *rule.parameters()])
    return {key: p.detach() for key, p in result.params.items()}, meta


def run_higher(rule, problem, options, second, steps, first_order=False):
    model = copy.deepcopy(problem.model)
    optimizer = RuleOptimizer(groups(model, second), rule, **options)
    with inner_loop(model, optimizer, first_order=first_order) as (fast_model, fast_optimizer):
        for _ in range(steps):
            fast_optimizer.step((fast_model(problem.x) - problem.y).square().mean())
        loss = (fast_model(problem.x) - problem.y).square().mean()
        meta = torch.autograd.grad(loss, [*model.parameters(), *rule.parameters()])
        names = [key for key, _ in model.named_parameters()]
        return dict(zip(names, (p.detach() for p in fast_model.parameters()), strict=True)), meta


def run_eager(rule, problem, options, second, steps):
    model = copy.deepcopy(problem.model)
    optimizer = RuleOptimizer(groups(model, second), rule, **options)
    for _ in range(steps):
        optimizer.zero_grad()
        (model(problem.x) - problem.y).square().mean().backward()
        optimizer.step()
    return {key: p.detach() for key, p in model.named_parameters()}


@rules
@pytest.mark.parametrize("setting", SETTINGS)
def test_drivers_agree(name, setting):
    problem = small_problem()
    rule = seeded_rule(name, problem.params)
    params, meta = run_unroll(rule, problem, *SETTINGS[setting], steps=4)
    assert_close(run_eager(rule, problem, *SETTINGS[setting], steps=4), params, rtol=0, atol=1e-9)
    theirs, their_meta = run_higher(rule, problem, *SETTINGS[setting], steps=4)
    assert_close(theirs, params, rtol=0, atol=1e-9)
    assert_close(their_meta, meta, rtol=0, atol=1e-9)


@rules
def test_first_order_agrees_and_keeps_the_gradient_of_phi(name):
    problem = small_problem()
    rule = seeded_rule(name, problem.params)
    _, meta = run_unroll(rule, problem, {}, {}, steps=3, first_order=True)
    _, their_meta = run_higher(rule, problem, {}, {}, steps=3, first_order=True)
    assert_close(their_meta, meta, rtol=0, atol=1e-9)
    assert all(grad.abs().sum() > 0 for grad in meta[len(problem.params) :])


@rules
def test_first_order_meta_gradient_is_the_gradient_at_the_end(name):
    """d L(theta_K) / d theta_0 with constant updates; AdamW's decay and the meta-learner LSTM's gates read theta."""
    problem = small_problem()
    rule = seeded_rule(name, problem.params)
    params, meta = run_unroll(rule, problem, {}, {}, steps=3, first_order=True)
    kept = (1 - 0.05 * 0.1) ** 3 if name == "adamw" else 1.0
    at_end = torch.func.grad(problem.loss)(params)
    if name == "meta_learner_lstm":
        at_end = through_constant_gradients(rule, problem, at_end, steps=3)
    assert_close(meta[: len(params)], tuple(kept * grad for grad in at_end.values()))


def through_constant_gradients(rule, problem, at_end, steps):
    """A gradient at theta_K carried back to theta_0 through the rule alone, fed with the gradients of the real run."""
    recorded = []

    def recording(grads, state, params):
        recorded.append({key: grad.detach() for key, grad in grads.items()})
        return rule(grads, state, params)

    unroll(recording, problem.loss, problem.params, rule.init_state(problem.params), steps=steps)

    def end(params):
        state = rule.init_state(params)
        for grads in recorded:
            updates, state = rule(grads, state, params)
            params = {key: theta + updates[key] for key, theta in params.items()}
        return params

    (at_start,) = torch.func.vjp(end, problem.params)[1](at_end)
    return at_start


def test_higher_with_plain_context_override_and_subclass():
    problem = small_problem()

    class MyOptimizer(LSTMOptimizer):
        pass

    for make in (
        lambda p: LSTMOptimizer(p, rule=seeded_rule("lstm", {})),
        lambda p: MyOptimizer(p, rule=seeded_rule("lstm-moments", {})),
        lambda p: MetaSGD(p, alpha=0.1),
    ):
        model = copy.deepcopy(problem.model)
        optimizer = make(model.parameters())
        lr = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
        with higher.innerloop_ctx(model, optimizer, copy_initial_weights=False, override={"lr": [lr]}) as (
            fast,
            diffopt,
        ):
            for _ in range(2):
                diffopt.step((fast(problem.x) - problem.y).square().mean())
            loss = (fast(problem.x) - problem.y).square().mean()
            grads = torch.autograd.grad(loss, [lr, *model.parameters(), *optimizer.rule.parameters()])
        assert all(bool(torch.isfinite(grad).all()) for grad in grads)
        assert all(grad.abs().sum() > 0 for grad in grads)


def test_higher_goes_on_from_the_optimizers_state():
    problem = small_problem()
    rule = seeded_rule("lstm-both-shortcut", problem.params)
    model = copy.deepcopy(problem.model)
    optimizer = RuleOptimizer(model.named_parameters(), rule)
    for _ in range(2):
        optimizer.zero_grad()
        (model(problem.x) - problem.y).square().mean().backward()
        optimizer.step()
    with inner_loop(model, optimizer) as (fast, diffopt):
        for _ in range(2):
            diffopt.step((fast(problem.x) - problem.y).square().mean())
        ended = [p.detach() for p in fast.parameters()]
    assert_close(ended, list(run_eager(rule, problem, {}, {}, steps=4).values()), rtol=0, atol=1e-9)


def test_inner_loop_truncation_is_a_detached_second_window():
    problem = small_problem()
    rule = seeded_rule("lstm-moments", problem.params)
    model = copy.deepcopy(problem.model)
    optimizer = RuleOptimizer(model.named_parameters(), rule)
    with inner_loop(model, optimizer, truncate_every=2) as (fast, diffopt):
        for _ in range(3):
            diffopt.step((fast(problem.x) - problem.y).square().mean())
        loss = (fast(problem.x) - problem.y).square().mean()
        ours = torch.autograd.grad(loss, list(rule.parameters()), retain_graph=True)
        cut = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    assert all(grad is None for grad in cut)
    first = unroll(rule, problem.loss, problem.params, rule.init_state(problem.params), steps=2)
    from learned_optim import detached

    params, state = detached(first.params, first.state)
    second = unroll(rule, problem.loss, params, state, steps=1)
    assert_close(ours, torch.autograd.grad(problem.loss(second.params), list(rule.parameters())), rtol=0, atol=1e-9)


@rules
def test_unroll_works_without_grad_and_in_inference_mode(name):
    problem = small_problem()
    rule = seeded_rule(name, problem.params)
    expected = unroll(rule, problem.loss, problem.params, rule.init_state(problem.params), steps=3).losses.detach()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            params = problem.params
            assert_close(unroll(rule, problem.loss, params, rule.init_state(params), steps=3).losses, expected)


def test_no_derivative_is_taken_in_inference_mode():
    """There older torch takes it for zero, without a word. Nor is a graph made of what comes from there."""
    rule, seen = SGDRule(0.1), []

    def loss(params, batch):
        seen.append(torch.is_inference_mode_enabled() or batch.is_inference() or params["p"].is_inference())
        return ((params["p"] - batch) ** 2).sum()

    with torch.inference_mode():
        params, batches = {"p": torch.ones(3)}, torch.zeros(2, 4, 3)
        for lift in (lambda function: function, torch.vmap):
            given = batches if lift is torch.vmap else batches[0]
            lift(lambda own: unroll(rule, loss, params, rule.init_state(params), steps=4, batches=own).losses)(given)
    assert seen
    assert not any(seen)


# The eager driver alone


def train(optimizer, model, problem, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        (model(problem.x) - problem.y).square().mean().backward()
        optimizer.step()


@optimizers
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_save_and_load_in_the_middle_is_no_interruption(name, dtype):
    """Bit for bit, also with bfloat16 weights beside a state of higher precision."""
    problem = small_problem(dtype=dtype)
    model = copy.deepcopy(problem.model)
    optimizer = OPTIMIZERS[name](model.parameters())
    train(optimizer, model, problem, 3)
    buffer = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, buffer)
    train(optimizer, model, problem, 3)

    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    other = copy.deepcopy(problem.model)
    other.load_state_dict(saved["model"])
    resumed = OPTIMIZERS[name](other.parameters())
    for weight in resumed.rule.parameters():
        weight.data.zero_()  # the state brings the rule's weights along
    untouched = copy.deepcopy(saved["optimizer"])
    resumed.load_state_dict(saved["optimizer"])
    assert_close(saved["optimizer"]["state"], untouched["state"], rtol=0, atol=0)
    assert [set(group) for group in saved["optimizer"]["param_groups"]] == [
        set(group) for group in untouched["param_groups"]
    ]
    assert set(resumed.param_groups[0]) == set(optimizer.param_groups[0])
    train(resumed, other, problem, 3)
    assert_close(list(other.parameters()), list(model.parameters()), rtol=0, atol=0)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert_close(resumed.state[q], optimizer.state[p], rtol=0, atol=0)


@optimizers
def test_copies_and_pickles_go_on_alike(name):
    problem = small_problem()
    model = copy.deepcopy(problem.model)
    optimizer = OPTIMIZERS[name](model.parameters())
    train(optimizer, model, problem, 2)
    copies = [copy.deepcopy((model, optimizer)), pickle.loads(pickle.dumps((model, optimizer)))]
    train(optimizer, model, problem, 2)
    for other, other_optimizer in copies:
        train(other_optimizer, other, problem, 2)
        assert_close(list(other.parameters()), list(model.parameters()), rtol=0, atol=0)


@optimizers
def test_lr_zero_changes_no_parameter(name):
    problem = small_problem()
    model = copy.deepcopy(problem.model)
    train(OPTIMIZERS[name](model.parameters(), lr=0.0, weight_decay=0.3), model, problem, 3)
    assert_close(list(model.parameters()), list(problem.model.parameters()), rtol=0, atol=0)


@optimizers
def test_the_torch_contract(name):
    """Closure, scheduler, frozen and unused parameters, names, tensor lr, hooks."""
    problem = small_problem()
    model = copy.deepcopy(problem.model)
    model[0].bias.requires_grad_(False)
    unused = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
    seen = []
    optimizer = OPTIMIZERS[name]([*model.parameters(), unused], lr=torch.tensor(1.0))
    optimizer.register_step_post_hook(lambda *args: seen.append(args))
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=4)
    before = copy.deepcopy(list(model.parameters()))

    def closure():
        optimizer.zero_grad()
        loss = (model(problem.x) - problem.y).square().mean()
        loss.backward()
        return loss

    losses = []
    for _ in range(4):
        losses.append(float(optimizer.step(closure).detach()))
        scheduler.step()
    assert len(seen) == 4
    assert float(optimizer.param_groups[0]["lr"]) == pytest.approx(0.0, abs=1e-7)
    assert losses[-1] != losses[0]
    assert torch.equal(model[0].bias, before[1])
    assert torch.equal(unused, torch.ones(2))
    assert unused not in optimizer.state
    assert OPTIMIZERS[name](model.named_parameters()).state_dict()["param_groups"][0]["param_names"][0] == "0.weight"


def test_step_counter_is_torchs():
    problem = small_problem()
    model = copy.deepcopy(problem.model)
    optimizer = LSTMOptimizer(model.parameters(), rule=seeded_rule("lstm-moments", {}))
    train(optimizer, model, problem, 3)
    step = optimizer.state[model[0].weight]["step"]
    assert step.shape == ()
    assert step.dtype == torch.float32
    assert step == 3


def test_the_rule_is_held_and_not_copied():
    rule = LSTMRule()
    model = torch.nn.Linear(2, 1)
    assert LSTMOptimizer(model.parameters(), rule=rule).rule is rule


def test_meta_sgd_matches_rates_by_name_or_position():
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    rule = MetaSGD(model.named_parameters(), alpha=(0.1, 0.2)).rule
    named = MetaSGD(reversed(list(model.named_parameters())), rule=rule)
    positional = MetaSGD(model.parameters(), rule=rule)
    model(torch.ones(1, 3)).sum().backward()
    for optimizer in (named, positional):
        before = copy.deepcopy(list(model.parameters()))
        optimizer.step()
        for p, q, rate in zip(model.parameters(), before, rule.alpha.values(), strict=True):
            assert_close(p, q - rate * p.grad)


@optimizers
def test_equal_names_in_two_groups_are_two_parameters(name):
    first, second = (torch.nn.Linear(4, 4, dtype=torch.float64) for _ in range(2))
    named = OPTIMIZERS[name]([{"params": first.named_parameters()}, {"params": second.named_parameters()}])
    other_first, other_second = copy.deepcopy((first, second))
    plain = OPTIMIZERS[name]([{"params": other_first.parameters()}, {"params": other_second.parameters()}])
    x = torch.randn(8, 4, dtype=torch.float64)
    for optimizer, net in ((named, (first, second)), (plain, (other_first, other_second))):
        net[1](net[0](x)).square().mean().backward()
        optimizer.step()
    for p, q in zip(
        (*first.parameters(), *second.parameters()),
        (*other_first.parameters(), *other_second.parameters()),
        strict=True,
    ):
        assert_close(p, q)


def test_inner_loop_truncation_keeps_frozen_parameters_frozen():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
    model[0].weight.requires_grad_(False)
    with inner_loop(model, MetaSGD(model.parameters(), alpha=0.1), truncate_every=1) as (fast, diffopt):
        for _ in range(3):
            diffopt.step(fast(torch.ones(3, 2)).square().mean())
        assert torch.equal(next(fast.parameters()), model[0].weight)


def test_meta_sgd_starts_rates_for_a_new_group():
    first, second = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
    optimizer = MetaSGD(first.parameters(), alpha=0.3)
    optimizer.add_param_group({"params": list(second.parameters())})
    assert [float(rate.detach().mean()) for rate in optimizer.rule.rates] == pytest.approx([0.3] * 4)
