"""Learning to fit waves from ten points: MAML and Meta-SGD against a network pretrained on all waves.

python docs/examples/sine.py [--quick] [--out demo]
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import warnings
from pathlib import Path

import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure
from pytorch_lightning.callbacks import TQDMProgressBar
from torch import Tensor
from tqdm import trange

from learned_optim.seeds import seeded
from lightning_modules import MAMLModule, TaskDataModule
from meta_init import Batch, MetaLearner, Sinusoids, maml, sine_mlp

SHOTS = 10
STEPS = 10
SHOWN = (0, 1, 5, 10)


def meta_train(name: str, algorithm: str, iterations: int, **options: object) -> MetaLearner:
    """Meta-trains the 1-40-40-1 network under Lightning's Trainer."""
    pl.seed_everything(0, verbose=False)
    module = MAMLModule(sine_mlp(), algorithm=algorithm, eval_steps=STEPS, **options)
    data = TaskDataModule(Sinusoids(shots=SHOTS), meta_batch_size=25, steps_per_epoch=iterations)
    print(f"{name}: {iterations} iterations")
    trainer = pl.Trainer(
        max_steps=iterations,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=[TQDMProgressBar(refresh_rate=100)],
    )
    trainer.fit(module, datamodule=data)
    return module.learner


def pretrain(iterations: int) -> MetaLearner:
    """The same network simply trained on the points of all waves, then fine-tuned with its best learning rate."""
    torch.manual_seed(0)
    model, waves = sine_mlp(), Sinusoids(shots=2 * SHOTS)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for i in trange(iterations, desc="pretraining", mininterval=1):
        points = waves.sample(25, seeded("pretrain", i)).support
        loss = (model(points.x) - points.y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    validation = Sinusoids(shots=SHOTS).sample(100, seeded("sine demo", "val"))
    rates = (0.001, 0.003, 0.01, 0.03)
    best = min(rates, key=lambda lr: float(maml(model, lr=lr).evaluate(validation, STEPS).losses[:, -1].mean()))
    print(f"pretraining: fine-tuned with learning rate {best:g}, the best of {rates} on validation waves")
    return maml(model, lr=best)


def interval(values: Tensor) -> str:
    """Mean with its 95 % interval over tasks."""
    if not bool(torch.isfinite(values).all()):
        return "diverges"
    return f"{values.mean():.3f} +- {1.96 * values.std() / len(values) ** 0.5:.3f}"


def draw(learners: dict[str, MetaLearner], path: Path) -> None:
    """The true wave, the points, and each network before, after one and after ten steps on them."""
    source, generator = Sinusoids(shots=SHOTS), seeded("sine demo", "picture")
    wave = source.waves(1, generator)
    x = 5 * torch.rand(SHOTS, 1, generator=generator)  # points on the right half only, as in the paper
    support = Batch(x, wave(x)[0])
    line = torch.linspace(-5, 5, 200).unsqueeze(1)
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    for axes, (name, learner) in zip(figure.subplots(1, len(learners), sharey=True), learners.items(), strict=True):
        axes.plot(line, wave(line)[0], "k", linewidth=2, label="true wave")
        for steps, style in ((0, ":"), (1, "--"), (10, "-")):
            curve = learner.adapt(support, steps)(line)
            if not bool(torch.isfinite(curve).all()):
                continue
            label = "before" if steps == 0 else f"after {steps} step{'s' if steps > 1 else ''}"
            axes.plot(line, curve, style, label=label)
        axes.plot(support.x, support.y, "^", color="purple", label=f"the {SHOTS} points", zorder=3)
        axes.set(title=name, xlabel="x", ylim=(-6.5, 6.5))
        axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=4000)
    parser.add_argument("--quick", action="store_true", help="500 iterations")
    parser.add_argument("--out", type=Path, default=Path("demo"))
    args = parser.parse_args()
    # The operations are too small to be shared: on a busy machine threads would only wait for each other.
    torch.set_num_threads(1)
    iterations = 500 if args.quick else args.iterations
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*LeafSpec.*")

    learners = {
        "MAML": meta_train("MAML", "maml", iterations, lr=0.01),
        "Meta-SGD": meta_train("Meta-SGD", "meta_sgd", iterations, lr=(0.005, 0.1)),
        "pretrained on all waves": pretrain(iterations),
    }
    test = Sinusoids(shots=SHOTS, queries=100).sample(600, seeded("sine demo", "test"))
    print(f"\nMSE on 600 fresh waves y = A sin(x - b), {SHOTS} points each, with 95 % intervals:\n")
    print(f"{'':<26}" + "".join(f"{f'{k} steps' if k != 1 else '1 step':<18}" for k in SHOWN))
    results = {}
    for name, learner in learners.items():
        losses = learner.evaluate(test, STEPS).losses  # (600, 11)
        print(f"{name:<26}" + "".join(f"{interval(losses[:, k]):<18}" for k in SHOWN))
        means = {str(k): float(losses[:, k].mean()) for k in SHOWN}
        results[name] = {k: mean if math.isfinite(mean) else None for k, mean in means.items()}
    print("\nMeta-SGD learns its rates for one step; taking more of them with the same rates is not what they are for.")
    draw(learners, args.out / "sine.png")
    (args.out / "sine.json").write_text(json.dumps({"iterations": iterations, "mse": results}, indent=1))
    print(f"\nWrote {args.out / 'sine.png'}")


if __name__ == "__main__":
    main()
