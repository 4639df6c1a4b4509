"""The published races: the page says what the files say, and each is the race that its row describes."""

import importlib
import importlib.util
import os
import runpy
import sys
from pathlib import Path

import pytest
import torch

from learned_optim import load_checkpoint, read_guard, read_record
from learned_optim.race import BASELINES, entrant, page

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "docs" / "examples" / "learned_optimizers.py"
sys.path.insert(0, str(SCRIPT.parent))  # where it finds zoo.py
spec = importlib.util.spec_from_file_location("learned_optimizers", SCRIPT)
script = sys.modules["learned_optimizers"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_the_page_is_made_from_the_files():
    results = script.measured()
    text = script.page(results)
    assert (script.RESULTS / "README.md").read_text() == text
    for name in results:
        assert f"](#{name})" in text
        assert (script.RESULTS / f"{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", script.CHECKPOINTS)
def test_each_card_is_made_from_record_and_races(name):
    file = script.CHECKPOINTS[name].file
    record = read_record(file)
    assert read_guard(file) == script.CHECKPOINTS[name].guard
    assert script.CHECKPOINTS[name].options.items() <= load_checkpoint(file).config().items()
    assert record["config"] == (script.CONFIGS / f"{name}.yaml").read_text()
    assert record["selected"] <= record["meta_updates"]
    assert (script.BUNDLED / f"{file}.md").read_text() == script.card(name, script.measured())


@pytest.mark.parametrize("name", script.ROWS)
def test_each_race_is_that_of_its_row(name):
    row, result = script.ROWS[name], script.load_result(script.RESULTS / f"{name}.json")
    assert (result.problem, result.steps) == (row.problem, row.steps)
    assert f"race {name}" in result.command
    learned = [entry for entry in result.entries if not entry.hand_designed]
    assert [entry.name for entry in learned] == [entrant(n).name for n in (f"lstm:{row.checkpoint}", *row.beside)]
    assert {entry.name for entry in result.entries if entry.hand_designed} == {
        BASELINES[name].name for name in row.baselines
    }
    assert all(entry.tuning is not None and entry.tuning.inside for entry in result.entries if entry.hand_designed)
    assert (len(result.seeds), len(result.tuning_seeds)) == (row.seeds, row.tuning_seeds)


def test_the_page_of_state_dtypes_is_made_from_its_races():
    module = importlib.import_module("state_dtype")
    results = module.measured()
    assert [*results] == [*module.RACES]
    assert (module.RESULTS / "README.md").read_text() == module.page(results)


def test_the_page_of_dose_curves_is_made_from_its_race():
    folder = ROOT / "docs" / "results" / "dose-curves"
    result = script.load_result(folder / "race.json")
    assert page(result) in (folder / "README.md").read_text()
    assert all(entry.tuning is not None and entry.tuning.inside for entry in result.entries if entry.hand_designed)


def test_the_example_of_dose_curves_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        sys, "argv", ["dose_curves.py", "--updates", "1", "--seeds", "2", "--jobs", "1", "--out", "out"]
    )
    example = runpy.run_path(str(ROOT / "docs" / "examples" / "dose_curves.py"))
    family = example["Patients"]()
    problem = family.sample(torch.Generator().manual_seed(0))
    assert float(family.loss(problem.params, problem.batch(torch.Generator()))) > 0.0025
    monkeypatch.setitem(example["main"].__globals__, "BASELINES", ("sgd",))
    example["main"]()
    assert sorted(os.listdir("out")) == ["README.md", "dose-curves.safetensors", "race.json", "race.png"]


def test_the_page_of_feature_sets_is_made_from_its_races():
    module = importlib.import_module("feature_sets")
    results = module.measured()
    assert (module.RESULTS / "README.md").read_text() == module.page(results)
    assert [*results] == [*module.PROBLEMS]
    for result in results.values():
        assert {entry.name for entry in result.entries} == {*module.SETS, module.BEST}
        assert result.entry(module.BEST).tuning.inside
