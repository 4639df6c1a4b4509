"""Checkpoints: round trips, damage, and what is refused."""

import json
import os
import struct

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch.testing import assert_close

from learned_optim import (
    CheckpointError,
    Guard,
    LSTMOptimizer,
    LSTMRule,
    MetaSGDRule,
    Rule,
    available_checkpoints,
    checkpoint,
    load_checkpoint,
    read_guard,
    read_record,
    save_checkpoint,
)
from tests.specs import RULES, seeded_rule, small_problem


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_round_trip(name, dtype, tmp_path):
    problem = small_problem()
    rule = seeded_rule(name, problem.params).to(dtype)
    save_checkpoint(tmp_path / "rule.safetensors", rule, record={"seed": 3})
    loaded = load_checkpoint(tmp_path / "rule.safetensors")
    assert type(loaded) is type(rule)
    assert loaded.config() == rule.config()
    assert_close(loaded.state_dict(), rule.state_dict(), rtol=0, atol=0)
    assert all(p.requires_grad for p in loaded.parameters())
    assert read_record(tmp_path / "rule.safetensors") == {"seed": 3}
    assert os.listdir(tmp_path) == ["rule.safetensors"]


def rewritten(path, *, signed=False, **changes):
    """Puts other metadata into the file, with or without the hash that then is right."""
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"] |= changes
    header["__metadata__"] = {k: v for k, v in header["__metadata__"].items() if v is not None}
    if signed:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
        header["__metadata__"]["sha256"] = checkpoint._hash(tensors, header["__metadata__"])
    encoded = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + content[8 + size :])


def flip_last_byte(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


class WholeNumbers(LSTMRule):
    """A rule with a tensor that cannot be a parameter."""

    def __init__(self, **options):
        super().__init__(**{**options, "hidden_size": 3})
        self.register_buffer("count", torch.ones(2, dtype=torch.int32))


DAMAGE = {
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-100]), "damaged"),
    "half a header": (lambda path: path.write_bytes(path.read_bytes()[:50]), "damaged"),
    "empty": (lambda path: path.write_bytes(b""), "damaged"),
    "a flipped bit": (flip_last_byte, "SHA-256"),
    "a pickle": (lambda path: torch.save({"a": torch.ones(3)}, path), "damaged"),
    "foreign": (lambda path: path.write_bytes(save({"a": torch.ones(3)})), "not a checkpoint of learned_optim"),
    "newer": (lambda path: rewritten(path, signed=True, format_version="99"), "upgrade"),
    "no version": (lambda path: rewritten(path, signed=True, format_version=None), "format version"),
    "odd version": (lambda path: rewritten(path, signed=True, format_version="\u00b2"), "format version"),
    "unknown rule": (lambda path: rewritten(path, signed=True, rule="os.system"), "unknown class 'os.system'"),
    "no configuration": (lambda path: rewritten(path, signed=True, config=None), "configuration"),
    "no JSON": (lambda path: rewritten(path, signed=True, config="{"), "configuration"),
    "wrong configuration": (lambda path: rewritten(path, signed=True, config='{"hidden_size": "x"}'), "configuration"),
    "huge": (lambda path: rewritten(path, signed=True, config='{"hidden_size": 1000000}'), "has shape"),
    "other sizes": (lambda path: rewritten(path, signed=True, config='{"hidden_size": 7}'), "has shape"),
    "more layers": (lambda path: rewritten(path, signed=True, config='{"hidden_size": 3, "num_layers": 3}'), "needs"),
    "changed configuration": (lambda path: rewritten(path, config='{"hidden_size": 3, "bounded": true}'), "SHA-256"),
    "changed record": (lambda path: rewritten(path, record='{"seed": 0}'), "SHA-256"),
    "whole numbers": (lambda path: save_checkpoint(path, WholeNumbers()), "floating-point"),
    "no hash": (lambda path: rewritten(path, sha256=None), "SHA-256"),
    "no file": (lambda path: path.unlink(), "no such file"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_and_foreign_files(kind, tmp_path):
    path = tmp_path / "rule.safetensors"
    save_checkpoint(path, LSTMRule(hidden_size=3))
    damage, message = DAMAGE[kind]
    damage(path)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_an_unknown_name_lists_the_names():
    with pytest.raises(CheckpointError, match="mnist-mlp") as caught:
        load_checkpoint("mnist-mpl")
    assert "mnist-mpl" in str(caught.value)


def test_names_are_versioned(monkeypatch, tmp_path):
    monkeypatch.setattr(checkpoint, "_BUNDLED", tmp_path)
    for version, size in ((1, 2), (2, 3), (10, 4)):
        save_checkpoint(tmp_path / f"small@{version}.safetensors", LSTMRule(hidden_size=size))
    assert available_checkpoints() == ["small", "small@1", "small@10", "small@2"]
    assert load_checkpoint("small").hidden_size == 4
    assert load_checkpoint("small@2").hidden_size == 3


def test_a_failed_write_leaves_the_old_file(monkeypatch, tmp_path):
    path = tmp_path / "rule.safetensors"
    save_checkpoint(path, LSTMRule(hidden_size=3))
    before = path.read_bytes()

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(path, LSTMRule(hidden_size=4))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["rule.safetensors"]


def test_rules_of_users_load_when_their_class_is_known(tmp_path):
    class Halving(LSTMRule):
        def forward(self, grads, state, params):
            updates, state = super().forward(grads, state, params)
            return {key: u / 2 for key, u in updates.items()}, state

    assert Rule.known["Halving"] is Halving
    save_checkpoint(tmp_path / "x", Halving(hidden_size=2))
    assert type(load_checkpoint(tmp_path / "x")) is Halving
    del Rule.known["Halving"]
    with pytest.raises(CheckpointError, match="import it first"):
        load_checkpoint(tmp_path / "x")


def test_rates_are_saved_with_their_names(tmp_path):
    rule = MetaSGDRule({"b.weight": torch.zeros(2, 3), "a.bias": torch.zeros(3)}, alpha=0.2)
    save_checkpoint(tmp_path / "rates", rule)
    loaded = load_checkpoint(tmp_path / "rates")
    assert loaded.names == ["b.weight", "a.bias"]
    assert_close(loaded.alpha, rule.alpha)


def test_every_bundled_checkpoint_has_its_card_and_record():
    names = [name for name in available_checkpoints() if "@" in name]
    assert "mnist-mlp" in available_checkpoints()
    for name in names:
        card = (checkpoint._BUNDLED / f"{name}.md").read_text()
        record = read_record(name)
        assert record["command"] in card
        assert "Known failures" in card
        assert "Licence" in card
        load_checkpoint(name)


def test_an_optimizer_gets_the_guard_of_its_checkpoint(tmp_path, monkeypatch):
    guard, params = Guard(adam_lr=0.1, most=50.0), [torch.zeros(2, requires_grad=True)]
    save_checkpoint(tmp_path / "guarded@1.safetensors", LSTMRule(hidden_size=2), guard=guard)
    save_checkpoint(tmp_path / "bare@1.safetensors", LSTMRule(hidden_size=2))
    assert LSTMOptimizer(params, tmp_path / "guarded@1.safetensors").guard == guard
    assert LSTMOptimizer(params, tmp_path / "guarded@1.safetensors", guard=False).guard is None
    assert LSTMOptimizer(params, tmp_path / "guarded@1.safetensors", guard=Guard()).guard == Guard()
    assert LSTMOptimizer(params, tmp_path / "bare@1.safetensors").guard is None
    monkeypatch.setattr(checkpoint, "_BUNDLED", tmp_path)
    assert LSTMOptimizer(params, "guarded").guard == guard
    assert LSTMOptimizer(params, "bare").guard == Guard()


@pytest.mark.parametrize(
    "numbers",
    [
        *("{", "[1]", "null", "[" * 100_000, '{"adam_lr": "x"}', '{"adam_lr": -1}', '{"other": 1}'),
        f'{{"adam_lr": 1{"0" * 400}}}',
        '{"first": null}',
    ],
    ids=lambda numbers: numbers[:20],
)
def test_bad_guards(numbers, tmp_path):
    path = tmp_path / "rule.safetensors"
    save_checkpoint(path, LSTMRule(hidden_size=3), guard=Guard())
    rewritten(path, guard=numbers)
    with pytest.raises(CheckpointError, match="SHA-256"):
        read_guard(path)
    rewritten(path, signed=True, guard=numbers)
    with pytest.raises(CheckpointError, match="no guard can be made"):
        LSTMOptimizer([torch.zeros(2, requires_grad=True)], path)
