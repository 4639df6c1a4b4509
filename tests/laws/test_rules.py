"""What every rule promises."""

import math

import pytest
import torch
from torch.testing import assert_close

from learned_optim import LSTMRule, RuleState, apply_updates, bind, unroll
from learned_optim.cells import lstm_cell
from learned_optim.features import FEATURES
from learned_optim.joined import JoinedUpdate, joinable
from learned_optim.sampled import SampledUpdate
from learned_optim.secants import CURVED, REACH
from tests.specs import RULES, seeded_rule, small_problem

rules = pytest.mark.parametrize("name", RULES)


def trajectory(name, steps):
    """Gradients and the state after some steps of a rule."""
    problem = small_problem()
    rule = seeded_rule(name, problem.params)
    unrolled = unroll(rule, problem.loss, problem.params, rule.init_state(problem.params), steps=steps)
    params = {k: v.detach() for k, v in unrolled.params.items()}
    grads = torch.func.grad(problem.loss)(params)
    return rule, grads, unrolled.state, params


def copied(tree):
    return torch.utils._pytree.tree_map(torch.clone, tree)


@rules
def test_a_step_is_pure(name):
    rule, grads, state, params = trajectory(name, 2)
    before = copied((grads, tuple(state), params))
    random = torch.get_rng_state()
    first = rule(grads, state, params)
    second = rule(grads, state, params)
    assert_close((grads, tuple(state), params), before, rtol=0, atol=0)
    assert_close(tuple(first[1]), tuple(second[1]), rtol=0, atol=0)
    assert_close(first[0], second[0], rtol=0, atol=0)
    assert torch.equal(random, torch.get_rng_state())


@rules
def test_structure(name):
    rule, grads, state, params = trajectory(name, 1)
    absent = "0.bias"
    del grads[absent]
    updates, new = rule(grads, state, params)
    assert list(updates) == list(grads)
    for key, update in updates.items():
        assert update.shape == params[key].shape
        assert update.dtype == params[key].dtype
    assert_close(new.per_param[absent], state.per_param[absent], rtol=0, atol=0)

    def signature(own):
        return {key: {k: (v.shape, v.dtype) for k, v in tensors.items()} for key, tensors in own.per_param.items()}

    assert signature(new) == signature(state)


@rules
def test_locality(name):
    """A coordinatewise rule commutes with permuting and splitting a tensor, one that takes means with permuting."""
    rule, *_ = trajectory(name, 0)
    averages = name in TENSORWISE or name.startswith("hierarchical")
    if rule.scope != "coordinate" and not averages:
        # Rates belong to places or tensors, a network's mean to the network, and a map routes whole tensors.
        assert name in ("meta_sgd", "lslr", "shared-state", "map")
        return
    grads = torch.randn(4, 10, dtype=torch.float64)
    order = torch.randperm(10)

    def run(columns):
        state = rule.init_state({"p": torch.zeros(10, dtype=torch.float64)})
        own = {
            key: value[columns] if value.shape[:1] == (10,) else value for key, value in state.per_param["p"].items()
        }
        state, params = RuleState({"p": own}, state.shared), {"p": torch.zeros(len(columns), dtype=torch.float64)}
        for grad in grads:
            updates, state = rule({"p": grad[columns]}, state, params)
            params = apply_updates(params, updates)
        return updates["p"]

    whole = run(torch.arange(10))
    assert_close(run(order), whole[order])
    parts = torch.cat((run(torch.arange(4)), run(torch.arange(4, 10))))
    if averages:
        assert rule.scope == ("tensor" if name.startswith("lstm") else "network")
        assert not torch.allclose(parts, whole)
    else:
        assert_close(parts, whole)


@rules
def test_bind_with_its_own_parameters_is_the_rule(name):
    rule, grads, state, params = trajectory(name, 1)
    phi = {key: p.detach().clone() for key, p in rule.named_parameters()}
    assert_close(bind(rule, phi)(grads, state, params)[0], rule(grads, state, params)[0], rtol=0, atol=0)
    if phi:
        doubled = {key: 2 * p for key, p in phi.items()}
        assert any(
            not torch.equal(u, v)
            for u, v in zip(
                bind(rule, doubled)(grads, state, params)[0].values(),
                rule(grads, state, params)[0].values(),
                strict=True,
            )
        )


@rules
@pytest.mark.parametrize("first_order", [False, True])
def test_gradcheck_of_an_unrolled_loss(name, first_order):
    """In theta_0 and phi, with coordinates whose gradient is exactly zero."""
    problem = small_problem()
    rule = seeded_rule(name, problem.params)
    names, phi_names = list(problem.params), [key for key, _ in rule.named_parameters()]
    frozen = None

    def final(*values):
        params = dict(zip(names, values, strict=False))
        phi = dict(zip(phi_names, values[len(names) :], strict=True))
        update = bind(rule, phi)
        if first_order:
            # The derivative that first order computes is that of a run with the gradients of the reference run.
            recorded = iter(frozen)

            def update(grads, state, theta):
                return bind(rule, phi)(next(recorded), state, theta)

        return problem.loss(unroll(update, problem.loss, params, rule.init_state(params), steps=3).params)

    inputs = [v.requires_grad_() for v in problem.params.values()]
    inputs += [p.detach().clone().requires_grad_() for _, p in rule.named_parameters()]
    if first_order:
        frozen = []

        def recording(grads, state, theta):
            frozen.append({key: grad.detach() for key, grad in grads.items()})
            return rule(grads, state, theta)

        params = dict(zip(names, inputs, strict=False))
        unrolled = unroll(recording, problem.loss, params, rule.init_state(params), steps=3, first_order=True)
        theirs = torch.autograd.grad(
            problem.loss(unrolled.params), [*params.values(), *rule.parameters()], allow_unused=True
        )
        ours = torch.autograd.grad(final(*inputs), inputs, allow_unused=True)
        assert_close(theirs, ours)
    assert torch.autograd.gradcheck(final, inputs, atol=1e-6)
    grads = torch.autograd.grad(final(*inputs), inputs)
    assert all(bool(torch.isfinite(grad).all()) for grad in grads)


@rules
def test_vmap_is_a_loop(name):
    problems = [small_problem(seed) for seed in range(3)]
    rule = seeded_rule(name, problems[0].params)
    stacked = {key: torch.stack([p.params[key] for p in problems]) for key in problems[0].params}
    loss = problems[0].loss

    def final(params):
        unrolled = unroll(rule, loss, params, rule.init_state(params), steps=4)
        return unrolled.losses, unrolled.params

    together = torch.vmap(final)(stacked)
    for i, problem in enumerate(problems):
        alone = final(problem.params)
        assert_close(torch.utils._pytree.tree_map(lambda leaf, i=i: leaf[i], together), alone)


@rules
@torch.no_grad()
def test_the_step_in_place_is_the_pure_one(name):
    rule, grads, state, params = trajectory(name, 2)
    in_place = RuleState(*copied(tuple(state)))
    updates, new = rule(grads, state, params)
    its_updates, finite = rule.step_(grads, in_place, params)
    assert finite
    assert_close(its_updates, updates)
    assert_close(tuple(in_place), tuple(new))


@rules
@torch.no_grad()
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_step_in_place_that_is_not_finite_leaves_the_state(name, value):
    rule, grads, state, params = trajectory(name, 2)
    before = copied(tuple(state))
    grads["0.weight"][1, 1] = value
    _, finite = rule.step_(grads, state, params)
    assert not finite
    assert_close(tuple(state), before, rtol=0, atol=0)


@rules
def test_what_never_had_a_gradient_does_not_move(name):
    problem = small_problem()
    rule = seeded_rule(name, problem.params)
    unrolled = unroll(rule, problem.loss, problem.params, rule.init_state(problem.params), steps=5)
    dead, dead_before = unrolled.params["0.weight"][:, 2], problem.params["0.weight"][:, 2]
    if name in ("lstm-moves-unseen", "lstm-normalised-moves-unseen", "adamw"):  # as in the paper; decay
        assert not torch.equal(dead, dead_before)
    else:
        assert torch.equal(dead, dead_before)
        assert not torch.equal(unrolled.params["0.weight"][:, :2], problem.params["0.weight"][:, :2])


@rules
def test_zero_gradients_first_leave_a_fresh_state(name):
    """All but the count of steps, and the point where they were taken."""
    problem = small_problem()
    rule = seeded_rule(name, problem.params)
    fresh = rule.init_state(problem.params)
    zeros = {key: torch.zeros_like(p) for key, p in problem.params.items()}
    _, state = rule(zeros, fresh, problem.params)
    for own in state.per_param.values():
        assert own.pop("step", 1) == 1
        own.pop("theta", None)
    for own in fresh.per_param.values():
        own.pop("step", None)
        own.pop("theta", None)
    if not name.endswith("moves-unseen"):
        assert_close(tuple(state), tuple(fresh), rtol=0, atol=0)


@pytest.mark.parametrize("name", [name for name in RULES if "horizon" in name])
def test_a_horizon_changes_nothing_before_it(name):
    """And something from there on."""
    problem = small_problem()
    finals = {}
    for horizon in (None, 3):
        rule = seeded_rule(name, problem.params)
        options = {key: value for key, value in rule.config().items() if key != "horizon"}
        other = type(rule)(**options, horizon=horizon).double()
        other.load_state_dict(rule.state_dict())
        for steps in (3, 4):
            unrolled = unroll(other, problem.loss, problem.params, other.init_state(problem.params), steps=steps)
            finals[horizon, steps] = unrolled.params
    assert_close(finals[3, 3], finals[None, 3], rtol=0, atol=0)
    assert not torch.equal(finals[3, 4]["0.weight"], finals[None, 4]["0.weight"])


# Slow references, one number at a time


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def slow_features(features, grads, until):
    """Inputs of one coordinate at each step, in plain Python; the coordinate's first gradient is not zero."""
    m = v = square = 0.0
    scales = {decay: (0.0, 0.0) for decay in (0.5, 0.9, 0.99, 0.999)}
    rows = []
    for t, g in enumerate(grads, start=1):
        row = []
        for name in features:
            if name == "log_sign":
                row += (
                    [math.log(abs(g)) / 10, math.copysign(1, g)] if abs(g) >= math.exp(-10) else [-1, math.exp(10) * g]
                )
            elif name == "plain":
                row += [g]
            elif name == "step_count":
                row += [math.tanh(min(t, until) / x - 1) for x in (10, 30, 100, 300, 1000, 3000, 10000)]
            elif name == "magnitude":
                square = 0.9 * square + 0.1 * g * g
                row += [math.log(square / (1 - 0.9**t) + math.exp(-20)) / 20]
            elif name == "time_scales":
                scales = {d: (d * m + (1 - d) * g, d * v + (1 - d) * g * g) for d, (m, v) in scales.items()}
                unbiased = [(m / (1 - d**t), v / (1 - d**t)) for d, (m, v) in scales.items()]
                logs = [0.5 * math.log(math.sqrt(v)) for _, v in unbiased]
                row += [m / (math.sqrt(v) + 1e-8) for m, v in unbiased] + [log - sum(logs) / 4 for log in logs]
            else:
                m, v = 0.95 * m + 0.05 * g, 0.95 * v + 0.05 * g * g
                scale = math.sqrt(v / (1 - 0.95**t)) + 1e-8
                row += [m / (1 - 0.95**t) / scale, g / scale]
        rows.append(row)
    return rows


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def slow_directions(number, grads, points):
    """The directions of limited-memory BFGS at each step, a transcription of the paper's two loops."""
    rows = []
    for t, g in enumerate(grads):
        secants = []
        for i in range(max(1, t - number + 1), t + 1):
            s = [now - before for now, before in zip(points[i], points[i - 1], strict=True)]
            y = [now - before for now, before in zip(grads[i], grads[i - 1], strict=True)]
            secants.append((s, y, dot(s, y)))
        longest = max((dot(s, s) for s, _, _ in secants), default=0.0)
        secants = [(s, y, sy) for s, y, sy in secants if sy > CURVED * math.sqrt(dot(s, s) * dot(y, y)) > 0]
        q, shares = g, []
        for s, y, sy in reversed(secants):
            shares.append(dot(s, q) / sy)
            q = [a - shares[-1] * b for a, b in zip(q, y, strict=True)]
        scale = secants[-1][2] / dot(secants[-1][1], secants[-1][1]) if secants else 1 / max(1, math.sqrt(dot(g, g)))
        r = [scale * a for a in q]
        for (s, y, sy), share in zip(secants, reversed(shares), strict=True):
            back = dot(y, r) / sy
            r = [a + (share - back) * b for a, b in zip(r, s, strict=True)]
        far = REACH**2 * longest < dot(r, r) and longest > 0
        rows.append([-a * (REACH * math.sqrt(longest / dot(r, r)) if far else 1) for a in r])
    return rows


def slow_lstm(rule, grads, more):
    """What the heads say of one coordinate at each step, a transcription of the papers; more inputs are given."""
    size = rule.hidden_size
    hidden = [[0.0] * size for _ in rule.weights]
    cell = [[0.0] * size for _ in rule.weights]
    outputs = []
    until = rule.count_until or rule.horizon or math.inf
    for own, added in zip(slow_features(rule.features, grads, until), more, strict=True):
        x = row = own + added
        for layer, (weight, bias) in enumerate(zip(rule.weights, rule.biases, strict=True)):
            joined = [*x, *hidden[layer]]
            gate = [
                sum(w * z for w, z in zip(line, joined, strict=True)) + b
                for line, b in zip(weight.tolist(), bias.tolist(), strict=True)
            ]
            for j in range(size):
                i, f, g, o = (gate[k * size + j] for k in range(4))
                cell[layer][j] = sigmoid(f) * cell[layer][j] + sigmoid(i) * math.tanh(g)
                hidden[layer][j] = sigmoid(o) * math.tanh(cell[layer][j])
            x = hidden[layer]
        heads = [
            sum(w * h for w, h in zip(line, x, strict=True)) + b
            for line, b in zip(rule.head.weight.tolist(), rule.head.bias.tolist(), strict=True)
        ]
        if rule.shortcut is not None:
            heads[0] += sum(s * z for s, z in zip(rule.shortcut.tolist(), row, strict=True))
        outputs.append(heads)
    return outputs


def slow_updates(rule, grads, points):
    """Updates of all coordinates of one tensor, by steps."""
    directions = slow_directions(rule.secants, grads, points) if rule.secants else grads
    coordinates = [
        slow_lstm(rule, own, [[d / rule.output_scale] if rule.secants else [] for d in way])
        for own, way in zip(zip(*grads, strict=True), zip(*directions, strict=True), strict=True)
    ]
    updates = []
    for heads in zip(*coordinates, strict=True):
        if rule.normalised:
            root = math.sqrt(sum(d * d for d, _ in heads) / len(heads)) + 1e-8
            length = 10 ** math.tanh(sum(r for _, r in heads) / len(heads))
            row = [d / root * length for d, _ in heads]
        else:
            row = [math.tanh(out) if rule.bounded else out for (out,) in heads]
        slowed = min(1, (rule.horizon or math.inf) / (len(updates) + 1))
        updates.append([rule.output_scale * slowed * u for u in row])
    return updates


@pytest.mark.parametrize("name", [name for name in RULES if name.startswith("lstm")])
def test_lstm_equals_the_slow_reference_over_100_steps(name):
    rule = seeded_rule(name, {})
    torch.manual_seed(1)
    grads = torch.randn(100, 5, dtype=torch.float64) * torch.tensor([1e-6, 1e-3, 1.0, 1e2, 1.0], dtype=torch.float64)
    params = {"p": torch.zeros(5, dtype=torch.float64)}
    state, ours, points = rule.init_state(params), [], []
    for grad in grads:
        points.append(params["p"].tolist())
        updates, state = rule({"p": grad}, state, params)
        ours.append(updates["p"].detach())
        params = apply_updates(params, {"p": ours[-1]})
    slow = torch.tensor(slow_updates(rule, grads.tolist(), points), dtype=torch.float64)
    assert_close(torch.stack(ours), slow, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("name", "alpha"), [("sgd", None), ("meta_sgd", "rates")])
def test_gradient_rules_equal_their_formula(name, alpha):
    rule, grads, state, params = trajectory(name, 1)
    updates, _ = rule(grads, state, params)
    for key, grad in grads.items():
        rate = rule.lr if alpha is None else rule.alpha[key]
        assert_close(updates[key], -rate * grad, rtol=0, atol=0)


def test_cell_equals_torch():
    torch.manual_seed(0)
    theirs = torch.nn.LSTMCell(3, 4, dtype=torch.float64)
    x, h, c = (torch.randn(7, n, dtype=torch.float64) for n in (3, 4, 4))
    weight = torch.cat((theirs.weight_ih, theirs.weight_hh), dim=1)
    assert_close(lstm_cell(x, h, c, weight, theirs.bias_ih + theirs.bias_hh), theirs(x, (h, c)))


@pytest.mark.parametrize("name", FEATURES)
def test_features_have_finite_derivatives_at_zero(name):
    feature = FEATURES[name]
    grad = torch.tensor([0.0, 1e-30, -3.0, 0.0], dtype=torch.float64, requires_grad=True)
    state = feature.init_state(grad.detach(), dtype=grad.dtype)
    for _ in range(3):
        values, new = feature(grad, state)
        state = state | new
    assert values.shape == (4, feature.size)
    (slope,) = torch.autograd.grad(values.sum() + grad.sum(), grad)  # a count of steps depends on no gradient
    assert bool(torch.isfinite(slope).all())
    assert bool(torch.isfinite(values).all())


NOT_SAMPLED = ("meta_sgd", "lslr", "shared-state", "map")
TENSORWISE = ("lstm-normalised", "lstm-normalised-moves-unseen", "lstm-secants")


@pytest.mark.parametrize(
    "name", [n for n in RULES if n not in NOT_SAMPLED + TENSORWISE and not n.startswith("hierarchical")]
)
def test_sampling_all_coordinates_is_the_plain_first_order_meta_gradient(name):
    problem = small_problem()
    rule = seeded_rule(name, problem.params)
    start, state = problem.params, rule.init_state(problem.params)

    def meta_gradient(count, seed=0):
        update = SampledUpdate(rule, start, count=count, generator=torch.Generator().manual_seed(seed))
        sampled = unroll(update, problem.loss, start, update.extend(state), steps=4, first_order=True)
        assert_close(update.reduce(sampled.state).per_param, plain.state.per_param)
        assert_close(sampled.params, plain.params)
        return torch.autograd.grad(sampled.losses.sum() + problem.loss(sampled.params), list(rule.parameters()))

    plain = unroll(rule, problem.loss, start, state, steps=4, first_order=True)
    if not list(rule.parameters()):
        assert_close(plain.params, unroll(rule, problem.loss, start, state, steps=4).params)
        return
    exact = torch.autograd.grad(plain.losses.sum() + problem.loss(plain.params), list(rule.parameters()))
    assert_close(meta_gradient(100), exact)
    # A sample of one in three is unbiased: the mean over many samples comes near, each alone does not.
    many = [torch.cat([g.flatten() for g in meta_gradient(2, seed)]) for seed in range(60)]
    exact = torch.cat([g.flatten() for g in exact])
    error = (torch.stack(many).mean(dim=0) - exact).norm()
    typical = torch.stack([(sample - exact).norm() for sample in many]).mean()
    assert error < 3 * typical / math.sqrt(60)


NOT_JOINED = ("meta_sgd", "lslr", "shared-state", "map", "map-by-rank", *TENSORWISE)


@pytest.mark.parametrize("first_order", [True, False])
@pytest.mark.parametrize("name", RULES)
def test_joining_all_tensors_changes_nothing(name, first_order):
    problem = small_problem()
    rule = seeded_rule(name, problem.params)
    assert joinable(rule) == (name not in NOT_JOINED and not name.startswith("hierarchical"))
    if not joinable(rule):
        return
    start, state = problem.params, rule.init_state(problem.params)
    update = JoinedUpdate(rule, start)
    assert_close(update.reduce(update.extend(state)).per_param, state.per_param)
    plain = unroll(rule, problem.loss, start, state, steps=4, first_order=first_order)
    joined = unroll(update, problem.loss, start, update.extend(state), steps=4, first_order=first_order)
    assert_close(joined.params, plain.params)
    assert_close(update.reduce(joined.state).per_param, plain.state.per_param)
    if phi := list(rule.parameters()):
        exact, theirs = (torch.autograd.grad(run.losses.sum(), phi) for run in (plain, joined))
        assert_close(theirs, exact)


def test_lstm_starts_as_descent_with_a_shortcut():
    rule = LSTMRule(("log_sign", "moments"), shortcut=True, output_scale=0.1)
    params = {"p": torch.zeros(3)}
    updates, _ = rule({"p": torch.tensor([2.0, -0.1, 0.0])}, rule.init_state(params), params)
    rate = 0.1 * math.tanh(0.3)
    assert_close(updates["p"], torch.tensor([-rate, rate, 0.0]))
