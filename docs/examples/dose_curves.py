"""From a family of problems of your own to an optimizer for it: how a body takes up and loses a drug.

    python docs/examples/dose_curves.py [--updates 300] [--jobs 2] [--out runs/dose-curves]

A clinic fits a model of five numbers to the blood samples of each patient, by following the gradient through a
simulation of the day. Here that becomes a family of problems; an optimizer is meta-trained for it in some minutes; and
on patients that nobody has seen it races optimizers that are tuned on others. Writes dose-curves.safetensors,
race.json, race.png and README.md to the folder.
"""

from __future__ import annotations

import argparse
import logging
import time
import warnings
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint, TQDMProgressBar
from torch import Tensor, nn

from learned_optim import LSTMRule, save_checkpoint, write_atomically
from learned_optim.problems import NetworkProblems
from learned_optim.race import BASELINES, RaceResult, draw, page, race
from lightning_modules import LearnedOptimizerModule

STEPS = 40

# The family


class Body(nn.Module):
    """Two compartments, after a dose that is swallowed: log concentrations in blood, every second hour of a day."""

    def __init__(self) -> None:
        super().__init__()
        # Rates of absorption, elimination, exchange with tissue there and back, and the volume of blood.
        self.theta = nn.Parameter(torch.tensor([0.0, -2.0, -1.5, -2.0, 0.0]))

    def forward(self, dose: Tensor) -> Tensor:
        absorbed, lost, there, back = torch.sigmoid(self.theta[:4]).unbind()  # per hour
        zero = torch.zeros_like(lost)
        flow = torch.stack((-absorbed, zero, zero, absorbed, -lost - there, back, zero, there, -back)).view(3, 3)
        amount = torch.stack((dose, 0 * dose, 0 * dose))  # in gut, blood and tissue, (3, N)
        samples = []
        for hour in range(24):
            change = amount
            for k in (1, 2, 3, 4):  # a classical Runge-Kutta step of an hour
                change = flow @ change / k
                amount = amount + change
            if hour % 2:
                samples.append(amount[1])
        return torch.stack(samples, dim=1).clamp(min=1e-6).log() - self.theta[4]  # (N, 12)


def patient(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A patient's dose and log concentrations, with errors of 5 percent."""
    body, dose = Body(), torch.ones(1)
    with torch.no_grad():
        body.theta += 0.7 * torch.randn(5, generator=generator)
        samples = body(dose)
    return dose, samples + 0.05 * torch.randn(samples.shape, generator=generator)


class Patients(NetworkProblems):
    """The family: each problem is a patient, its loss the mean squared error."""

    def __init__(self) -> None:
        super().__init__(Body, patient)


# An optimizer for it


def train(updates: int, seed: int) -> tuple[LSTMRule, dict[str, object]]:
    """Meta-trains, and returns the rule that did best on held-out patients, with the record for its file."""
    pl.seed_everything(seed)
    rule = LSTMRule(("plain", "moments", "magnitude", "step_count"), output_scale=0.5, bounded=True, shortcut=True)
    options = {"horizon": STEPS, "window": STEPS, "instances": 128, "first_order": False, "clip": 3.0}
    options |= {"objective": "log", "floor": 1e-3, "outer_lr": 1e-2, "schedule": "cosine"}
    module = LearnedOptimizerModule(
        Patients(), rule, **options, steps_per_epoch=min(10, updates), val_instances=128, seed=seed
    )
    best = ModelCheckpoint("runs/dose-curves", monitor="val/log", filename="best", enable_version_counter=False)
    trainer = pl.Trainer(
        max_steps=updates,
        gradient_clip_val=1.0,
        accelerator="cpu",
        logger=False,
        num_sanity_val_steps=0,
        callbacks=[best, TQDMProgressBar(refresh_rate=5)],
        enable_model_summary=False,
    )
    trainer.fit(module)
    weights = torch.load(best.best_model_path, weights_only=True)["state_dict"]
    rule.load_state_dict({key.removeprefix("rule."): value for key, value in weights.items()})
    return rule, {"options": options, "seed": seed, "meta_updates": trainer.global_step}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=300, help="of the optimizer, in meta-training")
    parser.add_argument("--seeds", type=int, default=50, help="new patients to race on")
    parser.add_argument("--jobs", type=int, default=2, help="processes of the race")
    parser.add_argument("--out", type=Path, default=Path("runs/dose-curves"))
    args = parser.parse_args()
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    torch.set_num_threads(1)  # the operations are too small to be shared

    command = f"python docs/examples/dose_curves.py --updates {args.updates} --seeds {args.seeds}"
    start = time.perf_counter()
    rule, record = train(args.updates, seed=0)
    minutes = round((time.perf_counter() - start) / 60, 1)
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "dose-curves.safetensors"
    save_checkpoint(file, rule, record=record | {"command": command, "minutes": minutes})
    print(f"{record['meta_updates']} meta-updates in {minutes} minutes; wrote {file}")

    result = race(
        Patients(),
        {"LSTM": f"lstm:{file}"} | {name: name for name in BASELINES},
        steps=STEPS,
        seeds=range(100, 100 + args.seeds),  # on 0 to 49 an earlier version was looked at
        tune=True,
        tuning_seeds=5,
        jobs=args.jobs,
        name="dose curves",
        command=command,
    )
    result.save(args.out / "race.json")
    draw(result, args.out / "race.png")
    print(page(result))
    write_atomically(args.out / "README.md", report(result, minutes).encode())


def report(result: RaceResult, minutes: float) -> str:
    """The race in Markdown, and what the optimizer in it has cost."""
    return page(result) + f"\nMeta-training the LSTM took {minutes} minutes.\n\n![dose curves](race.png)\n"


if __name__ == "__main__":
    main()
