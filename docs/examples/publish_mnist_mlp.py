"""From a Lightning checkpoint to the bundled one: exports the rule, measures it on fresh problems, writes its card.

    python docs/examples/publish_mnist_mlp.py --ckpt runs/mnist-mlp/BEST.ckpt    # after training, see the card
    python docs/examples/publish_mnist_mlp.py                                    # measures and writes the card anew

It needs MNIST. Baselines are tuned on three validation seeds for each of the two windows of steps by themselves;
everybody runs on five test seeds. Writes the numbers as JSON, the card from the JSON, and a picture.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from tqdm import tqdm

import learned_optim
from learned_optim import LSTMOptimizer, LSTMRule, read_record, save_checkpoint
from learned_optim.problems import ImageClassification, mlp
from learned_optim.race import Run, draw_curves, repeat, third_decades, trailing_mean

NAME = "mnist-mlp@1"
ROOT = Path(__file__).parent.parent
CARD = Path(learned_optim.__file__).parent / "checkpoints" / f"{NAME}.md"
RESULTS = ROOT / "results" / f"{NAME}.json"
CONFIG = ROOT / "configs" / "mnist-mlp.yaml"
COMMAND = "learned-optim fit --config docs/configs/mnist-mlp.yaml"

STEPS = 200
WINDOWS = {"91-100": slice(90, 100), "181-200": slice(180, 200)}
SMOOTH = 5
BEYOND, BEYOND_SEEDS = (1000, 10000), range(2)
SEEDS, TUNING_SEEDS = range(5), range(3)
NETWORKS = {
    "784-20-10 sigmoid (trained on)": {"hidden": (20,), "activation": "sigmoid"},
    "40 units": {"hidden": (40,), "activation": "sigmoid"},
    "2 layers of 20 units": {"hidden": (20, 20), "activation": "sigmoid"},
    "ReLU": {"hidden": (20,), "activation": "relu"},
}


class Baseline(NamedTuple):
    make: Callable[..., torch.optim.Optimizer]
    rates: tuple[float, ...]


BASELINES = {
    "Adam": Baseline(torch.optim.Adam, third_decades(1e-3, 1.0)),
    "RMSprop": Baseline(torch.optim.RMSprop, third_decades(1e-4, 0.1)),
    "Adagrad": Baseline(torch.optim.Adagrad, third_decades(1e-2, 1.0)),
    "NAG": Baseline(partial(torch.optim.SGD, momentum=0.9, nesterov=True), third_decades(1e-2, 10.0)),
    "SGD": Baseline(torch.optim.SGD, third_decades(1e-1, 10.0)),
}


def export(ckpt: Path) -> None:
    """Writes the rule of a Lightning checkpoint as the bundled file, with the training's record."""
    config = yaml.safe_load(CONFIG.read_text())
    saved = torch.load(ckpt, weights_only=True, map_location="cpu")
    rule = LSTMRule(**config["model"]["init_args"]["rule"]["init_args"])
    weights = {key.removeprefix("rule."): value for key, value in saved["state_dict"].items()}
    rule.load_state_dict(weights)
    record = {
        "command": COMMAND,
        "config": config,
        "lightning_checkpoint": ckpt.name,
        "meta_updates": saved["global_step"],
        "torch": torch.__version__,
    }
    save_checkpoint(CARD.with_suffix(".safetensors"), rule, record=record)


def measure(network: dict[str, Any], bar: Any) -> tuple[dict[str, Any], dict[str, Run]]:
    """The numbers for one network, and the runs tuned for the later window."""
    family = ImageClassification("mnist", partial(mlp, **network), batch_size=128)
    runs = {f"LSTM ({NAME})": repeat(family, lambda p: LSTMOptimizer(p, NAME), steps=STEPS, seeds=SEEDS)}
    (learned,) = runs.values()
    rows = {"LSTM": {window: summary(learned, at) for window, at in WINDOWS.items()}}
    bar.update()
    for name, baseline in BASELINES.items():
        losses = {
            lr: repeat(family, partial(baseline.make, lr=lr), steps=STEPS, seeds=TUNING_SEEDS, role="val").losses
            for lr in baseline.rates
        }
        rows[name] = {}
        for window, at in WINDOWS.items():
            lr = best(losses, at)
            if lr in (baseline.rates[0], baseline.rates[-1]):
                raise RuntimeError(f"{name}: the best rate {lr} is an end of the grid {baseline.rates}; widen it")
            runs[name] = repeat(family, partial(baseline.make, lr=lr), steps=STEPS, seeds=SEEDS)
            rows[name][window] = summary(runs[name], at) | {"lr": lr}
        bar.update()
    return rows, runs


def best(losses: dict[float, torch.Tensor], at: slice) -> float:
    """The learning rate with the lowest mean loss in a window; what is not finite loses."""
    scores = {lr: float(runs[:, at].mean()) for lr, runs in losses.items()}
    return min(scores, key=lambda lr: scores[lr] if math.isfinite(scores[lr]) else math.inf)


def measure_beyond(first: dict[str, Any], bar: Any) -> dict[str, Any]:
    """Losses far beyond the horizon, with the learning rates that were best for the last window."""
    family = ImageClassification("mnist")
    lrs = {name: first[name][list(WINDOWS)[-1]]["lr"] for name in ("Adam", "NAG")}
    makers = {"LSTM": lambda p: LSTMOptimizer(p, NAME)}
    makers |= {name: partial(BASELINES[name].make, lr=lr) for name, lr in lrs.items()}
    results: dict[str, Any] = {"lr": lrs} | {str(steps): {} for steps in BEYOND}
    for name, make in makers.items():
        losses = repeat(family, make, steps=BEYOND[-1], seeds=BEYOND_SEEDS).losses
        for steps in BEYOND:
            results[str(steps)][name] = float(losses[:, steps - 100 : steps].mean())
        bar.update()
    return results


def summary(run: Run, at: slice) -> dict[str, float]:
    ends = run.losses[:, at].mean(dim=1)
    return {
        "loss": float(ends.mean()),
        "std": float(ends.std()),
        "test_loss": float(run.test_loss.mean()),
    }


def card(results: dict[str, Any], record: dict[str, Any]) -> str:
    """The card's text."""
    options = record["config"]["model"]["init_args"]
    rule = ", ".join(f"{key}={value!r}" for key, value in options["rule"]["init_args"].items())
    lines = [
        f"# {NAME}",
        "",
        "An LSTM optimizer for small networks on images, meta-trained on one problem: a 784-20-10 sigmoid network with",
        "PyTorch's default initialisation on the 60,000 MNIST training images, minibatches of 128, inputs in [0, 1].",
        "",
        "## Recipe",
        "",
        f"- Rule: `LSTMRule({rule})`.",
        f"- Truncated backpropagation: {options['horizon']} steps per problem, windows of {options['window']},",
        f"  {options['instances']} problems at once, graph kept for {options['coordinates']} coordinates per tensor",
        "  (an unbiased sample, first-order meta-gradients).",
        f"- Adam with learning rate {options['outer_lr']:g} and a {options['schedule']} schedule over",
        f"  {record['config']['trainer']['max_steps']} meta-updates, meta-gradients clipped to norm "
        f"{record['config']['trainer']['gradient_clip_val']:g};",
        f"  this file is the state after {record['meta_updates']} of them, the one with the lowest loss on held-out",
        f"  validation problems (mean over the last {options['horizon'] // 10} steps; measured every "
        f"{options['steps_per_epoch']} meta-updates).",
        f"- Seed {options['seed']} for the problems, {record['config']['seed_everything']} for the weights.",
        f"- Command: `{record['command']}`, then",
        f"  `python docs/examples/publish_mnist_mlp.py --ckpt runs/mnist-mlp/{record['lightning_checkpoint']}`.",
        "",
        "## Beside tuned optimizers",
        "",
        f"Training loss, mean over the steps of each window, mean and standard deviation over {results['seeds']} fresh",
        "problems (initialisation and batch order) that training never saw. The learning rate of each hand-designed",
        "optimizer was tuned on 3 other problems, for each window by itself. The last column is the loss on the 10,000",
        f"test images after {STEPS} steps. The LSTM is not tuned, and has its guard, as it is loaded;",
        "only the first table's network was trained on.",
    ]
    for network, rows in results["networks"].items():
        best = {w: min(row[w]["loss"] for name, row in rows.items() if name != "LSTM") for w in WINDOWS}
        first, last = WINDOWS
        lines += ["", f"### {network}", ""]
        lines += [f"| optimizer | steps {first} | steps {last} | test images |", "|---|---|---|---|"]
        for name, row in rows.items():
            cells = [
                f"{row[w]['loss']:.3f} +- {row[w]['std']:.3f}" + (f" (lr {row[w]['lr']:g})" if "lr" in row[w] else "")
                for w in WINDOWS
            ]
            lines.append(f"| {name} | {cells[0]} | {cells[1]} | {row[last]['test_loss']:.3f} |")
        ratios = [f"{rows['LSTM'][w]['loss'] / best[w]:.2f}" for w in WINDOWS]
        lines += ["", f"Ratio to the best tuned baseline: {ratios[0]} and {ratios[1]}."]
    lines += [
        "",
        f"Loss curves: `docs/results/{NAME}.png` in the repository.",
        "",
        "## Known failures",
        "",
        "- It knows one family. The tables above show how it does on three neighbours, better or worse than tuned",
        "  optimizers as they say; networks, losses and input scales farther away were not measured.",
        f"- It was trained on horizons of {options['horizon']} steps. Beyond that, mean training loss over the last",
        f"  100 of so many steps on {len(BEYOND_SEEDS)} of the problems:",
        "",
        "| steps | LSTM | " + " | ".join(f"{key} (lr {lr:g})" for key, lr in results["beyond"]["lr"].items()) + " |",
        "|---|" + "---|" * (1 + len(results["beyond"]["lr"])),
        *(
            f"| {steps:,} | " + " | ".join(f"{loss:.4f}" for loss in results["beyond"][str(steps)].values()) + " |"
            for steps in BEYOND
        ),
        "",
        "## Licence",
        "",
        "Apache-2.0, as the package. MNIST (LeCun et al. 1998) is usually cited as CC BY-SA 3.0; the file holds none",
        "of its images.",
        "",
        f"Measured with torch {results['torch']} on a {results['machine']} by",
        "`python docs/examples/publish_mnist_mlp.py`.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", type=Path, help="a Lightning checkpoint to export first")
    args = parser.parse_args()
    if args.ckpt is not None:
        export(args.ckpt)
    networks, pictured = {}, None
    with tqdm(total=len(NETWORKS) * (1 + len(BASELINES)) + 3, desc="races") as bar:
        for name, network in NETWORKS.items():
            networks[name], runs = measure(network, bar)
            pictured = pictured or runs
        beyond = measure_beyond(next(iter(networks.values())), bar)
    machine = f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"
    results = {
        "networks": networks,
        "beyond": beyond,
        "seeds": len(SEEDS),
        "torch": torch.__version__,
        "machine": machine,
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    assert pictured is not None
    curves = {name: trailing_mean(run.losses, SMOOTH).tolist() for name, run in pictured.items()}
    draw_curves(
        curves,
        RESULTS.with_suffix(".png"),
        marks=range(1, STEPS + 1),
        learned=curves.keys() - BASELINES.keys(),
        title="784-20-10 sigmoid MLP on MNIST, five fresh seeds",
        ylabel=f"training loss (mean of {SMOOTH} steps)",
    )
    CARD.write_text(card(results, read_record(NAME)))
    print(CARD.read_text())


if __name__ == "__main__":
    main()
