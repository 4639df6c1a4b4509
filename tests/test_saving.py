"""Learners in files."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from learned_optim import CheckpointError, LSTMRule, MetaSGD, load_checkpoint, save_checkpoint
from meta_init import (
    ALGORITHMS,
    Batch,
    few_shot_mlp,
    load_initialisation,
    load_learner,
    maml,
    meta_sgd,
    save_learner,
    sine_mlp,
)

SUPPORT = Batch(torch.randn(4, 1, generator=torch.Generator().manual_seed(0)), torch.ones(4, 1))


def learner(name, model=None):
    torch.manual_seed(0)
    made = ALGORITHMS[name](sine_mlp(7) if model is None else model, lr=0.1, steps=2)
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.01 * torch.randn_like(p))
    return made


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_loaded_learner_adapts_like_the_saved_one(name, tmp_path):
    saved = learner(name)
    save_learner(tmp_path / "x", saved, network={"name": "sine_mlp", "hidden": 7}, record={"seed": 3})
    loaded = load_learner(tmp_path / "x")
    assert_close(loaded.adapt(SUPPORT, 3).params, saved.adapt(SUPPORT, 3).params, rtol=0, atol=0)
    assert (loaded.steps, loaded.first_order, loaded.adapts) == (saved.steps, saved.first_order, saved.adapts)
    assert all(p.requires_grad for p in loaded.parameters())


def test_half_precision_halves_the_file_and_computes_in_float32(tmp_path):
    saved = meta_sgd(few_shot_mlp(5, inputs=100), lr=0.1)
    for name, dtype in (("whole", None), ("half", torch.float16)):
        save_learner(tmp_path / name, saved, dtype=dtype)
    assert (tmp_path / "half").stat().st_size < 0.6 * (tmp_path / "whole").stat().st_size
    loaded = load_learner(tmp_path / "half", few_shot_mlp(5, inputs=100))
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert {p.dtype for p in saved.parameters()} == {torch.float32}
    assert_close(list(loaded.parameters()), list(saved.parameters()), rtol=1e-3, atol=1e-6)
    model = few_shot_mlp(5, inputs=100)
    optimizer = MetaSGD(model.parameters(), checkpoint=tmp_path / "half")
    model(torch.rand(6, 100)).sum().backward()
    optimizer.step()
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_an_ordinary_loop_with_the_initialisation_and_the_rates_is_adaptation(tmp_path):
    saved = learner("meta_sgd")
    save_learner(tmp_path / "x", saved)
    model = sine_mlp(7)
    load_initialisation(model, tmp_path / "x")
    optimizer = MetaSGD(model.parameters(), checkpoint=tmp_path / "x")
    for _ in range(3):
        optimizer.zero_grad()
        (model(SUPPORT.x) - SUPPORT.y).square().mean().backward()
        optimizer.step()
    assert_close(dict(model.named_parameters()), saved.adapt(SUPPORT, 3).params)


def test_a_model_of_your_own_keeps_its_type_and_tied_weights_are_saved(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.b(self.a(x))

    saved = maml(Tied(), lr=0.1)
    save_learner(tmp_path / "x", saved)
    mine = Tied().double()
    loaded = load_learner(tmp_path / "x", mine)
    assert loaded.model is mine
    assert_close(mine.a.weight, saved.model.a.weight.double())


def rule_file(folder):
    save_checkpoint(folder / "x", LSTMRule())


def no_network(folder):
    save_learner(folder / "x", learner("maml"))


def other_network(folder):
    save_checkpoint(
        folder / "x", learner("maml").rule, model={}, record={"learner": {"network": {"name": "os.system"}}}
    )


def other_argument(folder):
    network = {"name": "sine_mlp", "hiden": 7}
    save_checkpoint(folder / "x", learner("maml").rule, record={"learner": {"network": network}})


def no_steps(folder):
    made = learner("maml")
    settings = {"network": {"name": "sine_mlp", "hidden": 7}, "steps": -1}
    save_checkpoint(folder / "x", made.rule, model=made.model.state_dict(), record={"learner": settings})


BAD = {
    "a rule alone": (rule_file, CheckpointError, "holds a rule, but no learner"),
    "no network": (no_network, ValueError, "does not say what its network is"),
    "a network that is none": (other_network, CheckpointError, "unknown network 'os.system'"),
    "an unknown argument": (other_argument, CheckpointError, "its network cannot be made: .*hiden"),
    "steps": (no_steps, CheckpointError, "its learner cannot be made: .*steps"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_file_that_does_not_do_is_told(case, tmp_path):
    write, kind, message = BAD[case]
    write(tmp_path)
    with pytest.raises(kind, match=message):
        load_learner(tmp_path / "x")


def test_a_model_that_does_not_fit_is_left_as_it_was(tmp_path):
    save_learner(tmp_path / "x", meta_sgd(few_shot_mlp(5, [8], inputs=4), lr=0.1))
    model = few_shot_mlp(3, [8], inputs=4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"shape \(5,.*\(3,"):
        load_initialisation(model, tmp_path / "x")
    assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
    assert load_checkpoint(tmp_path / "x").names == [name for name, _ in model.named_parameters()]


def test_a_network_that_is_not_the_learners_is_refused(tmp_path):
    with pytest.raises(ValueError, match="does not make the learner's model"):
        save_learner(tmp_path / "x", learner("maml"), network={"name": "sine_mlp", "hidden": 8})
    assert not (tmp_path / "x").exists()
