"""Meta-training of an initialisation, as a LightningModule."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from lightning_modules.data import TaskDataModule
from meta_init import ALGORITHMS, Sinusoids, Task, sine_mlp, supervised_loss


class MAMLModule(pl.LightningModule):
    """MAML, first-order MAML, Meta-SGD or Reptile under Lightning's Trainer.

    ``Trainer(max_steps=...).fit(MAMLModule())`` trains on sine waves. With a model of your own, give ``fit`` a
    datamodule or loaders that yield `Task` objects, such as `TaskDataModule`. Fit, validate and test need no flag:
    adaptation works under Lightning's inference mode.

    Args:
        model: Any module, held and trained in place. By default `sine_mlp`.
        algorithm: ``"maml"``, ``"fomaml"``, ``"meta_sgd"`` or ``"reptile"``.
        lr: Inner step size; for Meta-SGD the rates' first value or a range.
        steps: Inner steps in training.
        eval_steps: Inner steps in validation and test.
        loss: Of prediction and target; by default `supervised_loss`.
        outer_lr: Learning rate of Adam on what is learned.
        strategy: See `MetaLearner`.
        meta_batch_size: Tasks per step of the built-in sine waves.
        seed: Of the built-in sine waves.

    The plain arguments are saved in checkpoints: ``MAMLModule.load_from_checkpoint(path)``, with ``model=`` and
    ``loss=`` where they were given.

    Logged: ``train/loss`` (query loss after adaptation), ``train/loss_before``, ``train/support_loss`` and, where
    targets are labels, ``train/accuracy``; ``val/loss_before`` and ``val/loss`` after ``eval_steps`` steps, likewise
    with ``accuracy``, and the same under ``test/``.

    Raises:
        ValueError: An unknown algorithm, a negative ``eval_steps``, or see `MetaLearner`.
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        *,
        algorithm: str = "maml",
        lr: float | Sequence[float] = 0.01,
        steps: int = 1,
        eval_steps: int = 10,
        loss: Callable[[Tensor, Tensor], Tensor] | None = None,
        outer_lr: float = 1e-3,
        strategy: str = "auto",
        meta_batch_size: int = 25,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["model", "loss"])
        if algorithm not in ALGORITHMS:
            raise ValueError(f"MAMLModule: unknown algorithm {algorithm!r}; there are {sorted(ALGORITHMS)}")
        if eval_steps < 0:
            raise ValueError(f"MAMLModule: eval_steps must be >= 0, got {eval_steps}")
        if not (math.isfinite(outer_lr) and outer_lr >= 0):
            raise ValueError(f"MAMLModule: outer_lr must be a finite number >= 0, got {outer_lr}")
        self.learner = ALGORITHMS[algorithm](
            sine_mlp() if model is None else model, lr=lr, steps=steps, loss=loss or supervised_loss, strategy=strategy
        )
        self.eval_steps = eval_steps
        self.outer_lr = outer_lr
        if model is None:
            # Only this module brings tasks of its own; with a model of yours Lightning asks for your loaders.
            waves = TaskDataModule(Sinusoids(), meta_batch_size=meta_batch_size, seed=seed)
            for name in ("train_dataloader", "val_dataloader", "test_dataloader"):
                setattr(self, name, getattr(waves, name))

    def training_step(self, batch: Task, batch_idx: int) -> Tensor:
        loss, logs = self.learner.outer_loss(batch)
        names = {"query_loss": "loss", "query_loss_before": "loss_before"}
        values = {f"train/{names.get(name, name)}": value for name, value in logs.items()}
        self.log_dict(values, batch_size=_count(batch))
        return loss

    def _evaluate(self, batch: Task, role: str) -> None:
        evaluation = self.learner.evaluate(batch, self.eval_steps)
        curves = {"loss": evaluation.losses, "accuracy": evaluation.accuracies}
        for name, curve in curves.items():
            if curve is not None:
                values = {f"{role}/{name}_before": curve[:, 0].mean(), f"{role}/{name}": curve[:, -1].mean()}
                self.log_dict(values, prog_bar=True, batch_size=_count(batch))

    def validation_step(self, batch: Task, batch_idx: int) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: Task, batch_idx: int) -> None:
        self._evaluate(batch, "test")

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.learner.parameters(), lr=self.outer_lr)


def _count(tasks: Task) -> int:
    return tasks.support.y.shape[0] if isinstance(tasks, Task) else len(tasks)
