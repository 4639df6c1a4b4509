"""Meta-training of optimizers under Lightning's DDP: two processes with a problem each are one process with both."""

import os

import pytest
import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import multiprocessing
from torch.testing import assert_close

from learned_optim import LSTMRule
from learned_optim.problems import Quadratics
from lightning_modules import LearnedOptimizerModule

PROCESSES, STEPS = 2, 8
SAVED_AT = {"within a horizon": 4, "between two": 3}
CASES = {
    "windows": {},
    "log objective": {"objective": "log", "late_weight": 1.0},
    "curriculum": {"curriculum": (4,), "patience": 1, "outer_lr": 0.05},
}


def fit(name, steps=STEPS, resume=None):
    """The weights after so many steps on two problems, and the run."""
    processes = dist.get_world_size() if dist.is_initialized() else 1
    torch.manual_seed(0)
    module = LearnedOptimizerModule(
        Quadratics(3), LSTMRule(hidden_size=3), horizon=12, window=4, instances=PROCESSES // processes,
        steps_per_epoch=3, val_instances=4, **{"outer_lr": 0.01, **CASES[name]},
    ).double()  # fmt: skip
    run = pl.Trainer(
        max_steps=steps, accelerator="cpu", devices=processes, strategy="ddp" if processes > 1 else "auto",
        precision="64-true", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    run.fit(module, ckpt_path=resume)
    return module, run


def trained(name):
    module, run = fit(name)
    return {"phi": weights(module), "stage": module.curriculum.stage, "loss": run.callback_metrics["val/loss"]}


def weights(module):
    return {key: p.detach().clone() for key, p in module.rule.named_parameters()}


def work(rank, folder):
    torch.set_num_threads(1)
    place = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": PROCESSES, "LOCAL_WORLD_SIZE": PROCESSES}
    address = {"MASTER_ADDR": "localhost", "MASTER_PORT": 0, "TORCHELASTIC_RUN_ID": "tests"}
    os.environ |= {name: str(value) for name, value in (place | address).items()}
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=PROCESSES)
    outcomes = {name: trained(name) for name in CASES}
    for place, steps in SAVED_AT.items():
        fit("windows", steps)[1].save_checkpoint(folder / f"{place}.ckpt")
        outcomes[place] = weights(fit("windows", resume=folder / f"{place}.ckpt")[0])
    torch.save(outcomes, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("learn_optimizer")
    multiprocessing.spawn(work, (folder,), nprocs=PROCESSES)
    return folder


@pytest.fixture(scope="module")
def outcomes(folder):
    return [torch.load(folder / f"{rank}.pt") for rank in range(PROCESSES)]


@pytest.mark.parametrize("name", CASES)
def test_two_processes_are_one_with_both_problems(outcomes, name):
    expected = trained(name)
    for outcome in outcomes:
        assert_close(outcome[name]["phi"], expected["phi"], rtol=0, atol=1e-9)
        assert outcome[name]["stage"] == expected["stage"]
        assert_close(outcome[name]["loss"], expected["loss"], rtol=1e-6, atol=1e-6)  # logged as float32


@pytest.mark.parametrize("place", SAVED_AT)
def test_each_process_goes_on_with_its_own_problem(outcomes, place):
    for outcome in outcomes:
        assert_close(outcome[place], outcome["windows"]["phi"], rtol=0, atol=1e-12)


def test_another_number_of_processes_takes_new_problems(folder):
    module, _ = fit("windows", 5, resume=folder / "within a horizon.ckpt")
    assert (module.running.current.number, module.running.current.position) == (2, 4)
