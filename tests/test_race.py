"""Problems and races."""

import math

import pytest
import torch
from torch.testing import assert_close

from learned_optim import RuleOptimizer, SGDRule
from learned_optim.data import ImageSet
from learned_optim.problems import ImageClassification, Quadratics, mlp
from learned_optim.race import Baseline, draw, race, repeat, sweep, table, third_decades, train, tune
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


def test_tuning_picks_the_lowest_finite_loss():
    losses = {0.1: torch.tensor([[3.0, 2.0]]), 1.0: torch.tensor([[3.0, 1.0]]), 10.0: torch.tensor([[3.0, math.nan]])}
    tuned = tune(losses)
    assert tuned.lr == 1.0
    assert tuned.inside
    assert tuned.scores == {0.1: 2.0, 1.0: 1.0, 10.0: math.inf}
    assert not tune({0.1: losses[0.1], 1.0: losses[1.0]}).inside
    assert tune(losses, slice(0, 1)).scores == {0.1: 3.0, 1.0: 3.0, 10.0: 3.0}


def test_third_decades():
    assert third_decades(0.01, 1.0) == (0.01, 0.022, 0.046, 0.1, 0.22, 0.46, 1.0)


def test_a_race(tmp_path):
    family = FAMILIES["quadratics"]()
    told = []
    baselines = {"SGD": Baseline(torch.optim.SGD, (1e-4, 1e-2, 1e2))}
    runs, tuned = race(
        family, {"learned": sgd(0.01)}, steps=20, seeds=(0, 1), baselines=baselines, tuning_seeds=(0,),
        progress=lambda *news: told.append(news),
    )  # fmt: skip
    assert list(runs) == ["learned", "SGD"]
    assert tuned["SGD"].lr == 1e-2
    assert tuned["SGD"].scores[1e2] == math.inf
    assert_close(runs["learned"].losses, runs["SGD"].losses)
    assert told == [("tuned SGD", 1, 3), ("ran learned", 2, 3), ("ran SGD", 3, 3)]
    scores = {
        lr: float(value[:, -1:].mean()) for lr, value in sweep(family, baselines["SGD"], steps=20, seeds=(0,)).items()
    }
    assert scores[1e-2] == pytest.approx(tuned["SGD"].scores[1e-2])
    lines = table(runs, [10, 20]).splitlines()
    assert len(lines) == 3
    assert f"{runs['SGD'].losses[:, 10:].mean():.4f}" in lines[2]
    draw(runs, tmp_path / "race.png", title="race")
    assert (tmp_path / "race.png").read_bytes().startswith(b"\x89PNG")
