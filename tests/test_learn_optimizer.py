"""What LearnedOptimizerModule minimises, on which problems, and how it estimates the gradient."""

import math
from functools import partial

import pytest
import torch
from torch.testing import assert_close

from learned_optim import (
    AdamRule,
    HierarchicalRNNRule,
    LSTMRule,
    MetaSGDRule,
    MomentumRule,
    Rule,
    RuleState,
    SGDRule,
    unroll,
)
from learned_optim.imitation import Imitating
from learned_optim.instances import Instances
from learned_optim.problems import Bowls, NetworkProblems, Quadratics
from learned_optim.sampled import SampledUpdate
from learned_optim.seeds import seeded
from lightning_modules import LearnedOptimizerModule, search_outer_lr
from lightning_modules.estimators import PersistentEvolution, TruncatedBackpropagation
from tests.test_lightning import quadratics, trainer


@pytest.fixture(autouse=True)
def _in_its_own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def silent(module):
    module.log = lambda *args, **kwargs: None
    return module


def horizon_losses(module, episode=0):
    """Losses at theta_0, ..., theta_K of each problem, one after the other and without a window, shape (I, K + 1)."""
    family, rows = module.families[episode % len(module.families)], []
    for i in range(module.instances):
        purpose = (module.seed, "train", episode, i)
        problem = family.sample(seeded(*purpose))
        batches = [problem.batch(seeded(*purpose, step)) for step in range(module.curriculum.horizons[-1] + 1)]
        state = module.rule.init_state(problem.params)
        steps = len(batches) - 1
        whole = unroll(
            module.rule, family.loss, problem.params, state, steps=steps, batches=batches[:-1], first_order=True
        )
        rows.append(torch.cat((whole.losses, family.loss(whole.params, batches[-1]).reshape(1))))
    return torch.stack(rows)


WEIGHTS = {
    "all alike": ({}, lambda loss, first, t: loss),
    "late steps": ({"late_weight": 2.0}, lambda loss, first, t: 3 * (t / 12) ** 2 * loss),
    "logarithm": ({"objective": "log"}, lambda loss, first, t: torch.log(loss / first + 1e-6)),
    "floor": ({"objective": "log", "floor": 0.3}, lambda loss, first, t: torch.log(loss / first + 0.3)),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_the_objective_is_its_formula_over_the_windows_of_a_horizon(name):
    options, formula = WEIGHTS[name]
    module = silent(quadratics(outer_lr=0.0, **options))
    windows = torch.stack([module.training_step(None, i) for i in range(3)])
    losses = horizon_losses(module)
    rows = [[formula(row[t], row[0], t) for t in range(1, 13)] for row in losses]
    assert_close(windows.mean(), torch.stack([torch.stack(row) for row in rows]).mean())


def test_families_take_turns_and_are_all_validated():
    families = [Quadratics(2), Quadratics(5)]
    torch.manual_seed(0)
    module = LearnedOptimizerModule(
        families, LSTMRule(hidden_size=3), horizon=4, window=4, instances=1, val_instances=2, outer_lr=0.0
    )
    run = trainer(2, limit_train_batches=2)
    run.fit(module)
    assert module.running.current.number == 2
    means = []
    for number, family in enumerate(families):
        instances = Instances(family, (0, "val", number), range(2))
        means.append(instances.run(module.rule, *instances.start(module.rule), range(4)).losses[:, :-1].mean())
    assert_close(run.callback_metrics["val/loss"].double(), torch.stack(means).mean(), rtol=1e-6, atol=1e-6)


def test_interleaved_problems_are_those_that_come_one_after_the_other():
    """Three sets, two at once: window by window in turn, and the third in the place of the first that ends."""
    families = [Quadratics(2), Quadratics(5)]
    options = {"horizon": 12, "window": 4, "instances": 2, "outer_lr": 0.0}
    torch.manual_seed(0)
    rule = LSTMRule(hidden_size=3)
    single, double = (silent(LearnedOptimizerModule(families, rule, interleave=count, **options)) for count in (1, 2))
    apart = [[single.training_step(None, 0) for _ in range(3)] for _ in range(3)]
    together = [double.training_step(None, 0) for _ in range(8)]
    expected = [apart[0][0], apart[1][0], apart[0][1], apart[1][1], apart[0][2], apart[1][2], apart[2][0]]
    assert_close(together[:7], expected, rtol=0, atol=0)
    assert double.running.current.number == 2


@pytest.mark.parametrize("estimator", ["truncated", "evolution", "clipped"])
def test_only_what_is_named_is_trained(estimator):
    torch.manual_seed(0)
    rule = LSTMRule(hidden_size=3)
    before = {name: p.detach().clone() for name, p in rule.named_parameters()}
    options = {"clip": 1.0} if estimator == "clipped" else {"estimator": estimator}
    module = LearnedOptimizerModule(
        Quadratics(2), rule, trains=["head.*"], horizon=4, window=4, instances=2, val_instances=1, **options
    )
    trainer(2, limit_train_batches=2).fit(module)
    moved = {name for name, p in rule.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if name.startswith("head.")} != set()


def test_nothing_to_train_is_refused():
    with pytest.raises(ValueError, match=r"nothing to train matches trains='tail'; there are .*head\.weight"):
        LearnedOptimizerModule(trains="tail")


class Exploding(Quadratics):
    """Of which no meta-gradient is finite."""

    def loss(self, params, batch=None):
        return super().loss(params, batch) * float("inf")


@pytest.mark.filterwarnings("ignore:A meta-gradient was not finite")
@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_what_is_not_finite_does_not_spoil_what_it_is_averaged_with(order):
    """Of two windows whose gradients add up, the one that is left out counts as zero."""

    def trained(families):
        torch.manual_seed(0)
        module = LearnedOptimizerModule(
            families, LSTMRule(hidden_size=3), horizon=4, window=4, instances=1, interleave=2, clip=1.0, val_instances=1
        )  # fmt: skip
        run = trainer(1, limit_train_batches=2, limit_val_batches=0, accumulate_grad_batches=2)
        steps, looked = [], module.on_before_optimizer_step

        def noted(optimizer):
            looked(optimizer)
            steps.append([p.grad.clone() for p in module.rule.parameters() if p.grad is not None])

        module.on_before_optimizer_step = noted
        run.fit(module)
        return steps, module._skipped

    families = [Quadratics(2), Exploding(2)]
    (found,), skipped = trained([families[i] for i in order])
    assert skipped == 1
    assert found
    assert all(bool(torch.isfinite(value).all()) for value in found)
    assert any(bool(value.any()) for value in found)
    (none,), skipped = trained([Exploding(2), Exploding(2)])
    assert skipped == 2
    assert none == []


def test_random_horizons_are_whole_windows_and_belong_to_the_episode():
    module = quadratics(horizon=64, random_horizons=True)
    drawn = [module._horizon(episode) for episode in range(300)]
    assert drawn == [module._horizon(episode) for episode in range(300)]
    assert {steps % 4 for steps in drawn} == {0}
    assert (min(drawn), max(drawn)) == (4, 64)
    # Log-uniform: about as many below the geometric mean as above.
    assert 100 < sum(steps < 16 for steps in drawn) < 200


def test_the_curriculum_advances_when_validation_stands_still():
    """Nothing is learned, so that only the first of all validations improves."""
    module = quadratics(outer_lr=0.0, curriculum=(4, 8), patience=2)
    stages = []
    validated = module.on_validation_epoch_end

    def noted():
        validated()
        stages.append(module.curriculum.stage)

    module.on_validation_epoch_end = noted
    trainer(30, num_sanity_val_steps=0).fit(module)
    assert stages == [0, 0, 1, 1, 1, 2]
    assert module._horizon(0) == 12


def test_validation_that_is_no_training_or_not_finite_leaves_the_curriculum():
    module = quadratics(outer_lr=0.0, curriculum=(4, 8), patience=1)
    for _ in range(4):
        trainer(1).validate(module, verbose=False)
    assert module.curriculum.stage == 0
    for loss in (math.nan, math.inf, 1.0, math.nan):
        module._progress([torch.tensor(loss)], 0)
    assert module.curriculum.state_dict() == {"stage": 0, "best": 1.0, "since": 0}
    module._progress([torch.tensor(2.0)], 0)
    assert module.curriculum.stage == 1


def test_a_curriculum_without_validation_is_refused():
    with pytest.raises(ValueError, match="advances on validation"):
        trainer(1, limit_val_batches=0).fit(quadratics(curriculum=(4,)))


class Negative(Quadratics):
    def loss(self, params, batch):
        return super().loss(params, batch) - 1e3


def test_logarithms_need_losses_above_zero():
    module = silent(LearnedOptimizerModule(Negative(3), LSTMRule(hidden_size=3), objective="log"))
    with pytest.raises(ValueError, match="objective='log' needs losses above 0, but Negative starts at -"):
        module.training_step(None, 0)
    silent(LearnedOptimizerModule(Negative(3), LSTMRule(hidden_size=3))).training_step(None, 0).backward()


def test_short_horizons_weigh_as_much_as_long_ones():
    module = quadratics(horizon=64, random_horizons=True, late_weight=1.0)
    module.running.current.number = next(episode for episode in range(100) if module._horizon(episode) == 4)
    weight = module._objective(torch.ones(2, 4), torch.ones(2), range(4))
    assert_close(weight, torch.full((2,), 2 * (1 + 2 + 3 + 4) / 16))


def test_data_that_stay_the_same_are_not_copied():
    x, y = torch.rand(30, 2), torch.rand(30, 1)
    fixed = NetworkProblems(lambda: torch.nn.Linear(2, 1), (x, y))
    instances = Instances(fixed, (0,), range(4))
    first, second = instances.batch(0), instances.batch(1)
    assert first[0].shape == (4, 30, 2)
    assert first[0].data_ptr() == second[0].data_ptr() == x.data_ptr()

    def curve(generator):
        x = torch.rand(30, 2, generator=generator)
        return x, x.sum(dim=1, keepdim=True)

    drawn = Instances(NetworkProblems(lambda: torch.nn.Linear(2, 1), curve), (0,), range(4))
    assert drawn.batch(0)[0].data_ptr() == drawn.batch(5)[0].data_ptr()
    assert not torch.equal(drawn.batch(0)[0][0], drawn.batch(0)[0][1])
    batched = Instances(NetworkProblems(lambda: torch.nn.Linear(2, 1), (x, y), batch_size=3), (0,), range(4))
    assert not torch.equal(batched.batch(0)[0], batched.batch(1)[0])


# Persistent evolution strategies


class Family(Quadratics):
    """Quadratics that plain descent does not diverge on."""

    def sample(self, generator):
        problem = super().sample(generator)
        w, y = problem.batch(generator)
        return problem._replace(batch=lambda _: (w / 3, y))


def evolved(rule, *, windows, pairs, std, seed=0):
    """The summed estimates of all windows of a horizon of 6, and what backpropagation through all of it gives."""
    family, total, estimates = Family(3), 6, []
    for estimator in (PersistentEvolution(rule, std=std), TruncatedBackpropagation(rule, first_order=False)):
        instances = Instances(family, (0, "pes"), [0] * pairs * estimator.copies)
        carried, gradient = estimator.start(instances), 0
        for steps in windows:
            loss, carried = estimator.window(
                instances, carried, steps, lambda losses, first, steps: losses.sum(dim=1) / total,
                generator=seeded("pes", seed, steps.start),
            )  # fmt: skip
            gradient = gradient + torch.autograd.grad(loss, list(rule.parameters()))[0]
        estimates.append(gradient)
    return estimates


def test_evolution_is_unbiased_over_windows_where_truncation_is_not():
    problem = Family(3).sample(seeded("shapes"))
    rule = MetaSGDRule(problem.params, 0.1)
    (exact,) = (evolved(rule, windows=[range(6)], pairs=1, std=1e-3)[1],)
    windows = [range(0, 2), range(2, 4), range(4, 6)]
    estimates = torch.stack([evolved(rule, windows=windows, pairs=50, std=1e-3, seed=i)[0] for i in range(40)])
    truncated = evolved(rule, windows=windows, pairs=1, std=1e-3)[1]
    error = estimates.std(dim=0) / math.sqrt(len(estimates))
    assert bool(((estimates.mean(dim=0) - exact).abs() < 4 * error).all())
    assert bool(((truncated - exact).abs() > 8 * error).any())


def test_evolution_leaves_no_graph_and_hands_over_its_gradient():
    module = silent(quadratics(estimator="evolution"))
    loss = module.training_step(None, 0)
    loss.backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in module.rule.parameters())
    leaves = [
        module.running.current.carried["params"],
        module.running.current.carried["noise"],
        *module.running.current.carried["per_param"].values(),
    ]
    assert not any(value.requires_grad for tensors in leaves for value in tensors.values())


def test_a_pair_that_diverges_does_not_spoil_the_others():
    """The gradient is that of the other pair alone."""

    def estimate(numbers, spoil):
        rule = MetaSGDRule({"theta": torch.zeros(3)}, 0.1)
        estimator = PersistentEvolution(rule, std=1e-3)
        instances = Instances(Family(3), (0, "pes"), numbers * 2)

        def objective(losses, first, steps):
            values = losses.mean(dim=1)
            return torch.where(torch.arange(len(values)) == 1, math.inf, values) if spoil else values

        loss, _ = estimator.window(
            instances, estimator.start(instances), range(4), objective, generator=torch.Generator().manual_seed(0)
        )
        return loss.detach(), torch.autograd.grad(loss, list(rule.parameters()))[0]

    loss, spoilt = estimate([0, 1], True)
    assert bool(torch.isfinite(loss))
    # The first row of noise is the same for one pair and for two.
    assert_close((loss, spoilt), estimate([0], False))


# Clipping


def clipped(clip, numbers, spoil=None, rule=LSTMRule, **options):
    """The loss of one window and its gradient."""
    torch.manual_seed(0)
    rule = rule()
    estimator = TruncatedBackpropagation(rule, clip=clip, **options)
    instances = Instances(Quadratics(3), (0, "clip"), numbers)

    def objective(losses, first, steps):
        values = losses.mean(dim=1)
        return values * torch.tensor([math.inf if i == spoil else 1.0 for i in range(len(values))])

    loss, carried = estimator.window(
        instances, estimator.start(instances), range(4), objective, generator=torch.Generator()
    )
    assert not any(p.requires_grad for p in carried["params"].values())
    return loss.detach(), torch.autograd.grad(loss, list(rule.parameters()))


CLIPPED = {
    "lstm": partial(LSTMRule, hidden_size=3),
    "normalised": partial(LSTMRule, hidden_size=3, normalised=True),
    "hierarchical": partial(HierarchicalRNNRule, (2, 3, 2), 2),
}


@pytest.mark.parametrize("name", CLIPPED)
@pytest.mark.parametrize("first_order", [True, False])
def test_each_problems_gradient_is_clipped_before_the_mean(name, first_order):
    options = {"first_order": first_order, "rule": CLIPPED[name]}
    assert_close(clipped(1e9, [0, 1, 2], **options), clipped(None, [0, 1, 2], **options))
    alone = [clipped(None, [i], **options)[1] for i in range(3)]
    norms = [float(torch.cat([g.flatten() for g in grads]).norm()) for grads in alone]
    clip = sorted(norms)[1]
    scales = [min(1.0, clip / norm) for norm in norms]
    assert min(scales) < 1
    mean = tuple(
        sum(scale * g for scale, g in zip(scales, parts, strict=True)) / 3 for parts in zip(*alone, strict=True)
    )
    assert_close(clipped(clip, [0, 1, 2], **options)[1], mean)


def test_clipping_leaves_out_a_problem_that_diverges():
    assert_close(clipped(1.0, [0, 1], spoil=1), clipped(1.0, [0]))


def test_clipping_hides_nothing_where_all_problems_diverge():
    loss, grads = clipped(1.0, [0], spoil=0)
    assert bool(torch.isnan(loss))
    assert all(bool(torch.isnan(grad).all()) for grad in grads)


# Imitation


class Still(Rule):
    """Does nothing."""

    def init_state(self, params, *, generator=None):
        return RuleState({name: {} for name in params}, {})

    def forward(self, grads, state, params):
        return {name: 0 * grad for name, grad in grads.items()}, state

    def config(self):
        return {}


LEARNERS = {"the teacher itself": (lambda: AdamRule(0.1), 0.0), "nothing": (Still, 1.0)}


@pytest.mark.parametrize("name", LEARNERS)
def test_the_distance_to_the_teacher(name):
    make, expected = LEARNERS[name]
    problem, rule = Quadratics(4).sample(seeded(0, "imitation", 0)), make()
    update = Imitating(rule, AdamRule(0.1))
    state = update.extend(rule.init_state(problem.params), problem.params)
    loss, data = Quadratics(4).loss, problem.batch(torch.Generator())
    whole = unroll(update, lambda p: loss(p, data), problem.params, state, steps=5)
    assert_close(update.distance(whole.state), torch.tensor(5 * expected))
    # The teacher remembers the gradients of the learner's trajectory, also over a truncation.
    first = unroll(update, lambda p: loss(p, data), problem.params, state, steps=2)
    own, theirs = update.reduce(first.state)
    again = update.extend(own, first.params, theirs)
    second = unroll(update, lambda p: loss(p, data), first.params, again, steps=3)
    assert_close(update.reduce(second.state)[1], update.reduce(whole.state)[1])
    assert_close(update.distance(second.state), torch.tensor(3 * expected))


def test_imitation_alone_ends_at_the_teacher():
    """Rates for each coordinate, which can become those of plain descent."""
    torch.manual_seed(0)
    rule = MetaSGDRule({"theta": torch.zeros(3)}, (0.02, 0.08))
    sizes = {"horizon": 12, "window": 4, "instances": 4, "steps_per_epoch": 50}
    module = LearnedOptimizerModule(
        Quadratics(3), rule, teacher=SGDRule(0.01), teacher_weight=1e6, outer_lr=2e-3, schedule="cosine", **sizes
    )
    trainer(300, limit_val_batches=0).fit(module)
    for rates in rule.parameters():
        assert_close(rates.detach(), torch.full_like(rates, 0.01), rtol=0.05, atol=0)


def test_imitation_of_sampled_coordinates_is_that_of_all_when_all_are_sampled():
    grads = []
    for coordinates in (None, 100):
        module = silent(quadratics(teacher=MomentumRule(0.01), teacher_weight=3.0, coordinates=coordinates))
        module.training_step(None, 0).backward()
        grads.append([p.grad for p in module.rule.parameters()])
    assert_close(*grads)


def test_the_teachers_weight_falls_to_zero():
    module = quadratics(teacher=SGDRule(0.01), teacher_weight=4.0, teacher_epochs=3)
    weights = []
    stepped = module.training_step

    def noted(*args):
        weights.append(module._teacher_weight())
        return stepped(*args)

    module.training_step = noted
    trainer(20, limit_val_batches=0).fit(module)
    assert_close(weights[::5], [4.0, 4.0 * 2 / 3, 4.0 / 3, 0.0])


# Resuming and bad options

RESUMED = {
    "evolution": {"estimator": "evolution", "instances": 3},
    "teacher": {"teacher": AdamRule(0.1), "teacher_epochs": 4},
    "sampled teacher": {"teacher": AdamRule(0.1), "coordinates": 2},
    "curriculum": {"curriculum": (4, 8), "patience": 1, "outer_lr": 0.1},
    "random horizons": {"random_horizons": True, "objective": "log"},
    "clip": {"clip": 1.0, "first_order": False},
    "interleave": {"interleave": 2, "random_horizons": True},
}


@pytest.mark.parametrize("name", RESUMED)
@pytest.mark.parametrize("at", [5, 8])
def test_resuming_changes_nothing_bit_for_bit(name, at):
    def fit(every=None, ckpt_path=None):
        module = quadratics(**RESUMED[name])
        trainer(17, every).fit(module, ckpt_path=ckpt_path)
        return list(module.state_dict().values()), module.curriculum.stage

    whole = fit()
    fit(every=at)
    assert_close(fit(every=at, ckpt_path=f"saved/step={at}.ckpt"), whole, rtol=0, atol=0)


def family_of_another_size():
    torch.manual_seed(0)
    return LearnedOptimizerModule(Quadratics(5), LSTMRule(hidden_size=3), horizon=12, window=4, instances=2)


OTHERS = {
    "family": family_of_another_size,
    "instances": lambda: quadratics(instances=5),
    "window": lambda: quadratics(window=6),
    "interleave": lambda: quadratics(interleave=2),
    "trains": lambda: quadratics(trains="head.*"),
    "estimator": lambda: quadratics(estimator="evolution"),
    "teacher": lambda: quadratics(teacher=AdamRule(0.1)),
    "curriculum": lambda: quadratics(curriculum=(4,)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_with_other_options_a_checkpoint_goes_on_with_new_problems(name):
    run = trainer(5)
    run.fit(quadratics(curriculum=(4, 8), patience=1, outer_lr=0.1) if name == "curriculum" else quadratics())
    run.save_checkpoint("saved.ckpt")
    module = OTHERS[name]()
    trainer(8).fit(module, ckpt_path="saved.ckpt")
    assert module.running.current.number >= 2
    assert module.curriculum.stage < len(module.curriculum.horizons)


def test_validation_on_other_families_than_those_trained_on():
    held_out, options = [Bowls(5), Quadratics(6)], {"horizon": 4, "window": 4, "val_instances": 2, "steps_per_epoch": 2}
    module = LearnedOptimizerModule(Quadratics(3), LSTMRule(hidden_size=3), val_family=held_out, **options)
    assert [type(module._instances(role, i, 2).family) for role in ("val", "test") for i in (0, 1)] == [
        Bowls,
        Quadratics,
    ] * 2
    assert module._instances("train", 1, 2).family is module.families[0]
    assert len(module.val_dataloader()) == 2
    fit = trainer(max_steps=2, limit_val_batches=2)
    fit.fit(module)
    alone = LearnedOptimizerModule(held_out, module.rule, **options)
    with torch.no_grad():
        expected = torch.stack([alone._held_out("val", i).mean() for i in range(2)]).mean()
    assert_close(fit.callback_metrics["val/loss"], expected)


BAD = {
    "objective": ({"objective": "logarithm"}, "objective must be one of"),
    "estimator": ({"estimator": "pes"}, "estimator must be one of"),
    "std": ({"estimator": "evolution", "std": 0.0}, "std must be finite and > 0, got 0.0"),
    "teacher": ({"estimator": "evolution", "teacher": AdamRule(0.1)}, "need estimator='truncated'"),
    "clip": ({"clip": 0.0}, "clip must be finite and > 0, or None, got 0.0"),
    "clip and sample": ({"clip": 1.0, "coordinates": 2}, "clip cannot be combined with coordinates or teacher"),
    "clip and evolution": ({"clip": 1.0, "estimator": "evolution"}, "need estimator='truncated'"),
    "exact": ({"estimator": "evolution", "first_order": False}, "need estimator='truncated'"),
    "late": ({"late_weight": -1.0}, "late_weight must be a finite number >= 0, got -1.0"),
    "floor": ({"floor": 0.0}, "floor must be finite and > 0, got 0.0"),
    "patience": ({"patience": 0}, "patience must be >= 1"),
    "order": ({"curriculum": (8, 4)}, r"curriculum must ascend to horizon, got \(8, 4, 12\)"),
    "curriculum": ({"curriculum": (5,)}, "window must divide horizon"),
    "negative": ({"curriculum": (-4,)}, "curriculum must ascend to horizon"),
    "twice": ({"curriculum": (12,)}, "curriculum must ascend to horizon"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_options(name):
    options, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        quadratics(**options)


def test_no_family():
    with pytest.raises(ValueError, match="must not be empty lists"):
        LearnedOptimizerModule([])


def test_sampling_needs_coordinates_that_go_alone():
    with pytest.raises(ValueError, match="is not coordinatewise"):
        SampledUpdate(LSTMRule(normalised=True), {"p": torch.zeros(3)}, count=2, generator=torch.Generator())


# The learning rate


def searching(rates, **options):
    return search_outer_lr(quadratics(), rates, steps=10, accelerator="cpu", **options)


def test_the_best_rate_is_that_of_the_best_training():
    def alone(rate):
        module = quadratics(outer_lr=rate)
        trainer(10, limit_val_batches=0).fit(module)
        return trainer(1).validate(module, verbose=False)[0]["val/loss"]

    rates = (1e-4, 0.03, 1e3)
    found = searching(rates)
    assert found.losses == {rate: alone(rate) for rate in rates}
    assert found.best == min(rates, key=lambda rate: found.losses[rate])
    assert found.inside == (found.best == 0.03)


def test_a_search_leaves_the_module_alone():
    module = quadratics()
    before = [p.detach().clone() for p in module.parameters()]
    search_outer_lr(module, [0.1], steps=3, accelerator="cpu")
    assert module.outer_lr == 1e-3
    assert_close(list(module.parameters()), before, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("rates", "options", "message"),
    [
        ([], {}, "rates is empty"),
        ([0.1], {"monitor": "val/accuracy"}, "'val/accuracy' is not logged; there are"),
    ],
)
def test_bad_searches(rates, options, message):
    with pytest.raises(ValueError, match=message):
        searching(rates, **options)
