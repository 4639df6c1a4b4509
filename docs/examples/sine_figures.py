"""The lecture's figures on sine waves: adaptation from a learned initialisation, and Meta-SGD's third figure.

    python docs/examples/sine_table.py && python docs/examples/sine_figures.py [--iterations 30000] [--jobs N]

adaptation.png: mean squared error after 0 to 10 gradient steps on 10 points, on the waves of Finn et al. 2017,
y = A sin(x - b), and on the lecture's, y = A sin(w x) with w in [0, pi]. MAML (1-40-40-1, one inner step of 0.01 as in
the paper, and ten of 0.003 for the lecture's waves, meta-batches of 25, Adam at 1e-3, gradients clipped to norm 10)
against the same network pretrained on all waves and fine-tuned by SGD, its step size the best of six on validation
waves, and an oracle that is told amplitude and phase or frequency; 600 waves that no training saw, 95 % intervals.
Below, one wave of each family. The paper trains for 70,000 iterations.

meta-sgd-figure-3.png: Li et al. 2017, figure 3: one wave from 5 points before and after one step, and 10-shot
meta-training tested with more and more points; the learners of docs/examples/sine_table.py.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from sine_table import learner_file
from torch import Tensor

from learned_optim import write_atomically
from learned_optim.seeds import seeded
from meta_init import Batch, MetaLearner, Sinusoids, load_learner, maml, save_learner, sine_mlp
from meta_init.baselines import OracleSinusoids, oracle, pretrained_on_all

SHOTS, STEPS, TASKS = 10, 10, 600
FAMILIES = {"maml": "y = A sin(x - b)", "lecture": "y = A sin(w x), w in [0, pi]"}
RATES = (1e-4, 3e-4, 0.001, 0.003, 0.01, 0.03)
INNER = {"maml": {"steps": 1, "lr": 0.01}, "lecture": {"steps": 10, "lr": 0.003}}
"""MAML's inner steps. Trained for one of 0.01, on the lecture's waves it diverges on some after nine more; with an
outer learning rate that falls to zero over 70,000 iterations it did so on both families."""
SYSTEMS = ("MAML", "pretrained", "oracle")


def tasks(family: str, system: str, queries: int | None = None) -> Any:
    """What a system is trained and tested on."""
    waves = Sinusoids(family, shots=SHOTS, queries=queries)
    return OracleSinusoids(waves) if system == "oracle" else waves


def made(system: str, family: str, lr: float = 0.01) -> MetaLearner:
    """An untrained system."""
    if system == "oracle":
        return oracle(tasks(family, system).inputs)
    if system == "pretrained":
        return pretrained_on_all(sine_mlp(), lr=lr)
    return maml(sine_mlp(), **INNER[family], compile=True)


def train(job: tuple[str, str, int]) -> tuple[str, str, dict[str, Tensor]]:
    """Trains one system on one family and returns its weights."""
    system, family, iterations = job
    torch.set_num_threads(1)
    torch.manual_seed(0)
    learner, source = made(system, family), tasks(family, system)
    optimizer = torch.optim.Adam(learner.parameters(), lr=1e-3)
    for i in range(iterations):
        loss, _ = learner.outer_loss(source.sample(25, seeded("sine figures", family, i)))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learner.parameters(), 10.0)
        optimizer.step()
    save_learner(Path("runs/sine-figures") / f"{family}-{system}.safetensors", learner)
    return system, family, learner.model.state_dict()


def trained(system: str, family: str, weights: dict[str, Tensor], lr: float = 0.01) -> MetaLearner:
    """A trained system that takes steps of ``lr``."""
    learner = made(system, family, lr)
    learner.model.load_state_dict(weights)
    return learner


def tuned(family: str, weights: dict[str, Tensor]) -> float:
    """The step size with which pretraining is fine-tuned best, on validation waves."""
    validation = tasks(family, "pretrained", 100).sample(200, seeded("sine figures", family, "val"))

    def final(lr: float) -> float:
        error = float(trained("pretrained", family, weights, lr).evaluate(validation, STEPS).losses[:, -1].mean())
        return error if math.isfinite(error) else math.inf

    return min(RATES, key=final)


def mean_and_interval(losses: Tensor) -> dict[str, list[float]]:
    """Over tasks, for each number of steps."""
    return {
        "mean": losses.mean(dim=0).tolist(),
        "interval": (1.96 * losses.std(dim=0) / len(losses) ** 0.5).tolist(),
    }


def adaptation(weights: dict[tuple[str, str], dict[str, Tensor]], out: Path) -> dict[str, Any]:
    """Measures and draws the first figure."""
    figure = Figure(figsize=(12, 8), layout="constrained")
    panels, found = figure.subplots(2, 2), {}
    for column, (family, formula) in enumerate(FAMILIES.items()):
        rates = {
            "MAML": INNER[family]["lr"],
            "pretrained": tuned(family, weights["pretrained", family]),
            "oracle": 0.01,
        }
        learners = {name: trained(name, family, weights[name, family], rates[name]) for name in SYSTEMS}
        axes = panels[0, column]
        found[family] = {"rates": rates}
        for name, learner in learners.items():
            test = tasks(family, name, 100).sample(TASKS, seeded("sine figures", family, "test"))
            losses = learner.evaluate(test, 0 if name == "oracle" else STEPS).losses
            curve = found[family][name] = mean_and_interval(losses)
            means, errors = (torch.tensor(curve[key]) for key in ("mean", "interval"))
            if name == "oracle":
                axes.axhline(float(means[0]), color="gray", linestyle=":", label="oracle")
                continue
            label = name if name == "MAML" else f"pretrained, fine-tuned at {rates[name]:g}"
            axes.plot(means, "o-", markersize=3, label=label)
            axes.fill_between(range(STEPS + 1), means - errors, means + errors, alpha=0.2)
        axes.set(title=formula, xlabel="gradient steps", ylabel="mean squared error", yscale="log")
        axes.legend()
        axes.grid(alpha=0.3)
        example(panels[1, column], family, {name: learners[name] for name in ("MAML", "pretrained")})
    figure.savefig(out / "adaptation.png", dpi=120)
    return found


def example(axes: Any, family: str, learners: dict[str, MetaLearner]) -> None:
    """One wave, ten points on its right half, and what the networks make of them."""
    generator = seeded("sine figures", family, "picture")
    wave = Sinusoids(family).waves(1, generator)
    x = 5 * torch.rand(SHOTS, 1, generator=generator)
    line = torch.linspace(-5, 5, 300).unsqueeze(1)
    axes.plot(line, wave(line)[0], "k", linewidth=2, label="true wave")
    for color, (name, learner) in enumerate(learners.items()):
        for steps, style in ((0, ":"), (1, "--"), (STEPS, "-")):
            curve = learner.adapt(Batch(x, wave(x)[0]), steps)(line)
            axes.plot(line, curve, style, color=f"C{color}", label=f"{name}, {steps} steps")
    axes.plot(x, wave(x)[0], "^", color="purple", zorder=3, label=f"the {SHOTS} points")
    axes.set(xlabel="x", ylabel="y", ylim=(-6, 6))
    axes.legend(fontsize=7, ncols=2)
    axes.grid(alpha=0.3)


def figure_3(out: Path) -> dict[str, Any]:
    """Measures and draws the second figure."""
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    generator = seeded("sine figures", "figure 3")
    source = Sinusoids("meta_sgd", shots=5)
    wave = source.waves(1, generator)
    x, line = 10 * torch.rand(5, 1, generator=generator) - 5, torch.linspace(-5, 5, 300).unsqueeze(1)
    left.plot(line, wave(line)[0], "k", linewidth=2, label="true wave")
    left.plot(x, wave(x)[0], "^", color="purple", zorder=3, label="the 5 points")
    counts, found = [2, 3, 5, 7, 10, 15, 20, 30, 40], {}
    for color, name in enumerate(("MAML", "Meta-SGD")):
        learner = load_learner(learner_file(name, 5, 0))
        for steps, style in ((0, ":"), (1, "-")):
            when = "before" if steps == 0 else "after one step"
            curve = learner.adapt(Batch(x, wave(x)[0]), steps)(line)
            left.plot(line, curve, style, color=f"C{color}", label=f"{name} {when}")
        learner, errors = load_learner(learner_file(name, 10, 0)), []
        for count in counts:
            test = Sinusoids("meta_sgd", shots=count, queries=100).sample(TASKS, seeded("figure 3", "test", count))
            errors.append(learner.evaluate(test, 1).losses[:, 1:])
        curve = found[name] = mean_and_interval(torch.cat(errors, dim=1))
        right.errorbar(counts, curve["mean"], curve["interval"], fmt="o-", markersize=3, label=name, capsize=2)
    left.set(xlabel="x", ylabel="y", title="5-shot")
    right.set(xlabel="points at test", ylabel="mean squared error after one step", title="10-shot meta-training")
    for axes in (left, right):
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    figure.savefig(out / "meta-sgd-figure-3.png", dpi=120)
    return {"points": counts} | found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=30_000)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="systems trained side by side, a thread each")
    parser.add_argument("--out", type=Path, default=Path("docs/results/few-shot"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    jobs = [(system, family, args.iterations) for system in SYSTEMS for family in FAMILIES]
    with multiprocessing.get_context("spawn").Pool(args.jobs) as pool:
        weights = {(system, family): state for system, family, state in pool.map(train, jobs, chunksize=1)}
    found = {
        "command": f"python docs/examples/sine_figures.py --iterations {args.iterations}",
        "adaptation": adaptation(weights, args.out),
        "figure 3": figure_3(args.out),
    }
    write_atomically(args.out / "sine-figures.json", (json.dumps(found, indent=1) + "\n").encode())
    for family, curves in found["adaptation"].items():
        print(f"\n{FAMILIES[family]}; mean squared error after 0, 1, 5, 10 steps")
        for name in SYSTEMS:
            means, errors = curves[name]["mean"], curves[name]["interval"]
            cells = [f"{means[k]:.3f} ± {errors[k]:.3f}" for k in (0, 1, 5, 10) if k < len(means)]
            print(f"{name:<12} {'  '.join(cells)}")


if __name__ == "__main__":
    main()
