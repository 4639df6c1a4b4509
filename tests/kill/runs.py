"""The runs that are killed: they save often, and go on from their last checkpoint when they are started again."""

import logging
import tempfile
import warnings
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from torch import nn
from torch.utils.data import Dataset

from learned_optim import LSTMOptimizer, LSTMRule
from learned_optim.problems import Quadratics
from learned_optim.seeds import seeded
from lightning_modules import AtomicCheckpointIO, LearnedOptimizerModule, MAMLModule, TaskDataModule, TaskLoader
from meta_init import Sinusoids, sine_mlp

SAVE_EVERY = 2
EPOCH = 15


class Minibatches(Dataset):
    """Numbered minibatches of a regression problem."""

    def __getitem__(self, index):
        x = torch.randn(20, 8, generator=seeded("minibatch", index))
        return x, x.prod(dim=1, keepdim=True) + x.sum(dim=1, keepdim=True)


class Regression(pl.LightningModule):
    """A LightningModule that knows nothing of us but the optimizer that it returns."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return (self.net(x) - y).square().mean()

    def configure_optimizers(self):
        return LSTMOptimizer(self.parameters(), checkpoint="mnist-mlp")


def learn_optimizer():
    sizes = {"horizon": 12, "window": 4, "instances": 2, "val_instances": 2, "steps_per_epoch": EPOCH}
    return LearnedOptimizerModule(Quadratics(5), LSTMRule(hidden_size=8), **sizes), {}


def learn_init():
    tasks = TaskDataModule(Sinusoids(), meta_batch_size=4, steps_per_epoch=EPOCH, eval_tasks=5)
    return MAMLModule(sine_mlp(), algorithm="meta_sgd"), {"datamodule": tasks}


def train():
    return Regression(), {"train_dataloaders": TaskLoader(Minibatches(), EPOCH)}


KINDS = {"learn-optimizer": learn_optimizer, "learn-init": learn_init, "train": train}


class TellsOfItsFirstStep(Callback):
    def __init__(self, connection):
        self.connection = connection

    def on_train_batch_end(self, *_):
        if self.connection is not None:
            self.connection.send("stepping")
            self.connection = None


def run(kind, folder, temporary, steps, connection):
    """Trains in a folder, from the last checkpoint that is there.

    Args:
        kind: A name in `KINDS`.
        folder: It gets ``saved/*.ckpt`` and at the end ``final.pt``.
        temporary: Where files begin that get their name when they are whole.
        steps: Until when.
        connection: Gets a message after the first step and one at the end.
    """
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tempfile.tempdir = temporary
    Path(temporary).mkdir(parents=True, exist_ok=True)
    module, data = KINDS[kind]()
    saving = ModelCheckpoint(f"{folder}/saved", filename="{step}", save_last=True, every_n_train_steps=SAVE_EVERY)
    trainer = pl.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        plugins=[AtomicCheckpointIO()],
        callbacks=[saving, TellsOfItsFirstStep(connection)],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, **data, ckpt_path="last")
    final = {"weights": module.state_dict(), "optimizers": [each.state_dict() for each in trainer.optimizers]}
    torch.save(final, f"{folder}/final.pt")
    connection.send("finished")
