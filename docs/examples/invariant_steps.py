"""How the bundled "hierarchical" got its three numbers for networks with normalisations: on drawn data alone.

    python docs/examples/invariant_steps.py measure     # an hour or two; what is there already is kept
    python docs/examples/invariant_steps.py table

κ, T and H are the share of their length that scale-invariant tensors move, the step from which on it falls, and the
horizon of the learning rates in such networks; see `HierarchicalRNNRule`. Each choice trains two problems of every
family of `learned_optim.problems.NORMALISED`, which are of drawn data, no images among them that anybody took. What
counts is the loss over that of untuned Adam (1e-3) after 500 and 2,000 steps, and of a choice the worst of these
ratios. Writes docs/results/invariant-steps.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from learned_optim import HierarchicalRNNOptimizer, load_checkpoint, read_guard, write_atomically
from learned_optim.problems import NORMALISED, PROBLEMS
from learned_optim.race import train

RESULTS = Path("docs/results/invariant-steps")
SEEDS = (3000, 3001)
"""Problems that nothing was trained or raced on."""
MARKS = (500, 2000)
ADAM = "Adam (1e-3)"
CHOICES = (
    (0.006, 1000, 100),
    (0.0125, 200, 100),
    (0.0125, 350, 25),
    (0.0125, 350, 50),
    (0.0125, 350, 100),
    (0.0125, 500, 100),
    (0.025, 200, 100),
)

Losses = dict[str, dict[str, dict[str, list[float]]]]
"""By family, choice and seed: the losses at the marks."""


def named(choice: Sequence[float]) -> str:
    """As the file names it."""
    share, steps, horizon = choice
    return f"{share:g}, {steps}, {horizon}"


def losses(family: str, choice: str, seed: int) -> list[float]:
    """Trains one problem; means over the tenth of the steps before each mark."""

    def make(params: Any) -> torch.optim.Optimizer:
        if choice == ADAM:
            return torch.optim.Adam(params, lr=1e-3)
        share, steps, horizon = choice.split(", ")
        options = {"invariant_steps": [float(share), int(steps)], "invariant_horizon": int(horizon)}
        rule = load_checkpoint("hierarchical", options=options)
        return HierarchicalRNNOptimizer(params, rule=rule, guard=read_guard("hierarchical"))

    run = train(PROBLEMS[family](), make, steps=MARKS[-1], seed=seed)
    return [round(float(run.losses[mark - mark // 10 : mark].mean()), 4) for mark in MARKS]


def measure(found: Losses) -> None:
    """Trains what is missing, and writes it."""
    for seed in SEEDS:
        for family in NORMALISED:
            for choice in (ADAM, *map(named, CHOICES)):
                own = found.setdefault(family, {}).setdefault(choice, {})
                if str(seed) not in own:
                    own[str(seed)] = losses(family, choice, seed)
                    print(family, seed, choice, own[str(seed)], flush=True)
                    write_atomically(RESULTS / "losses.json", (json.dumps(found, indent=1) + "\n").encode())


def ratios(found: Mapping[str, Any], choice: str) -> list[float]:
    """Geometric means over seeds of the losses over Adam's, family by family, mark by mark."""
    values = []
    for family in NORMALISED:
        own, adam = found[family][choice], found[family][ADAM]
        for mark in range(len(MARKS)):
            logs = [math.log(own[str(seed)][mark] / adam[str(seed)][mark]) for seed in SEEDS]
            values.append(math.exp(sum(logs) / len(logs)))
    return values


def page(found: Mapping[str, Any]) -> str:
    """The page in Markdown."""
    every = {named(choice): ratios(found, named(choice)) for choice in CHOICES}
    best = min(every, key=lambda choice: max(every[choice]))
    heads = [f"{family.removeprefix('normalised-')}, {mark:,}" for family in NORMALISED for mark in MARKS]
    lines = [
        "# Steps of scale-invariant tensors",
        "",
        "Made by `python docs/examples/invariant_steps.py table` from what `measure` found: loss over that of untuned",
        "Adam (1e-3) after so many steps, geometric means over two problems of each family of drawn data. The bundled",
        f'"hierarchical" has the choice whose worst ratio is the smallest: **{best}**.',
        "",
        f"| κ, T, H | {' | '.join(heads)} | worst |",
        f"|{'---|' * (len(heads) + 2)}",
    ]
    for choice, values in every.items():
        cells = " | ".join(f"{value:.3f}" for value in values)
        shown = f"**{choice}**" if choice == best else choice
        lines.append(f"| {shown} | {cells} | {max(values):.4f} |")
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["measure", "table"])
    what = parser.parse_args().what
    torch.set_num_threads(1)
    file = RESULTS / "losses.json"
    found: Losses = json.loads(file.read_text()) if file.exists() else {}
    if what == "measure":
        measure(found)
    write_atomically(RESULTS / "README.md", page(found).encode())


if __name__ == "__main__":
    main()
