"""Few-shot training from beginning to end: in half precision, from the command line, with loggers and on a GPU."""

import copy
import csv
import logging
import re
import sys
from contextlib import nullcontext
from functools import cache
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
import yaml
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.testing import assert_close
from torch.utils._pytree import tree_map

from learned_optim import data_root
from lightning_modules import MAMLModule, TaskDataModule
from lightning_modules.cli import main
from meta_init import ALGORITHMS, Episodes, Sinusoids, few_shot_conv, sine_mlp
from meta_init.datasets import Classes, omniglot

logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)

# Lightning's command line calls what jsonargparse has renamed.
pytestmark = pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")

CONFIGS = sorted((Path(__file__).parents[1] / "docs/configs/few-shot").glob("*.yaml"))
needs_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
read_once = cache(omniglot)
OMNIGLOT = (data_root() / "omniglot").exists()


@pytest.fixture(autouse=True)
def _in_its_own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["learned-optim"])


def patterns(device: str = "cpu") -> Episodes:
    """Three-way tasks of noisy 8 x 8 pictures."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(12, 1, 8, 8, generator=generator) + 0.5 * torch.rand(12, 6, 8, 8, generator=generator)
    classes = Classes("patterns", x.flatten(0, 1), [str(i) for i in range(12)], [6] * 12)
    return Episodes(classes.to(device), ways=3, shots=1, queries=2)


def small_conv():
    return few_shot_conv(3, filters=8, size=8, blocks=2)


# What adapts to what, with inner and outer rates at which 30 steps are seen.
KINDS = {
    "conv": (small_conv, patterns, {"lr": 0.1, "outer_lr": 0.01}),
    "sine": (lambda: sine_mlp(16), Sinusoids, {"lr": 0.02, "outer_lr": 0.03}),
}
kinds = pytest.mark.parametrize("kind", KINDS)


def module_and_data(kind, algorithm="maml", *, steps=30, **options):
    make, tasks, rates = KINDS[kind]
    torch.manual_seed(0)
    module = MAMLModule(make(), algorithm=algorithm, steps=2, eval_steps=3, **(rates | options))
    return module, TaskDataModule(tasks(), steps_per_epoch=steps, eval_tasks=20, eval_batch_size=10)


def trainer(steps, **options):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    settings = {"accelerator": "cpu", "num_sanity_val_steps": 0, "enable_model_summary": False} | quiet
    return pl.Trainer(max_steps=steps, **(settings | options))


# Half precision

PRECISIONS = {"bf16-mixed": torch.float32, "bf16-true": torch.bfloat16}
"""With what the weights are kept in."""


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("algorithm", ["maml", "meta_sgd"])
@kinds
def test_half_precision_trains(kind, algorithm, precision):
    module, data = module_and_data(kind, algorithm)
    run = trainer(30, precision=precision)
    (before,) = run.validate(module, datamodule=data, verbose=False)
    run.fit(module, datamodule=data)
    (after,) = run.validate(module, datamodule=data, verbose=False)
    assert {p.dtype for p in module.parameters()} == {PRECISIONS[precision]}
    assert all(torch.isfinite(p).all() for p in module.parameters())
    assert after["val/loss"] < 0.9 * before["val/loss"]


@pytest.mark.parametrize("precision", PRECISIONS)
@kinds
def test_half_precision_logs_means_that_are_not_rounded(kind, precision):
    module, data = module_and_data(kind)
    run = trainer(1, precision=precision)
    (found,) = run.validate(module, datamodule=data, verbose=False)
    tasks = [run.precision_plugin.convert_input(batch) for batch in data.val_dataloader()]
    with run.precision_plugin.forward_context():
        evaluations = [module.learner.evaluate(batch, 3) for batch in tasks]
    losses = torch.cat([evaluation.losses for evaluation in evaluations])[:, -1].float()
    assert found["val/loss"] == pytest.approx(float(losses.mean()), rel=1e-6)
    assert found["val/loss_interval"] == pytest.approx(float(1.96 * losses.std() / 20**0.5), rel=1e-6)
    if kind == "conv":
        right = torch.cat([evaluation.accuracies for evaluation in evaluations])[:, -1]
        assert found["val/accuracy"] == pytest.approx(float(right.mean()), rel=1e-6)


def meta_gradient(kind, algorithm, strategy, precision):
    make, tasks, rates = KINDS[kind]
    torch.manual_seed(0)
    learner = ALGORITHMS[algorithm](make(), lr=rates["lr"], steps=2, strategy=strategy)
    drawn = tasks().sample(4, torch.Generator().manual_seed(1))
    if precision == "bf16-true":
        learner.to(torch.bfloat16)
        drawn = tree_map(lambda leaf: leaf.bfloat16() if leaf.is_floating_point() else leaf, drawn)
    with torch.autocast("cpu", torch.bfloat16) if precision == "bf16-mixed" else nullcontext():
        loss, _ = learner.outer_loss(drawn)
        loss.backward()
    return torch.cat([p.grad.float().flatten() for p in learner.parameters()])


@pytest.mark.parametrize("strategy", ["vmap", "loop"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@kinds
def test_meta_gradients_in_half_precision_point_where_they_should(kind, algorithm, strategy):
    """Through norms, second derivatives and autocast's cache of weights, which a loop over tasks shares."""
    exact = meta_gradient(kind, algorithm, strategy, "32-true")
    for precision in PRECISIONS:
        rough = meta_gradient(kind, algorithm, strategy, precision)
        # bfloat16 has 8 bits; a batch norm of two examples for each channel's value loses some more of them.
        assert torch.cosine_similarity(rough, exact, dim=0) > 0.97
        assert float(rough.norm()) == pytest.approx(float(exact.norm()), rel=0.15)


# The command line

TINY = {
    "seed_everything": 1,
    "trainer": {
        "accelerator": "cpu", "max_epochs": 2, "num_sanity_val_steps": 0, "enable_progress_bar": False,
        "enable_model_summary": False, "log_every_n_steps": 1,
    },
    "model": {
        "class_path": "lightning_modules.MAMLModule",
        "init_args": {
            "model": {
                "class_path": "meta_init.few_shot_conv",
                "init_args": {"ways": 3, "filters": 4, "size": 8, "blocks": 2},
            },
            "lr": 0.1, "eval_steps": 2, "outer_lr": 0.01,
        },
    },
    "data": {
        "class_path": "lightning_modules.TaskDataModule",
        "init_args": {
            "tasks": {"class_path": "tests.test_few_shot_training.patterns"}, "steps_per_epoch": 3, "eval_tasks": 10,
        },
    },
}  # fmt: skip


def tiny(change=lambda config: None):
    """A configuration file after a change."""
    config = copy.deepcopy(TINY)
    change(config)
    Path("tiny.yaml").write_text(yaml.safe_dump(config))
    return "tiny.yaml"


@cache
def noise(root=None):
    """As much of mini-ImageNet as two queries of 5-shot tasks need: its classes and size, and no picture of it."""
    generator = torch.Generator().manual_seed(0)
    counts = {"train": 64, "val": 16, "test": 20}
    return {
        part: Classes(
            f"noise, {part}",
            torch.randint(256, (7 * count, 3, 84, 84), dtype=torch.uint8, generator=generator),
            [f"{part} {i}" for i in range(count)],
            [7] * count,
        )
        for part, count in counts.items()
    }


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_every_configuration_trains(file, monkeypatch):
    """Two epochs, since some validate after every second one, of a step with one task; one of them is kept as best."""
    mini = file.stem.startswith("mini-imagenet")
    if not mini and not OMNIGLOT:
        pytest.skip("needs Omniglot")
    monkeypatch.setattr("meta_init.sources.omniglot", read_once)
    monkeypatch.setattr("meta_init.sources.mini_imagenet", noise)
    size = [f"--data.init_args.{name}=1" for name in ("meta_batch_size", "steps_per_epoch", "eval_tasks")]
    options = ["--data.init_args.eval_batch_size=1", "--trainer.max_steps=2", "--trainer.accelerator=cpu"]
    if "    compile:" in file.read_text():
        options += ["--model.init_args.compile=false"]  # takes a minute, and is tested by itself
    if mini:
        roles = ["val_tasks", "test_tasks"] + (["tasks"] if "mini_imagenet_batches" not in file.read_text() else [])
        options += [f"--data.init_args.{role}.init_args.queries=2" for role in roles]
        options += ["--model.init_args.eval_steps=1"]  # its pictures are large
        if "    steps:" in file.read_text():
            options += ["--model.init_args.steps=1"]
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    main(["fit", "--config", str(file), *size, *options, *quiet])
    (best,) = Path().rglob("best.ckpt")
    assert torch.load(best, weights_only=False)["global_step"] in (1, 2)
    assert list(Path().rglob("metrics.csv"))


def test_fit_then_validate_and_test_a_checkpoint(capsys):
    def logged(config):
        logger = {"class_path": "pytorch_lightning.loggers.CSVLogger", "init_args": {"save_dir": ".", "name": "log"}}
        saver = {"monitor": "val/accuracy", "mode": "max", "dirpath": "saved", "filename": "best"}
        config["trainer"] |= {
            "logger": logger,
            "callbacks": [{"class_path": "pytorch_lightning.callbacks.ModelCheckpoint", "init_args": saver}],
        }

    file = tiny(logged)
    main(["fit", "--config", file])
    rows = list(csv.DictReader(Path("log/version_0/metrics.csv").read_text().splitlines()))
    assert len([row for row in rows if row["train/accuracy"]]) == 6
    accuracies = [float(row["val/accuracy"]) for row in rows if row["val/accuracy"]]
    assert len(accuracies) == 2
    capsys.readouterr()
    for role in ("validate", "test"):
        main([role, "--config", file, "--ckpt_path", "saved/best.ckpt"])
        found = re.search(r"(?:val|test)/accuracy[\s│]+([\d.]+)", capsys.readouterr().out)
        assert found
        if role == "validate":
            assert float(found[1]) == pytest.approx(max(accuracies))


def test_tensorboard_gets_the_curves():
    def logged(config):
        logger = {"class_path": "pytorch_lightning.loggers.TensorBoardLogger", "init_args": {"save_dir": "."}}
        config["trainer"]["logger"] = logger

    main(["fit", "--config", tiny(logged)])
    (folder,) = Path("lightning_logs").iterdir()
    events = EventAccumulator(str(folder)).Reload()
    assert {"train/loss", "train/accuracy", "val/accuracy", "val/accuracy_interval"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("train/accuracy")] == list(range(6))


def misnamed_model(config):
    config["model"]["init_args"]["innr_steps"] = 3


def misnamed_data(config):
    config["data"]["init_args"]["tasks_per_epoch"] = 3


def misnamed_trainer(config):
    config["trainer"]["max_stepz"] = 3


WRONG = {"innr_steps": misnamed_model, "tasks_per_epoch": misnamed_data, "max_stepz": misnamed_trainer}


@pytest.mark.parametrize("key", WRONG)
def test_a_wrong_key_is_named(key, capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--config", tiny(WRONG[key])])
    assert re.search(rf"not accept.*{key}|{key}.*not accept", capsys.readouterr().err)


def test_missing_data_are_told_in_one_sentence(monkeypatch):
    monkeypatch.setenv("LEARNED_OPTIM_DATA", "nowhere")
    monkeypatch.setenv("LEARNED_OPTIM_CACHE", "nothing")
    tasks = ["--data=TaskDataModule", "--data.tasks=meta_init.omniglot_episodes"]
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--seed_everything=0", "--model=MAMLModule", *tasks])
    assert re.fullmatch(
        r"learned-optim: Omniglot is not in nowhere.omniglot: .* is missing\. Set .*", stopped.value.code
    )


def test_what_we_refuse_is_told_in_one_sentence():
    def wrong(config):
        config["model"]["init_args"]["outer_lr"] = -1.0

    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--config", tiny(wrong)])
    assert stopped.value.code == "learned-optim: MAMLModule: outer_lr must be a finite number >= 0, got -1.0"


OWN = """
from lightning_modules import MAMLModule


class Own(MAMLModule):
    def __init__(self, size: int = 1):
        if size > 1:
            raise ValueError("too large")
        super().__init__()
"""


def test_modules_of_ones_own_are_found_and_their_errors_keep_their_trace(monkeypatch):
    monkeypatch.setattr(sys, "path", sys.path[:])
    Path("module_beside_the_file.py").write_text(OWN)

    def own(size):
        def change(config):
            config["model"] = {"class_path": "module_beside_the_file.Own", "init_args": {"size": size}}
            config["trainer"]["max_steps"] = 0
            del config["data"]

        return tiny(change)

    main(["fit", "--config", own(1)])
    with pytest.raises(ValueError, match="too large"):
        main(["fit", "--config", own(2)])


# Callbacks


def test_early_stopping_and_the_best_checkpoint_follow_accuracy():
    module, data = module_and_data("conv", steps=2)
    seen = []

    class Watch(pl.Callback):
        def on_validation_end(self, trainer, module):
            seen.append(float(trainer.callback_metrics["val/accuracy"]))

    stopper = EarlyStopping("val/accuracy", mode="max", patience=2, min_delta=0.02)
    saver = ModelCheckpoint("saved", monitor="val/accuracy", mode="max")
    run = trainer(-1, max_epochs=40, enable_checkpointing=True, callbacks=[Watch(), stopper, saver])
    run.fit(module, datamodule=data)
    assert stopper.stopped_epoch == run.current_epoch - 1 == len(seen) - 1 < 39
    assert max(seen) > seen[0]
    assert max(seen[-3:]) < max(seen[:-2]) + 0.02
    assert float(saver.best_model_score) == max(seen)
    loaded = MAMLModule.load_from_checkpoint(saver.best_model_path, model=small_conv())
    assert run.validate(loaded, datamodule=data, verbose=False)[0]["val/accuracy"] == pytest.approx(max(seen))


def test_the_progress_bar_shows_both_accuracies():
    module, data = module_and_data("conv", steps=2)
    run = trainer(2)
    run.fit(module, datamodule=data)
    assert {"train/loss", "train/accuracy", "val/loss", "val/accuracy"} <= set(run.progress_bar_metrics)
    assert float(run.progress_bar_metrics["val/accuracy"]) == pytest.approx(float(run.callback_metrics["val/accuracy"]))


# A GPU


@needs_a_gpu
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true", "16-mixed"])
@kinds
def test_training_on_a_gpu(kind, precision):
    devices = []

    class Watch(pl.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            devices.extend(leaf.device.type for part in batch for leaf in part)

    module, data = module_and_data(kind)
    run = trainer(30, accelerator="gpu", devices=1, precision=precision, callbacks=[Watch()])
    (before,) = run.validate(module, datamodule=data, verbose=False)
    run.fit(module, datamodule=data)
    assert set(devices) == {"cuda"}
    assert run.validate(module, datamodule=data, verbose=False)[0]["val/loss"] < 0.9 * before["val/loss"]


@needs_a_gpu
@kinds
def test_evaluation_on_a_gpu_is_that_on_the_cpu(kind):
    module, data = module_and_data(kind)
    tasks = data.val_tasks.sample(5, torch.Generator().manual_seed(0))
    expected = module.learner.evaluate(tasks, 3)
    found = module.learner.cuda().evaluate(tree_map(lambda leaf: leaf.cuda(), tasks), 3)
    assert found.losses.is_cuda
    # In float32, with other kernels.
    assert_close(found.losses.cpu(), expected.losses, rtol=1e-3, atol=1e-3)


@needs_a_gpu
def test_episodes_of_classes_on_a_gpu_are_those_on_the_cpu():
    there, here = (patterns(device).sample(4, torch.Generator().manual_seed(0)) for device in ("cuda", "cpu"))
    assert there.support.x.is_cuda
    assert there.query.y.is_cuda
    assert_close(tree_map(lambda leaf: leaf.cpu(), there), here, rtol=0, atol=0)
    module, _ = module_and_data("conv")
    run = trainer(2, accelerator="gpu", devices=1)
    run.fit(module, datamodule=TaskDataModule(patterns("cuda"), steps_per_epoch=2, eval_tasks=4))
    assert torch.isfinite(run.callback_metrics["val/loss"])
