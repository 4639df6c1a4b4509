"""Meta-training of a learned optimizer, as a LightningModule."""

from __future__ import annotations

import math
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils._pytree import tree_map
from torch.utils.data import Dataset

from learned_optim import LSTMRule, Rule, RuleState, Tensors, detached, unroll
from learned_optim.problems import Problem, ProblemFamily, Quadratics
from learned_optim.sampled import SampledUpdate
from learned_optim.seeds import seeded
from learned_optim.types import Minibatch, Update
from lightning_modules.data import TaskLoader
from lightning_modules.schedule import check_schedule, scheduled


class _Windows(Dataset[int]):
    """The numbers of windows. Problems are drawn in `training_step`, where it is known which of them go on."""

    def __getitem__(self, index: int) -> int:
        return index


class LearnedOptimizerModule(pl.LightningModule):
    """Trains a rule on a family of problems by truncated backpropagation through its own steps.

    Every training step takes one window of ``window`` optimizer steps on ``instances`` problems at once and minimises
    the mean over problems and steps of L(theta_t), t counting from the first step that the window influences to the
    one after its end. The next window goes on from there with parameters and state detached; after ``horizon`` steps,
    or when a problem has diverged, new problems are drawn.

    Args:
        family: The problems. By default `Quadratics`.
        rule: The rule to train; it is trained in place. By default ``LSTMRule(output_scale=0.1)``.
        horizon: Steps on each problem.
        window: Steps between truncations; ``horizon`` for none. It must divide ``horizon``.
        instances: Problems run side by side, through vmap.
        outer_lr: Learning rate of Adam on phi.
        schedule: ``"constant"``, or ``"cosine"``: to zero over the trainer's steps.
        first_order: Treats the optimizee's gradients as constants, as the paper does.
        steps_per_epoch: Windows per epoch.
        val_instances: Held-out problems.
        val_horizon: Steps on each of them; by default ``horizon``.
        seed: Of the problems and their batches. Problems for fit, validate and test never meet.
        coordinates: Keeps the graph of so many coordinates of each tensor only, drawn anew for each window, which
            leaves the meta-gradient unbiased (`learned_optim.sampled`). Needs ``first_order``.

    The plain arguments are saved in checkpoints: ``LearnedOptimizerModule.load_from_checkpoint(path)``, with
    ``family=`` and ``rule=`` where they were given.

    Logged: ``train/loss``; ``val/loss`` (mean over the horizon), ``val/half`` and ``val/final`` (means over the tenth
    of the horizon that ends at its middle and at its end), the same under ``test/``; ``train/skipped``, the number of
    meta-gradients left out because they were not finite.

    Raises:
        ValueError: ``window`` does not divide ``horizon``, or a count is not positive.

    Source: Andrychowicz et al. 2016, section 2. Deviation: the loss is the mean over steps instead of the sum, which
    Adam's scale invariance makes the same.
    """

    def __init__(
        self,
        family: ProblemFamily | None = None,
        rule: Rule | None = None,
        *,
        horizon: int = 100,
        window: int = 20,
        instances: int = 4,
        outer_lr: float = 1e-3,
        schedule: str = "constant",
        first_order: bool = True,
        steps_per_epoch: int = 100,
        val_instances: int = 8,
        val_horizon: int | None = None,
        seed: int = 0,
        coordinates: int | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["family", "rule"])
        counts = {
            "horizon": horizon,
            "window": window,
            "instances": instances,
            "steps_per_epoch": steps_per_epoch,
            "val_instances": val_instances,
            "val_horizon": val_horizon,
            "coordinates": coordinates,
        }
        for name, count in counts.items():
            if count is not None and count < 1:
                raise ValueError(f"LearnedOptimizerModule: {name} must be >= 1, got {count}")
        if not (math.isfinite(outer_lr) and outer_lr >= 0):
            raise ValueError(f"LearnedOptimizerModule: outer_lr must be a finite number >= 0, got {outer_lr}")
        if horizon % window:
            raise ValueError(f"LearnedOptimizerModule: window must divide horizon, got {window} and {horizon}")
        self.family = family or Quadratics()
        self.rule = rule or LSTMRule()
        self.horizon, self.window, self.instances = horizon, window, instances
        if coordinates is not None and not first_order:
            raise ValueError(
                "LearnedOptimizerModule: coordinates needs first_order=True, where coordinates are independent"
            )
        self.coordinates = coordinates
        self.outer_lr, self.first_order = outer_lr, first_order
        self.schedule = check_schedule(schedule, "LearnedOptimizerModule")
        self.steps_per_epoch = steps_per_epoch
        self.val_instances, self.val_horizon = val_instances, val_horizon or horizon
        self.seed = seed
        self._episode = 0
        self._position = 0
        self._carried: tuple[Tensors, RuleState] | None = None
        self._skipped = 0

    # Problems

    def _problems(self, role: str, episode: int, count: int) -> list[Problem]:
        return [self.family.sample(seeded(self.seed, role, episode, i)) for i in range(count)]

    def _start(self, problems: list[Problem]) -> tuple[Tensors, RuleState]:
        params = {
            name: torch.stack([problem.params[name] for problem in problems]).to(self.device)
            for name in problems[0].params
        }
        with torch.no_grad():
            state = torch.vmap(self.rule.init_state)(params)
        return params, state

    def _batch(self, problems: list[Problem], role: str, episode: int, step: int) -> Minibatch:
        drawn = [problem.batch(seeded(self.seed, role, episode, i, step)) for i, problem in enumerate(problems)]
        return tree_map(lambda *leaves: torch.stack(leaves).to(self.device), *drawn)

    def _sample(self, params: Tensors) -> SampledUpdate:
        assert self.coordinates is not None
        generator = seeded(self.seed, "coordinates", self._episode, self._position)
        return SampledUpdate(self.rule, params, count=self.coordinates, generator=generator)

    def _losses(self, params: Tensors, batch: Minibatch) -> Tensor:
        losses: Tensor = torch.vmap(self.family.loss)(params, batch)  # (instances,)
        return losses

    # Fit

    def training_step(self, batch: int, batch_idx: int) -> Tensor:
        problems = self._problems("train", self._episode, self.instances)
        carried = self._start(problems) if self._carried is None else self._carried
        params, state = tree_map(lambda leaf: leaf.to(self.device), carried)  # a resumed run finds them on the CPU
        steps = range(self._position, self._position + self.window)
        update: Update = torch.vmap(self.rule)
        if self.coordinates is not None:
            sample = self._sample({name: p[0] for name, p in params.items()})
            update, state = torch.vmap(sample), torch.vmap(sample.extend)(state)
        unrolled = unroll(
            update,
            lambda theta, data: self._losses(theta, data).sum(),
            params,
            state,
            steps=self.window,
            batches=(self._batch(problems, "train", self._episode, step) for step in steps),
            first_order=self.first_order,
        )
        after = self._losses(unrolled.params, self._batch(problems, "train", self._episode, steps.stop)).sum()
        # The window's first loss does not depend on phi any more; the one after its last step does.
        loss = (unrolled.losses[1:].sum() + after) / (self.window * self.instances)
        state = unrolled.state if self.coordinates is None else torch.vmap(sample.reduce)(unrolled.state)
        self._advance(unrolled.params, state, diverged=not bool(torch.isfinite(after)))
        self.log("train/loss", loss.detach(), prog_bar=True)
        return loss

    def _advance(self, params: Tensors, state: RuleState, *, diverged: bool) -> None:
        self._position += self.window
        if self._position >= self.horizon or diverged:
            self._episode, self._position, self._carried = self._episode + 1, 0, None
        else:
            self._carried = detached(params, state)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        grads = [p.grad for p in self.rule.parameters() if p.grad is not None]
        if not all(bool(torch.isfinite(grad).all()) for grad in grads):
            self._skipped += 1
            for p in self.rule.parameters():
                p.grad = None
        self.log("train/skipped", float(self._skipped))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.rule.parameters(), lr=self.outer_lr)
        return scheduled(optimizer, self.schedule, self.trainer)

    def train_dataloader(self) -> TaskLoader:
        return TaskLoader(_Windows(), self.steps_per_epoch)

    # Validate and test

    def _evaluate(self, role: str, episode: int) -> None:
        problems = self._problems(role, episode, self.val_instances)
        params, state = self._start(problems)
        unrolled = unroll(
            torch.vmap(self.rule),
            lambda theta, data: self._losses(theta, data).mean(),
            params,
            state,
            steps=self.val_horizon,
            batches=(self._batch(problems, role, episode, step) for step in range(self.val_horizon)),
            first_order=True,
        )
        tenth, half = max(self.val_horizon // 10, 1), max(self.val_horizon // 2, 1)
        losses = unrolled.losses
        values = {"loss": losses.mean(), "half": losses[half - tenth : half].mean(), "final": losses[-tenth:].mean()}
        self.log_dict({f"{role}/{name}": value for name, value in values.items()}, prog_bar=True, batch_size=1)

    def validation_step(self, batch: int, batch_idx: int) -> None:
        self._evaluate("val", batch_idx)

    def test_step(self, batch: int, batch_idx: int) -> None:
        self._evaluate("test", batch_idx)

    def val_dataloader(self) -> TaskLoader:
        return TaskLoader(_Windows(), 1, advance=False)

    def test_dataloader(self) -> TaskLoader:
        return self.val_dataloader()

    # What a checkpoint needs beside phi to go on in the middle of a horizon

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        carried = None
        if self._carried is not None:
            params, state = self._carried
            carried = {"params": params, "per_param": state.per_param, "shared": state.shared}
        checkpoint["episode"] = {
            "episode": self._episode,
            "position": self._position,
            "skipped": self._skipped,
            "carried": carried,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        saved = checkpoint["episode"]
        self._episode, self._position, self._skipped = saved["episode"], saved["position"], saved["skipped"]
        carried = saved["carried"]
        self._carried = None
        if carried is not None:
            self._carried = carried["params"], RuleState(carried["per_param"], carried["shared"])
