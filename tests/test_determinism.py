"""Same seed, same result: bit for bit, whoever draws the tasks."""

import logging

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F

from learned_optim import AdamRule, LSTMOptimizer, LSTMRule, MetaSGD, RuleOptimizer
from learned_optim.problems import Quadratics
from lightning_modules import LearnedOptimizerModule, MAMLModule, TaskDataModule
from meta_init import ALGORITHMS, Sinusoids, sine_mlp
from tests.trees import same

logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)


def fitted(module, data=None, *, until=7, save=None, resume=None):
    """What is left of a run of two epochs: weights, optimizer states, and what was logged last."""
    run = pl.Trainer(
        max_steps=until,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    run.fit(module, datamodule=data, ckpt_path=resume)
    if save is not None:
        run.save_checkpoint(save)
    return dict(module.state_dict()), [each.state_dict() for each in run.optimizers], dict(run.callback_metrics)


def learned_init(algorithm="maml", *, seed=0, workers=0, model_seed=0, **where):
    torch.manual_seed(model_seed)
    module = MAMLModule(sine_mlp(8), algorithm=algorithm, steps=2, eval_steps=2)
    tasks = TaskDataModule(
        Sinusoids(shots=5), meta_batch_size=3, steps_per_epoch=4, eval_tasks=5, seed=seed, workers=workers
    )
    return fitted(module, tasks, **where)


def learned_optimizer(*, seed=0, model_seed=0, **options):
    torch.manual_seed(model_seed)
    rule = LSTMRule(("log_sign", "moments"), hidden_size=4, shortcut=True)
    sizes = {"horizon": 12, "window": 4, "instances": 2, "steps_per_epoch": 4, "val_instances": 2}
    return fitted(LearnedOptimizerModule(Quadratics(4), rule, seed=seed, **sizes, **options))


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("algorithm", ["maml", "meta_sgd"])
def test_weights_do_not_depend_on_workers(algorithm, workers):
    assert same(learned_init(algorithm, workers=workers), learned_init(algorithm))


@pytest.mark.parametrize(("before", "after"), [(4, 4), (4, 0), (0, 1)])
def test_a_run_goes_on_with_other_workers(before, after, tmp_path):
    """Workers draw tasks ahead, which the saved position does not count."""
    learned_init(workers=before, until=6, save=tmp_path / "saved.ckpt")
    assert same(learned_init(workers=after, resume=tmp_path / "saved.ckpt")[:2], learned_init()[:2])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_an_initialisation_is_learned_twice_alike(algorithm):
    first = learned_init(algorithm)
    torch.rand(3)  # what others draw from the global stream meanwhile is no matter
    assert same(learned_init(algorithm), first)


SETTINGS = {
    "plain": {},
    "exact": {"first_order": False},
    "sampled": {"coordinates": 2},
    "cosine": {"schedule": "cosine"},
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_an_optimizer_is_learned_twice_alike(setting):
    first = learned_optimizer(**SETTINGS[setting])
    torch.rand(3)
    assert same(learned_optimizer(**SETTINGS[setting]), first)


@pytest.mark.parametrize("learn", [learned_init, learned_optimizer])
def test_other_seeds_give_other_results(learn):
    weights = [learn()[0], learn(seed=1)[0], learn(model_seed=1)[0]]
    for i, own in enumerate(weights):
        for other in weights[i + 1 :]:
            assert not same(own, other)


TRAINED = {
    "checkpoint": lambda params: LSTMOptimizer(params, checkpoint="mnist-mlp"),
    "fresh rule": lambda params: LSTMOptimizer(params, rule=LSTMRule("moments", hidden_size=5)),
    "drawn rates": lambda params: MetaSGD(params, alpha=(0.01, 0.1)),
    "adam": lambda params: RuleOptimizer(params, AdamRule(0.01)),
}


def trained(name, seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(10, 16), nn.Dropout(0.2), nn.ReLU(), nn.Linear(16, 4))
    optimizer = TRAINED[name](model.parameters())
    for _ in range(20):
        x, y = torch.randn(12, 10), torch.randint(4, (12,))
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return dict(model.state_dict()), optimizer.state_dict()


@pytest.mark.parametrize("name", TRAINED)
def test_ordinary_training_twice(name):
    first = trained(name, seed=3)
    assert same(trained(name, seed=3), first)
    assert not same(trained(name, seed=4), first)
