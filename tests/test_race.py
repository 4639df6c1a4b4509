"""Problems, and races between optimizers that train them."""

import math
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from learned_optim import RuleOptimizer, SGDRule
from learned_optim.data import ImageSet
from learned_optim.problems import ImageClassification, Quadratics, mlp
from learned_optim.race import (
    BASELINES,
    Entrant,
    Job,
    RaceError,
    entrant,
    race,
    repeat,
    third_decades,
    trailing_mean,
    train,
    tune,
    workers,
)
from learned_optim.seeds import seeded


def sgd(lr):
    return lambda params: RuleOptimizer(params, SGDRule(lr))


def small_images():
    torch.manual_seed(0)
    y = torch.arange(40) % 2
    x = (torch.rand(40, 4, 4) * 100 + 100 * y.reshape(-1, 1, 1)).to(torch.uint8)
    return ImageSet("small", x[:30], y[:30], x[30:], y[30:])


FAMILIES = {
    "quadratics": lambda: Quadratics(4),
    "images": lambda: ImageClassification(small_images(), lambda: mlp((5,), inputs=16, outputs=2), batch_size=8),
}
families = pytest.mark.parametrize("name", FAMILIES)


@families
def test_a_problem_is_its_seed(name):
    family = FAMILIES[name]()
    before = torch.get_rng_state()
    one, same, other = (family.sample(seeded("problem", seed)) for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert_close(one.params, same.params, rtol=0, atol=0)
    assert any(not torch.equal(one.params[key], other.params[key]) for key in one.params)
    batches = [problem.batch(seeded("batch")) for problem in (one, same)]
    assert_close(*batches, rtol=0, atol=0)
    assert family.loss(one.params, batches[0]).shape == ()


@families
def test_every_optimizer_meets_the_same_problem(name):
    family = FAMILIES[name]()
    still, moving = (train(family, sgd(lr), steps=3, seed=5).losses for lr in (0.0, 0.01))
    assert still[0] == moving[0]
    assert still[1] != moving[1]
    assert still[0] != train(family, sgd(0.0), steps=3, seed=5, role="val").losses[0]


def test_test_losses():
    assert torch.isnan(train(FAMILIES["quadratics"](), sgd(0.01), steps=2, seed=0).test_loss)
    family = FAMILIES["images"]()
    run = repeat(family, sgd(0.5), steps=60, seeds=(0, 1))
    assert run.losses.shape == (2, 60)
    assert run.test_loss.shape == (2,)
    assert (run.test_loss < 0.6).all()


def test_what_draws_from_the_global_generator_is_seeded():
    class Noisy(Quadratics):
        def loss(self, params, batch):
            return super().loss(params, batch) + torch.rand(())

    before = torch.get_rng_state()
    one, same = (train(Noisy(4), sgd(0.01), steps=3, seed=0).losses for _ in range(2))
    assert torch.equal(one, same)
    assert torch.equal(before, torch.get_rng_state())


def test_third_decades():
    assert third_decades(0.01, 1.0) == (0.01, 0.022, 0.046, 0.1, 0.22, 0.46, 1.0)


def test_trailing_mean():
    losses = torch.tensor([[6.0, 2.0, 1.0, 3.0], [1.0, math.nan, 1.0, 3.0]])
    means = trailing_mean(losses, 2)
    expected = torch.tensor([[6.0, 4.0, 1.5, 2.0], [1.0, math.nan, math.nan, 2.0]], dtype=torch.float64)
    assert_close(means, expected, equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_can_be_made_everywhere_on_its_ladders(name):
    entrant = BASELINES[name]
    low, high = entrant.scan
    assert low in entrant.ladders["lr"]
    assert high in entrant.ladders["lr"]
    for option, ladder in entrant.ladders.items():
        assert list(ladder) == sorted(set(ladder))
        assert option == "lr" or entrant.setting[option] in ladder
        for value in ladder:
            optimizer = entrant.make(
                [("theta", torch.zeros(2, requires_grad=True))], **{**entrant.setting, option: value}
            )
            group = optimizer.param_groups[0]
            assert (group["betas"][0] if option == "beta1" else group[option]) == value


def scored(function):
    """What does jobs without training: the loss of every step is a function of the setting."""

    def run(jobs):
        for job in jobs:
            loss = torch.full((job.steps,), float(function(job.seed, **job.setting)))
            yield repeat(Quadratics(1), sgd(0.0), steps=1, seeds=(0,))._replace(losses=loss, seconds=torch.tensor(2.0))

    return run


def bowl(*, lr, momentum=0.9, at=0.022, best=0.9):
    # Momentum and learning rate make up for each other, as they do in training.
    return math.log(lr / (1 - momentum) * (1 - best) / at) ** 2 + 3 * math.log((1 - momentum) / (1 - best)) ** 2


@pytest.mark.parametrize("at", [1e-5, 0.001, 0.1, 1.0, 100.0])
@pytest.mark.parametrize("name", ["sgd", "nag"])
def test_the_best_is_inside_wherever_the_first_rates_lie(name, at):
    best = 0.9 if name == "sgd" else 0.98
    entrant = BASELINES[name]
    run = scored(lambda seed, **setting: seed + bowl(at=at, best=best, **{"momentum": best, **setting}))
    tuning = tune(entrant, run, steps=3, seeds=(0, 1), window=1, rounds=20)
    assert tuning.inside
    assert tuning.best.setting["lr"] == at
    assert tuning.best.setting.get("momentum", best) == best
    assert tuning.best.loss == pytest.approx(0.5)
    assert tuning.runs == 2 * len(tuning.trials)
    assert (tuning.steps, tuning.seconds) == (3 * tuning.runs, 2.0 * 3 * tuning.runs)
    assert len({str(trial.setting) for trial in tuning.trials}) == len(tuning.trials)


def test_two_options_cost_less_than_twenty_settings():
    run = scored(lambda seed, **setting: bowl(at=0.46, best=0.95, **setting))
    assert len(tune(BASELINES["momentum"], run, steps=1, seeds=(0,), window=1).trials) < 20


def test_a_search_that_ends_too_early_says_so():
    run = scored(lambda seed, lr: lr)
    assert not tune(BASELINES["sgd"], run, steps=1, seeds=(0,), window=1).inside
    end = Entrant("end", torch.optim.SGD, ladders={"lr": (0.1, 1.0)})
    tuning = tune(end, run, steps=1, seeds=(0,), window=1)
    assert (tuning.best.setting, tuning.inside) == ({"lr": 0.1}, False)


def test_zero_momentum_has_nothing_beyond():
    run = scored(lambda seed, lr, momentum: momentum + abs(math.log(lr)))
    tuning = tune(BASELINES["nag"], run, steps=1, seeds=(0,), window=1)
    assert (tuning.best.setting, tuning.inside) == ({"lr": 1.0, "momentum": 0.0}, True)


def test_what_is_not_finite_loses_and_the_search_leaves_it():
    run = scored(lambda seed, lr: math.nan if lr > 0.03 * (1 + seed) else -lr)
    tuning = tune(BASELINES["sgd"], run, steps=1, seeds=(0, 1), window=1)
    assert tuning.best.setting == {"lr": 0.022}
    assert tuning.inside
    assert math.inf in [trial.loss for trial in tuning.trials]


def test_the_window_counts():
    def run(jobs):
        for job in jobs:
            losses = torch.tensor([0.0, 10.0, 1.0]) if job.setting["lr"] == 1.0 else torch.tensor([9.0, 0.0, 2.0])
            yield train(Quadratics(1), sgd(0.0), steps=1, seed=0)._replace(losses=losses)

    entrant = Entrant("two", torch.optim.SGD, ladders={"lr": (0.1, 1.0)})
    best = [tune(entrant, run, steps=3, seeds=(0,), window=window).best.setting["lr"] for window in (1, 2)]
    assert best == [1.0, 0.1]


def test_a_race():
    family = FAMILIES["quadratics"]()
    told = []
    baseline = Entrant("SGD", torch.optim.SGD, {"lr": 1e-3}, {"lr": (1e-4, 1e-2, 1e2)})
    result = race(
        family, {"learned": sgd(0.01), "baseline": baseline}, steps=20, seeds=(0, 3), tune=True, tuning_seeds=1,
        progress=lambda *news: told.append(news),
    )  # fmt: skip
    learned, tuned = result.entries
    assert [(entry.name, entry.hand_designed) for entry in result.entries] == [("learned", False), ("baseline", True)]
    assert tuned.setting == {"lr": 1e-2}
    assert (learned.setting, learned.tuning) == ({}, None)
    assert (tuned.tuning.runs, tuned.tuning.steps, tuned.tuning.inside) == (3, 60, True)
    assert tuned.tuning.trials[-1].loss == math.inf
    validation = repeat(family, sgd(0.01), steps=20, seeds=(0,), role="val").losses[:, -2:].mean()
    assert tuned.tuning.best.loss == pytest.approx(float(validation))
    assert_close(torch.tensor(learned.final), torch.tensor(tuned.final))
    expected = repeat(family, sgd(0.01), steps=20, seeds=(0, 3)).losses
    assert_close(torch.tensor(learned.final), expected[:, -2:].mean(dim=1), rtol=1e-5, atol=0)
    assert_close(torch.tensor(learned.curves), expected, rtol=1e-5, atol=0)
    assert_close(torch.tensor(result.initial), expected[:, 0], rtol=1e-5, atol=0)
    assert result.best == "baseline"
    assert result.ratio(learned).mean == pytest.approx(1.0, rel=1e-4)
    assert learned.test is None
    assert told[0] == ("tuning baseline", 1, 7)
    assert [news[0] for news in told] == ["tuning baseline"] * 3 + ["running learned"] * 2 + ["running baseline"] * 2
    assert [news[1:] for news in told] == [(done, 7) for done in range(1, 8)]


def test_untuned_optimizers_have_the_defaults_of_torch():
    result = race("quadratics", [*BASELINES, "adam@0.02"], steps=2, seeds=1)
    params = [torch.zeros(1, requires_grad=True)]
    for name, entry in zip(BASELINES, result.entries, strict=False):
        if name in ("momentum", "nag"):
            assert entry.setting == {"lr": torch.optim.SGD(params).defaults["lr"], "momentum": 0.9}
            continue
        defaults = getattr(torch.optim, BASELINES[name].name)(params).defaults
        for option, value in entry.setting.items():
            assert value == (defaults["betas"][0] if option == "beta1" else defaults[option]), (name, option)
    assert all(entry.tuning is None for entry in result.entries)
    assert result.tuning_seeds == ()
    assert result.entries[-1].name == "Adam@0.02"
    assert result.entries[-1].setting == {"lr": 0.02, "beta1": 0.9}


def test_a_tuning_that_is_handed_over_is_not_done_again():
    options = {"steps": 10, "seeds": 2, "tune": True, "tuning_seeds": 2}
    runs = []
    first = race("quadratics", ["adam", "sgd"], **options)
    known = first.tunings(steps=10, tuning_seeds=(0, 1))
    again = race(
        "quadratics", ["adam", "sgd"], tunings=known, progress=lambda *told: runs.append(told), **options
    )  # fmt: skip
    assert len(runs) == 4
    assert [(one.name, one.final, one.tuning) for one in again.entries] == [
        (one.name, one.final, one.tuning) for one in first.entries
    ]
    assert first.tunings(steps=11, tuning_seeds=(0, 1)) == first.tunings(steps=10, tuning_seeds=(0, 2)) == {}


def test_a_fixed_rate_is_not_tuned():
    result = race("quadratics", ["sgd@0.01", "adagrad"], steps=3, seeds=1, tune=True, tuning_seeds=1)
    assert [entry.tuning is None for entry in result.entries] == [True, False]


@families
def test_processes_change_nothing_but_the_time(name):
    if name == "images":
        family = ImageClassification(small_images(), small_network, batch_size=8)
        optimizers = {"LSTM": "lstm:mnist-mlp", "fixed": "sgd@0.1"}
    else:
        family, optimizers = "quadratics", ["rule:mnist-mlp", "sgd"]
    options = {"steps": 6, "seeds": 2, "tune": True, "tuning_seeds": 1}
    one, two = (race(family, optimizers, jobs=jobs, **options) for jobs in (1, 2))
    assert timeless(one) == timeless(two)


def test_what_is_untrained_has_the_rule_and_the_guard_but_not_the_weights():
    names = ["untrained:mnist-mlp", "lstm:mnist-mlp"]
    before = torch.get_rng_state()
    first, again = (race("quadratics", names, steps=6, seeds=2) for _ in range(2))
    assert timeless(first) == timeless(again)
    assert torch.equal(torch.get_rng_state(), before)
    fresh, trained = (entrant(name).make([torch.nn.Parameter(torch.ones(2))]) for name in names)
    assert fresh.rule.config() == trained.rule.config()
    assert fresh.guard == trained.guard
    assert fresh.rule.state_dict().keys() == trained.rule.state_dict().keys()
    assert not torch.equal(fresh.rule.weights[0], trained.rule.weights[0])
    assert [entry.hand_designed for entry in first.entries] == [False, False]


def small_network():
    return mlp((5,), inputs=16, outputs=2)


def timeless(result):
    entries = tuple(
        replace(
            entry,
            seconds_per_step=(),
            tuning=entry.tuning and replace(entry.tuning, seconds=0.0),
        )
        for entry in result.entries
    )
    return replace(result, entries=entries, machine={})


def test_a_device_changes_nothing_but_where_it_is():
    options = {"steps": 5, "seeds": 2, "tune": True, "tuning_seeds": 1}
    here, there = (race("quadratics", ["sgd"], device=device, **options) for device in (None, "cpu"))
    assert here.entry("SGD").final == there.entry("SGD").final
    assert here.entry("SGD").tuning.trials == there.entry("SGD").tuning.trials
    assert there.machine["device"].startswith("cpu")
    with pytest.raises(RaceError, match="device must be one that there is here, got 'nowhere'"):
        race("quadratics", ["sgd"], device="nowhere")


def test_workers_keep_the_order_of_the_jobs():
    jobs = [Job(torch.optim.SGD, {"lr": 0.01}, 3, seed) for seed in (4, 1, 2)]
    with workers("quadratics", 2) as run:
        losses = [one.losses for one in run(jobs)]
    expected = repeat(Quadratics(), sgd(0.01), steps=3, seeds=(4, 1, 2)).losses
    assert_close(torch.stack(losses), expected)
