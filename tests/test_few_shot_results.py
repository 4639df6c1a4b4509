"""The published few-shot results: the page says what the files say, the bundled learners are those that were tested."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch

from learned_optim import available_checkpoints, data_root, read_record
from meta_init import Batch, load_learner
from meta_init.sources import OMNIGLOT_PARTS, omniglot_classes, omniglot_episodes

ROOT = Path(__file__).parent.parent
RESULTS, CONFIGS = ROOT / "docs" / "results" / "few-shot", ROOT / "docs" / "configs" / "few-shot"
CARDS = ROOT / "learned_optim" / "checkpoints"
ROWS = sorted(file.stem for file in RESULTS.glob("*-*w*s-*.json"))
LEARNERS = [name for name in available_checkpoints() if re.fullmatch("omniglot-[a-z0-9-]+", name)]


def result(row):
    return json.loads((RESULTS / f"{row}.json").read_text())


@pytest.fixture
def tables(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs" / "examples")
    import few_shot_tables

    yield few_shot_tables
    for name in ("few_shot_tables", "sine_table"):
        sys.modules.pop(name, None)


def test_the_page_is_made_from_the_files(tables):
    page = tables.page([result(row) for row in ROWS], RESULTS)
    assert (RESULTS / "README.md").read_text() == page
    for row in ROWS:
        assert f"{100 * result(row)['accuracy']:.2f} ± {100 * result(row)['interval']:.2f}" in page


@pytest.mark.parametrize("row", ROWS)
def test_each_row_has_its_configuration_and_says_how_it_was_made(row, tables):
    found, config = result(row), (CONFIGS / f"{row}.yaml").read_text()
    *_, setting = tables.place(row)
    assert setting == f"{found['ways']}w{found['shots']}s"
    longer = f"--iterations {found['planned']}"
    assert f"max_steps: {found['planned']}\n" in config or longer in found["command"]
    assert f"meta_batch_size: {found['meta_batch_size']}\n" in config
    assert f"few_shot.py train {row}" in found["command"]
    assert found["tasks"] == 600
    assert found["selected"] <= found["iterations"] <= found["planned"]
    assert found["accuracy"] == pytest.approx(found["curve"][found["steps"]], abs=1e-5)
    assert 0 < found["interval"] < 0.02
    assert found["train_hours"] > 0


def test_the_sine_table_is_below_the_papers_everywhere(tables):
    import sine_table

    rows = json.loads((RESULTS / "sine-table.json").read_text())["rows"]
    means = {(row["algorithm"], row["shots"]): [mean for mean, _ in row["cells"]] for row in rows}
    assert means.keys() == sine_table.PAPER.keys()
    for key, cells in means.items():
        for mean, (paper, _) in zip(cells, sine_table.PAPER[key], strict=True):
            assert mean < paper
    for shots in sine_table.SHOTS:
        for ours, theirs in zip(means["Meta-SGD", shots], means["MAML", shots], strict=True):
            assert ours < theirs


def test_the_learned_initialisation_beats_pretraining_at_every_step_and_still_falls_at_the_last():
    found = json.loads((RESULTS / "sine-figures.json").read_text())["adaptation"]
    assert len(found) == 2
    for curves in found.values():
        learned, pretrained = (curves[name]["mean"] for name in ("MAML", "pretrained"))
        assert len(learned) == 11
        assert all(ours < theirs for ours, theirs in zip(learned[1:], pretrained[1:], strict=True))
        assert learned[10] < learned[9]


@pytest.mark.parametrize("name", LEARNERS)
def test_bundled_learners_adapt_and_say_what_they_have_seen(name, tables):
    learner, record = load_learner(name), read_record(name)
    ways = record["result"]["ways"]
    assert record["result"] == result(record["result"]["row"])
    assert record["config"] == (CONFIGS / f"{record['result']['row']}.yaml").read_text()
    row = record["result"]["row"]
    card = (CARDS / f"{row}@1.md").read_text()
    half = re.search(r"in half precision: ([0-9.]+) %", card)[1]
    assert card == tables.card(row, record["result"], float(half) / 100)
    assert abs(float(half) / 100 - record["result"]["accuracy"]) < record["result"]["interval"] / 4
    assert len(set(record["trained_on"])) == OMNIGLOT_PARTS["train"]
    generator = torch.Generator().manual_seed(0)
    support = Batch(torch.rand(ways, 28, 28, generator=generator), torch.arange(ways))
    adapted = learner.adapt(support, 3)
    assert adapted(support.x).shape == (ways, ways)
    assert adapted.losses[2] < adapted.losses[0]


@pytest.mark.skipif(
    not (data_root() / "omniglot" / "images_background.zip").exists(), reason="needs Omniglot under $LEARNED_OPTIM_DATA"
)
@pytest.mark.parametrize("name", LEARNERS)
def test_bundled_learners_know_new_characters(name):
    record = read_record(name)
    assert not set(omniglot_classes("test").names) & set(record["trained_on"])
    found = record["result"]
    tasks = omniglot_episodes("test", ways=found["ways"], shots=found["shots"])
    accuracies = (
        load_learner(name).evaluate(tasks.sample(40, torch.Generator().manual_seed(9)), found["steps"]).accuracies
    )
    # Other tasks than the table's: equal within four standard errors of the difference. The spread over tasks is the
    # table's, since forty tasks may all be solved and then show none.
    spread = found["interval"] / 1.96 * found["tasks"] ** 0.5
    error = spread * (1 / 40 + 1 / found["tasks"]) ** 0.5
    assert abs(float(accuracies[:, found["steps"]].mean()) - found["accuracy"]) < 4 * error
