"""``python -m tests.kill``: kills of meta-training and of ordinary training, 20 by default."""

import argparse
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.kill.harness import Failed, torture
from tests.kill.runs import KINDS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.kill", description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the times; by default from the clock")
    parser.add_argument("--folder", type=Path, help="a new one, where runs are kept; by default they are thrown away")
    parser.add_argument("--temporary", type=Path, help="where files begin; by default beside the checkpoints")
    options = parser.parse_args()
    print(f"seed {options.seed}: {options.kills} kills, runs of {options.steps} steps", flush=True)
    failures = kills = 0
    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor() as pool:
        futures = {
            kind: pool.submit(
                torture,
                kind,
                options.kills // len(KINDS) + (i < options.kills % len(KINDS)),
                steps=options.steps,
                seed=options.seed,
                folder=options.folder or Path(temporary),
                temporary=options.temporary,
                say=lambda line: print(line, flush=True),
            )
            for i, kind in enumerate(KINDS)
        }
        for kind, future in futures.items():
            try:
                outcome = future.result()
            except Failed as error:
                failures += 1
                print(f"FAILED with seed {options.seed}: {error}", flush=True)
                continue
            kills += outcome.kills
            print(
                f"{kind}: {outcome.kills} kills in {outcome.runs} runs, {outcome.in_saving} in the middle of saving "
                f"and {outcome.between} between two files; the end is that of the undisturbed run, bit for bit",
                flush=True,
            )
    print(f"seed {options.seed}: {kills} kills, {failures} failures")
    return 0 if kills == options.kills and not failures else 1


if __name__ == "__main__":
    raise SystemExit(main())
