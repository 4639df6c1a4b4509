"""What the guard does: the bundled optimizer on problems far from those it was trained on, with it and without.

    python docs/examples/guard_table.py [--quick]

Prints a table of the loss at the start and at the end, and writes it with its runs to docs/results/guard.
"""

import argparse
import json
import math
import multiprocessing
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from learned_optim import Guard, LSTMOptimizer
from learned_optim.data import digits, mnist, write_atomically
from learned_optim.problems import ImageClassification, ProblemFamily, Quadratics, conv_net, mlp, recurrent, transformer
from learned_optim.seeds import seeded


class Scaled(nn.Module):
    """A network whose inputs or outputs are multiplied by a number."""

    def __init__(self, network: nn.Module, *, inputs: float = 1.0, outputs: float = 1.0) -> None:
        super().__init__()
        self.network, self.inputs, self.outputs = network, inputs, outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.outputs * self.network(self.inputs * x)


def small() -> nn.Module:
    """A network of 1,210 coordinates, for runs of many steps."""
    return nn.Sequential(nn.Unflatten(1, (1, 28)), nn.AvgPool2d(4), mlp((20,), "relu", inputs=49))


class Case(NamedTuple):
    family: Callable[[str], ProblemFamily]
    steps: int = 300


def images(model: Callable[[], nn.Module], steps: int = 300) -> Case:
    return Case(lambda data: ImageClassification(mnist() if data == "mnist" else digits(), model), steps)


FAMILY = "training family (784-20-10, sigmoid)"
CASES = {
    FAMILY: images(mlp, 200),
    "ReLU": images(partial(mlp, activation="relu")),
    "tanh": images(partial(mlp, activation="tanh")),
    "100 units": images(partial(mlp, (100,))),
    "2 hidden layers": images(partial(mlp, (20, 20))),
    "6 hidden layers, ReLU": images(partial(mlp, (20,) * 6, "relu")),
    "softmax regression": images(partial(mlp, ())),
    "conv net": images(partial(conv_net, 8)),
    "conv net, batch norm": images(partial(conv_net, 8, norm=True)),
    "GRU over rows": images(recurrent),
    "transformer": images(transformer),
    "inputs times 255": images(lambda: Scaled(mlp(activation="relu"), inputs=255.0)),
    "inputs times 0.001": images(lambda: Scaled(mlp(activation="relu"), inputs=0.001)),
    "logits times 100": images(lambda: Scaled(mlp(activation="relu"), outputs=100.0)),
    "quadratics, 10 dimensions": Case(lambda data: Quadratics(), 1000),
    "10,000 steps, 49-20-10, ReLU": images(small, 10_000),
    "other digits, ReLU": Case(lambda data: ImageClassification(digits(), partial(mlp, activation="relu"))),
}


def run(case: Case, data: str, *, lr: float, guard: bool, seed: int, steps: int) -> dict[str, float]:
    """Trains one problem; losses before and after, and the share of tensors that Adam has in the end."""
    family = case.family(data)
    problem = family.sample(seeded("guard", "test", seed))
    params = {name: p.clone().requires_grad_() for name, p in problem.params.items()}
    held = problem.batch(seeded("guard", "test", seed, "held"))
    optimizer = LSTMOptimizer(list(params.items()), checkpoint="mnist-mlp@1", lr=lr, guard=guard)
    batches = seeded("guard", "test", seed, "batches")

    def loss() -> float:
        with torch.no_grad():
            test = family.test_loss(params)
            return float(family.loss(params, held) if test is None else test)

    start = loss()
    for _ in range(steps):
        optimizer.zero_grad()
        family.loss(params, problem.batch(batches)).backward()
        optimizer.step()
    trusts = [state["guard.trust"] for state in optimizer.state.values() if "guard.trust" in state]
    handed_over = float(torch.stack([trust == 0 for trust in trusts]).float().mean()) if trusts else 0.0
    return {"start": start, "end": loss(), "handed over": handed_over}


def row(job: tuple[str, float, argparse.Namespace]) -> tuple[str, float, dict[str, list[dict[str, float]]]]:
    """One line of the table: the runs of all seeds, with the guard and without."""
    name, lr, arguments = job
    torch.set_num_threads(1)
    case = CASES[name]
    steps = case.steps // 10 if arguments.quick else case.steps
    runs = {
        label: [
            run(case, arguments.data, lr=lr, guard=guard, seed=seed, steps=steps) for seed in range(arguments.seeds)
        ]
        for label, guard in (("guarded", True), ("without", False))
    }
    return name, lr, runs


def markdown(record: dict[str, Any]) -> str:
    """The record as a page."""
    lines = [
        "# What the guard does",
        "",
        f"`{record['command']}`: the bundled optimizer `mnist-mlp` on {record['data']}, loss at the start and at the",
        f"end on images that no batch shows (quadratics: their value), means of {record['seeds']} seeds. The",
        "multiplier lr is 1 as trained, or far too large. *Handed over* is the share of tensors that Adam had in the",
        "end. 300 steps; the training family 200, quadratics 1,000.",
        "",
        "| problem | lr | start | with guard | without | handed over |",
        "|---|---|---|---|---|---|",
    ]
    fine = falls = 0
    for entry in record["rows"]:
        mean = {
            (label, key): sum(one[key] for one in entry[label]) / len(entry[label])
            for label in ("guarded", "without")
            for key in ("start", "end", "handed over")
        }
        guarded = entry["guarded"]
        fine += all(math.isfinite(one["end"]) and one["end"] <= one["start"] for one in guarded)
        falls += all(one["end"] <= 0.9 * one["start"] for one in guarded)
        lines.append(
            f"| {entry['problem']} | {entry['lr']:g} | {mean['guarded', 'start']:.4g} | {mean['guarded', 'end']:.4g} | "
            f"{mean['without', 'end']:.4g} | {mean['guarded', 'handed over']:.0%} |"
        )
    family = [entry for entry in record["rows"] if entry["problem"] == FAMILY and entry["lr"] == 1]
    lines += [
        "",
        f"With the guard every seed ended finite and not above its start in {fine} of {len(record['rows'])} rows, and",
        f"at most at nine tenths of it in {falls}.",
    ]
    if family:
        with_guard, without = (sum(one["end"] for one in family[0][label]) for label in ("guarded", "without"))
        lines.append(f"On the training family the guard's final loss is {with_guard / without:.3f} times that without.")
    means = {
        entry["problem"]: [sum(one["end"] for one in entry[label]) for label in ("guarded", "without")]
        for entry in record["rows"]
        if entry["lr"] == 1
    }
    dearer = [f"{name} ({a / b:.2f})" for name, (a, b) in means.items() if a > 1.02 * b]
    if dearer:
        lines.append(f"With lr 1 the guard costs where the rule would have done better alone: {', '.join(dearer)}.")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("docs/results/guard"), help="a .json and a .md are written")
    parser.add_argument("--data", choices=("mnist", "digits"), default="mnist")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--lr", type=float, nargs="+", default=[1.0, 10.0, 100.0])
    parser.add_argument("--only", default="", help="problems whose name holds this")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--quick", action="store_true", help="a tenth of the steps")
    arguments = parser.parse_args()
    jobs = [(name, lr, arguments) for name in CASES if arguments.only in name for lr in arguments.lr]
    record: dict[str, Any] = {
        "command": "python docs/examples/guard_table.py",
        "data": arguments.data,
        "seeds": arguments.seeds,
        "guard": Guard().config(),
        "rows": [],
    }
    with multiprocessing.get_context("spawn").Pool(arguments.jobs) as pool:
        for name, lr, runs in pool.imap(row, jobs):
            record["rows"].append({"problem": name, "lr": lr, **runs})
            print(markdown(record).split("\n\n")[2].split("\n")[-1], flush=True)
    print(markdown(record))
    write_atomically(arguments.out.with_suffix(".json"), (json.dumps(record, indent=1) + "\n").encode())
    write_atomically(arguments.out.with_suffix(".md"), markdown(record).encode())


if __name__ == "__main__":
    main()
