"""Ordinary training under Lightning and Accelerate: exactly what a plain loop does, and resumed bit for bit."""

import copy
import logging

import pytest
import pytorch_lightning as pl
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from torch import nn
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from learned_optim import AdamRule, LSTMOptimizer, MetaSGD, RuleOptimizer
from tests.trees import same

logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)

OPTIMIZERS = {
    "lstm": lambda params: LSTMOptimizer(params, checkpoint="mnist-mlp"),
    "meta-sgd": lambda params: MetaSGD(params, alpha=0.05),
    "adam": lambda params: RuleOptimizer(params, AdamRule(0.01)),
}
optimizers = pytest.mark.parametrize("name", OPTIMIZERS)
EPOCHS = 4


@pytest.fixture(autouse=True)
def _in_its_own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def data():
    """Six minibatches of a regression problem."""
    x = torch.randn(48, 4, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(x, x.sum(dim=1, keepdim=True) + 0.1 * x[:, :1] ** 3), batch_size=8)


def net():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))


def error(prediction, y):
    return (prediction - y).square().mean()


def falling(optimizer):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + 0.1 * step))


def plain(make, *, accumulate=1, clip=None, bf16=False, schedule=False):
    """The weights after training by hand."""
    model = net()
    optimizer = make(model.parameters())
    scheduler = falling(optimizer) if schedule else None
    batches = list(data())
    for _ in range(EPOCHS):
        for i, (x, y) in enumerate(batches):
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                prediction = model(x)
            (error(prediction.float(), y) / accumulate).backward()
            if (i + 1) % accumulate and i + 1 < len(batches):
                continue
            if clip == "norm":
                nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            elif clip == "value":
                nn.utils.clip_grad_value_(model.parameters(), 0.02)
            optimizer.step()
            optimizer.zero_grad()
            if scheduler is not None:
                scheduler.step()
    return list(model.parameters())


MODES = {
    "plain": {},
    "accumulated": {"accumulate": 2},
    "accumulated, with a rest": {"accumulate": 4},
    "clipped by norm": {"clip": "norm"},
    "clipped by value": {"clip": "value"},
    "bf16": {"bf16": True},
    "scheduled": {"schedule": True},
    "all": {"accumulate": 2, "clip": "norm", "bf16": True, "schedule": True},
}
modes = pytest.mark.parametrize("mode", MODES)


def test_the_modes_differ():
    for make in OPTIMIZERS.values():
        ends = {mode: torch.cat([p.flatten() for p in plain(make, **options)]) for mode, options in MODES.items()}
        for mode, end in ends.items():
            assert not any(torch.equal(end, other) for name, other in ends.items() if name != mode)
            assert torch.isfinite(end).all()


# Lightning


class Ordinary(pl.LightningModule):
    """Knows nothing of us but the optimizer that it returns."""

    def __init__(self, make, *, schedule=False):
        super().__init__()
        self.net, self.make, self.schedule = net(), make, schedule

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = error(self.net(x).float(), y)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        optimizer = self.make(self.parameters())
        if not self.schedule:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": falling(optimizer), "interval": "step"}}


class Manual(Ordinary):
    """Optimizes by hand."""

    def __init__(self, make):
        super().__init__(make)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        x, y = batch
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(error(self.net(x).float(), y))
        self.clip_gradients(optimizer, gradient_clip_val=0.1, gradient_clip_algorithm="norm")
        optimizer.step()


class Pair(pl.LightningModule):
    """Two networks that work against each other, each with an optimizer of its own; one steps every other time."""

    def __init__(self, make):
        super().__init__()
        self.left, self.right, self.make = net(), net(), make
        self.automatic_optimization = False

    def losses(self, batch):
        x, y = batch
        yield error(self.left(x), y) + 0.1 * error(self.left(x), self.right(x).detach())
        yield error(self.right(x), y) - 0.1 * error(self.right(x), self.left(x).detach())

    def training_step(self, batch, batch_idx):
        for i, (optimizer, loss) in enumerate(zip(self.optimizers(), self.losses(batch), strict=True)):
            self.toggle_optimizer(optimizer)
            optimizer.zero_grad()
            self.manual_backward(loss)
            if (batch_idx + 1) % (i + 1) == 0:
                optimizer.step()
            self.untoggle_optimizer(optimizer)

    def configure_optimizers(self):
        return [self.make(self.left.parameters()), self.make(self.right.named_parameters())]


def trainer(epochs=EPOCHS, **options):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return pl.Trainer(max_epochs=epochs, accelerator="cpu", enable_model_summary=False, **quiet, **options)


def options_of(*, accumulate=1, clip=None, bf16=False, schedule=False):
    clipping = {"norm": {"gradient_clip_val": 0.1}, "value": {"gradient_clip_val": 0.02}}.get(clip, {})
    return {
        "accumulate_grad_batches": accumulate,
        "precision": "bf16-mixed" if bf16 else "32-true",
        **({"gradient_clip_algorithm": clip, **clipping} if clip else {}),
    }


@optimizers
@modes
def test_lightning_does_what_a_plain_loop_does(name, mode):
    module = Ordinary(OPTIMIZERS[name], schedule=MODES[mode].get("schedule", False))
    trainer(**options_of(**MODES[mode])).fit(module, data())
    assert_close(list(module.parameters()), plain(OPTIMIZERS[name], **MODES[mode]), rtol=0, atol=0)


@optimizers
def test_manual_optimization_does_what_a_plain_loop_does(name):
    module = Manual(OPTIMIZERS[name])
    trainer().fit(module, data())
    assert_close(list(module.parameters()), plain(OPTIMIZERS[name], clip="norm"), rtol=0, atol=0)


@optimizers
def test_two_optimizers_do_what_a_plain_loop_does(name):
    module = Pair(OPTIMIZERS[name])
    by_hand = copy.deepcopy(module)
    trainer().fit(module, data())
    optimizers = by_hand.configure_optimizers()
    for _ in range(EPOCHS):
        for n, batch in enumerate(data()):
            for i, (optimizer, loss) in enumerate(zip(optimizers, by_hand.losses(batch), strict=True)):
                optimizer.zero_grad()
                loss.backward()
                if (n + 1) % (i + 1) == 0:
                    optimizer.step()
    assert_close(list(module.parameters()), list(by_hand.parameters()), rtol=0, atol=0)
    assert not torch.equal(module.left[0].weight, module.right[0].weight)


RESUMED = {
    **{
        mode: (lambda make, options=options: Ordinary(make, schedule=options.get("schedule", False)), options)
        for mode, options in MODES.items()
    },
    "manual": (Manual, {}),
    "two optimizers": (Pair, {}),
}


@optimizers
@pytest.mark.parametrize("mode", RESUMED)
def test_lightning_resumes_bit_for_bit(name, mode):
    make, options = RESUMED[mode]

    def fit(epochs, **where):
        module, run = make(OPTIMIZERS[name]), trainer(epochs, **options_of(**options))
        run.fit(module, data(), **where)
        return module, run

    whole, whole_run = fit(EPOCHS)
    fit(EPOCHS // 2)[1].save_checkpoint("half.ckpt")
    resumed, resumed_run = fit(EPOCHS, ckpt_path="half.ckpt")
    assert resumed_run.global_step == whole_run.global_step
    assert_close(list(resumed.parameters()), list(whole.parameters()), rtol=0, atol=0)
    for ours, theirs in zip(resumed_run.optimizers, whole_run.optimizers, strict=True):
        assert same(ours.state_dict(), theirs.state_dict())


def test_an_lstm_optimizer_without_options_trains_under_every_default_of_the_trainer():
    class Classifier(pl.LightningModule):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(20, 20), nn.Sigmoid(), nn.Linear(20, 3))

        def training_step(self, batch, batch_idx):
            x, y = batch
            return nn.functional.cross_entropy(self.net(x), y)

        def configure_optimizers(self):
            return LSTMOptimizer(self.parameters())

    y = torch.arange(3).repeat(40)
    x = torch.randn(120, 20, generator=torch.Generator().manual_seed(0))
    x[torch.arange(120), y] += 3
    module = Classifier()
    before = nn.functional.cross_entropy(module.net(x), y).item()
    pl.Trainer(max_epochs=10, accelerator="cpu").fit(module, DataLoader(TensorDataset(x, y), batch_size=20))
    assert nn.functional.cross_entropy(module.net(x), y).item() < 0.3 * before


# Accelerate


@pytest.fixture(autouse=True)
def _fresh_accelerate():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


class Accelerated:
    """A plain Accelerate loop."""

    def __init__(self, make, *, accumulate=1, clip=None, bf16=False, schedule=False):
        precision = "bf16" if bf16 else "no"
        self.accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulate, mixed_precision=precision)
        model = net()
        optimizer = make(model.parameters())
        scheduler = falling(optimizer) if schedule else None
        prepared = self.accelerator.prepare(model, optimizer, data(), *([scheduler] if schedule else []))
        self.model, self.optimizer, self.loader = prepared[:3]
        self.scheduler = prepared[3] if schedule else None
        self.clip = clip

    def train(self, epochs):
        for _ in range(epochs):
            for x, y in self.loader:
                with self.accelerator.accumulate(self.model):
                    self.accelerator.backward(error(self.model(x), y))
                    if self.accelerator.sync_gradients and self.clip == "norm":
                        self.accelerator.clip_grad_norm_(self.model.parameters(), 0.1)
                    if self.accelerator.sync_gradients and self.clip == "value":
                        self.accelerator.clip_grad_value_(self.model.parameters(), 0.02)
                    self.optimizer.step()
                    if self.scheduler is not None:
                        self.scheduler.step()
                    self.optimizer.zero_grad()
        return self


@optimizers
@modes
def test_accelerate_does_what_a_plain_loop_does(name, mode):
    run = Accelerated(OPTIMIZERS[name], **MODES[mode]).train(EPOCHS)
    assert_close(list(run.model.parameters()), plain(OPTIMIZERS[name], **MODES[mode]), rtol=0, atol=0)


@optimizers
@modes
def test_accelerate_resumes_bit_for_bit(name, mode):
    whole = Accelerated(OPTIMIZERS[name], **MODES[mode]).train(EPOCHS)
    Accelerated(OPTIMIZERS[name], **MODES[mode]).train(EPOCHS // 2).accelerator.save_state("half")
    resumed = Accelerated(OPTIMIZERS[name], **MODES[mode])
    resumed.accelerator.load_state("half")
    resumed.train(EPOCHS - EPOCHS // 2)
    assert_close(list(resumed.model.parameters()), list(whole.model.parameters()), rtol=0, atol=0)
    assert same(resumed.optimizer.state_dict(), whole.optimizer.state_dict())
