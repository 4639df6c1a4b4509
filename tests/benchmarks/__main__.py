"""Measures, and makes the page of what was measured.

python -m tests.benchmarks [NAME ...] [--quick] [--device cpu] writes docs/results/speed/NAME.json;
python -m tests.benchmarks --page makes the page beside them. ``make benchmarks`` does both, peers included.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from learned_optim import write_atomically
from tests.benchmarks import curves
from tests.benchmarks.measuring import (
    KEEPING,
    RETURNING,
    SECONDS,
    Contender,
    Setup,
    alone,
    machine,
    measured,
    peak_growth,
    quartiles,
)
from tests.benchmarks.page import load, page
from tests.benchmarks.registry import BENCHMARKS

FOLDER = Path("docs/results/speed")


def main(arguments: Sequence[str] | None = None) -> None:
    """See the module."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; by default all of the device"
    )
    parser.add_argument("--quick", action="store_true", help="everything tiny, to see that it runs")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for one contender, beyond its fewest rounds")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="by default one for each core")
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--page", action="store_true", help="make the page of what is there")
    parser.add_argument("--here", action="store_true", help="in this process, which has its threads already")
    parser.add_argument("--peak", nargs=2, metavar=("GROUP", "CONTENDER"), help="print one contender's peak memory")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"there is no benchmark {unknown[0]!r}; there are {', '.join(BENCHMARKS)}")
    setup = Setup(quick=options.quick, device=options.device, seconds=options.seconds)
    same = ["--device", options.device, "--threads", str(options.threads), "--seconds", str(options.seconds)]
    same += ["--quick"] if options.quick else []
    if options.page:
        write_page(options.out)
    elif options.peak:
        (name,), (title, contender) = options.names, options.peak
        found = {one.name: one for one in BENCHMARKS[name].groups(setup)[title].contenders}
        print(peak_growth(found[contender].build))
    elif options.here:
        for name in options.names:
            measure(name, setup, options.out, same=same, threads=options.threads)
    else:
        for name in options.names or [name for name, one in BENCHMARKS.items() if one.device == options.device]:
            # What was compiled before does not count.
            with tempfile.TemporaryDirectory() as cache:
                environment = {**KEEPING, "TORCHINDUCTOR_CACHE_DIR": cache}
                asked = [name, "--here", "--out", str(options.out), *same]
                print(alone(asked, threads=options.threads, environment=environment), end="", flush=True)


def measure(name: str, setup: Setup, folder: Path, *, same: Sequence[str], threads: int) -> None:
    """Measures one benchmark in this process, and prints and writes what it found."""
    benchmark = BENCHMARKS[name]
    flags = {"--quick": setup.quick, f"--device {setup.device}": setup.device != "cpu"}
    flags[f"--seconds {setup.seconds:g}"] = setup.seconds != SECONDS
    flags[f"--threads {threads}"] = threads != os.cpu_count()
    command = " ".join(["python -m tests.benchmarks", name, *(flag for flag, given in flags.items() if given)])
    groups: dict[str, Any] = {}
    facts: dict[str, float] = {}

    def write() -> None:
        content = {"command": command, "machine": machine(setup), "groups": groups, "facts": facts}
        write_atomically(folder / f"{name}.json", (json.dumps(content, indent=1) + "\n").encode())

    for title, group in benchmark.groups(setup).items():

        def peak(contender: Contender, title: str = title) -> float:
            asked = [name, "--peak", title, contender.name, *same]
            return float(alone(asked, threads=threads, environment=RETURNING).splitlines()[-1])

        groups[title] = measured(group, setup, peak=peak)
        for row, values in groups[title]["rows"].items():
            low, middle, high = quartiles(values["rounds"])
            growth = f", peak {values['peak'] / 2**20:.1f} MiB" if "peak" in values else ""
            _tell(f"{name}, {title}: {row} {middle:.3g} s ({low:.3g} to {high:.3g}){growth}")
        for row, reason in groups[title]["missing"].items():
            _tell(f"{name}, {title}: {row} is missing: {reason}")
        write()  # after each, so that what was measured is kept if the next one fails
    facts |= benchmark.facts(setup)
    for bar in [*benchmark.bars(groups), *benchmark.fact_bars(facts)]:
        print(f"{name}: {bar.text}: {bar.value} (at {'most' if bar.at_most else 'least'} {bar.bound}), met: {bar.met}")
    write()


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def write_page(folder: Path) -> None:
    """README.md, and curves.png where curves were measured."""
    measurements = load(folder)
    write_atomically(folder / "README.md", page(measurements).encode())
    if "curves" in measurements:
        curves.draw(measurements["curves"]["groups"], folder / "curves.png")


if __name__ == "__main__":
    main()
