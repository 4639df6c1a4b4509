"""The rows of the few-shot tables: train them in resumable pieces, test them, print the tables.

    python docs/examples/few_shot.py train ROW ... [--iterations 60000] [--minutes 9]
    python docs/examples/few_shot.py test ROW ... [--iterations 60000] [--seed 2]
    python docs/examples/few_shot.py table
    python docs/examples/few_shot.py publish ROW ...

A ROW is the name of a file in docs/configs/few-shot; ``all`` stands for every one. ``train`` is
``learned-optim fit --config docs/configs/few-shot/ROW.yaml`` that goes on where it was interrupted, in pieces of so
many minutes if asked to, on a GPU where there is one. ``test`` takes the checkpoint that did best on validation classes
to 600 tasks of the test classes, which no training or selection saw, and writes docs/results/few-shot/ROW.json. A row
that is trained anew because of its result on some tasks is tested with another ``--seed``, on tasks not seen before.
``table`` makes docs/results/few-shot/README.md from these files. ``publish`` writes bundled checkpoints.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from few_shot_tables import card, page

from learned_optim import write_atomically
from lightning_modules import TaskBatches
from meta_init import load_learner, save_learner

CONFIGS, RESULTS, RUNS = Path("docs/configs/few-shot"), Path("docs/results/few-shot"), Path("runs/few-shot")
BUNDLED = Path("learned_optim/checkpoints")
TASKS = 600


def config_file(row: str, iterations: int | None = None, *, until: float | None = None) -> Path:
    """The row's configuration, or a copy for a run of so many iterations, or one that ends after so many seconds."""
    file = CONFIGS / f"{row}.yaml"
    if iterations is None and until is None:
        return file
    text = file.read_text()
    if iterations is not None:
        text = text.replace(f"runs/few-shot/{row}", f"runs/few-shot/{row}-{iterations}")
        text = re.sub(r"max_steps: \d+", f"max_steps: {iterations}", text)
    if until is not None:
        text = text.replace("{interval: step}", f"{{interval: step, duration: {{seconds: {until:.0f}}}}}")
    copy = folder(row, iterations) / "config.yaml"
    write_atomically(copy, text.encode())
    return copy


def folder(row: str, iterations: int | None = None) -> Path:
    """Where a run keeps its checkpoints and logs."""
    return RUNS / (row if iterations is None else f"{row}-{iterations}")


def train(row: str, iterations: int | None, minutes: float | None) -> None:
    """Trains, or goes on, for at most so many minutes; a run that has ended is left alone."""
    from lightning_modules.cli import main

    last, before = folder(row, iterations) / "last.ckpt", 0.0
    if last.exists():
        checkpoint = saved(last.parent, "last")
        if checkpoint["global_step"] >= planned(row, iterations):
            return
        # Lightning's timer counts the pieces before, too.
        before = callback(checkpoint, "Timer")["time_elapsed"]["train"]
    until = None if minutes is None else before + 60 * minutes
    arguments = ["fit", "--config", str(config_file(row, iterations, until=until))]
    if last.exists():
        arguments += ["--ckpt_path", str(last)]
    main(arguments)


def planned(row: str, iterations: int | None) -> int:
    """How many iterations a run is to have."""
    return iterations or int(yaml.safe_load(config_file(row).read_text())["trainer"]["max_steps"])


def built(config: Path) -> tuple[Any, Any]:
    """The configuration's LightningModule and datamodule, untrained."""
    from pytorch_lightning.cli import LightningCLI

    cli = LightningCLI(args=["--config", str(config), "--trainer.logger=false"], run=False)
    return cli.model, cli.datamodule


def saved(run: Path, name: str) -> dict[str, Any]:
    """The newest checkpoint whose name begins so."""
    files = sorted(run.glob(f"{name}*.ckpt"), key=lambda file: file.stat().st_mtime)
    if not files:
        raise SystemExit(f"no checkpoint {run / name}.ckpt: train it first")
    checkpoint: dict[str, Any] = torch.load(files[-1], map_location="cpu", weights_only=True)
    return checkpoint


def callback(checkpoint: dict[str, Any], *words: str) -> dict[str, Any]:
    """What a callback has saved: the one whose name has all these words."""
    (state,) = [one for name, one in checkpoint["callbacks"].items() if all(word in name for word in words)]
    return dict(state)


def machine() -> str:
    """What ran it."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} thread(s)"
    return f"{device}, {platform.machine()}, torch {torch.__version__}"


def test(row: str, iterations: int | None, remark: str, seed: int | None) -> None:
    """Takes the selected checkpoint to fresh tasks of test classes and writes what it did."""
    config, run = config_file(row, iterations), folder(row, iterations)
    module, data = built(config)
    best, last = saved(run, "best"), saved(run, "last")
    module.load_state_dict(best["state_dict"])
    seed = data.seed if seed is None else seed
    curves = accuracies(module.learner, data, max(module.eval_steps, 10), seed)
    at = module.eval_steps if curves.shape[1] > 1 else 0
    seconds = callback(last, "Timer")["time_elapsed"]
    task, longer = data.test_tasks, f" --iterations {iterations}" if iterations else ""
    fresh = "" if seed == data.seed else f" --seed {seed}"
    result = {
        "row": row,
        "command": f"python docs/examples/few_shot.py train {row}{longer}, then test {row}{longer}{fresh}",
        "ways": task.ways,
        "shots": task.shots,
        "iterations": int(last["global_step"]),
        "planned": planned(row, iterations),
        "selected": int(best["global_step"]),
        "meta_batch_size": data.meta_batch_size,
        "validation_tasks": data.eval_tasks,
        "validation": float(callback(best, "ModelCheckpoint", "val/accuracy")["best_model_score"]),
        "seeds": {"torch": 1, "tasks": data.seed, "test_tasks": seed, "classes": 0},
        "train_hours": sum(seconds[part] for part in ("train", "validate")) / 3600,
        "machine": machine(),
        "remark": remark,
        "steps": at,
        "tasks": len(curves),
        "accuracy": float(curves[:, at].mean()),
        "interval": float(1.96 * curves[:, at].std() / len(curves) ** 0.5),
        "curve": [round(float(value), 5) for value in curves.mean(dim=0)],
    }
    write_atomically(RESULTS / f"{row}.json", (json.dumps(result, indent=1) + "\n").encode())
    print(f"{row}: {100 * result['accuracy']:.2f} ± {100 * result['interval']:.2f} % on {len(curves)} tasks")


def publish(row: str, iterations: int | None) -> None:
    """Writes the selected learner as a bundled checkpoint in half precision, with its record, and tests that too."""
    config = config_file(row, iterations)
    module, data = built(config)
    module.load_state_dict(saved(folder(row, iterations), "best")["state_dict"])
    settings = yaml.safe_load(config.read_text())["model"]["init_args"]["model"]
    network = {"name": settings["class_path"].rpartition(".")[2]} | settings["init_args"]
    result = json.loads((RESULTS / f"{row}.json").read_text())
    record = {
        "command": result["command"],
        "result": result,
        "trained_on": list(data.tasks.classes.names),
        "config": config.read_text(),
    }
    file = BUNDLED / f"{row}@1.safetensors"
    save_learner(file, module.learner, network=network, record=record, dtype=torch.float16)
    half = float(accuracies(load_learner(file), data, result["steps"], result["seeds"]["test_tasks"])[:, -1].mean())
    write_atomically(BUNDLED / f"{row}@1.md", card(row, result, half).encode())
    print(f"{file}: {file.stat().st_size / 1024:.0f} KiB, {100 * half:.2f} % on the same tasks")


def accuracies(learner: Any, data: Any, steps: int, seed: int) -> torch.Tensor:
    """After 0, 1, ... steps on each of the test tasks of this seed, shape (600, steps + 1)."""
    batches = TaskBatches(data.test_tasks, size=data.eval_batch_size, seed=seed, role="test")
    return torch.cat([learner.evaluate(batches[i], steps).accuracies for i in range(TASKS // data.eval_batch_size)])


def table() -> None:
    """Makes the page from the result files."""
    results = [json.loads(file.read_text()) for file in sorted(RESULTS.glob("*-*w*s-*.json"))]
    write_atomically(RESULTS / "README.md", page(results, RESULTS).encode())
    print((RESULTS / "README.md").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["train", "test", "table", "publish"])
    parser.add_argument("rows", nargs="*", metavar="ROW")
    parser.add_argument("--minutes", type=float, help="of training, for all rows together; call it again to go on")
    parser.add_argument("--iterations", type=int, help="another number than the configuration's, in a run of its own")
    parser.add_argument("--seed", type=int, help="of the test tasks; the configuration's unless given")
    parser.add_argument("--remark", default="", help="what a reader should know of the training, for test")
    args = parser.parse_args()
    rows = sorted(file.stem for file in CONFIGS.glob("*.yaml")) if args.rows == ["all"] else args.rows
    for row in rows:
        if not config_file(row).exists():
            parser.error(f"no {config_file(row)}; there are {sorted(file.stem for file in CONFIGS.glob('*.yaml'))}")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    if args.what == "table":
        table()
    start = time.monotonic()
    for row in rows:
        if args.what == "train":
            left = None if args.minutes is None else args.minutes - (time.monotonic() - start) / 60
            if left is None or left > 0.5:  # less is not worth the start
                train(row, args.iterations, left)
        elif args.what == "test":
            test(row, args.iterations, args.remark, args.seed)
        else:
            publish(row, args.iterations)


if __name__ == "__main__":
    main()
