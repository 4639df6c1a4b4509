"""What it costs to keep the cells of an LSTM optimizer in bfloat16, which halves their memory: the final loss beside
that of the same optimizer with float32.

    python docs/examples/state_dtype.py

Writes docs/results/state-dtype. Neither is tuned; they run on the same problems with the same batches.
"""

from __future__ import annotations

import argparse
import math
from functools import partial
from pathlib import Path

import torch

from learned_optim import LSTMOptimizer, write_atomically
from learned_optim.race import Interval, RaceResult, load_result, race

RESULTS = Path("docs/results/state-dtype")
WHOLE, HALF = "float32", "bfloat16"
RACES = (
    ("mnist-mlp", "mnist-mlp", 200),
    ("mnist-mlp", "mnist-mlp", 1000),
    ("default", "fashion-layer-norm", 500),
    ("default", "adding-gru", 500),
    ("default", "friedman-deep", 500),
    ("default", "ratings-factors", 500),
)
"""Checkpoint, problem, steps."""


def path(checkpoint: str, problem: str, steps: int) -> Path:
    """The file of a race."""
    return RESULTS / f"{problem}-{steps}-{checkpoint}.json"


def contest(checkpoint: str, problem: str, steps: int) -> RaceResult:
    """One race of the two."""
    make = partial(LSTMOptimizer, checkpoint=checkpoint)
    both = {dtype: partial(make, state_dtype=dtype) for dtype in (WHOLE, HALF)}
    command = "python docs/examples/state_dtype.py"
    return race(problem, both, steps=steps, seeds=10, command=command)


def page(results: dict[tuple[str, str, int], RaceResult]) -> str:
    """The page in Markdown."""
    lines = [
        "# Cells in bfloat16",
        "",
        "Made by `python docs/examples/state_dtype.py`. Optimizers of bundled checkpoints with",
        '`state_dtype="bfloat16"` beside the same ones as they are: final training losses, means over the last tenth',
        "of the steps and over problems, and the geometric mean of their ratio with its 95 % interval. Below 1",
        "bfloat16 is better.",
        "",
        "| checkpoint | problem | steps | float32 | bfloat16 | ratio |",
        "|---|---|---|---|---|---|",
    ]
    for (checkpoint, problem, steps), result in results.items():
        whole, half = result.entry(WHOLE), result.entry(HALF)
        ratio = Interval.of(result.log_ratios(half, whole))
        mean, low, high = (math.exp(value) for value in ratio)
        losses = [f"{sum(one.final) / len(one.final):.4g}" for one in (whole, half)]
        cells = [checkpoint, problem, f"{steps:,}", *losses, f"{mean:.3f} [{low:.3f}, {high:.3f}]"]
        lines.append(f"| {' | '.join(cells)} |")
    one = next(iter(results.values()))
    machine = ", ".join(f"{key} {value}" for key, value in one.machine.items())
    return "\n".join([*lines, "", f"{len(one.seeds)} test problems each; {machine}.", ""])


def measured() -> dict[tuple[str, str, int], RaceResult]:
    """The results that there are."""
    return {key: load_result(path(*key)) for key in RACES if path(*key).exists()}


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(1)  # the operations are too small to be shared
    for key in RACES:
        contest(*key).save(path(*key))
    text = page(measured())
    write_atomically(RESULTS / "README.md", text.encode())
    print(text)


if __name__ == "__main__":
    main()
