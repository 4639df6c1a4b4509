"""The zoo and the corpus: optimizers that are not tuned beside tuned Adam, on problems that are new to them.

    python docs/examples/zoo.py race PROBLEM ... [--jobs 2] [--steps 500]
    python docs/examples/zoo.py corpus FAMILY ... [--jobs 2] [--steps 500]
    python docs/examples/zoo.py table
    python docs/examples/zoo.py race all --validation --checkpoint FILE
    python docs/examples/zoo.py race all --only lstm:default

``all`` stands for every PROBLEM of the zoo, or every FAMILY of the synthetic corpus. Each is raced by the bundled
optimizers, by Adam as tuned on validation problems, and by Adam and RMSprop with torch's defaults; that is written to
docs/results/zoo. A tuning that is there already is not done again: delete the file for that. ``table`` makes the page
and the figures from the files, as every race does at its end.

With ``--validation`` the problems are others, which are never test problems, and so candidates for bundling can be
compared on them; the results are printed, and kept in runs/zoo. With ``--only`` the others' runs stay as they are in
the files, for what is new in one of the bundled; that tuned Adam runs as it did there is checked.
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from learned_optim import available_checkpoints, write_atomically
from learned_optim.problems import CORPUS, ZOO
from learned_optim.race import BASELINES, Interval, RaceResult, entrant, load_result, race

RESULTS, RUNS = Path("docs/results/zoo"), Path("runs/zoo")
STEPS = 500
LEARNED = ("lstm:default", "hierarchical:hierarchical", "lstm:mnist-mlp")
TUNED = "Adam"
UNTUNED = {"Adam@0.001": "adam@0.001", "RMSprop@0.01": "rmsprop@0.01"}
HORIZONS = "horizons.png"
CEILING = 1000.0
"""What a final loss counts as at most, in units of the initial loss; it counts as at least a thousandth of that."""
VALIDATION = range(1000, 1003)
"""Seeds of problems that are no test problems."""


@dataclass(frozen=True)
class Collection:
    """Problems that are raced alike.

    Attributes:
        title: Of its section of the page.
        text: Below the title.
        folder: Of its files.
        picture: A file in the folder of results.
        problems: Their names in `PROBLEMS`, by the names of files.
        each_seed: Where it is counted how often one optimizer is below another: whether each test problem counts, or
            the mean of those of a family.
        seeds: Test problems of each family.
        tuning_seeds: Other problems of each to tune on.
    """

    title: str
    text: str
    folder: str
    picture: str
    problems: Mapping[str, str]
    each_seed: bool
    seeds: int
    tuning_seeds: int


COLLECTIONS = {
    "race": Collection(
        title="The zoo",
        text="Problems whose networks and data do not occur in the synthetic corpus: see\n"
        "`learned_optim/problems/zoo.py`. `LSTM (mnist-mlp)` was trained on one of them, `mnist-mlp`.",
        folder="",
        picture="zoo.png",
        problems={name: name for name in ZOO},
        each_seed=False,
        seeds=5,
        tuning_seeds=3,
    ),
    "corpus": Collection(
        title="The corpus",
        text="New functions of the families of the synthetic corpus, on others of which\n"
        "`hierarchical RNN (hierarchical)` was trained at first, and then on some of them: see\n"
        "`learned_optim/problems/corpus.py`. Counts are of functions.",
        folder="corpus",
        picture="corpus.png",
        problems={name: f"corpus-{name}" for name in CORPUS},
        each_seed=True,
        seeds=10,
        tuning_seeds=5,
    ),
}


def path(what: str, name: str, steps: int = STEPS, root: Path = RESULTS) -> Path:
    """The file of a race."""
    return root / COLLECTIONS[what].folder / f"{name}{'' if steps == STEPS else f'-{steps}'}.json"


def contest(
    what: str,
    name: str,
    learned: Iterable[str],
    *,
    steps: int,
    jobs: int,
    validation: bool = False,
    keep: bool = False,
    command: str,
) -> RaceResult:
    """Races on one problem, and writes the file.

    Args:
        what: The collection.
        name: The problem's name there.
        learned: Optimizers beside those that all are compared with.
        steps: Of each run.
        jobs: Processes.
        validation: Whether the problems are others than the test problems.
        keep: Whether the runs of other optimizers that are in the file stay there.
        command: What was run.

    Raises:
        RuntimeError: With ``keep``, tuned Adam's runs are not those in the file.
    """
    among = COLLECTIONS[what]
    file = path(what, name, steps, RUNS if validation else RESULTS)
    tuned, known = range(among.tuning_seeds), {}
    for earlier in (path(what, name, steps), file):
        if earlier.exists():
            known |= load_result(earlier).tunings(steps=steps, tuning_seeds=tuned)
    result = race(
        among.problems[name],
        [*learned, BASELINES["adam"], *(() if keep else UNTUNED.values())],
        steps=steps,
        seeds=VALIDATION if validation else among.seeds,
        tune=True,
        tuning_seeds=tuned,
        tunings=known,
        jobs=jobs,
        command=command,
    )
    if keep:
        result = merged(result, load_result(file), TUNED)
    result.save(file)
    return result


def merged(new: RaceResult, old: RaceResult, tuned: str) -> RaceResult:
    """The old result with the new runs in the place of those of the same name, or before the others.

    Raises:
        RuntimeError: The runs of the tuned optimizer, which are in both, differ.
    """
    if new.entry(tuned).final != old.entry(tuned).final or new.seeds != old.seeds:
        raise RuntimeError(f"{old.problem}: tuned {tuned}'s runs are not those in the file; race all of them again")
    found = {entry.name: entry for entry in new.entries}
    known = [found.pop(entry.name, entry) for entry in old.entries]
    return replace(old, entries=(*found.values(), *known))


def logs(results: Mapping[str, RaceResult], name: str, to: str) -> dict[str, list[float]]:
    """Of the races with an optimizer, for each seed the logarithm of its final loss over that of another."""
    return {
        key: result.log_ratios(result.entry(name), result.entry(to), ceiling=CEILING)
        for key, result in results.items()
        if name in {one.name for one in result.entries}
    }


def mean_ratio(logs: Mapping[str, Sequence[float]]) -> tuple[Interval, str]:
    """The geometric mean over problems of their geometric means over seeds, with its interval; and the worst problem.

    Args:
        logs: For each problem the logarithms of ratios.
    """
    means = {name: sum(values) / len(values) for name, values in logs.items()}
    return _exp(Interval.of(list(means.values()))), max(means, key=lambda name: means[name])


def below(logs: Mapping[str, Sequence[float]], *, each_seed: bool) -> tuple[int, int, int]:
    """How many ratios are below 1, how many are 1, and how many there are: of seeds, or of problems."""
    ratios = [value for values in logs.values() for value in (values if each_seed else [sum(values)])]
    return sum(ratio < 0 for ratio in ratios), sum(ratio == 0 for ratio in ratios), len(ratios)


def lower(results: Mapping[str, RaceResult], name: str, to: str) -> int:
    """On how many problems and seeds an optimizer's final loss itself, without floor, is below another's."""
    pairs = [
        (result.entry(name), result.entry(to))
        for result in results.values()
        if name in {one.name for one in result.entries}
    ]
    return sum(ours < others for one, other in pairs for ours, others in zip(one.final, other.final, strict=True))


def summary(results: Mapping[str, RaceResult], among: Collection) -> list[str]:
    """A Markdown table with a line for each optimizer but tuned Adam."""
    others = (TUNED, *UNTUNED)
    lines = [
        f"| optimizer | loss over tuned Adam's | worst | {' | '.join(map(_below, others))} | diverged |",
        f"|---|---|---|{'---|' * len(others)}---|",
    ]
    for name in _names(results):
        to_tuned = logs(results, name, TUNED)
        ratio, worst = mean_ratio(to_tuned)
        entries = [results[key].entry(name) for key in to_tuned]
        cells = [_share(results, name, to, among) if name != to else "" for to in others]
        diverged = f"{sum(len(one.diverged) for one in entries)} of {sum(len(one.final) for one in entries)} runs"
        shown = f"{math.exp(sum(to_tuned[worst]) / len(to_tuned[worst])):.3g} ({worst})"
        lines.append(f"| {' | '.join([name, _between(ratio), shown, *cells, diverged])} |")
    return lines


def details(results: Mapping[str, RaceResult]) -> list[str]:
    """A Markdown table with a line for each problem."""
    names = _names(results)
    lines = [f"| problem | steps | tuned Adam | its loss | {' | '.join(names)} |", f"|{'---|' * (4 + len(names))}"]
    for key, result in results.items():
        tuned = result.entry(TUNED)
        setting = ", ".join(f"{option} {value:g}" for option, value in tuned.setting.items())
        ratios = [logs({key: result}, name, TUNED).get(key) for name in names]
        cells = ["" if ratio is None else _between(_exp(Interval.of(ratio))) for ratio in ratios]
        loss = f"{sum(tuned.final) / len(tuned.final):.4g}"
        lines.append(f"| {' | '.join([key, f'{result.steps:,}', setting, loss, *cells])} |")
    return lines


def page(results: Mapping[str, Mapping[str, RaceResult]]) -> str:
    """The page in Markdown.

    Args:
        results: As from `measured`.
    """
    lines = [
        "# The zoo and the corpus",
        "",
        "Made by `python docs/examples/zoo.py table` from the files beside this page. Optimizers that are not tuned",
        "are compared with Adam, whose learning rate and beta1 did best on other problems of the same family. A number",
        "is a final training loss, the mean over the last tenth of the steps, in units of tuned Adam's on the same",
        "problem: below 1 is better. They are geometric means, over test problems and then over families, with 95 %",
        "intervals. A loss counts as at least a thousandth of the initial loss, and as at most a thousand times it;",
        "one that is not finite counts as the latter. Two are *level* where both are below a thousandth; without",
        "floor is by the losses themselves.",
    ]
    longer: dict[str, RaceResult] = {}
    for what, among in COLLECTIONS.items():
        longer |= {key: result for key, result in results[what].items() if result.steps != STEPS}
        usual = _usual(results[what])
        if usual:
            lines += ["", f"## {among.title}", "", among.text, "", f"`python docs/examples/zoo.py {what} all`", ""]
            lines += [*summary(usual, among), "", *details(usual), "", f"![{among.title}]({among.picture})", ""]
            lines += [_measured_on(usual)]
    if longer:
        lines += ["", "## Other horizons", "", *details(longer), ""]
        lines += ["Each with Adam tuned for that horizon; below 1 is better than it.", "", f"![Horizons]({HORIZONS})"]
    return "\n".join([*lines, ""])


def figure(results: Mapping[str, RaceResult], file: Path) -> None:
    """Draws the training loss of all optimizers on all problems, means over seeds, as a PNG file."""
    from matplotlib.figure import Figure

    columns = 4
    rows = math.ceil(len(results) / columns)
    drawing = Figure(figsize=(3.2 * columns, 2.4 * rows + 0.6), layout="constrained")
    panels = drawing.subplots(rows, columns, squeeze=False).flatten()
    order = [TUNED, *_names(results)]
    for panel, (key, result) in zip(panels, results.items(), strict=False):
        for entry in result.entries:
            means = [sum(values) / len(values) for values in zip(*entry.curves, strict=True)]
            style = {"linewidth": 1.2 if entry.hand_designed else 2.0, "color": f"C{order.index(entry.name)}"}
            shown = [mean if mean <= 3 * means[0] else math.nan for mean in means]  # what diverges leaves the picture
            panel.plot(result.marks, shown, label="Adam, tuned" if entry.name == TUNED else entry.name, **style)
        panel.set(title=key, yscale="log")
        panel.grid(alpha=0.3)
    for panel in panels[len(results) :]:
        panel.set_axis_off()
    handles = {label: line for panel in panels for line, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    drawing.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3)
    file.parent.mkdir(parents=True, exist_ok=True)
    drawing.savefig(file, dpi=110)


def by_horizon(results: Mapping[str, RaceResult]) -> dict[str, dict[int, RaceResult]]:
    """The problems that were raced over several horizons, with their races by steps, ascending."""
    found: dict[str, dict[int, RaceResult]] = {}
    for result in sorted(results.values(), key=lambda one: one.steps):
        found.setdefault(result.problem, {})[result.steps] = result
    return {name: races for name, races in found.items() if len(races) > 1}


def horizons(results: Mapping[str, RaceResult], file: Path) -> None:
    """Draws ratios to tuned Adam over horizons as a PNG file, a panel for each problem that has several."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    problems = by_horizon(results)
    drawing = Figure(figsize=(3.4 * len(problems), 3.6), layout="constrained")
    panels = drawing.subplots(1, len(problems), squeeze=False, sharey=True)[0]
    order = _names(results)
    for panel, (problem, races) in zip(panels, problems.items(), strict=True):
        for name in order:
            found = {steps: logs({problem: race}, name, TUNED).get(problem) for steps, race in races.items()}
            ratios = {steps: _exp(Interval.of(values)) for steps, values in found.items() if values}
            means = [ratio.mean for ratio in ratios.values()]
            ends = [[r.mean - r.low for r in ratios.values()], [r.high - r.mean for r in ratios.values()]]
            panel.errorbar([*ratios], means, yerr=ends, marker="o", markersize=3, capsize=2, label=name)
        panel.axhline(1.0, color="0.4", linewidth=0.8)
        panel.set(title=problem, xlabel="steps", xscale="log", yscale="log")
        panel.set_xticks([*races], [f"{steps:,}" for steps in races])
        panel.xaxis.set_minor_locator(NullLocator())
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("final loss over tuned Adam's")
    panels[0].set_ylim(0.3, 10)
    drawing.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    drawing.savefig(file, dpi=110)


def measured(root: Path = RESULTS) -> dict[str, dict[str, RaceResult]]:
    """The results that there are, those of STEPS in the order of the problems, then others."""
    found: dict[str, dict[str, RaceResult]] = {}
    for what, among in COLLECTIONS.items():
        usual = [file for name in among.problems if (file := path(what, name, root=root)).exists()]
        others = sorted({*(root / among.folder).glob("*.json")} - {*usual})
        found[what] = {file.stem: load_result(file) for file in (*usual, *others)}
    return found


def publish() -> None:
    """Writes the page and the figures."""
    results = measured()
    write_atomically(RESULTS / "README.md", page(results).encode())
    for what, among in COLLECTIONS.items():
        if usual := _usual(results[what]):
            figure(usual, RESULTS / among.picture)
    if by_horizon(results["race"]):
        horizons(results["race"], RESULTS / HORIZONS)


def _usual(results: Mapping[str, RaceResult]) -> dict[str, RaceResult]:
    return {key: result for key, result in results.items() if result.steps == STEPS}


def _names(results: Mapping[str, RaceResult]) -> list[str]:
    """All optimizers but tuned Adam: learned ones, then the others."""
    entries = {one.name: one.hand_designed for result in results.values() for one in result.entries}
    return sorted(entries.keys() - {TUNED}, key=lambda name: (entries[name], [*entries].index(name)))


def _share(results: Mapping[str, RaceResult], name: str, to: str, among: Collection) -> str:
    less, level, count = below(logs(results, name, to), each_seed=among.each_seed)
    cell = f"{less} of {count}" + (f", {level} level" if level else "")
    return f"{cell}, {lower(results, name, to)} without floor" if level and among.each_seed else cell


def _below(name: str) -> str:
    return "below tuned Adam" if name == TUNED else f"below {name}"


def _exp(interval: Interval) -> Interval:
    return Interval(*map(math.exp, interval))


def _between(value: Interval) -> str:
    return f"{value.mean:.3g}" + (f" [{value.low:.3g}, {value.high:.3g}]" if math.isfinite(value.high) else "")


def _measured_on(results: Mapping[str, RaceResult]) -> str:
    machines = {", ".join(f"{key} {value}" for key, value in one.machine.items()) for one in results.values()}
    one = next(iter(results.values()))
    seeds = f"{len(one.seeds)} test problems of each family, {len(one.tuning_seeds)} others to tune on"
    return f"{seeds}; {'; '.join(sorted(machines))}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[*COLLECTIONS, "table"])
    parser.add_argument("problems", nargs="*", metavar="PROBLEM", help=f"all, or some of {', '.join(ZOO)}")
    parser.add_argument("--steps", type=int, default=STEPS, help="of each run (%(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="processes (%(default)s)")
    parser.add_argument("--validation", action="store_true", help="on problems that are no test problems")
    parser.add_argument(
        "--checkpoint",
        action="append",
        default=[],
        metavar="NAME",
        help="races instead of what is bundled; a name or file",
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        choices=LEARNED,
        help="races it and tuned Adam; the others' runs stay as they are; may be given again",
    )
    args = parser.parse_args()
    if args.only and args.validation:
        parser.error("--only is for what is bundled; with --validation give --checkpoint")
    if args.checkpoint and not args.validation:
        parser.error("--checkpoint needs --validation: test problems are for what is bundled")
    if args.what == "table":
        publish()
        return
    among = COLLECTIONS[args.what]
    names = list(among.problems) if args.problems == ["all"] else args.problems
    unknown = [name for name in names if name not in among.problems]
    if unknown or not names:
        parser.error(f"name problems: all, or some of {', '.join(among.problems)}; got {unknown}")
    bundled = [name for name in LEARNED if name.partition(":")[2] in available_checkpoints()]
    learned = args.only or [f"rule:{name}" for name in args.checkpoint] or bundled
    for name in learned:
        entrant(name)  # that it is there, before anything is run
    torch.set_num_threads(1)  # the operations are too small to be shared

    results = {}
    for name in names:
        start = time.perf_counter()
        results[name] = contest(
            args.what,
            name,
            learned,
            steps=args.steps,
            jobs=args.jobs,
            validation=args.validation,
            keep=bool(args.only),
            command=shlex.join(["python", "docs/examples/zoo.py", args.what, name, "--steps", str(args.steps)]),
        )
        print(f"{details({name: results[name]})[-1]} {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    print("\n".join([*summary(results, among), "", *details(results)]))
    if not args.validation:
        publish()


if __name__ == "__main__":
    main()
