"""Meta-training of an initialisation, as a LightningModule."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor, nn

from lightning_modules.data import TaskDataModule
from lightning_modules.schedule import check_schedule, scheduled
from meta_init import ALGORITHMS, CompiledGradient, MetaLearner, Sinusoids, Task, as_tasks, sine_mlp, supervised_loss

_OUTER: dict[str, Callable[..., torch.optim.Optimizer]] = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}

_INTERVAL = 1.96
"""Standard errors on each side of a mean for 95 %."""


class MAMLModule(pl.LightningModule):
    """MAML, Meta-SGD, Reptile, ANIL and the others, or a learner of your own, under Lightning's Trainer.

    ``Trainer(max_steps=...).fit(MAMLModule())`` trains on sine waves. With a model of your own, give ``fit`` a
    datamodule or loaders that yield `Task` objects, such as `TaskDataModule`. Fit, validate and test need no flag:
    adaptation works under Lightning's inference mode.

    Args:
        model: Any module, held and trained in place. By default `sine_mlp`.
        algorithm: A name in `meta_init.ALGORITHMS`.
        lr: Inner step size; for Meta-SGD the rates' first value or a range.
        steps: Inner steps in training.
        eval_steps: Inner steps in validation and test.
        loss: Of prediction and target; by default `supervised_loss`.
        outer_lr: Learning rate of the outer optimizer on what is learned.
        outer_optimizer: ``"adam"`` or ``"sgd"``, with which Reptile is the paper's: ``outer_lr`` is its epsilon then.
        schedule: ``"constant"``, or ``"cosine"``: to zero over the trainer's steps.
        first_order_epochs: Inner gradients are constants for so many epochs (derivative-order annealing).
        multi_step_epochs: The query loss is taken after every inner step, with weights that go from equal ones to the
            last step alone over so many epochs (multi-step loss).
        options: More arguments of the algorithm, such as ``{"head": "fc.*"}`` of ANIL.
        strategy: See `MetaLearner`.
        compile: See `MetaLearner`; the time it takes is told.
        meta_batch_size: Tasks per step of the built-in sine waves.
        seed: Of the built-in sine waves.
        learner: Instead of model and algorithm: a `MetaLearner`, or any module with its ``outer_loss`` and
            ``evaluate``, such as those of `meta_init.baselines`.

    The plain arguments are saved in checkpoints: ``MAMLModule.load_from_checkpoint(path)``, with ``model=``, ``loss=``
    and ``learner=`` where they were given.

    Logged: ``train/loss`` (query loss after adaptation), ``train/loss_before``, ``train/support_loss`` and, where
    targets are labels, ``train/accuracy``; ``val/loss_before`` and ``val/loss`` after ``eval_steps`` steps, likewise
    with ``accuracy``, the half-width of the mean's 95 % interval as ``val/loss_interval`` and
    ``val/accuracy_interval``, and the same under ``test/``.

    Raises:
        ValueError: An unknown algorithm, both a model and a learner, a count below 0, an unknown schedule or outer
            optimizer, or see `MetaLearner`.

    Source: derivative-order annealing, multi-step loss and the cosine schedule: Antoniou et al. 2019 (MAML++),
    section 4.
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        *,
        algorithm: str = "maml",
        lr: float | Sequence[float] = 0.01,
        steps: int = 1,
        eval_steps: int = 10,
        loss: Callable[[Any, Tensor], Tensor] | None = None,
        outer_lr: float = 1e-3,
        outer_optimizer: str = "adam",
        schedule: str = "constant",
        first_order_epochs: int = 0,
        multi_step_epochs: int = 0,
        options: Mapping[str, Any] | None = None,
        strategy: str = "auto",
        compile: bool = False,
        meta_batch_size: int = 25,
        seed: int = 0,
        learner: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["model", "loss", "learner"])
        if algorithm not in ALGORITHMS:
            raise ValueError(f"MAMLModule: unknown algorithm {algorithm!r}; there are {sorted(ALGORITHMS)}")
        if model is not None and learner is not None:
            raise ValueError("MAMLModule: give a model or a learner, not both; a learner holds its model")
        counts = {"eval_steps": eval_steps, "first_order_epochs": first_order_epochs}
        for name, count in (counts | {"multi_step_epochs": multi_step_epochs}).items():
            if count < 0:
                raise ValueError(f"MAMLModule: {name} must be >= 0, got {count}")
        if not (math.isfinite(outer_lr) and outer_lr >= 0):
            raise ValueError(f"MAMLModule: outer_lr must be a finite number >= 0, got {outer_lr}")
        if outer_optimizer not in _OUTER:
            raise ValueError(f"MAMLModule: outer_optimizer must be one of {sorted(_OUTER)}, got {outer_optimizer!r}")
        if learner is None:
            learner = ALGORITHMS[algorithm](
                sine_mlp() if model is None else model,
                lr=lr,
                steps=steps,
                loss=loss or supervised_loss,
                strategy=strategy,
                compile=compile,
                **dict(options or {}),
            )
            if model is None:
                # Only this module brings tasks of its own; with a model of yours Lightning asks for your loaders.
                waves = TaskDataModule(Sinusoids(), meta_batch_size=meta_batch_size, seed=seed)
                for name in ("train_dataloader", "val_dataloader", "test_dataloader"):
                    setattr(self, name, getattr(waves, name))
        if (first_order_epochs or multi_step_epochs) and not isinstance(learner, MetaLearner):
            raise ValueError(f"MAMLModule: {type(learner).__name__} has no inner steps whose derivatives could change")
        self.learner: Any = learner
        self.eval_steps = eval_steps
        self.outer_optimizer = outer_optimizer
        self.outer_lr, self.schedule = outer_lr, check_schedule(schedule, "MAMLModule")
        self.first_order_epochs, self.multi_step_epochs = first_order_epochs, multi_step_epochs
        self._curves: dict[str, list[Tensor]] = {}

    def on_train_epoch_start(self) -> None:
        if self.first_order_epochs:
            self.learner.first_order = self.current_epoch < self.first_order_epochs
        if self.multi_step_epochs:
            done = min(self.current_epoch / self.multi_step_epochs, 1.0)
            equal = (1 - done) / self.learner.steps
            self.learner.step_weights = [equal] * (self.learner.steps - 1) + [equal + done] if done < 1 else None

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        tasks = as_tasks(batch)
        loss: Tensor
        compiled: CompiledGradient | None = getattr(self.learner, "compiled", None)
        before = compiled.seconds if compiled else 0.0
        loss, logs = self.learner.outer_loss(tasks)
        if compiled and compiled.seconds > before:
            rank_zero_info(f"The meta-gradient was compiled in {compiled.seconds - before:.1f} s.")
        names = {"query_loss": "loss", "query_loss_before": "loss_before"}
        values = {f"train/{names.get(name, name)}": value for name, value in logs.items()}
        shown = {name: value for name, value in values.items() if name in ("train/loss", "train/accuracy")}
        self.log_dict(shown, prog_bar=True, batch_size=_count(tasks))
        self.log_dict({name: values[name] for name in values.keys() - shown.keys()}, batch_size=_count(tasks))
        return loss

    # Validate and test: means over all tasks, however they come in batches

    def _evaluate(self, batch: Any) -> None:
        evaluation = self.learner.evaluate(as_tasks(batch), self.eval_steps)
        for name, curve in {"loss": evaluation.losses, "accuracy": evaluation.accuracies}.items():
            if curve is not None:
                self._curves.setdefault(name, []).append(curve[:, [0, -1]])

    def _summarise(self, role: str) -> None:
        for name, curves in self._curves.items():
            gathered = self.all_gather(torch.cat(curves))
            assert isinstance(gathered, Tensor)  # what a tensor becomes
            curve = gathered.reshape(-1, 2)  # from all processes
            curve = curve.to(torch.promote_types(curve.dtype, torch.float32))  # a mean in bfloat16 has three digits
            before, after = curve.unbind(dim=1)
            values = {f"{role}/{name}_before": before.mean(), f"{role}/{name}": after.mean()}
            self.log_dict(values, prog_bar=True, sync_dist=True)  # the same on all; Lightning wants to be told so
            if len(after) > 1:
                self.log(f"{role}/{name}_interval", _INTERVAL * after.std() / len(after) ** 0.5, sync_dist=True)
        self._curves = {}

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._evaluate(batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._evaluate(batch)

    def on_validation_epoch_end(self) -> None:
        self._summarise("val")

    def on_test_epoch_end(self) -> None:
        self._summarise("test")

    def configure_optimizers(self) -> Any:
        optimizer = _OUTER[self.outer_optimizer](self.learner.parameters(), lr=self.outer_lr)
        return scheduled(optimizer, self.schedule, self.trainer)


def _count(tasks: Task | Sequence[Task]) -> int:
    return tasks.support.y.shape[0] if isinstance(tasks, Task) else len(tasks)
