"""The command ``learned-optim race``."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch

from learned_optim.checkpoint import CheckpointError, available_checkpoints
from learned_optim.problems import PROBLEMS
from learned_optim.race.entrants import BASELINES
from learned_optim.race.errors import RaceError
from learned_optim.race.report import draw, page
from learned_optim.race.running import Progress, race

EXAMPLE = "learned-optim race mnist-mlp --optimizers lstm:mnist-mlp,adam,nag --steps 200 --seeds 5 --tune"


def main(args: Sequence[str]) -> None:
    """Runs a race, prints its table, and writes ``race.json`` and ``race.png``.

    Args:
        args: The command line after ``learned-optim race``.
    """
    options = _parser().parse_args(args)
    if options.threads < 1:
        raise SystemExit(f"learned-optim race: threads must be >= 1, got {options.threads}")
    if options.out.exists() and not options.out.is_dir():
        raise SystemExit(f"learned-optim race: --out must be a folder, but {options.out} is a file")
    torch.set_num_threads(options.threads)
    sys.path.insert(0, os.getcwd())  # where `module:factory` is looked for
    try:
        with _progress() as progress:
            result = race(
                options.problem,
                [name.strip() for name in options.optimizers.split(",") if name.strip()],
                steps=options.steps,
                seeds=options.seeds,
                tune=options.tune,
                tuning_seeds=options.tuning_seeds,
                window=options.window,
                jobs=options.jobs,
                device=options.device,
                progress=progress,
                command=shlex.join(["learned-optim", "race", *args]),
            )
    except (RaceError, CheckpointError, FileNotFoundError) as error:
        raise SystemExit(f"learned-optim race: {error}") from error
    result.save(options.out / "race.json")
    sys.stdout.write(page(result))
    written = [options.out / "race.json"]
    if find_spec("matplotlib") is None:
        sys.stderr.write("No picture is drawn, since matplotlib is not installed: pip install matplotlib\n")
    else:
        written.append(options.out / "race.png")
        draw(result, written[-1])
    sys.stderr.write(f"Wrote {' and '.join(map(str, written))}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="learned-optim race",
        description="Lets optimizers train the same problems: hand-designed ones, tuned on other\n"
        "problems with --tune, and learned ones as they are.",
        epilog=f"example:\n  {EXAMPLE}\n\n{_listed('problems', PROBLEMS)}\n\n"
        f"{_listed('bundled checkpoints', available_checkpoints())}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "problem",
        metavar="PROBLEM",
        help="a name (below), or package.module:factory or path/to/file.py:factory, which returns a ProblemFamily",
    )
    parser.add_argument(
        "--optimizers",
        required=True,
        metavar="NAME,...",
        help=f"hand-designed: {', '.join(BASELINES)}, with @RATE for a fixed learning rate, as in adam@0.01; learned: "
        "lstm:NAME, hierarchical:NAME or rule:NAME (of any rule), with a bundled checkpoint or a file; untrained:NAME, "
        "the same before its training",
    )
    parser.add_argument("--steps", type=int, default=200, metavar="N", help="steps of each run (%(default)s)")
    parser.add_argument("--seeds", type=int, default=5, metavar="S", help="test problems (%(default)s)")
    parser.add_argument(
        "--tune", action="store_true", help="tune the hand-designed optimizers; else they have torch's defaults"
    )
    parser.add_argument(
        "--tuning-seeds", type=int, default=3, metavar="S", help="validation problems to tune on (%(default)s)"
    )
    parser.add_argument(
        "--window", type=int, metavar="N", help="a final loss is the mean over the last N steps (a tenth of them)"
    )
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes to train in (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="threads of each process (%(default)s)")
    parser.add_argument("--device", metavar="NAME", help="where to train, such as cuda (where the problem is)")
    parser.add_argument(
        "--out", type=Path, default=Path("race"), metavar="FOLDER", help="gets race.json and race.png (%(default)s)"
    )
    return parser


def _listed(what: str, names: Iterable[str]) -> str:
    return textwrap.fill(f"{what}: {', '.join(names)}", 78, subsequent_indent="  ", break_on_hyphens=False)


@contextmanager
def _progress() -> Iterator[Progress]:
    """A bar on stderr; a line for each optimizer where that is no terminal or tqdm is not installed."""
    if find_spec("tqdm") is None or not sys.stderr.isatty():
        said = ""

        def say(what: str, done: int, planned: int) -> None:
            nonlocal said
            if what != said:
                sys.stderr.write(f"{what}\n")
                said = what

        yield say
        return
    from tqdm import tqdm

    with tqdm(unit="run", desc="race", leave=False) as bar:

        def show(what: str, done: int, planned: int) -> None:
            bar.total = planned
            bar.set_postfix_str(what, refresh=False)
            bar.update(done - bar.n)

        yield show
