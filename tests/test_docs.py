"""Everything public is documented, and what the documents say is what was measured."""

import importlib
import importlib.util
import inspect
import json
import re
from pathlib import Path

import pytest
import torch

import learned_optim
import lightning_modules
import meta_init
from learned_optim import read_record
from learned_optim.race import load_result, table

ROOT = Path(__file__).parent.parent
PUBLIC = [(package, name) for package in (learned_optim, meta_init, lightning_modules) for name in package.__all__]


@pytest.mark.parametrize(("package", "name"), PUBLIC, ids=lambda value: getattr(value, "__name__", value))
def test_everything_public_is_documented(package, name):
    value = getattr(package, name)
    if not inspect.isclass(value):
        assert not callable(value) or value.__doc__, name
        return
    assert value.__doc__, name
    for attribute, member in vars(value).items():
        if attribute.startswith("_") or not inspect.isfunction(member):
            continue
        inherited = any(hasattr(base, attribute) for base in value.__mro__[1:])
        assert member.__doc__ or inherited, f"{name}.{attribute} has no docstring"


def test_the_card_of_mnist_mlp_is_written_from_its_results():
    path = ROOT / "docs" / "examples" / "publish_mnist_mlp.py"
    spec = importlib.util.spec_from_file_location("publish_mnist_mlp", path)
    publish = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(publish)
    results = json.loads(publish.RESULTS.read_text())
    assert publish.CARD.read_text() == publish.card(results, read_record(publish.NAME))
    first = next(iter(results["networks"].values()))
    for window in publish.WINDOWS:
        for name in ("Adam", "RMSprop", "Adagrad", "SGD"):
            assert first["LSTM"][window]["loss"] < first[name][window]["loss"], (window, name)


def test_the_rule_of_the_docs_is_a_rule(tmp_path):
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "README.md").read_text(), flags=re.DOTALL)
    namespace = {}
    exec(compile(block, "docs/README.md", "exec"), namespace)
    learned_optim.save_checkpoint(tmp_path / "sign", namespace["optimizer"].rule)
    assert learned_optim.load_checkpoint(tmp_path / "sign").log_step == -3.0
    learner = meta_init.MetaLearner(meta_init.sine_mlp(4), namespace["optimizer"].rule)
    tasks = meta_init.Sinusoids().sample(2, torch.Generator())
    learner.outer_loss(tasks)[0].backward()
    assert learner.rule.log_step.grad != 0


def test_the_examples_of_optimizers_run():
    first, second = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "optimizers.md").read_text(), flags=re.DOTALL)
    namespace = {}
    exec(compile(first, "docs/optimizers.md", "exec"), namespace)
    assert namespace["optimizer"].rule.horizon == 2000
    exec(compile(second, "docs/optimizers.md", "exec"), namespace)
    model, rule = namespace["model"], namespace["rule"]
    assert {name: rule.route(name, p) for name, p in model.named_parameters()} == {
        "0.weight": "conv",
        "0.bias": "rest",
        "2.weight": "rest",
        "2.bias": "rest",
    }
    before = model[0].weight.detach().clone()
    model(torch.ones(2, 1, 8, 8)).square().sum().backward()
    namespace["optimizer"].step()
    assert not torch.equal(model[0].weight, before)


def test_the_example_of_races_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "race.md").read_text(), flags=re.DOTALL)
    namespace = {}
    exec(compile(block, "docs/race.md", "exec"), namespace)
    result = namespace["result"]
    assert [(entry.name, entry.tuning is None) for entry in result.entries] == [
        ("LSTM", True),
        ("Adam", False),
        ("mine", True),
    ]
    assert capsys.readouterr().out == namespace["page"](result) + "\n"
    assert (tmp_path / "race.png").exists()


def test_the_race_of_the_docs_is_that_of_its_file():
    text = (ROOT / "docs" / "race.md").read_text()
    result = load_result(ROOT / "docs" / "results" / "races" / "mnist-mlp" / "race.json")
    assert result.command in text
    assert table(result) in text


def test_the_examples_of_training_an_optimizer_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "train_an_optimizer.md").read_text(), flags=re.DOTALL)
    assert len(blocks) == 3
    namespace = {}
    for block in blocks:
        exec(compile(block, "docs/train_an_optimizer.md", "exec"), namespace)
    assert namespace["optimizer"].rule.config() == namespace["rule"].config()
    assert set(namespace["found"].losses) == {1e-3, 3e-3, 1e-2}


def test_the_example_of_the_hierarchical_optimizer_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "hierarchical.md").read_text(), flags=re.DOTALL)
    namespace = {}
    exec(compile(block, "docs/hierarchical.md", "exec"), namespace)
    assert namespace["optimizer"].rule.config() == namespace["rule"].config()
    namespace["model"](torch.ones(2, 5)).sum().backward()
    namespace["optimizer"].step()


def test_the_examples_of_few_shot_run():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "few_shot.md").read_text(), flags=re.DOTALL)
    assert len(blocks) == 7
    namespace = {}
    for block in blocks:
        exec(compile(block, "docs/few_shot.md", "exec"), namespace)
    assert namespace["fast"].compiled is not None
    assert namespace["deep"].flat_memory
    assert namespace["logits"].shape == (7, 5)
    assert namespace["accuracy"].shape == (4, 4)
    assert len(namespace["characters"]) == 1100
    batch = meta_init.Batch(namespace["images"], namespace["labels"])
    expected = meta_init.load_learner("omniglot-5w1s-meta-sgd").adapt(batch, 1).params
    torch.testing.assert_close(dict(namespace["model"].named_parameters()), expected)


def test_the_examples_of_the_readme_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert len(blocks) == 4
    namespace = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)
    assert namespace["adapted"](namespace["x"]).shape == (10, 1)
    rule = learned_optim.load_checkpoint("decays.safetensors")
    assert rule.config() == namespace["module"].rule.config()
