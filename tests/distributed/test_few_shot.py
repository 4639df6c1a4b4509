"""Meta-learning under Lightning's DDP: two processes compute what one does with all of their tasks."""

import os
import warnings
from functools import cache

import pytest
import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import multiprocessing, nn
from torch.testing import assert_close
from torch.utils._pytree import tree_map
from torch.utils.data import Dataset

from lightning_modules import MAMLModule, TaskBatches, TaskDataModule, TaskLoader
from meta_init import ALGORITHMS, Episodes
from meta_init.datasets import Classes

PROCESSES = 2
STEPS = 4
PER_EPOCH = 2
"""Steps of the optimizer."""


class Tasks(TaskDataModule):
    """Three-way tasks of noisy patterns."""

    def __init__(self, **options):
        generator = torch.Generator().manual_seed(0)
        x = torch.rand(8, 1, 6, 6, generator=generator) + 0.5 * torch.rand(8, 6, 6, 6, generator=generator)
        classes = Classes("patterns", x.flatten(0, 1), [str(i) for i in range(8)], [6] * 8)
        super().__init__(Episodes(classes, ways=3, shots=2), meta_batch_size=2, eval_tasks=8, **options)


class Together(Dataset):
    """What the processes have in one step, as one meta-batch."""

    def __init__(self, batches):
        self.batches = batches

    def __getitem__(self, index):
        parts = [self.batches[index * PROCESSES + rank] for rank in range(PROCESSES)]
        return tree_map(lambda *leaves: torch.cat(leaves), *parts)


class Network(nn.Module):
    """Every weight has a gradient that is more than rounding, which Adam would make as large as any other."""

    def __init__(self, *, unused=False):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
        self.head = nn.Linear(16, 3)
        if unused:
            self.unused = nn.Linear(2, 2)

    def forward(self, x):
        return self.head(self.body(x.unsqueeze(-3)))


def fit(algorithm, steps=STEPS, *, together=False, unused=False, strategy="ddp", resume=None):
    """A module and its trainer, after so many steps on the tasks of `PROCESSES` processes."""
    processes = dist.get_world_size() if dist.is_initialized() else 1
    torch.manual_seed(0)
    # The learner's own strategy has nothing to do with the trainer's.
    learning = {"strategy": "loop", "lr": 0.5, "steps": 2, "eval_steps": 3, "outer_lr": 0.01}
    # In double precision from the start: Lightning loads a checkpoint before it turns the module into what it trains.
    module = MAMLModule(Network(unused=unused).double(), algorithm=algorithm, **learning)
    accumulate = 1 if together else PROCESSES // processes
    data = Tasks(steps_per_epoch=PER_EPOCH * accumulate, eval_batch_size=2)
    if together:
        whole = Together(TaskBatches(data.tasks, size=data.meta_batch_size))
        data.train_dataloader = lambda: TaskLoader(whole, PER_EPOCH)
    run = pl.Trainer(
        max_steps=steps, accelerator="cpu", devices=processes, strategy=strategy if processes > 1 else "auto",
        accumulate_grad_batches=accumulate, precision="64-true", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    run.fit(module, datamodule=data, ckpt_path=resume)
    return module, run, data


def weights(module):
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def trained(algorithm, **options):
    module, run, data = fit(algorithm, **options)
    return {
        "params": weights(module),
        "fitted": {name: value for name, value in run.callback_metrics.items() if name.startswith("val/")},
        "validated": run.validate(module, datamodule=data, verbose=False)[0],
        "tested": run.test(module, datamodule=data, verbose=False)[0],
    }


def resumed(path):
    """The second half of a training whose first half others did."""
    return weights(fit("meta_sgd", 2 * STEPS, resume=path)[0])


def half(path):
    fit("meta_sgd")[1].save_checkpoint(path)


def unused_parameters(strategy):
    """Where the second step ends, or what is said."""
    try:
        return weights(fit("maml", 3, unused=True, strategy=strategy)[0])
    except RuntimeError as error:
        return str(error)


def work(rank, folder):
    """One of the processes, which finds itself as under torchrun."""
    torch.set_num_threads(1)
    place = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": PROCESSES, "LOCAL_WORLD_SIZE": PROCESSES}
    address = {"MASTER_ADDR": "localhost", "MASTER_PORT": 0, "TORCHELASTIC_RUN_ID": "tests"}
    os.environ |= {name: str(value) for name, value in (place | address).items()}
    warnings.filterwarnings("error", message=".*sync_dist.*")
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=PROCESSES)
    outcomes = {algorithm: trained(algorithm) for algorithm in ALGORITHMS}
    half(folder / "of two.ckpt")
    outcomes["resumed"] = resumed(folder / "of one.ckpt")
    outcomes["unused, looked for"] = unused_parameters("ddp_find_unused_parameters_true")
    outcomes["unused"] = unused_parameters("ddp")  # last: it leaves a reduction unfinished
    torch.save(outcomes, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("few_shot")
    half(folder / "of one.ckpt")
    multiprocessing.spawn(work, (folder,), nprocs=PROCESSES)
    return folder


@pytest.fixture(scope="module")
def outcomes(folder):
    return [torch.load(folder / f"{rank}.pt") for rank in range(PROCESSES)]


alone = cache(trained)


def same(outcome, expected):
    assert_close(outcome, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("together", [False, True], ids=["accumulated", "one meta-batch"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_steps_equal_those_of_one_process_with_all_tasks(outcomes, algorithm, together):
    expected = alone(algorithm, together=together)["params"]
    for outcome in outcomes:
        same(outcome[algorithm]["params"], expected)


@pytest.mark.parametrize("part", ["fitted", "validated", "tested"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_validation_and_test_equal_those_of_one_process(outcomes, algorithm, part):
    """On the same eight tasks, and on every process, so that all stop and select alike."""
    expected = alone(algorithm)[part]
    role = "test" if part == "tested" else "val"
    assert {f"{role}/accuracy", f"{role}/accuracy_interval", f"{role}/loss_interval"} <= set(expected)
    for outcome in outcomes:
        # Lightning's logged values are float32.
        assert_close(dict(outcome[algorithm][part]), dict(expected), rtol=1e-6, atol=1e-6)


def test_two_processes_take_over_from_one_and_one_from_two(folder, outcomes):
    whole = weights(fit("meta_sgd", 2 * STEPS)[0])
    assert not torch.equal(whole["learner.model.head.weight"], alone("meta_sgd")["params"]["learner.model.head.weight"])
    same(resumed(folder / "of two.ckpt"), whole)
    for outcome in outcomes:
        same(outcome["resumed"], whole)


def test_unused_parameters_are_found_or_told(outcomes):
    expected = weights(fit("maml", 3, unused=True)[0])
    for outcome in outcomes:
        same(outcome["unused, looked for"], expected)
        assert "find_unused_parameters" in outcome["unused"]


def test_what_cannot_be_shared_evenly_is_rounded_up(monkeypatch):
    monkeypatch.setattr("lightning_modules.data.process", lambda: (1, 2))
    assert len(Tasks(eval_batch_size=8).val_dataloader()) == 1
    loader = Tasks().train_dataloader()
    loader.load_state_dict({"position": 5})
    assert loader.state_dict() == {"position": 6}
