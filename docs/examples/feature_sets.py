"""Which inputs carry over: rules that see different features, trained alike, on networks and images new to them.

    python docs/examples/feature_sets.py train [SET ...]     # two minutes each
    python docs/examples/feature_sets.py race                # on the networks of the published races, and the page
    python docs/examples/feature_sets.py table               # the page alone

Every set is trained by the same exact meta-gradients on small copies of the 784-20-10 network on MNIST, on 100 steps,
for the same number of meta-updates; then all race NAG, as it was tuned for the races of
docs/examples/learned_optimizers.py, on test problems over 200 steps. Writes runs/feature-sets and
docs/results/feature-sets.
"""

from __future__ import annotations

import argparse
import logging
import math
import warnings
from pathlib import Path

import pytorch_lightning as pl
import torch
from learned_optimizers import RESULTS as RACES  # beside this file
from learned_optimizers import ROWS

from learned_optim import LSTMRule, save_checkpoint, write_atomically
from learned_optim.problems import ImageClassification, tied_mlp
from learned_optim.race import BASELINES, Interval, RaceResult, entrant, load_result, race
from lightning_modules import LearnedOptimizerModule

RESULTS, RUNS = Path("docs/results/feature-sets"), Path("runs/feature-sets")
UPDATES, STEPS = 60, 200
BEST = "NAG"

SETS: dict[str, tuple[list[str], bool]] = {
    "log and sign": (["log_sign"], False),
    "log and sign, step count": (["log_sign", "step_count"], False),
    "moments": (["moments"], False),
    "moments, step count": (["moments", "step_count"], False),
    "moments, magnitude": (["moments", "magnitude"], False),
    "moments, magnitude, step count": (["moments", "magnitude", "step_count"], False),
    "time scales, step count": (["time_scales", "step_count"], False),
    "time scales, magnitude, step count": (["time_scales", "magnitude", "step_count"], False),
    "moments, magnitude, step count; normalised": (["moments", "magnitude", "step_count"], True),
}
"""Features, and whether the output is normalised over its tensor."""

PROBLEMS = {name: row.problem for name, row in ROWS.items() if row.checkpoint == "mnist-mlp" and row.steps == STEPS}
"""By the names of their published races; the first is the network that was trained on."""


def file(name: str) -> Path:
    """Where a set's trained rule is."""
    return RUNS / f"{name.replace(', ', '-').replace('; ', '-').replace(' ', '-')}.safetensors"


def train(name: str) -> None:
    """Trains a rule and writes it."""
    features, normalised = SETS[name]
    torch.manual_seed(1)
    rule = LSTMRule(
        features, 10, 1, output_scale=0.01 if normalised else 0.1, shortcut=True, bounded=not normalised,
        normalised=normalised,
    )  # fmt: skip
    family = ImageClassification("mnist", tied_mlp, pool=4, model_options={"pool": 4})
    module = LearnedOptimizerModule(
        family, rule, horizon=100, window=100, instances=8, objective="log", late_weight=1.0, first_order=False,
        clip=5.0, outer_lr=2e-3, schedule="cosine", steps_per_epoch=UPDATES, seed=2,
    )  # fmt: skip
    trainer = pl.Trainer(
        max_steps=UPDATES, gradient_clip_val=1.0, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_model_summary=False, num_sanity_val_steps=0, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(module)
    save_checkpoint(file(name), rule, record={"meta_updates": UPDATES, "features": features})


def contest(row: str) -> RaceResult:
    """Lets all sets race the best tuned optimizer on a problem, and writes the file."""
    tuned = load_result(RACES / f"{row}.json")
    result = race(
        PROBLEMS[row],
        {**{name: entrant(f"rule:{file(name)}") for name in SETS}, BEST: BASELINES["nag"]},
        steps=STEPS,
        seeds=tuned.seeds,
        tune=True,
        tuning_seeds=tuned.tuning_seeds,
        tunings=tuned.tunings(steps=STEPS, tuning_seeds=tuned.tuning_seeds),
        command="python docs/examples/feature_sets.py race",
    )
    result.save(RESULTS / f"{row}.json")
    return result


def page(results: dict[str, RaceResult]) -> str:
    """The page in Markdown, sets that carry over best first.

    Args:
        results: By the names of rows.
    """
    new = [row for row in results if row != next(iter(PROBLEMS))]
    logs = {
        name: {row: result.log_ratios(result.entry(name), result.entry(BEST)) for row, result in results.items()}
        for name in SETS
    }
    means = {name: {row: sum(values) / len(values) for row, values in own.items()} for name, own in logs.items()}
    carried = {name: Interval.of([means[name][row] for row in new]) for name in SETS}
    lines = [
        "# Which features carry over",
        "",
        "Made by `python docs/examples/feature_sets.py table` from the files beside this page. Rules with different",
        f"inputs were trained alike for {UPDATES} meta-updates only, on `{next(iter(PROBLEMS.values()))}` with pooled",
        f"images. Final loss after {STEPS} steps in units of tuned {BEST}'s, geometric means over test problems. `new`",
        "is the mean over all networks, images and initialisations but the one trained on, with its 95 % interval.",
        "",
        f"| features | new | {' | '.join(PROBLEMS[row] for row in results)} |",
        f"|---|---|{'---|' * len(results)}",
    ]
    for name in sorted(SETS, key=lambda name: carried[name].mean):
        mean, low, high = (math.exp(value) for value in carried[name])
        cells = [f"{math.exp(means[name][row]):.3f}" for row in results]
        lines.append(f"| {' | '.join([name, f'{mean:.3f} [{low:.3f}, {high:.3f}]', *cells])} |")
    one = next(iter(results.values()))
    machine = ", ".join(f"{key} {value}" for key, value in one.machine.items())
    return "\n".join([*lines, "", f"{len(one.seeds)} test problems each; {machine}.", ""])


def measured() -> dict[str, RaceResult]:
    """The results that there are."""
    return {row: load_result(RESULTS / f"{row}.json") for row in PROBLEMS if (RESULTS / f"{row}.json").exists()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["train", "race", "table"])
    parser.add_argument("sets", nargs="*", metavar="SET", help=f"by default all: {'; '.join(SETS)}")
    args = parser.parse_args()
    unknown = [name for name in args.sets if name not in SETS]
    if unknown:
        parser.error(f"no {unknown[0]!r}; there are {'; '.join(SETS)}")
    torch.set_num_threads(1)  # the operations are too small to be shared
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*(does not have many workers|validation_step|val_dataloader).*")
    if args.what == "train":
        for name in args.sets or SETS:
            train(name)
        return
    if args.what == "race":
        for row in PROBLEMS:
            contest(row)
    write_atomically(RESULTS / "README.md", page(measured()).encode())


if __name__ == "__main__":
    main()
