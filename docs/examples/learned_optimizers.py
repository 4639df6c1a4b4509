"""Learned optimizers: bundle what was trained, race it, and make the page and the cards.

    learned-optim fit --config docs/configs/learned-optimizers/NAME.yaml
    python docs/examples/learned_optimizers.py publish NAME
    python docs/examples/learned_optimizers.py race ROW ... [--jobs 2] [--only-learned]
    python docs/examples/learned_optimizers.py table

A ROW is a name below; ``all`` stands for every one. ``race`` lets a bundled checkpoint race all hand-designed
optimizers, which are tuned on validation problems, on test problems that nothing was trained or tuned on, and writes
docs/results/learned-optimizers/ROW.json and ROW.png; a tuning that is there already is not done again, and with
``--only-learned`` neither are the runs of tuned optimizers, but for the best one's, which must be the same. ``publish``
writes the trained optimizer that did best on validation problems as a bundled checkpoint. ``table`` makes the page from
the races, and the cards of what was published, to which the races of docs/examples/zoo.py belong too.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import yaml
import zoo  # beside this file
from tqdm import tqdm

from learned_optim import Guard, Rule, load_checkpoint, read_record, save_checkpoint, write_atomically
from learned_optim.race import BASELINES, Interval, RaceResult, draw, load_result, race, table

RESULTS, CONFIGS = Path("docs/results/learned-optimizers"), Path("docs/configs/learned-optimizers")
RUNS, BUNDLED = Path("runs"), Path("learned_optim/checkpoints")


@dataclass(frozen=True)
class Row:
    """A race.

    Attributes:
        checkpoint: Of the learned optimizer.
        problem: What it is raced on.
        steps: Of each run.
        bar: What the ratio to the best tuned optimizer is to be at most.
        known: What the checkpoint's training had to do with the problem.
        seeds: Test problems.
        tuning_seeds: Validation problems.
        baselines: The tuned optimizers.
        beside: Others that run with them.
    """

    checkpoint: str
    problem: str
    steps: int
    bar: float
    known: str
    seeds: int = 5
    tuning_seeds: int = 3
    baselines: tuple[str, ...] = tuple(BASELINES)
    beside: tuple[str, ...] = ()


@dataclass(frozen=True)
class Checkpoint:
    """What the card of a bundled checkpoint says beside its numbers.

    Attributes:
        file: Its name with the version.
        what: What it is for.
        failures: What it cannot do.
        guard: What comes with it.
        options: What is set after training, on validation problems: arguments of its rule.
    """

    file: str
    what: str
    failures: str
    guard: Guard
    options: dict[str, Any] = field(default_factory=dict)


CHECKPOINTS = {
    "quadratic": Checkpoint(
        "quadratic@2",
        "An LSTM optimizer for small quadratic functions, the problem of Andrychowicz et al. 2016, section 3.1. Unlike "
        "theirs it sees secants: what its last five steps tell of the curvature of the whole tensor.",
        "Most of what it can do it could before training, when it is limited-memory BFGS: see the untrained rule in "
        "the races. It is for functions without noise, as secants of other minibatches tell little; trained on 10 "
        "dimensions and 100 steps. What is not in the tables was not measured.",
        Guard(adam_lr=0.1, first=1000.0, most=10000.0),
    ),
    "mnist-mlp": Checkpoint(
        "mnist-mlp@5",
        "An LSTM optimizer for small networks on images, trained on a single problem: a 784-20-10 sigmoid network on "
        "MNIST, 200 to 1,000 steps.",
        "Beyond 1,000 steps it was not trained; its horizon lets it settle there. It takes small steps where gradients "
        "are much larger than a classifier's. What it does with other networks and images is in the tables; what is "
        "not there was not measured.",
        Guard(),
    ),
    "mnist-mlp-log-sign": Checkpoint(
        "mnist-mlp-log-sign@2",
        "An LSTM optimizer for small networks on images as in Andrychowicz et al. 2016, section 3.2: two layers of 20 "
        "units that see the logarithm and the sign of the gradient, trained on 100 steps of a 784-20-10 sigmoid "
        "network on MNIST and its copies on smaller images. Unlike there, it has learnt from a teacher, `mnist-mlp@5`.",
        "It is there to be compared with; `mnist-mlp` is the better one. Its inputs depend on the scale of the "
        "gradient. What it does with other networks and in longer trainings was not measured.",
        Guard(),
    ),
    "cifar-conv": Checkpoint(
        "cifar-conv@3",
        "An LSTM optimizer for small convolutional networks with batch normalisation, trained on smaller networks and "
        "smaller images than those of Andrychowicz et al. 2016, section 3.3.",
        "Trained on 200 steps and the first 10,000 images of CIFAR-10. How long its steps are was chosen on validation "
        "problems of the rows above, those on five classes apart, and once more after a first choice had done worse on "
        "1,000 steps of the test problems; networks of other widths may want others. What it "
        "does without batch normalisation, with other images and beyond 1,000 steps was not measured.",
        Guard(),
        {"output_scale": 0.03, "horizon": 500, "count_until": 250},
    ),
    "default": Checkpoint(
        "default@3",
        "An LSTM optimizer for small networks of any kind, trained on small networks with drawn data and a few drawn "
        "functions.",
        "Trained on up to 400 steps and some thousand parameters, without convolutions and normalisation. What it does "
        "with other problems and in longer trainings is in the tables.",
        Guard(first=100.0, most=1000.0),
        {"horizon": 500},
    ),
    "hierarchical": Checkpoint(
        "hierarchical@5",
        "A hierarchical RNN optimizer, trained on drawn functions and small networks with drawn data, no images.",
        "Trained on up to 1,000 steps and some thousand parameters. In longer trainings of networks without "
        "normalisation it ends above tuned Adam. What it does with other problems is in the tables.",
        Guard(first=1000.0, most=10000.0),
        {"invariant_steps": [0.0125, 350], "invariant_horizon": 50},
    ),
}

_UNTRAINED = ("untrained:quadratic",)
_UNTAUGHT = ("lstm:mnist-mlp-log-sign@1",)
_PAPERS = "the paper's recipe, without a teacher"
_TAUGHT = "its horizon, taught by mnist-mlp"
_NEW = "another network"
_MOST = tuple(name for name in BASELINES if name != "adamw")
ROWS = {
    "quadratics-100": Row("quadratic", "quadratics", 100, 0.5, "trained on such", 50, 10, beside=_UNTRAINED),
    "quadratics-uniform-100": Row(
        "quadratic", "quadratics-uniform", 100, 1.0, "another distribution", 50, 10, beside=_UNTRAINED
    ),
    "quadratics-1000": Row("quadratic", "quadratics", 1000, 1.0, "ten times its horizon", 50, 10, beside=_UNTRAINED),
    "mnist-mlp-100": Row("mnist-mlp", "mnist-mlp", 100, 0.9, "trained on it"),
    "mnist-mlp-200": Row("mnist-mlp", "mnist-mlp", 200, 0.9, "trained on it"),
    "mnist-mlp-1000": Row("mnist-mlp", "mnist-mlp", 1000, 1.0, "its longest horizon"),
    "mnist-mlp-40-units": Row("mnist-mlp", "mnist-mlp-40", 200, 1.0, _NEW),
    "mnist-mlp-2-layers": Row("mnist-mlp", "mnist-mlp-2-layers", 200, 1.0, _NEW),
    "mnist-mlp-relu": Row("mnist-mlp", "mnist-mlp-relu", 200, 1.0, _NEW),
    "mnist-mlp-fashion": Row("mnist-mlp", "fashion-t10k-mlp", 200, 1.0, "other images"),
    "mnist-mlp-normal-start": Row("mnist-mlp", "mnist-mlp-normal-start", 200, 1.0, "another initialisation"),
    "mnist-mlp-log-sign-100": Row("mnist-mlp-log-sign", "mnist-mlp", 100, 1.0, _TAUGHT, beside=_UNTAUGHT),
    "mnist-mlp-log-sign-200": Row(
        "mnist-mlp-log-sign", "mnist-mlp", 200, 1.0, "taught, twice its horizon", beside=_UNTAUGHT
    ),
    "cifar10-conv": Row("cifar-conv", "cifar10-batch-1-conv", 200, 1.0, "trained on smaller ones", 5, 2, _MOST),
    "cifar10-conv-1000": Row(
        "cifar-conv", "cifar10-batch-1-conv", 1000, 0.9, "four times its horizon; tuned on a GPU", 5, 2, _MOST
    ),
    "cifar5-conv": Row("cifar-conv", "cifar5-batch-1-conv", 200, 1.0, "half of the classes", 5, 2, _MOST),
    "cifar2-conv": Row("cifar-conv", "cifar2-batch-1-conv", 200, 1.0, "two of the classes", 5, 2, _MOST),
}
"""``fashion-t10k-mlp`` is Fashion-MNIST's 10,000 published test images, and ``batch-1`` the first 10,000 of CIFAR-10,
both split anew, of which we have no more. Where tuning takes long there are fewer tuned optimizers: AdamW, which is
missing among `_MOST`, is no better than Adam in any of the other rows. The optimizers of ``cifar10-conv-1000`` were
tuned on an H200 by `race` with ``device="cuda"``, one in each process, and then ran on a CPU like all others.
"""


def run(name: str, jobs: int, *, only_learned: bool) -> None:
    """Races one row and writes its files."""
    row, file = ROWS[name], RESULTS / f"{name}.json"
    tuned = range(row.tuning_seeds)
    old = load_result(file) if file.exists() or only_learned else None
    known = {} if old is None else old.tunings(steps=row.steps, tuning_seeds=tuned)
    baselines = [key for key in row.baselines if not only_learned or BASELINES[key].name == old.best]
    with tqdm(desc=name, unit="run") as bar:

        def progress(what: str, done: int, planned: int) -> None:
            bar.total = planned
            bar.set_postfix_str(what, refresh=False)
            bar.update(done - bar.n)

        result = race(
            row.problem,
            [f"lstm:{row.checkpoint}", *row.beside, *baselines],
            steps=row.steps,
            seeds=row.seeds,
            tune=True,
            tuning_seeds=tuned,
            tunings=known,
            jobs=jobs,
            progress=progress,
            command=f"python docs/examples/learned_optimizers.py race {name}",
        )
    if only_learned:
        others = tuple(entry for entry in old.entries if entry.hand_designed)
        result = zoo.merged(result, replace(old, entries=others), old.best)
    result.save(file)
    draw(result, RESULTS / f"{name}.png")
    print(table(result))


def publish(name: str) -> None:
    """Writes the rule that did best in validation as a bundled checkpoint, with the record of its training."""
    from pytorch_lightning.cli import LightningCLI

    config = CONFIGS / f"{name}.yaml"
    best, last = (torch.load(RUNS / name / f"{which}.ckpt", weights_only=True) for which in ("best", "last"))
    module = LightningCLI(args=["--config", str(config), "--trainer.logger=false"], run=False).model
    module.load_state_dict(best["state_dict"])
    (timer,) = [state for key, state in last["callbacks"].items() if "Timer" in key]
    record = {
        "command": f"learned-optim fit --config {config}",
        "config": config.read_text(),
        "meta_updates": int(last["global_step"]),
        "selected": int(best["global_step"]),
        "hours": round((timer["time_elapsed"]["train"] + timer["time_elapsed"]["validate"]) / 3600, 2),
        "torch": torch.__version__,
    }
    about = CHECKPOINTS[name]
    file = BUNDLED / f"{about.file}.safetensors"
    rule = Rule.rebuilt(module.rule.described() | {"config": module.rule.config() | about.options})
    rule.load_state_dict(module.rule.state_dict())
    save_checkpoint(file, rule, record=record, guard=about.guard)
    print(f"{file}: {file.stat().st_size / 1024:.0f} KiB")


def card(name: str, results: dict[str, RaceResult]) -> str:
    """The card of a bundled checkpoint in Markdown."""
    record, about = read_record(CHECKPOINTS[name].file), CHECKPOINTS[name]
    settings = yaml.safe_load(record["config"])["model"]["init_args"]
    rule = load_checkpoint(about.file).described()
    options = ", ".join(f"{key}={value!r}" for key, value in rule["config"].items())
    rows = {key: result for key, result in results.items() if ROWS[key].checkpoint == name}
    beside = [*_rows(rows), ""] if rows else []
    for what, among in zoo.COLLECTIONS.items():
        beside += _among_others(name, zoo.measured()[what], among)
    lines = [
        f"# {about.file}",
        "",
        about.what,
        "",
        "## Recipe",
        "",
        f"- Rule: `{rule['class']}({options})`.",
        f"- Command: `{record['command']}`; the configuration, seeds included, is also in the file.",
        f"- {record['meta_updates']:,} meta-updates, each of {settings['instances']} problems, took",
        f"  {record['hours']:.1f} hours on one core of a busy machine, torch {record['torch']}.",
        *([f"- Set after training, on validation problems: `{about.options}`."] if about.options else []),
        f"- Its steps are kept within `{about.guard}`.",
        f"- This is the state after {record['selected']:,} of them, which did best on {settings['val_instances']}",
        "  problems of each family kept apart.",
        "",
        "## Beside tuned optimizers",
        "",
        "On test problems that nothing was trained or tuned on; how to read it: `docs/race.md`.",
        "",
        *beside,
        "## Known failures",
        "",
        about.failures,
        "",
        "## Licence",
        "",
        "Apache-2.0, as the package.",
        "",
    ]
    return "\n".join(lines)


def _among_others(name: str, results: dict[str, RaceResult], among: zoo.Collection) -> list[str]:
    """What the races of the zoo or the corpus say of a checkpoint."""
    found = {key: one for key, one in results.items() if one.steps == zoo.STEPS}
    if not found:
        return []
    head, rule, *lines = zoo.summary(found, among)
    own = [line for line in lines if line.split("|")[1].strip().endswith(f"({name})")]
    return [f"{among.title}, {zoo.STEPS} steps, see `docs/results/zoo`:", "", head, rule, *own, ""] if own else []


def page(results: dict[str, RaceResult]) -> str:
    """The page in Markdown.

    Args:
        results: By the names of rows.
    """
    lines = [
        "# Learned optimizers: results",
        "",
        "Made by `python docs/examples/learned_optimizers.py table` from the files beside this page; each row by the",
        "command below its table. Learned optimizers are as they come, with their guard; hand-designed ones are tuned,",
        "and the ratio is to whichever of them did best on the very problems of the row. Below 1 the learned one is",
        "better. How to read it all: [race.md](../../race.md).",
        "",
        *_rows(results, linked=True),
    ]
    for name, result in results.items():
        machine = ", ".join(f"{key} {value}" for key, value in result.machine.items())
        lines += ["", f"## {name}", "", f"`{result.command}`", "", table(result), "", f"![{name}]({name}.png)", ""]
        lines += [f"{len(result.seeds)} test problems, {len(result.tuning_seeds)} others to tune on; {machine}."]
    return "\n".join([*lines, ""])


def _rows(results: dict[str, RaceResult], *, linked: bool = False) -> list[str]:
    """One line for each race."""
    lines = [
        "| race | steps | learned | best tuned | ratio | goal | reached |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, result in results.items():
        row = ROWS[name]
        beside = [other.removeprefix("lstm:") for other in row.beside if other.startswith("lstm:")]
        for checkpoint, known in ((row.checkpoint, row.known), *((other, _PAPERS) for other in beside)):
            learned, best, ratio = compared(result, checkpoint)
            race_of = f"{checkpoint} on {row.problem}"
            lines.append(
                f"| {f'[{race_of}](#{name})' if linked else race_of}, {known} | {row.steps:,} | {learned:.4g} | "
                f"{result.best} {best:.4g} | {ratio.mean:.3f} [{ratio.low:.3f}, {ratio.high:.3f}] | "
                f"at most {row.bar:g} | {'yes' if ratio.mean <= row.bar else 'no'} |"
            )
    return lines


def compared(result: RaceResult, checkpoint: str) -> tuple[float, float, Interval]:
    """Final loss of the learned optimizer and of the best tuned one, means over problems, and their ratio."""
    learned = result.entry(f"LSTM ({checkpoint})")
    ratio = result.ratio(learned)
    assert result.best is not None  # every row has baselines
    assert ratio is not None  # and losses above 0
    mean = [sum(entry.final) / len(entry.final) for entry in (learned, result.entry(result.best))]
    return mean[0], mean[1], ratio


def measured() -> dict[str, RaceResult]:
    """The results that there are, in the order of the rows."""
    return {name: load_result(RESULTS / f"{name}.json") for name in ROWS if (RESULTS / f"{name}.json").exists()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["publish", "race", "table"])
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"all, or some of {', '.join(ROWS)}; or NAMEs")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--only-learned", action="store_true", help="tuned optimizers' runs stay as they are")
    args = parser.parse_args()
    known = CHECKPOINTS if args.what == "publish" else ROWS
    names = list(known) if args.rows == ["all"] else args.rows
    for name in names:
        if name not in known:
            parser.error(f"no {name!r}; there are {', '.join(known)}")
    torch.set_num_threads(1)  # the operations are too small to be shared
    if args.what == "table":
        results = measured()
        write_atomically(RESULTS / "README.md", page(results).encode())
        for name in CHECKPOINTS:
            write_atomically(BUNDLED / f"{CHECKPOINTS[name].file}.md", card(name, results).encode())
    for name in names:
        if args.what == "publish":
            publish(name)
        elif args.what == "race":
            run(name, args.jobs, only_learned=args.only_learned)


if __name__ == "__main__":
    main()
