"""Meta-training of a learned optimizer, as a LightningModule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor
from torch.utils._pytree import tree_map
from torch.utils.data import Dataset

from learned_optim import LSTMRule, Rule
from learned_optim.instances import Instances
from learned_optim.problems import Families, ProblemFamily, Quadratics
from learned_optim.seeds import seeded
from lightning_modules.curriculum import Curriculum
from lightning_modules.data import TaskLoader
from lightning_modules.estimators import Carried, estimator_of, nothing, trained
from lightning_modules.in_progress import InProgress
from lightning_modules.processes import anywhere, everywhere, process
from lightning_modules.schedule import check_schedule, scheduled

OBJECTIVES = ("loss", "log")


class _Windows(Dataset[int]):
    """The numbers of windows. Problems are drawn in `training_step`, where it is known which of them go on."""

    def __getitem__(self, index: int) -> int:
        return index


class LearnedOptimizerModule(pl.LightningModule):
    """Trains a rule on families of problems, through its own steps on them.

    Every training step takes one window of ``window`` optimizer steps on ``instances`` problems of one family at once
    and minimises the weighted mean over problems and steps of L(theta_t), t counting from the first step that the
    window influences to the one after its end. The next window goes on from there with parameters and state detached;
    after ``horizon`` steps, or when a problem has diverged, problems of the next family are drawn.

    Args:
        family: The problems, or several families, one after the other. By default `Quadratics`.
        rule: The rule to train; it is trained in place. By default ``LSTMRule(output_scale=0.1)``.
        trains: Which of its parameters, by name: a pattern of `fnmatch`, or several; the others stay as they are. By
            default all that require a gradient. Evolution strategies find their way among few sooner than among many.
        horizon: Steps on each problem.
        window: Steps between truncations; ``horizon`` for none. It must divide ``horizon``.
        instances: Problems run side by side, through vmap, in each process.
        objective: ``"loss"``, or ``"log"``: log(L(theta_t) / L(theta_0) + floor), for which families of any scale count
            alike.
        floor: See ``objective``: problems whose loss has fallen to this share of its start are as good as solved, and
            training looks at the others.
        late_weight: p >= 0: step t counts for (p + 1) (t / horizon)^p. 0 for all alike.
        curriculum: Shorter horizons to train on before ``horizon``, ascending. The next one is taken when ``val/loss``
            (``val/log`` with ``objective="log"``) has not fallen for ``patience`` validations.
        patience: See ``curriculum``.
        random_horizons: Draws the horizon of each set of problems log-uniformly from ``window`` to the horizon at hand,
            in whole windows.
        interleave: Sets of problems, one family after the other, that are in progress at once and take turns, window by
            window. With as many ``accumulate_grad_batches`` of the trainer a meta-gradient is the mean over all of
            them, so that no family pulls the rule its way alone.
        estimator: ``"truncated"`` backpropagation, or persistent ``"evolution"`` strategies, which are unbiased for
            any horizon and need no graph, but are noisy: use many instances.
        first_order: Treats the optimizee's gradients as constants, as the paper does (truncated).
        coordinates: Keeps the graph of so many coordinates of each tensor only, drawn anew for each window, which
            leaves the meta-gradient unbiased (`learned_optim.sampled`). Needs ``first_order`` (truncated).
        clip: The largest norm that a single problem's meta-gradient may have: longer ones are shortened to it before
            they are averaged, and those that are not finite left out, so that a few unstable problems do not drown the
            others. Not with ``coordinates`` or ``teacher`` (truncated).
        flat_memory: Recomputes steps in the backward pass, ten at a time, so that memory grows with the window by what
            is kept between these alone; another number than ten for a number; see `unroll` (truncated).
        teacher: A rule to imitate, such as ``AdamRule(0.02)`` (truncated), see `learned_optim.imitation`.
        teacher_weight: What the mean relative distance to its steps counts for, beside the loss.
        teacher_epochs: The weight falls to zero over so many epochs; 0 keeps it.
        std: Of the perturbations (evolution).
        outer_lr: Learning rate of Adam on phi.
        schedule: ``"constant"``, or ``"cosine"``: to zero over the trainer's steps.
        steps_per_epoch: Windows per epoch.
        val_instances: Held-out problems of each family; several processes share them.
        val_horizon: Steps on each of them; by default ``horizon``.
        val_family: Where they are drawn from, where they are not to be of the families that are trained on: the real
            problem behind cheap ones.
        seed: Of the problems and their batches. Problems for fit, validate and test never meet.

    Clip meta-gradients by the trainer's ``gradient_clip_val``; those that are not finite are left out. Random scaling
    of coordinates and mixing with convex functions are families around a family, see `learned_optim.problems`. With
    several processes each runs ``instances`` problems of its own.

    The plain arguments are saved in checkpoints: ``LearnedOptimizerModule.load_from_checkpoint(path)``, with
    ``family=``, ``val_family=``, ``rule=`` and ``teacher=`` where they were given.

    Logged: ``train/loss``; ``val/loss`` (mean over the horizon), ``val/half`` and ``val/final`` (means over the tenth
    of the horizon that ends at its middle and at its end), ``val/log`` (the mean of the objective ``"log"``, in which
    families of any scale count alike; NaN where losses are not above 0), all means over families, the same under
    ``test/``; ``train/skipped``, the number of windows left out because loss or meta-gradient was not finite;
    ``train/horizon`` where there is a curriculum.

    Raises:
        ValueError: ``window`` does not divide a horizon, a count or weight is out of range, an unknown name, or options
            that exclude each other.

    Source: Andrychowicz et al. 2016, section 2. Deviation: the loss is the mean over steps instead of the sum, which
    Adam's scale invariance makes the same. ``objective="log"`` and ``random_horizons``: Wichrowska et al. 2017, section
    4; ``curriculum``: Chen et al. 2020, section 3.2; ``"evolution"``: Vicol et al. 2021.
    """

    def __init__(
        self,
        # Families is a sequence, and named so that configuration files can call what makes one.
        family: ProblemFamily | Families | Sequence[ProblemFamily] | None = None,
        rule: Rule | None = None,
        *,
        trains: str | Sequence[str] = "*",
        horizon: int = 100,
        window: int = 20,
        instances: int = 4,
        objective: str = "loss",
        floor: float = 1e-6,
        late_weight: float = 0.0,
        curriculum: Sequence[int] = (),
        patience: int = 3,
        random_horizons: bool = False,
        interleave: int = 1,
        estimator: str = "truncated",
        first_order: bool = True,
        coordinates: int | None = None,
        clip: float | None = None,
        flat_memory: bool | int = False,
        teacher: Rule | None = None,
        teacher_weight: float = 1.0,
        teacher_epochs: int = 0,
        std: float = 0.01,
        outer_lr: float = 1e-3,
        schedule: str = "constant",
        steps_per_epoch: int = 100,
        val_instances: int = 8,
        val_horizon: int | None = None,
        val_family: ProblemFamily | Families | Sequence[ProblemFamily] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["family", "val_family", "rule", "teacher"])
        counts = {
            "horizon": horizon,
            "window": window,
            "instances": instances,
            "interleave": interleave,
            "patience": patience,
            "steps_per_epoch": steps_per_epoch,
            "val_instances": val_instances,
            "val_horizon": val_horizon,
            "coordinates": coordinates,
        }
        for name, count in counts.items():
            if count is not None and count < 1:
                raise ValueError(f"LearnedOptimizerModule: {name} must be >= 1, got {count}")
        sizes = {"outer_lr": outer_lr, "late_weight": late_weight, "teacher_weight": teacher_weight}
        for name, size in (sizes | {"teacher_epochs": teacher_epochs}).items():
            if not (math.isfinite(size) and size >= 0):
                raise ValueError(f"LearnedOptimizerModule: {name} must be a finite number >= 0, got {size}")
        if not (math.isfinite(floor) and floor > 0):
            raise ValueError(f"LearnedOptimizerModule: floor must be finite and > 0, got {floor}")
        horizons = (*curriculum, horizon)
        if any(steps % window for steps in horizons):
            raise ValueError(f"LearnedOptimizerModule: window must divide horizon, got {window} and {horizons}")
        if list(horizons) != sorted(set(horizons)) or horizons[0] < 1:
            raise ValueError(f"LearnedOptimizerModule: curriculum must ascend to horizon, got {horizons}")
        if objective not in OBJECTIVES:
            raise ValueError(f"LearnedOptimizerModule: objective must be one of {OBJECTIVES}, got {objective!r}")
        self.families = [family or Quadratics()] if not isinstance(family, Sequence) else list(family)
        held_out = self.families if val_family is None else val_family
        self.val_families = list(held_out) if isinstance(held_out, Sequence) else [held_out]
        if not self.families or not self.val_families:
            raise ValueError("LearnedOptimizerModule: family and val_family must not be empty lists; give at least one")
        self.rule = rule or LSTMRule()
        patterns = [trains] if isinstance(trains, str) else list(trains)
        for name, p in self.rule.named_parameters():
            if not any(fnmatchcase(name, pattern) for pattern in patterns):
                p.requires_grad_(False)
        if not trained(self.rule):
            names = ", ".join(dict(self.rule.named_parameters()))
            raise ValueError(f"LearnedOptimizerModule: nothing to train matches trains={trains!r}; there are {names}")
        self.estimator = estimator_of(
            self.rule,
            estimator,
            first_order=first_order,
            coordinates=coordinates,
            clip=clip,
            flat_memory=flat_memory,
            teacher=teacher,
            std=std,
        )
        self.curriculum, self.window, self.instances = Curriculum(horizons, patience), window, instances
        self.objective, self.floor = objective, float(floor)
        self.late_weight, self.random_horizons = float(late_weight), random_horizons
        self.teacher_weight, self.teacher_epochs = float(teacher_weight), teacher_epochs
        self.outer_lr, self.schedule = outer_lr, check_schedule(schedule, "LearnedOptimizerModule")
        self.steps_per_epoch = steps_per_epoch
        self.val_instances, self.val_horizon = val_instances, val_horizon or horizon
        self.seed, self.interleave = seed, interleave
        self.running = InProgress(interleave)
        self._skipped = 0
        self._finite = 0  # windows, since the last step of the trainer's optimizer
        self._validated: list[Tensor] = []
        self._validated_epoch = -1

    # Fit

    def training_step(self, batch: int, batch_idx: int) -> Tensor:
        if not self.curriculum.ended:
            self._catch_up()
        episode = self.running.current
        steps = range(episode.position, episode.position + self.window)
        instances = self._instances("train", episode.number, self.instances, copies=True)
        carried = self._started(instances) if episode.carried is None else episode.carried
        # A resumed run finds them on the CPU.
        carried = tree_map(lambda leaf: leaf.to(self.device), carried)
        loss, carried = self.estimator.window(
            instances,
            carried,
            steps,
            self._objective,
            generator=seeded(self.seed, "window", episode.number, episode.position, process()[0]),
            teacher_weight=self._teacher_weight(),
        )
        diverged = anywhere(~torch.isfinite(carried.pop("after")).all())
        self.running.advance(steps.stop, carried, ended=diverged or steps.stop >= self._horizon(episode.number))
        self.log("train/loss", loss.detach(), prog_bar=True)
        if len(self.curriculum.horizons) > 1:
            self.log("train/horizon", float(self.curriculum.horizon))
        if not bool(torch.isfinite(loss)):
            # The others whose gradients it would be added to must not be lost with it.
            self._leave_out()
            return nothing(self.rule)
        self._finite += 1
        return loss

    def _started(self, instances: Instances) -> Carried:
        carried = self.estimator.start(instances)
        if self.objective == "log" and not bool((carried["first"] > 0).all()):
            raise ValueError(
                f"LearnedOptimizerModule: objective='log' needs losses above 0, but {type(instances.family).__name__} "
                f"starts at {float(carried['first'].min()):g}; use objective='loss', or add a constant to the loss"
            )
        return carried

    def _instances(self, role: str, episode: int, count: int, *, copies: bool = False) -> Instances:
        """The episode's problems of this process."""
        first = process()[0] * count
        numbers = self.estimator.numbers(first, count) if copies else range(first, first + count)
        families = self.families if role == "train" else self.val_families
        family = families[episode % len(families)]
        return Instances(family, (self.seed, role, episode), numbers, device=self.device)

    def _horizon(self, episode: int) -> int:
        """How many steps the episode's problems are to take."""
        longest = self.curriculum.horizon
        if not self.random_horizons:
            return longest
        windows = longest // self.window
        drawn = float(torch.rand((), generator=seeded(self.seed, "horizon", episode)))
        return self.window * min(int((windows + 1) ** drawn), windows)

    def _objective(self, losses: Tensor, first: Tensor, steps: range) -> Tensor:
        values = _logs(losses, first, self.floor) if self.objective == "log" else losses
        if not self.late_weight:
            return values.mean(dim=1)
        horizon = self._horizon(self.running.current.number)
        t = torch.arange(steps.start + 1, steps.stop + 1, device=values.device) / horizon
        return ((self.late_weight + 1) * t**self.late_weight * values).mean(dim=1)

    def _teacher_weight(self) -> float:
        if not self.teacher_epochs:
            return self.teacher_weight
        return self.teacher_weight * max(1 - self.current_epoch / self.teacher_epochs, 0.0)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        grads = [p.grad for p in self.rule.parameters() if p.grad is not None]
        finite = all(bool(torch.isfinite(grad).all()) for grad in grads)
        if not finite:
            self._leave_out()
        if not finite or not anywhere(torch.tensor(self._finite > 0, device=self.device)):
            for p in self.rule.parameters():
                p.grad = None
        self._finite = 0
        self.log("train/skipped", float(self._skipped))

    def _leave_out(self) -> None:
        if not self._skipped:
            rank_zero_warn("A meta-gradient was not finite and is left out; train/skipped counts how many are.")
        self._skipped += 1

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.rule.parameters(), lr=self.outer_lr)
        return scheduled(optimizer, self.schedule, self.trainer)

    def on_fit_start(self) -> None:
        if not self.curriculum.ended and not self.trainer.limit_val_batches:
            raise ValueError("LearnedOptimizerModule: a curriculum advances on validation; limit_val_batches is 0")

    def train_dataloader(self) -> TaskLoader:
        return TaskLoader(_Windows(), self.steps_per_epoch)

    # Validate and test

    def _held_out(self, role: str, number: int) -> Tensor:
        """Losses on one family's problems for the role, shape (I, K)."""
        instances = self._instances(role, number, max(self.val_instances // process()[1], 1))
        return instances.run(self.rule, *instances.start(self.rule), range(self.val_horizon)).losses[:, :-1]

    def _compared(self, losses: Tensor) -> Tensor:
        """The number by which validations are compared."""
        return _logs(losses, losses[:, 0], self.floor).mean() if self.objective == "log" else losses.mean()

    def _evaluate(self, role: str, number: int) -> Tensor:
        losses = self._held_out(role, number)
        tenth, half = max(self.val_horizon // 10, 1), max(self.val_horizon // 2, 1)
        values = {
            "loss": losses.mean(),
            "half": losses[:, half - tenth : half].mean(),
            "final": losses[:, -tenth:].mean(),
            "log": _logs(losses, losses[:, 0], self.floor).mean(),
        }
        logged = {f"{role}/{name}": value for name, value in values.items()}
        self.log_dict(logged, prog_bar=True, batch_size=1, sync_dist=process()[1] > 1)
        return self._compared(losses)

    def validation_step(self, batch: int, batch_idx: int) -> None:
        self._validated.append(self._evaluate("val", batch_idx))

    def test_step(self, batch: int, batch_idx: int) -> None:
        self._evaluate("test", batch_idx)

    def on_validation_epoch_end(self) -> None:
        # Here, and not where the logged mean is at hand: a checkpoint that is saved after validation must know.
        losses, self._validated = self._validated, []
        if self.trainer.state.fn == "fit" and not self.trainer.sanity_checking and not self.curriculum.ended:
            self._progress(losses, self.current_epoch)

    def _catch_up(self) -> None:
        """Lightning does not validate after an epoch at whose very end it is resumed; the curriculum needs it."""
        every = self.trainer.check_val_every_n_epoch
        if every is None or self.trainer.val_check_interval != 1.0:
            return  # validation goes by steps
        due = self.current_epoch // every * every - 1
        if self._validated_epoch < due:
            with torch.no_grad():
                losses = [self._compared(self._held_out("val", i)) for i in range(len(self.val_families))]
                self._progress(losses, due)

    def _progress(self, losses: list[Tensor], epoch: int) -> None:
        """Tells the curriculum what was validated after an epoch."""
        self._validated_epoch = epoch
        self.curriculum.validated(float(everywhere(torch.stack(losses).mean())))

    def val_dataloader(self) -> TaskLoader:
        # Every process validates on every family.
        return TaskLoader(_Windows(), len(self.val_families), advance=False)

    def test_dataloader(self) -> TaskLoader:
        return self.val_dataloader()

    # What a checkpoint needs beside phi to go on in the middle of a horizon

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["episode"] = {
            "running": self.running.state_dict(),
            "skipped": self._skipped,
            "curriculum": self.curriculum.state_dict(),
            "validated_epoch": self._validated_epoch,
            "setting": self._setting(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        saved = checkpoint["episode"]
        self._skipped = saved["skipped"]
        self.curriculum.load_state_dict(saved["curriculum"])
        self._validated_epoch = saved["validated_epoch"]
        self.running.load_state_dict(saved["running"], same=saved["setting"] == self._setting())

    def _setting(self) -> list[Any]:
        """What the problems that are carried over depend on."""
        teacher = getattr(self.estimator, "teacher", None)
        shapes = [
            [[name, list(p.shape)] for name, p in family.sample(seeded(self.seed, "shapes")).params.items()]
            for family in self.families
        ]
        rules = [None if rule is None else rule.described() for rule in (self.rule, teacher)]
        names = [type(family).__name__ for family in self.families]
        options = [
            type(self.estimator).__name__,
            self.seed,
            self.instances,
            self.window,
            self.interleave,
            list(self.curriculum.horizons),
            [*trained(self.rule)],
        ]
        return [*options, names, shapes, rules]


def _logs(losses: Tensor, first: Tensor, floor: float) -> Tensor:
    """log(L(theta_t) / L(theta_0) + floor), shape (I, K).

    A loss that has fallen below zero counts as zero; where the first one is not above zero it is NaN.
    """
    first = torch.where(first > 0, first, math.nan).unsqueeze(1)
    return torch.log((losses / first).clamp(min=0) + floor)
