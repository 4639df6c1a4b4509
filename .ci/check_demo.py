"""Run by CI after the short demonstration: the numbers that it printed and the pictures that it drew."""

import json
import sys
from pathlib import Path

folder = Path(sys.argv[1])
race = json.loads((folder / "race.json").read_text())
learned = next(loss for name, loss in race["final"].items() if name.startswith("LSTM"))
rivals = {name: loss for name, loss in race["final"].items() if not name.startswith("LSTM")}
assert set(rivals) == {"Adam", "RMSprop", "Adagrad", "NAG", "SGD"}, rivals
assert learned < 1.0, f"the LSTM optimizer ended at {learned}"
if race["data"] == "MNIST":
    # NAG, the strongest, is not asserted on a single seed.
    assert all(learned < loss for name, loss in rivals.items() if name != "NAG"), (learned, rivals)

mse = json.loads((folder / "sine.json").read_text())["mse"]
assert mse["MAML"]["1"] < 0.7 * mse["MAML"]["0"], mse
assert mse["MAML"]["10"] < mse["MAML"]["1"], mse
assert mse["Meta-SGD"]["1"] < mse["MAML"]["1"] < mse["pretrained on all waves"]["1"], mse
for name in ("race.png", "sine.png"):
    assert (folder / name).read_bytes().startswith(b"\x89PNG"), name
print("demonstration:", learned, mse)
