"""What a race reports: ratios, intervals, steps to a loss, its file, its table, its picture and its command."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from learned_optim import CheckpointError, MetaSGDRule, SGDRule, save_checkpoint
from learned_optim.problems import ProblemFamily, Quadratics
from learned_optim.race import (
    Entry,
    Interval,
    RaceError,
    RaceResult,
    Trial,
    Tuning,
    draw,
    entrant,
    load_result,
    page,
    problem_family,
    race,
    table,
)
from learned_optim.race.result import student
from learned_optim.race.running import steps_to_reach
from lightning_modules.cli import main

ROOT = Path(__file__).parent.parent


def entry(name, final, *, hand_designed=True, **others):
    values = {
        "setting": {},
        "tuning": None,
        "curves": tuple((1.0, loss) for loss in final),
        "test": None,
        "diverged": (),
        "steps_to_best": None,
        "seconds_per_step": (0.01,) * len(final),
        **others,
    }
    return Entry(name, hand_designed, final=final, **values)


def result(*entries, initial=(1.0, 1.0), best="a"):
    return RaceResult(
        "problem", "", 10, (0, 1)[: len(initial)], (), 1, 1, (1, 10), {"cores": 2}, initial, best, entries
    )


@pytest.mark.parametrize("freedom", [1, 2, 3, 5, 10, 11, 15, 29, 100])
def test_student(freedom):
    """The integral of the density between the quantiles is 0.95."""
    t = student(freedom)
    x = torch.linspace(-t, t, 200_001, dtype=torch.float64)
    half = torch.tensor([(freedom + 1) / 2, freedom / 2], dtype=torch.float64)
    scale = (torch.lgamma(half[0]) - torch.lgamma(half[1])).exp() / math.sqrt(freedom * math.pi)
    density = scale * (1 + x**2 / freedom) ** (-half[0])
    # The quantiles are given to three decimals.
    assert float(torch.trapezoid(density, x)) == pytest.approx(0.95, abs=2e-5)


def test_intervals():
    assert Interval.of([1.0, 2.0, 3.0]) == pytest.approx((2.0, 2 - 4.3027 / math.sqrt(3), 2 + 4.3027 / math.sqrt(3)))
    assert Interval.of([1.0])[0] == 1.0
    assert math.isnan(Interval.of([1.0]).low)
    assert Interval.of([1.0, math.inf])[0] == math.inf


def test_ratios_are_floored_at_a_thousandth_of_the_initial_loss():
    best = entry("a", (1e-9, 0.5))
    other = entry("b", (4e-3, 1e-12))
    zero = entry("c", (0.0, 0.5))
    race = result(best, other, zero, initial=(1.0, 10.0))
    assert race.ratio(other).mean == pytest.approx(math.sqrt((4e-3 / 1e-3) * (1e-2 / 0.5)))
    assert race.ratio(zero) == pytest.approx((1.0, 1.0, 1.0))
    assert race.ratio(best).mean == 1.0


def test_a_run_that_is_not_finite_makes_the_ratio_infinite():
    for lost in (math.nan, math.inf):
        assert result(entry("a", (0.1, 0.1)), entry("b", (0.01, lost))).ratio(entry("b", (0.01, lost))).mean == math.inf


def test_there_is_no_ratio_without_a_baseline_or_to_losses_that_are_not_positive():
    one = entry("a", (0.1, 0.1))
    assert result(one, best=None).ratio(one) is None
    assert result(one, initial=(1.0, -1.0)).ratio(one) is None


def test_steps_to_reach():
    smoothed = torch.tensor([[3.0, 2.0, 1.0, 2.0], [3.0, 2.5, 2.1, 2.2], [math.nan, 1.0, 0.0, math.nan], [2.0] * 4])
    assert steps_to_reach(smoothed, torch.tensor([2.0, 2.0, 0.0, 2.0])) == (2, None, 3, 1)
    assert steps_to_reach(torch.tensor([[math.nan] * 3]), torch.tensor([1.0])) == (None,)


def test_never_counts_as_infinite_in_the_median():
    def one(*steps):
        return entry("b", (0.1,) * len(steps), steps_to_best=steps, seconds_per_step=(0.5,) * len(steps))

    assert one(4, None, 8).median_steps_to_best == 8
    assert one(4, None, 8).median_seconds_to_best == 4.0
    assert one(4, None).median_steps_to_best == math.inf
    assert one(None, None).reached == 0
    best = entry("a", (0.1, 0.1), steps_to_best=(10, 10))
    lines = table(result(best, one(4, None), one(None, None), one(3, 4))).splitlines()
    assert "more than 10 (1 of 2 seeds)" in lines[3]
    assert "never" in lines[4]
    assert "| 3.5 " in lines[5]


def test_divergence_is_counted_and_shown():
    got = race("quadratics", ["sgd@1", "sgd@0.001"], steps=60, seeds=2)
    lost, fine = got.entries
    assert lost.diverged == (0, 1)
    assert not any(map(math.isfinite, lost.final))
    assert fine.diverged == ()
    assert got.best == "SGD@0.001"
    assert got.ratio(lost).mean == math.inf
    assert lost.steps_to_best == (None, None)
    line = table(got).splitlines()[2]
    assert "2 diverged" in line
    assert "inf" in line
    assert race("quadratics", ["sgd@1"], steps=60, seeds=2).best is None


def test_the_last_step_of_the_best_reaches_its_loss():
    got = race("quadratics", ["adam@0.1", "sgd@0.01"], steps=30, seeds=3)
    assert got.entry(got.best).reached == 3


def test_losses_below_the_floor_are_reached_at_the_floor():
    fast, slow = race(f"{__file__}:Easy", ["sgd@0.5", "sgd@0.25"], steps=20, seeds=2).entries
    # The losses are 1, 0, 0, ... and 0.25^(step - 1), and the mean of two is to be at most a thousandth.
    assert fast.final < slow.final
    assert fast.steps_to_best == (3, 3)
    assert slow.steps_to_best == (7, 7)


class Easy(Quadratics):
    def loss(self, params, batch):
        return params["theta"].square().sum()


def test_test_losses_and_none():
    got = race(f"{__file__}:Held", ["sgd@0.01"], steps=5, seeds=2)
    assert got.entries[0].test == (7.0, 7.0)
    assert "test loss" in table(got)
    assert "test loss" not in table(race("quadratics", ["sgd@0.01"], steps=5, seeds=2))


class Held(Quadratics):
    def test_loss(self, params):
        return torch.tensor(7.0)


def finished():
    tuning = Tuning((Trial({"lr": 1.0}, math.inf), Trial({"lr": 0.1}, 0.25)), False, 4, 40, 1.5)
    return result(
        entry("a", (0.1, 0.2), setting={"lr": 0.1}, tuning=tuning, steps_to_best=(9, 10), test=(0.3, 0.4)),
        entry("b", (0.05, math.nan), hand_designed=False, diverged=(1,), steps_to_best=(3, None), test=(0.1, math.nan)),
    )


def test_a_file_is_read_as_it_was_written(tmp_path):
    for number, before in enumerate((finished(), race("quadratics", ["adam", "sgd"], steps=9, seeds=2, tune=True))):
        path = tmp_path / f"{number}.json"
        before.save(path)
        after = load_result(path)
        assert repr(after) == repr(before)  # where NaN equals itself
        assert page(after) == page(before)
        json.loads(path.read_bytes(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
        pictures = []
        for one in (before, after):
            draw(one, tmp_path / "race.png")
            pictures.append((tmp_path / "race.png").read_bytes())
        assert pictures[0] == pictures[1]
        assert pictures[0].startswith(b"\x89PNG")


def test_the_file_holds_means_and_intervals():
    written = finished().to_json()
    assert written["summary"]["a"]["final"] == pytest.approx(Interval.of((0.1, 0.2))._asdict(), rel=1e-5)
    assert written["summary"]["b"]["final"]["mean"] == "nan"
    assert written["summary"]["b"]["ratio"]["mean"] == "inf"
    assert written["entries"][0]["tuning"]["trials"][0] == {"setting": {"lr": 1.0}, "loss": "inf"}


def test_the_page_says_what_is_to_be_known():
    text = page(finished())
    assert "a among 2 settings, and the best is not inside what was tried" in text
    assert "| a         | lr 0.1  |" in text
    assert "| 4           | 40           | 1.5" in text
    assert "nan, 1 diverged" in text
    untuned = page(result(entry("a", (0.1, 0.2)), entry("b", (0.1, 0.2), hand_designed=False)))
    assert "Not tuned: a;" in untuned


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": "other"}', '{"format": "learned_optim.race"}'])
def test_a_file_that_is_no_race(tmp_path, content):
    (tmp_path / "race.json").write_text(content)
    with pytest.raises(RaceError, match="holds no race"):
        load_result(tmp_path / "race.json")


def test_checkpoints_of_any_rule_take_part(tmp_path):
    theta = torch.zeros(10)
    save_checkpoint(tmp_path / "meta-sgd", MetaSGDRule({"theta": torch.full_like(theta, 0.01)}))
    save_checkpoint(tmp_path / "sgd", SGDRule(0.01))
    got = race(
        "quadratics", ["sgd@0.01", f"rule:{tmp_path / 'meta-sgd'}", f"rule:{tmp_path / 'sgd'}"], steps=9, seeds=1
    )
    expected = got.entries[0].final[0]
    assert [one.final[0] for one in got.entries] == pytest.approx([expected] * 3, rel=1e-5)
    assert [one.name.partition(" ")[0] for one in got.entries] == ["SGD@0.01", "MetaSGDRule", "SGDRule"]


def test_bundled_checkpoints_have_their_guard():
    for name in ("lstm:mnist-mlp", "rule:mnist-mlp"):
        assert entrant(name).make([("theta", torch.zeros(2, requires_grad=True))]).guard is not None


def test_problems_by_name():
    assert isinstance(problem_family("quadratics"), Quadratics)
    assert isinstance(problem_family("learned_optim.problems:Quadratics"), Quadratics)
    assert isinstance(problem_family(f"{__file__}:Held"), ProblemFamily)


def not_a_family():
    return 3


BAD = {
    "unknown problem": (lambda: race("quadratic", ["adam"]), "unknown problem 'quadratic'; there are .*quadratics"),
    "no file": (lambda: race("/nowhere.py:f", ["adam"]), "there is no file /nowhere.py"),
    "no module": (lambda: race("nowhere:f", ["adam"]), "there is no module 'nowhere'"),
    "no factory": (lambda: race("learned_optim.problems:nothing", ["adam"]), "has no function or class 'nothing'"),
    "no family": (lambda: race(f"{__file__}:not_a_family", ["adam"]), "must return a ProblemFamily, got a int"),
    "unknown optimizer": (lambda: race("quadratics", ["adem"]), "unknown optimizer 'adem'; there are sgd, .*lstm:NAME"),
    "unknown prefix": (lambda: race("quadratics", ["gru:x"]), "unknown optimizer 'gru:x'"),
    "rate": (lambda: race("quadratics", ["adam@fast"]), "'adam@fast': a learning rate must be .* got 'fast'"),
    "negative rate": (lambda: race("quadratics", ["adam@-1"]), "must be a finite number > 0, got '-1'"),
    "other rule": (lambda: race("quadratics", ["lstm:omniglot-5w1s-maml"]), "holds no LSTMRule but a .*; use rule:"),
    "nothing to begin with": (
        lambda: race("quadratics", ["untrained:omniglot-5w1s-maml"]),
        "holds a SGDRule, which has no weights to begin with",
    ),
    "does not fit": (
        lambda: race("quadratics", ["rule:omniglot-5w1s-meta-sgd"]),
        r"MetaSGDRule \(omniglot-5w1s-meta-sgd\) cannot be made for this problem: MetaSGD: no rates",
    ),
    "no optimizers": (lambda: race("quadratics", []), "optimizers is empty"),
    "one string": (lambda: race("quadratics", "adam"), "optimizers must be a list of names, got the string 'adam'"),
    "twice": (lambda: race("quadratics", ["adam", "adam"]), "Adam is named more than once"),
    "steps": (lambda: race("quadratics", ["adam"], steps=0), "steps must be a whole number >= 1, got 0"),
    "seeds": (lambda: race("quadratics", ["adam"], seeds=0), "seeds must be a whole number >= 1, got 0"),
    "equal seeds": (lambda: race("quadratics", ["adam"], seeds=(1, 1)), r"seeds must be different .* got \[1, 1\]"),
    "tuning seeds": (lambda: race("quadratics", ["adam"], tuning_seeds=()), r"tuning_seeds must be different .*\[\]"),
    "jobs": (lambda: race("quadratics", ["adam"], jobs=0), "jobs must be a whole number >= 1, got 0"),
    "window": (lambda: race("quadratics", ["adam"], steps=5, window=6), "window must be at most steps, 5, got 6"),
    "unpicklable": (
        lambda: race("quadratics", {"mine": lambda params: torch.optim.SGD(params)}, steps=1, jobs=2),
        "an optimizer cannot be sent to another process .*; define it at the top level of a module",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    call, message = BAD[name]
    with pytest.raises(RaceError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_an_unknown_checkpoint():
    with pytest.raises(CheckpointError, match=r"no checkpoint 'nowhere'.*bundled names are: .*mnist-mlp"):
        race("quadratics", ["lstm:nowhere"])


def test_the_command(tmp_path, capsys):
    args = ["race", "quadratics", "--optimizers", "lstm:mnist-mlp,adam,nag", "--steps", "6", "--seeds", "2", "--tune"]
    main([*args, "--tuning-seeds", "1", "--out", str(tmp_path)])
    got = load_result(tmp_path / "race.json")
    assert capsys.readouterr().out == page(got)
    assert got.command.startswith("learned-optim race quadratics --optimizers lstm:mnist-mlp,adam,nag")
    assert (got.problem, got.steps, got.seeds, got.tuning_seeds) == ("quadratics", 6, (0, 1), (0,))
    assert [one.name for one in got.entries] == ["LSTM (mnist-mlp)", "Adam", "NAG"]
    assert all(one.tuning.runs == len(one.tuning.trials) > 7 for one in got.entries[1:])
    assert (tmp_path / "race.png").read_bytes().startswith(b"\x89PNG")
    assert set(got.machine) == {"torch", "device", "cores", "threads", "jobs"}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nowhere", "--optimizers", "adam"], "learned-optim race: unknown problem 'nowhere'"),
        (["quadratics", "--optimizers", ","], "learned-optim race: optimizers is empty"),
        (["quadratics", "--optimizers", "lstm:nowhere"], "learned-optim race: no checkpoint 'nowhere'"),
        (["quadratics", "--optimizers", "adam", "--steps", "0"], "learned-optim race: steps must be"),
        (["quadratics", "--optimizers", "adam", "--threads", "0"], "learned-optim race: threads must be"),
    ],
)
def test_the_command_refuses_in_one_sentence(args, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=message) as caught:
        main(["race", *args])
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_file_in_the_way_is_told_before_the_race(tmp_path):
    (tmp_path / "race").write_text("")
    with pytest.raises(SystemExit, match=r"--out must be a folder, but .*race is a file"):
        main(["race", "quadratics", "--optimizers", "adam", "--steps", "2", "--out", str(tmp_path / "race")])


def test_missing_data_are_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setenv("LEARNED_OPTIM_DATA", str(tmp_path))
    with pytest.raises(SystemExit, match=r"learned-optim race: MNIST is not in .*LEARNED_OPTIM_DATA"):
        main(["race", "mnist-mlp", "--optimizers", "adam"])


def test_a_terminal_sees_a_bar(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    main(["race", "quadratics", "--optimizers", "adam", "--steps", "2", "--seeds", "3", "--out", str(tmp_path)])
    shown = capsys.readouterr().err
    assert "race: 0run" in shown
    assert "running Adam\n" not in shown


def test_the_help_has_an_example(capsys):
    with pytest.raises(SystemExit):
        main(["race", "--help"])
    assert "learned-optim race mnist-mlp --optimizers lstm:mnist-mlp,adam,nag" in capsys.readouterr().out


def test_a_race_needs_neither_lightning_nor_matplotlib_nor_tqdm(tmp_path):
    blocked = ["pytorch_lightning", "lightning", "matplotlib", "tqdm", "higher", "sklearn"]
    code = f"""
import sys
for name in {blocked}:
    sys.modules[name] = None
from lightning_modules.cli import main
main(["race", "quadratics", "--optimizers", "adam,lstm:mnist-mlp", "--steps", "3", "--seeds", "1"])
"""
    environment = {"PATH": "", "PYTHONPATH": str(ROOT), "HOME": "/nonexistent", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (tmp_path / "race").iterdir()] == ["race.json"]
    assert "No picture is drawn, since matplotlib is not installed" in done.stderr
    assert done.stderr.startswith("running Adam\nrunning LSTM (mnist-mlp)\n")
    assert done.stdout.startswith("# Race on quadratics")
