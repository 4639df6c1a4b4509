"""The learned LSTM optimizer against tuned hand-designed ones, training an MLP on images of digits.

    python docs/examples/race.py [--quick] [--out demo]

It uses MNIST where $LEARNED_OPTIM_DATA has it (or --download fetches it), else the digits inside scikit-learn.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from tqdm import tqdm

from learned_optim import LSTMOptimizer
from learned_optim.data import ImageSet, digits, mnist
from learned_optim.problems import ImageClassification
from learned_optim.race import BASELINES, draw, race, table


def load_images(download: bool) -> ImageSet:
    try:
        return mnist(download=download)
    except FileNotFoundError as error:
        print(f"{error}.\nUsing the digits that ship inside scikit-learn instead.")
        return digits()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="mnist-mlp", help="a bundled name or a file")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3, help="fresh initialisations and batch orders")
    parser.add_argument("--download", action="store_true", help="fetch MNIST where it is missing (11 MB)")
    parser.add_argument("--quick", action="store_true", help="one seed, one tuning seed")
    parser.add_argument("--out", type=Path, default=Path("demo"))
    args = parser.parse_args()

    # The operations are too small to be shared: on a busy machine threads would only wait for each other.
    torch.set_num_threads(1)
    images = load_images(args.download)
    family = ImageClassification(images, batch_size=128)
    seeds = range(1 if args.quick else args.seeds)
    print(f"Data: {images.name}. Network: 784-20-10, sigmoid, PyTorch's default initialisation; batch 128.")
    with tqdm(total=2 * len(BASELINES) + 1, desc="race") as bar:

        def progress(what: str, done: int, total: int) -> None:
            bar.set_postfix_str(what, refresh=False)
            bar.update()

        runs, tuned = race(
            family,
            {f"LSTM ({args.checkpoint})": lambda params: LSTMOptimizer(params, checkpoint=args.checkpoint)},
            steps=args.steps,
            seeds=seeds,
            tuning_seeds=range(1 if args.quick else 3),
            progress=progress,
        )
    for name, result in tuned.items():
        grid = " ".join(f"{lr:g}" for lr in result.scores)
        print(f"{name:<8} learning rate {result.lr:g}, the best of {grid} on validation seeds")
    marks = sorted({max(args.steps // 4, 1), max(args.steps // 2, 1), args.steps})
    fresh = "one fresh seed" if len(seeds) == 1 else f"{len(seeds)} fresh seeds, mean +- standard deviation"
    print(f"\nTraining loss, mean over the last 10 steps, on {fresh}. The LSTM is not tuned.\n")
    print(table(runs, marks))
    draw(runs, args.out / "race.png", title=f"784-20-10 MLP on {images.name}")
    final = {name: float(run.losses[:, -10:].mean()) for name, run in runs.items()}
    (args.out / "race.json").write_text(
        json.dumps({"data": images.name, "steps": args.steps, "final": final}, indent=1)
    )
    print(f"\nWrote {args.out / 'race.png'}")


if __name__ == "__main__":
    main()
