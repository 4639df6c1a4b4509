"""LightningModules under an unmodified Trainer with its defaults."""

import logging
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.testing import assert_close

from learned_optim import LSTMOptimizer, LSTMRule, MetaSGD
from learned_optim.problems import Quadratics
from lightning_modules import LearnedOptimizerModule, MAMLModule, TaskBatches, TaskDataModule, TaskLoader
from meta_init import ALGORITHMS, Batch, MetaLearner, Sinusoids, Task, sine_mlp

logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)


@pytest.fixture(autouse=True)
def _in_its_own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def trainer(max_steps, every=None, **options):
    callbacks = [ModelCheckpoint("saved", every_n_train_steps=every, save_top_k=-1, filename="{step}")] if every else []
    return pl.Trainer(
        max_steps=max_steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=bool(every),
        callbacks=callbacks,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def quadratics(**options):
    torch.manual_seed(0)
    settings = {"horizon": 12, "window": 4, "instances": 2, "steps_per_epoch": 5, "val_instances": 2, **options}
    return LearnedOptimizerModule(Quadratics(3), LSTMRule(hidden_size=3), **settings)


def waves(algorithm="maml", **options):
    torch.manual_seed(0)
    return MAMLModule(sine_mlp(6), algorithm=algorithm, steps=2, eval_steps=3, **options)


def wave_data(**options):
    return TaskDataModule(Sinusoids(shots=5), meta_batch_size=3, steps_per_epoch=5, eval_tasks=7, **options)


def test_maml_module_runs_with_no_argument_and_every_default():
    module = MAMLModule()
    run = pl.Trainer(max_steps=2, enable_progress_bar=False, logger=False, enable_checkpointing=False)
    run.fit(module)
    assert {"train/loss", "train/loss_before", "train/support_loss"} <= set(run.callback_metrics)
    assert {"val/loss", "val/loss_before"} <= set(run.validate(module, verbose=False)[0])
    assert {"test/loss", "test/loss_before"} <= set(run.test(module, verbose=False)[0])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_fit_validate_and_test(algorithm):
    module, data, run = waves(algorithm), wave_data(), trainer(4)
    before = [p.detach().clone() for p in module.learner.parameters()]
    run.fit(module, datamodule=data)
    assert any(not torch.equal(p, q) for p, q in zip(module.learner.parameters(), before, strict=True))
    (validated,) = run.validate(module, datamodule=data, verbose=False)
    tasks = next(iter(data.val_dataloader()))
    losses = module.learner.evaluate(tasks, 3).losses.mean(dim=0)
    assert validated["val/loss_before"] == pytest.approx(float(losses[0]), rel=1e-5)
    assert validated["val/loss"] == pytest.approx(float(losses[3]), rel=1e-5)
    assert run.test(module, datamodule=data, verbose=False)[0]["test/loss"] != validated["val/loss"]


def test_accuracy_is_logged_for_labels():
    class Blobs:
        def sample(self, count, generator):
            y = torch.arange(2).repeat(count, 3)
            x = torch.randn(count, 6, 4, generator=generator) + 3 * y.unsqueeze(-1)
            return Task(Batch(x[:, :2], y[:, :2]), Batch(x[:, 2:], y[:, 2:]))

    module, run = MAMLModule(nn.Linear(4, 2), lr=0.1), trainer(3)
    data = TaskDataModule(Blobs(), steps_per_epoch=3, eval_tasks=60, eval_batch_size=20)
    run.fit(module, datamodule=data)
    found = run.callback_metrics
    assert "train/accuracy" in found
    curves = torch.cat([module.learner.evaluate(tasks, 10).accuracies for tasks in data.val_dataloader()])
    assert curves.shape == (60, 11)
    assert_close(found["val/accuracy_before"], curves[:, 0].mean())
    assert_close(found["val/accuracy"], curves[:, 10].mean())
    assert_close(found["val/accuracy_interval"], 1.96 * curves[:, 10].std() / 60**0.5)


def test_derivative_order_and_step_weights_are_annealed():
    module = MAMLModule(sine_mlp(4), algorithm="maml_plus_plus", steps=2, first_order_epochs=1, multi_step_epochs=2)
    seen = []

    class Watch(pl.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            seen.append((module.learner.first_order, module.learner.step_weights))

    run = trainer(4)
    run.callbacks.append(Watch())
    run.fit(module, datamodule=TaskDataModule(Sinusoids(), steps_per_epoch=1, eval_tasks=2))
    assert seen == [(True, [0.5, 0.5]), (False, [0.25, 0.75]), (False, None), (False, None)]


@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_compiled_module_trains_as_an_eager_one(accumulated, monkeypatch, caplog):
    monkeypatch.setattr("meta_init.compiled._compiled", lambda graph, leaves: graph)  # the compiler takes long
    trained = []
    for compile in (False, True):
        torch.manual_seed(0)
        module = MAMLModule(sine_mlp(6), compile=compile).double()
        with caplog.at_level(logging.INFO, "pytorch_lightning.utilities.rank_zero"):
            trainer(3, precision="64-true", accumulate_grad_batches=accumulated).fit(module, datamodule=wave_data())
        trained.append(list(module.parameters()))
        told = [record.message for record in caplog.records if "meta-gradient was compiled in" in record.message]
        assert len(told) == compile
    assert_close(*trained)


def test_a_learner_of_your_own_is_trained():
    learner = MetaLearner(sine_mlp(4), LSTMRule("moments", 2), steps=2)
    module = MAMLModule(learner=learner)
    before = [p.detach().clone() for p in learner.parameters()]
    trainer(2).fit(module, datamodule=wave_data())
    assert module.learner is learner
    assert all(not torch.equal(p, q) for p, q in zip(learner.parameters(), before, strict=True))


WRONG = {
    "both": (lambda: MAMLModule(sine_mlp(), learner=MetaLearner(sine_mlp(), LSTMRule())), "a model or a learner"),
    "count": (lambda: MAMLModule(first_order_epochs=-1), "first_order_epochs must be >= 0, got -1"),
    "outer_optimizer": (lambda: MAMLModule(outer_optimizer="lion"), "MAMLModule: outer_optimizer must be one of"),
    "schedule": (lambda: MAMLModule(schedule="linear"), "MAMLModule: schedule must be 'constant' or 'cosine'"),
    "no steps": (lambda: MAMLModule(learner=nn.Linear(2, 2), multi_step_epochs=1), "Linear has no inner steps"),
    "batches": (lambda: TaskDataModule(Sinusoids(), eval_tasks=10, eval_batch_size=3), "must divide eval_tasks"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments_are_told(case):
    call, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.filterwarnings("ignore:.*have no `val_dataloader`.*")
def test_a_model_without_tasks_is_told_so():
    with pytest.raises(MisconfigurationException, match="train_dataloader"):
        trainer(1).fit(waves())


def test_learned_optimizer_module_fits_validates_and_tests():
    module, run = quadratics(), trainer(7)
    run.fit(module)
    assert {"train/loss", "train/skipped", "val/loss", "val/half", "val/final"} <= set(run.callback_metrics)
    validated = run.callback_metrics["val/final"]
    assert run.test(module, verbose=False)[0]["test/final"] != validated


RESUMED = {
    "maml": (lambda: waves("meta_sgd"), wave_data),
    "built-in waves": (lambda: MAMLModule(meta_batch_size=2), lambda: None),
    "learned optimizer": (quadratics, lambda: None),
    "sampled coordinates": (lambda: quadratics(coordinates=2, schedule="cosine"), lambda: None),
}


@pytest.mark.parametrize("name", RESUMED)
@pytest.mark.parametrize("at", [5, 8])
def test_resuming_changes_nothing_bit_for_bit(name, at):
    """At the end of an epoch, and in the middle of one and of a horizon."""
    make, data = RESUMED[name]

    def fit(every=None, ckpt_path=None):
        torch.manual_seed(0)
        module = make()
        if name == "built-in waves":
            module.train_dataloader.__self__.steps_per_epoch = 5
        trainer(13, every).fit(module, datamodule=data(), ckpt_path=ckpt_path)
        return list(module.state_dict().values())

    whole = fit()
    fit(every=at)
    assert_close(fit(every=at, ckpt_path=f"saved/step={at}.ckpt"), whole, rtol=0, atol=0)


SAVED = {
    "every 5 steps": lambda: ModelCheckpoint("saved", every_n_train_steps=5, save_top_k=-1, filename="{step}"),
    "after each epoch": lambda: ModelCheckpoint("saved", save_top_k=-1, filename="{step}"),
    "by validation": lambda: ModelCheckpoint("saved", monitor="val/loss", save_top_k=-1, filename="{step}"),
    "before validation": lambda: ModelCheckpoint(
        "saved", save_on_train_epoch_end=True, save_top_k=-1, filename="{step}"
    ),
}


# The checkpoint of a run's last step resumes to nothing, and Lightning misses the metric that is not computed again.
@pytest.mark.filterwarnings("ignore:.*could not find the monitored key.*")
@pytest.mark.parametrize("kind", SAVED)
@pytest.mark.parametrize("options", [{}, {"limit_train_batches": 3}, {"accumulate_grad_batches": 2}], ids=str)
def test_resuming_from_any_kind_of_checkpoint_changes_nothing(kind, options):
    def fit(**where):
        module = waves()
        run = pl.Trainer(
            max_steps=15, accelerator="cpu", logger=False, callbacks=[SAVED[kind]()], enable_progress_bar=False,
            enable_model_summary=False, **options,
        )  # fmt: skip
        run.fit(module, datamodule=wave_data(), **where)
        return list(module.state_dict().values())

    whole = fit()
    checkpoints = sorted(Path("saved").glob("*.ckpt"))
    assert checkpoints
    for path in checkpoints[:3]:
        assert_close(fit(ckpt_path=path), whole, rtol=0, atol=0)


def test_a_run_that_was_stopped_in_an_epoch_is_saved_where_it_stopped():
    whole = waves()
    trainer(13).fit(whole, datamodule=wave_data())
    stopped = trainer(8)
    stopped.fit(waves(), datamodule=wave_data())
    stopped.save_checkpoint("stopped.ckpt")
    resumed = waves()
    trainer(13).fit(resumed, datamodule=wave_data(), ckpt_path="stopped.ckpt")
    assert_close(list(resumed.parameters()), list(whole.parameters()), rtol=0, atol=0)


def test_loading_from_a_checkpoint_restores_the_arguments():
    module, run = waves("meta_sgd", lr=0.3, outer_lr=0.5), trainer(1)
    run.fit(module, datamodule=wave_data())
    run.save_checkpoint("saved.ckpt")
    loaded = MAMLModule.load_from_checkpoint("saved.ckpt", model=sine_mlp(6))
    assert (loaded.learner.steps, loaded.eval_steps, loaded.outer_lr) == (2, 3, 0.5)
    assert_close(list(loaded.parameters()), list(module.parameters()), rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:.*have no `val_dataloader`.*")
def test_own_tasks_without_validation_tasks():
    tasks = [Sinusoids().sample(2, torch.Generator().manual_seed(i)) for i in range(3)]
    run = trainer(3)
    run.fit(waves(), tasks)
    assert "val/loss" not in run.callback_metrics
    with pytest.raises(MisconfigurationException, match="test_dataloader"):
        trainer(1).test(waves(), verbose=False)


def _two_processes(rank, results):
    torch.distributed.init_process_group("gloo", init_method="file://" + results + "/meet", rank=rank, world_size=2)
    loader = TaskLoader(TaskBatches(Sinusoids(shots=1), size=1), 3)
    torch.save([tasks.support.x for tasks in loader], f"{results}/{rank}.pt")


def test_processes_share_one_stream(tmp_path):
    torch.multiprocessing.spawn(_two_processes, (str(tmp_path),), nprocs=2)
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    whole = [tasks.support.x for tasks in TaskLoader(TaskBatches(Sinusoids(shots=1), size=1), 6)]
    assert_close([x for pair in zip(*parts, strict=True) for x in pair], whole, rtol=0, atol=0)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_task_streams_do_not_depend_on_workers(workers):
    def stream(count):
        loader = TaskLoader(TaskBatches(Sinusoids(shots=2), size=2, seed=4), 6, workers=count)
        return [*loader, *loader]

    assert_close(stream(workers), stream(0), rtol=0, atol=0)


def test_epochs_bring_new_tasks_and_roles_never_meet():
    data = wave_data()
    loader = data.train_dataloader()
    first, second = ([tasks.support.x for tasks in loader] for _ in range(2))
    assert len(first) == len(second) == len(loader) == 5
    assert not any(torch.equal(x, y) for x in first for y in second)
    validation, test = (next(iter(make())).support.x for make in (data.val_dataloader, data.test_dataloader))
    assert not torch.equal(validation, test)
    assert torch.equal(validation, next(iter(data.val_dataloader())).support.x)


def test_windows_cover_the_horizon_with_carried_state():
    """Windows of 4 in a horizon of 12 go where one run of 12 goes, while phi stands still."""
    module, whole = quadratics(outer_lr=0.0), quadratics(outer_lr=0.0, window=12)
    module.log = whole.log = lambda *args, **kwargs: None
    parts = [module.training_step(None, i) for i in range(3)]
    assert module.running.current.carried is None
    assert module.running.current.number == 1
    assert_close(torch.stack(parts).mean(), whole.training_step(None, 0))


def test_a_meta_gradient_that_is_not_finite_is_left_out():
    module = quadratics()
    module.log = lambda *args, **kwargs: None
    for p in module.rule.parameters():
        p.grad = torch.full_like(p, float("nan"))
    with pytest.warns(UserWarning, match="not finite and is left out"):
        module.on_before_optimizer_step(None)
    assert all(p.grad is None for p in module.rule.parameters())
    assert module._skipped == 1


def test_exact_meta_gradients_differ_from_first_order():
    grads = []
    for first_order in (True, False):
        module = quadratics(first_order=first_order)
        module.log = lambda *args, **kwargs: None
        module.training_step(None, 0).backward()
        grads.append(torch.cat([p.grad.flatten() for p in module.rule.parameters()]))
    assert not torch.allclose(*grads)


BAD = {
    "window": ({"window": 5}, "window must divide horizon"),
    "horizon": ({"horizon": 0}, "horizon must be >= 1"),
    "outer_lr": ({"outer_lr": float("nan")}, "outer_lr must be"),
    "no steps": ({"steps_per_epoch": 0}, "steps_per_epoch must be >= 1"),
    "no coordinates": ({"coordinates": 0}, "coordinates must be >= 1"),
    "schedule": ({"schedule": "linear"}, "schedule must be"),
    "coordinates": ({"coordinates": 2, "first_order": False}, "needs first_order"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_options(name):
    options, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        quadratics(**options)


def test_bad_options_of_maml():
    with pytest.raises(ValueError, match="unknown algorithm 'mamlpp'"):
        MAMLModule(algorithm="mamlpp")
    with pytest.raises(ValueError, match="eval_steps must be >= 0"):
        MAMLModule(eval_steps=-1)
    with pytest.raises(ValueError, match="outer_lr must be"):
        MAMLModule(outer_lr=float("nan"))
    with pytest.raises(ValueError, match="alpha must be"):
        MAMLModule(algorithm="meta_sgd", lr=-0.1)
    with pytest.raises(ValueError, match="meta_batch_size must be >= 1"):
        TaskDataModule(Sinusoids(), meta_batch_size=0)


class Ordinary(pl.LightningModule):
    """A LightningModule that knows nothing of us but the optimizer that it returns."""

    def __init__(self, make):
        super().__init__()
        torch.manual_seed(0)
        self.net, self.make = nn.Linear(4, 1), make

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = (self.net(x) - y).square().mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return self.make(self.parameters())


@pytest.mark.parametrize(
    "make",
    [
        lambda params: LSTMOptimizer(params, checkpoint="mnist-mlp@1"),
        lambda params: LSTMOptimizer(params, rule=LSTMRule(("log_sign", "moments"), shortcut=True)),
        lambda params: MetaSGD(params, alpha=0.05),
    ],
)
def test_our_optimizers_train_in_an_unmodified_module_and_resume(make):
    x = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, x.sum(dim=1, keepdim=True)), batch_size=10)

    def fit(steps, every=None, ckpt_path=None):
        torch.manual_seed(1)
        module, run = Ordinary(make), trainer(steps, every, gradient_clip_val=10.0)
        run.fit(module, loader, ckpt_path=ckpt_path)
        return module, run

    module, run = fit(40)
    assert run.callback_metrics["loss"] < 0.3 * x.sum(dim=1).square().mean()
    fit(40, every=20)
    resumed, _ = fit(40, every=20, ckpt_path="saved/step=20.ckpt")
    assert_close(list(resumed.parameters()), list(module.parameters()), rtol=0, atol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu():
    run = pl.Trainer(max_steps=3, accelerator="gpu", devices=1, logger=False, enable_checkpointing=False)
    run.fit(waves(), datamodule=wave_data())
    run.fit(quadratics())
