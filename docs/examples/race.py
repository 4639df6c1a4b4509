"""The learned LSTM optimizer against tuned hand-designed ones, training an MLP on images of digits.

    python docs/examples/race.py [--quick] [--out demo]

It uses MNIST where $LEARNED_OPTIM_DATA has it (or --download fetches it), else the digits inside scikit-learn.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from learned_optim import LSTMOptimizer
from learned_optim.data import ImageSet, digits, mnist, write_atomically
from learned_optim.problems import ImageClassification
from learned_optim.race import BASELINES, Interval, draw, page, race


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
    print(f"Data: {images.name}. Network: 784-20-10, sigmoid, PyTorch's default initialisation; batch 128.")
    print("Every hand-designed optimizer is tuned first, on other problems; the LSTM is not.")
    learned = {f"LSTM ({args.checkpoint})": partial(LSTMOptimizer, checkpoint=args.checkpoint)}
    rivals = {BASELINES[name].name: name for name in ("adam", "rmsprop", "adagrad", "nag", "sgd")}
    with tqdm(desc="race", unit="run") as bar:

        def progress(what: str, done: int, planned: int) -> None:
            bar.total = planned
            bar.set_postfix_str(what, refresh=False)
            bar.update(done - bar.n)

        result = race(
            family,
            learned | rivals,
            steps=args.steps,
            seeds=1 if args.quick else args.seeds,
            tune=True,
            tuning_seeds=1 if args.quick else 3,
            progress=progress,
            name=f"784-20-10 MLP on {images.name}",
        )
    print(f"\n{page(result)}")
    draw(result, args.out / "race.png")
    final = {entry.name: Interval.of(entry.final).mean for entry in result.entries}
    written = {"data": images.name, "final": final, **result.to_json()}
    write_atomically(args.out / "race.json", json.dumps(written).encode())
    print(f"Wrote {args.out / 'race.png'}")


if __name__ == "__main__":
    main()
