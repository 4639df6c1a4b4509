"""Races between optimizers: hand-designed ones tuned on validation problems, everybody compared on test problems."""

from learned_optim.race.entrants import BASELINES, Entrant, entrant, third_decades
from learned_optim.race.errors import RaceError
from learned_optim.race.families import problem_family
from learned_optim.race.report import draw, draw_curves, page, table
from learned_optim.race.result import Entry, Interval, RaceResult, load_result
from learned_optim.race.running import race
from learned_optim.race.training import Job, MakeOptimizer, Run, repeat, trailing_mean, train
from learned_optim.race.tuning import Trial, Tuning, tune
from learned_optim.race.workers import workers

__all__ = [
    "BASELINES",
    "Entrant",
    "Entry",
    "Interval",
    "Job",
    "MakeOptimizer",
    "RaceError",
    "RaceResult",
    "Run",
    "Trial",
    "Tuning",
    "draw",
    "draw_curves",
    "entrant",
    "load_result",
    "page",
    "problem_family",
    "race",
    "repeat",
    "table",
    "third_decades",
    "trailing_mean",
    "train",
    "tune",
    "workers",
]
