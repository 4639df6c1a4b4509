"""Damaged files and states: a clear error and nothing changed; never a crash, a hang or executed code."""

import contextlib
import copy
import functools
import json
import math
import os
import pickle
import re
import signal
import struct
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor, nn

from learned_optim import (
    CheckpointError,
    LSTMOptimizer,
    LSTMRule,
    RuleMap,
    SGDRule,
    checkpoint,
    load_checkpoint,
    read_record,
    save_checkpoint,
)
from tests.specs import OPTIMIZERS, seeded_rule, small_problem
from tests.trees import same

NAN, INF = float("nan"), float("inf")
SAVED = ["sgd", "adam", "meta_sgd", "lstm", "lstm-both-shortcut", "map"]


def examples(count):
    """The same examples in every run."""
    return settings(
        max_examples=count,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


class Hang(BaseException):
    """Not an Exception, so that no one takes it for damage."""


@contextlib.contextmanager
def time_limit(seconds):
    def stop(*_):
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def is_one_line(error):
    message = str(error)
    return bool(message) and "\n" not in message and len(message) < 2000


# Files


@functools.cache
def content_of(name):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rule")
        save_checkpoint(path, original(name), record={"seed": 3, "loss": [0.5, 0.25]})
        return path.read_bytes()


@functools.cache
def original(name):
    return seeded_rule(name, small_problem().params)


def divided(content):
    (size,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def joined(header, data):
    encoded = json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + data


def signed(path, header, data):
    """Writes a file whose hash is right, if anyone can read it at all."""
    path.write_bytes(joined(header, data))
    with contextlib.suppress(Exception), safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
        header["__metadata__"]["sha256"] = checkpoint._hash(tensors, header["__metadata__"])
    path.write_bytes(joined(header, data))


def attempt(path):
    """The rule in the file, or None where it is refused as it should be."""
    results, failures = [], []
    for read in (read_record, load_checkpoint):
        try:
            with time_limit(20):
                results.append(read(path))
        except CheckpointError as error:
            results.append(None)
            failures.append(error)
    assert all(is_one_line(error) and str(path) in str(error) for error in failures)
    record, rule = results
    assert record is None or isinstance(record, dict)
    return rule


def assert_the_same_rule(loaded, name):
    assert type(loaded) is type(original(name))
    assert same(loaded.config(), original(name).config())
    assert same(dict(loaded.state_dict()), dict(original(name).state_dict()))


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("damaged") / "rule.safetensors"


names = st.sampled_from(SAVED)
NUMBERS = [True, False, -1, 0, 1, 3, 0.5, -0.5, 1e308, NAN, INF, 2**31, 2**63, 10**400, 1e5]
WORDS = ["", "x", "10", "moments", "a\nb"]
ODD = [None, *NUMBERS, *WORDS, [], [1], [[]], [None], ["moments"], ["moments"] * 2, {}, {"a": 1}]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(ODD),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@pytest.mark.parametrize("name", SAVED)
def test_an_undamaged_file_is_loaded(name, file):
    file.write_bytes(content_of(name))
    assert_the_same_rule(attempt(file), name)


@pytest.mark.parametrize("name", ["adam", "lstm"])
def test_every_truncation_is_refused(name, file):
    content = content_of(name)
    for size in {*range(0, len(content), 7), *range(20), *range(len(content) - 20, len(content))}:
        file.write_bytes(content[:size])
        assert attempt(file) is None


@examples(150)
@given(name=names, data=st.data())
def test_flipped_bytes(name, data, file):
    """Refused, or without effect: blanks in the header may change."""
    content = bytearray(content_of(name))
    header = 8 + struct.unpack("<Q", content[:8])[0]
    places = st.integers(0, header - 1) | st.integers(0, len(content) - 1)
    for place, change in data.draw(st.lists(st.tuples(places, st.integers(1, 255)), min_size=1, max_size=4)):
        content[place] ^= change
    file.write_bytes(content)
    loaded = attempt(file)
    if loaded is not None:
        assert_the_same_rule(loaded, name)


@examples(100)
@given(name=names, data=st.data())
def test_bytes_lost_doubled_and_put_in(name, data, file):
    content = content_of(name)
    start, end = sorted(data.draw(st.tuples(*[st.integers(0, len(content))] * 2)))
    part = data.draw(st.binary(max_size=20) | st.just(content[start:end] * 2) | st.just(bytes(end - start)))
    file.write_bytes(content[:start] + part + content[end:])
    loaded = attempt(file)
    if loaded is not None:
        assert_the_same_rule(loaded, name)


@examples(100)
@given(name=names, size=st.integers(0, 2**64 - 1) | st.integers(0, 2000) | st.sampled_from([2**31, 2**63, 10**8 + 1]))
def test_lying_header_lengths(name, size, file):
    content = content_of(name)
    changed = struct.pack("<Q", size) + content[8:]
    file.write_bytes(changed)
    assert (attempt(file) is None) == (changed != content)


@examples(100)
@given(content=st.binary(max_size=60), header=JSON, data=st.binary(max_size=16))
def test_arbitrary_bytes_and_arbitrary_headers(content, header, data, file):
    for whole in (content, joined(header, data), joined({"__metadata__": header}, data)):
        file.write_bytes(whole)
        assert attempt(file) is None


def header_of(**more):
    return json.dumps({"a": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0], **more}}).encode()


def header_with(**metadata):
    return json.dumps({"__metadata__": {"format": checkpoint.FORMAT, **metadata}}).encode()


HUGE = {
    "blanks": lambda: b" " * 99_000_000,
    "brackets": lambda: b"[" * 5_000_000,
    "nested": lambda: b'{"a":' * 1_000_000,
    "a long name": lambda: header_of().replace(b'"a"', b'"' + b"a" * 20_000_000 + b'"'),
    "a long type": lambda: header_of(dtype="F" * 20_000_000),
    "many dimensions": lambda: header_of(shape=[0] * 1_000_000),
    "many tensors": lambda: json.dumps({str(i): json.loads(header_of())["a"] for i in range(20_000)}).encode(),
    "a long format": lambda: header_with(format="x" * 20_000_000),
    "a long version": lambda: header_with(format_version="1" * 20_000_000),
    "a long hash": lambda: header_with(format_version="1", sha256="1" * 20_000_000),
}


@pytest.mark.parametrize("kind", HUGE)
def test_huge_headers(kind, file):
    header = HUGE[kind]()
    file.write_bytes(struct.pack("<Q", len(header)) + header)
    assert attempt(file) is None


def test_a_huge_file(file):
    with open(file, "wb") as sparse:
        sparse.truncate(2**31)
    assert attempt(file) is None
    file.unlink()


def test_names_that_no_file_has(tmp_path):
    for name in ("", ".", "x" * 5000, "a\0b", "a\nb", tmp_path, tmp_path / "none", "/dev/null"):
        with pytest.raises(CheckpointError) as caught:
            load_checkpoint(name)
        assert is_one_line(str(caught.value).replace("x" * 900, ""))


def changed(draw, tree, values, keys):
    """A copy of a nested dict with one thing lost, renamed, added, replaced, or changed for another."""
    tree = unshared(tree)
    holders = [holder for holder in inner(tree) if len(holder)]
    if not holders:
        return tree
    holder = holders[draw(st.integers(0, len(holders) - 1))]
    places = sorted(holder, key=str) if isinstance(holder, dict) else range(len(holder))
    place, other = (places[draw(st.integers(0, len(places) - 1))] for _ in range(2))
    how = draw(st.sampled_from(["replace", "replace", "replace", "lose", "rename", "add", "change for another"]))
    if how == "replace":
        holder[place] = draw(values(holder[place]))
    elif how == "lose":
        del holder[place]
    elif how == "change for another":
        holder[place], holder[other] = holder[other], holder[place]
    elif isinstance(holder, list):
        holder.insert(place, draw(values(holder[place])))
    elif how == "rename":
        holder[draw(keys)] = holder.pop(place)
    else:
        holder[draw(keys)] = draw(values(holder[place]))
    return tree


def unshared(tree):
    if isinstance(tree, dict):
        return {key: unshared(value) for key, value in tree.items()}
    return [unshared(value) for value in tree] if isinstance(tree, list) else tree


def inner(tree):
    """The dicts and lists in it, itself first."""
    if isinstance(tree, (dict, list)):
        yield tree
        for value in tree.values() if isinstance(tree, dict) else tree:
            yield from inner(value)


@examples(150)
@given(name=names, data=st.data())
def test_other_headers(name, data, file):
    """Other names, shapes, types and places of tensors, under a hash that is right."""
    header, tensors = divided(content_of(name))
    types = ["F32", "F64", "BF16", "I32", "C64", "BOOL", "F8_E4M3", "F3\n2", "F4", "F6_E2M3"]
    sizes = [0, 2**31, 2**62, 2**63, 2**64 - 1, 10**30, [], [3], [0, 2**63], [1] * 100, [2**62, 4]]
    values = st.integers(-1, 100) | st.sampled_from([*types, *sizes, 0.5, None, {}, {"dtype": "F32"}])
    for _ in range(data.draw(st.integers(1, 3))):
        header = changed(data.draw, header, lambda _: values, st.text(max_size=8))
    if not isinstance(header.get("__metadata__"), dict):
        header["__metadata__"] = {}
    signed(file, header, tensors)
    loaded = attempt(file)
    if loaded is not None:
        assert same(sorted(loaded.state_dict()), sorted(original(name).state_dict()))
        assert all(p.is_floating_point() for p in loaded.parameters())


def assert_as_described(loaded, name, config):
    """The rule is what the file says, and can make a step."""
    assert type(loaded) is type(original(name))
    assert same(dict(loaded.state_dict()), dict(original(name).state_dict()))
    assert json.dumps(loaded.config()) == json.dumps(original(name).from_config(config).config())
    params = small_problem().params
    with contextlib.suppress(ValueError, KeyError):  # no rule or no rate for a parameter
        loaded(params, loaded.init_state(params), params)


@pytest.mark.parametrize("name", SAVED)
def test_every_odd_value_in_a_configuration(name, file):
    """Under a hash that is right."""
    header, tensors = divided(content_of(name))
    sound = header["__metadata__"]["config"]
    for n, whole in enumerate(inner(json.loads(sound))):
        for key in whole if isinstance(whole, dict) else range(len(whole)):
            for value in ODD:
                config = json.loads(sound)
                holder = [*inner(config)][n]
                holder[key] = value
                header["__metadata__"]["config"] = json.dumps(config)
                signed(file, header, tensors)
                loaded = attempt(file)
                if loaded is not None:
                    assert_as_described(loaded, name, config)


@pytest.mark.parametrize("name", SAVED)
@examples(40)
@given(data=st.data())
def test_other_configurations(name, data, file):
    """Of another structure, under a hash that is right."""
    header, tensors = divided(content_of(name))
    values = st.sampled_from([None, True, 1, 2, "x", [], {}, ["x", 1], {"x": 1}])
    config = json.loads(header["__metadata__"]["config"])
    for _ in range(data.draw(st.integers(1, 3))):
        config = changed(data.draw, config, lambda _: values, st.sampled_from(["x", "self", "", "lr", "a\nb"]))
    header["__metadata__"]["config"] = json.dumps(config)
    signed(file, header, tensors)
    loaded = attempt(file)
    if loaded is not None:
        assert_as_described(loaded, name, config)


@examples(100)
@given(
    name=names,
    key=st.sampled_from(["format", "format_version", "rule", "config", "record", "sha256"]),
    value=st.text(max_size=30) | JSON.map(json.dumps) | st.sampled_from(["0", "1", "-1", "+1", " 1", "1_0", "\u0661"]),
    rule=st.sampled_from(["Rule", "nn.Module", "__class__", "LSTMRule", "RuleMap", "_ClassicalRule", "MetaSGDRule"]),
)
def test_foreign_metadata(name, key, value, rule, file):
    header, data = divided(content_of(name))
    header["__metadata__"][key] = rule if key == "rule" else value
    file.write_bytes(joined(header, data))
    loaded = attempt(file)
    if loaded is not None:
        assert_the_same_rule(loaded, name)
    signed(file, header, data)
    loaded = attempt(file)
    if loaded is not None:
        assert type(loaded).__name__ == header["__metadata__"]["rule"]
        assert same(dict(loaded.state_dict()), dict(original(name).state_dict()))


def nested_map(depth, leaf):
    start = '{"rules": {"a": {"class": "RuleMap", "config": ' * (depth - 1) + '{"rules": {"a": '
    return start + leaf + '}, "assign": {"a": "*"}}' + '}}, "assign": {"a": "*"}}' * (depth - 1)


def rule_file(path, rule, config, record="{}"):
    metadata = {
        "format": checkpoint.FORMAT, "format_version": "1", "rule": rule, "config": config, "record": record
    }  # fmt: skip
    signed(path, {"__metadata__": metadata}, b"")


@pytest.mark.parametrize("depth", [1, 2, 10, 40, 51, 100, 190, 200, 250, 300, 330, 400, 100_000])
def test_maps_in_maps(depth, file):
    """A rule that is nested so deeply that its step would fail is not loaded in the first place."""
    rule_file(file, "RuleMap", nested_map(depth, '{"class": "SGDRule", "config": {"lr": 0.5}}'))
    loaded = attempt(file)
    assert (loaded is not None) == (depth <= 40)
    if loaded is not None:
        params = {"w": torch.ones(2)}
        updates, _ = loaded(params, loaded.init_state(params), params)
        assert updates["w"].tolist() == [-0.5, -0.5]


REFUSED = {
    "unknown in a map": ("RuleMap", nested_map(3, '{"class": "Unheard", "config": {}}'), "Unheard"),
    "abstract in a map": ("RuleMap", nested_map(1, '{"class": "Rule", "config": {}}'), "Rule"),
    "list for a class": ("RuleMap", nested_map(1, '{"class": [], "config": {}}'), "unhashable"),
    "no class": ("RuleMap", nested_map(1, "{}"), "class"),
    "no rule": ("RuleMap", nested_map(1, "3"), "configuration"),
    "dots": ("RuleMap", nested_map(1, '{"class": "SGDRule", "config": {"lr": 1}}').replace('"a"', '"a.b"'), r"a\.b"),
    "method": ("RuleMap", nested_map(1, '{"class": "SGDRule", "config": {"lr": 1}}').replace('"a"', '"keys"'), "keys"),
    "too large": ("MetaSGDRule", '{"params": {"w": [1000000000000000000000000000000]}}', "configuration"),
    "larger than memory": ("MetaSGDRule", '{"params": {"w": [1000000000000]}}', r"needs \(1000000000000,\)"),
    "negative": ("MetaSGDRule", '{"params": {"w": [-1]}}', "negative"),
    "no numbers": ("MetaSGDRule", '{"params": {"w": "x"}}', "configuration"),
    "no parameters": ("MetaSGDRule", '{"params": {}}', "empty"),
    "wide": ("LSTMRule", '{"hidden_size": 1000000}', "needs"),
    "too wide": ("LSTMRule", json.dumps({"hidden_size": 10**400}), "configuration"),
    "tall": ("LSTMRule", '{"num_layers": 1000000}', "configuration|needs"),
    "other keys": ("SGDRule", '{"lr": 0.1, "code": "import os"}', "code"),
    "a line break": ("SGDRule", '{"lr\\n": 0.1}', "configuration"),
    "deep": ("SGDRule", "[" * 1_000_000, "configuration"),
    "long": ("SGDRule", "1" * 10_000_000, "configuration"),
    "long name": ("S" * 10_000_000, "{}", "unknown class"),
    "infinite": ("SGDRule", '{"lr": Infinity}', "finite"),
    "deep in Adam": ("AdamRule", '{"betas": [[0.9], 0.9]}', "betas"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_configurations(kind, file):
    rule, config, message = REFUSED[kind]
    rule_file(file, rule, config)
    with time_limit(3), pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(file)
    assert is_one_line(caught.value)


@pytest.mark.parametrize("record", [None, "", "{", "[]", "3", "null", '"x"', "[" * 100_000, "1" * 10_000])
def test_odd_records(record, file):
    """The rule can be loaded all the same, for it does not depend on its record."""
    rule_file(file, "SGDRule", '{"lr": 0.5}', record)
    if record is None:
        header, data = divided(file.read_bytes())
        del header["__metadata__"]["record"]
        signed(file, header, data)
    with pytest.raises(CheckpointError, match="record") as caught:
        read_record(file)
    assert is_one_line(caught.value)


class Planted:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def torch_saved(planted, path, **options):
    torch.save({"weights.0": torch.ones(2), "planted": planted}, path, **options)


def pickle_behind_a_length(planted, path):
    pickled = pickle.dumps(planted, protocol=4)
    path.write_bytes(struct.pack("<Q", len(pickled)) + pickled)


def pickle_behind_a_checkpoint(planted, path):
    path.write_bytes(content_of("lstm") + pickle.dumps(planted, protocol=4))


def pickle_for_tensors(planted, path):
    header, data = divided(content_of("lstm"))
    pickled = pickle.dumps(planted, protocol=4)
    signed(path, header, pickled.ljust(len(data), b"\0"))


def pickle_in_metadata(planted, path):
    pickled = pickle.dumps(planted, protocol=0).decode()
    for rule, config in (("SGDRule", json.dumps({"lr": pickled})), ("SGDRule", pickled), (pickled, "{}")):
        rule_file(path, rule, config, record=pickled)
        assert attempt(path) is None


PICKLES = {
    **{
        f"protocol {protocol}": lambda planted, path, protocol=protocol: path.write_bytes(
            pickle.dumps(planted, protocol=protocol)
        )
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
    },
    "torch.save": torch_saved,
    "old torch.save": lambda planted, path: torch_saved(planted, path, _use_new_zipfile_serialization=False),
    "behind a length": pickle_behind_a_length,
    "behind a checkpoint": pickle_behind_a_checkpoint,
    "for tensors": pickle_for_tensors,
    "in metadata": pickle_in_metadata,
}


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ""])
@pytest.mark.parametrize("kind", PICKLES)
def test_pickles_are_never_executed(kind, suffix, tmp_path):
    planted = Planted(tmp_path / "executed")
    path = tmp_path / f"rule{suffix}"
    PICKLES[kind](planted, path)
    loaded = attempt(path)
    if kind != "for tensors":  # bytes are bytes: those are odd numbers
        assert loaded is None
    with pytest.raises((ValueError, TypeError)):
        LSTMOptimizer(small_problem().model.parameters(), checkpoint=path).load_state_dict(planted)
    assert not (tmp_path / "executed").exists()


def test_the_planted_pickles_would_have_worked(tmp_path):
    for kind in ("protocol 4", "torch.save", "old torch.save"):
        path = tmp_path / "rule"
        PICKLES[kind](Planted(tmp_path / "executed"), path)
        (pickle.loads(path.read_bytes()) if kind == "protocol 4" else torch.load(path, weights_only=False))
        assert (tmp_path / "executed").is_dir()
        (tmp_path / "executed").rmdir()


# States of optimizers


def begun(name, *, steps=2, seed=0):
    """A problem and an optimizer of two groups, some steps into training."""
    problem = small_problem(seed)
    first, last = problem.model[0], problem.model[2]
    groups = [
        {"params": list(first.named_parameters(prefix="0"))},
        {"params": list(last.named_parameters(prefix="2")), "lr": 0.5, "weight_decay": 0.1},
    ]
    optimizer = OPTIMIZERS[name](groups)
    advance(problem, optimizer, steps)
    return problem, optimizer


@functools.cache
def state_of(name, steps=3):
    """A sound state, of which tests damage copies."""
    return begun(name, steps=steps)[1].state_dict()


def advance(problem, optimizer, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        (problem.model(problem.x) - problem.y).square().mean().backward()
        optimizer.step()


def everything(optimizer):
    """All that a load may change, tensors copied."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    groups = [
        {key: [id(p) for p in value] if key == "params" else copy.deepcopy(value) for key, value in group.items()}
        for group in optimizer.param_groups
    ]
    return {
        "groups": groups,
        "order": [id(p) for p in optimizer.state],
        "state": [copy.deepcopy(optimizer.state.get(p)) for p in params],
        "rule": id(optimizer.rule),
        "weights": {name: (id(p), p.detach().clone()) for name, p in optimizer.rule.named_parameters()},
        "config": optimizer.rule.config(),
        "params": [p.detach().clone() for p in params],
        "keys": [(id(p), key) for p, key in optimizer._keys.items()],
        "guard": optimizer.guard,
        "hooks": [
            list(optimizer._optimizer_load_state_dict_pre_hooks),
            list(optimizer._optimizer_load_state_dict_post_hooks),
        ],
    }


def refusal_of(name, damaged, *, steps):
    """The error with which an optimizer refuses the state, without a trace; or None, and it has all and can go on."""
    problem, optimizer = begun(name, steps=steps, seed=1)
    their_problem, twin = copy.deepcopy((problem, optimizer))
    before, refusal = everything(optimizer), None
    try:
        with time_limit(20):
            optimizer.load_state_dict(damaged)
    except (ValueError, TypeError) as error:
        refusal = error
    if refusal is not None:
        assert is_one_line(refusal)
        assert same(everything(optimizer), before)
        advance(problem, optimizer, 1)
        advance(their_problem, twin, 1)
        assert same(everything_loaded(optimizer.state_dict()), everything_loaded(twin.state_dict()))
        assert same(list(problem.params.values()), list(their_problem.params.values()))
        return str(refusal)
    loaded, meant = everything_loaded(optimizer.state_dict()), everything_loaded(damaged)
    assert same(loaded["state"], meant["state"])
    for own, theirs in zip(loaded["groups"], meant["groups"], strict=True):
        assert same(ordered({key: own[key] for key in theirs}), ordered(theirs))
        assert {*own} - {*theirs} <= {"param_names", "rule_tensors"}
        assert "rule_tensors" in theirs or not own.get("rule_tensors")
    advance(problem, optimizer, 1)
    return None


def everything_loaded(state_dict):
    """A state_dict whose entries are in the order of the parameters, whatever their numbers are."""
    groups = [
        {key: unshared(value) for key, value in group.items() if key != "params"}
        for group in state_dict["param_groups"]
    ]
    indices = [index for group in state_dict["param_groups"] for index in group["params"]]
    return {"groups": groups, "state": [ordered(state_dict["state"].get(index, {})) for index in indices]}


def ordered(tree):
    return {key: tree[key] for key in sorted(tree, key=repr)}


def of_another(state_dict, change):
    changed = unshared(state_dict)
    change(changed["param_groups"], changed["state"])
    return changed


def rename_a_number(groups, state):
    groups[0]["params"][0] = 77


def exchange_all_states(groups, state):
    for index in state:
        if state[index]:
            state[index] = state[index] | {"more": torch.ones(())}


def shorten_the_rule(groups, state):
    groups[0]["rule"] = groups[0]["rule"][:-1]


MUST_BE_REFUSED = {
    "lr nan": (lambda groups, state: groups[0].update(lr=NAN), "lr must be"),
    "lr -1": (lambda groups, state: groups[1].update(lr=-1), "lr must be"),
    "lr x": (lambda groups, state: groups[0].update(lr="x"), "lr must be"),
    "lr None": (lambda groups, state: groups[1].update(lr=None), "lr must be"),
    "lr huge": (lambda groups, state: groups[0].update(lr=10**400), "lr must be"),
    "lr of two": (lambda groups, state: groups[0].update(lr=torch.ones(2)), "lr must be"),
    "lr complex": (lambda groups, state: groups[0].update(lr=torch.ones((), dtype=torch.complex64)), "lr must be"),
    "lr without data": (lambda groups, state: groups[0].update(lr=torch.ones((), device="meta")), "lr must be"),
    "no lr": (lambda groups, state: groups[1].pop("lr"), "'lr'"),
    "no weight_decay": (lambda groups, state: groups[0].pop("weight_decay"), "'weight_decay'"),
    "no maximize": (lambda groups, state: groups[1].pop("maximize"), "'maximize'"),
    "weight_decay inf": (lambda groups, state: groups[0].update(weight_decay=INF), "weight_decay must be"),
    "weight_decay list": (lambda groups, state: groups[0].update(weight_decay=[0.1]), "weight_decay must be"),
    "maximize x": (lambda groups, state: groups[0].update(maximize="x"), "maximize must be"),
    "maximize None": (lambda groups, state: groups[1].update(maximize=None), "maximize must be"),
    "foreach": (lambda groups, state: groups[0].update(foreach=True), "foreach"),
    "smaller group": (lambda groups, state: groups[0]["params"].pop(), "groups of"),
    "larger group": (lambda groups, state: groups[1]["params"].append(9), "groups of"),
    "groups the other way round": (lambda groups, state: groups[0]["params"].append(groups[1]["params"].pop()), "of"),
    "one group": (lambda groups, state: groups.pop(), "groups of"),
    "no group": (lambda groups, state: groups.clear(), "holds no rule"),
    "three groups": (lambda groups, state: groups.append({"params": [], "lr": 1.0}), "groups of"),
    "no params": (lambda groups, state: groups[1].pop("params"), "groups of"),
    "params None": (lambda groups, state: groups[1].update(params=None), "groups of"),
    "number twice": (lambda groups, state: groups[0].update(params=[0, 0]), "but its groups have"),
    "number in two groups": (lambda groups, state: groups[1].update(params=[0, 3]), "but its groups have"),
    "lists for numbers": (lambda groups, state: groups[0].update(params=[[0], [1]]), "numbers or names"),
    "a group is a list": (lambda groups, state: groups.__setitem__(1, [1]), "not a state_dict"),
    "no rule": (lambda groups, state: groups[0].pop("rule"), "holds no rule"),
    "rule None": (lambda groups, state: groups[0].update(rule=None), "holds no rule"),
    "another class": (lambda groups, state: groups[0].update(rule='{"class": "X", "config": {}}'), "of the rule"),
    "another label": (shorten_the_rule, "of the rule"),
    "tensors None": (lambda groups, state: groups[0].update(rule_tensors=None), "holds no rule"),
    "another tensor": (lambda groups, state: groups[0]["rule_tensors"].update(x=torch.ones(1)), "of the rule is"),
    "a number for a tensor": (lambda groups, state: groups[0]["rule_tensors"].update(x=1), "dict of tensors"),
    "a rule tensor without a name": (lambda groups, state: groups[0]["rule_tensors"].update({3: torch.ones(1)}), "3"),
    "more state": (exchange_all_states, "'more'"),
    "entry under another number": (lambda groups, state: state.update({77: state.pop(0, {})}), "but its groups have"),
    "entry under a name": (lambda groups, state: state.update({"0": state.pop(0, {})}), "but its groups have"),
    "entry None": (lambda groups, state: state.update({1: None}), "dict of tensors"),
    "entry list": (lambda groups, state: state.update({0: [1]}), "dict of tensors"),
    "entry with a number for a key": (lambda groups, state: state.update({0: {5: torch.ones(2)}}), "5|missing"),
    "entry of numbers": (lambda groups, state: state.update({2: {"m": 3}}), "dict of tensors"),
    "foreign entry": (lambda groups, state: state.update({3: {"exp_avg": torch.ones(1)}}), "exp_avg|missing"),
}


@pytest.mark.parametrize("kind", MUST_BE_REFUSED)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_damaged_states_are_refused(name, kind):
    change, message = MUST_BE_REFUSED[kind]
    damaged = of_another(state_of(name), change)
    assert re.search(message, refusal_of(name, damaged, steps=2))


@pytest.mark.parametrize("name", ["LSTMOptimizer", "MetaSGD", "RuleOptimizer-map"])
def test_a_state_without_the_tensors_of_its_rule(name):
    damaged = of_another(state_of(name), lambda groups, state: groups[0].pop("rule_tensors"))
    assert refusal_of(name, damaged, steps=2)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_no_state_at_all(name):
    for wrong in (None, [], "x", 3, {}, {"state": {}}, {"param_groups": []}, {"state": [], "param_groups": {}}):
        assert refusal_of(name, wrong, steps=1)


def instead_of(tensor):
    """What may be there in place of a tensor."""
    dtypes = [torch.float32, torch.float64, torch.float16, torch.int64, torch.bool, torch.complex64]
    shapes = [tensor.reshape(-1), tensor.unsqueeze(0), tensor.new_zeros((2, 2)), tensor.new_zeros(())]
    layouts = [tensor.to("meta"), tensor.to_sparse(), tensor.mT if tensor.dim() > 1 else tensor.new_zeros(0)]
    values = [torch.full_like(tensor, 3), nn.Parameter(tensor.double()), tensor.tolist(), tensor.numpy()]
    return [*(tensor.to(dtype) for dtype in dtypes), *shapes, *layouts, *values, None, "x", 1, [], {}]


OTHER = st.sampled_from(
    [None, *NUMBERS, *WORDS, "lr", b"x", 2, [], [0], [1, 0], [[]], {}, (), {0}, {"a": 1}, {5: torch.ones(1)}, object]
) | st.sampled_from([torch.ones(()), torch.ones(2), torch.ones((), device="meta")])
KEYS = st.sampled_from(["x", "lr", "rule", "m", "step", "shared.x", "guard.x", "skipped", 0, 1, 5, None, ("a",), ""])


def instead(value):
    ordinary = isinstance(value, Tensor) and not (value.is_meta or value.is_sparse)
    return st.sampled_from(instead_of(value)) if ordinary else OTHER


@pytest.mark.filterwarnings("ignore:.*steps were left out.*")
@pytest.mark.parametrize("name", OPTIMIZERS)
@examples(60)
@given(data=st.data(), theirs=st.sampled_from([0, 3]), ours=st.sampled_from([0, 2]))
def test_states_with_anything_changed(name, data, theirs, ours):
    """Whatever is done to it, a state is refused without a trace, or loaded in full."""
    damaged = state_of(name, theirs)
    for _ in range(data.draw(st.integers(1, 2))):
        damaged = changed(data.draw, damaged, instead, KEYS)
    refusal_of(name, damaged, steps=ours)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_harmless_changes_are_loaded(name):
    source = state_of(name)

    def renumber(groups, state):
        for group in groups:
            group["params"] = [f"p{index}" for index in group["params"]]
        for index in list(state):
            state[f"p{index}"] = state.pop(index)

    for change in (
        lambda groups, state: None,
        lambda groups, state: groups[1].update(initial_lr=0.25, note="x"),
        lambda groups, state: groups[0].update(lr=torch.tensor(0.5), foreach=None),
        lambda groups, state: state.pop(1, None),
        renumber,
    ):
        damaged = of_another(source, change)
        assert refusal_of(name, damaged, steps=2) is None
        _, optimizer = begun(name)
        for _ in range(2):
            optimizer.load_state_dict(damaged)
        copy.deepcopy(optimizer).load_state_dict(damaged)


def test_entries_of_other_parameters():
    """State that has changed places does not fit, but where shapes are the same no one can tell."""
    for name in OPTIMIZERS:
        source = state_of(name)

        def exchange(groups, state):
            state[0], state[2] = state.get(2, {}), state.get(0, {})

        own = {key for key in source["state"].get(2, {}) if source["state"][2][key].dim() > 0}
        if own:
            assert refusal_of(name, of_another(source, exchange), steps=2)


def test_a_rule_of_other_sizes_in_a_map():
    rules = [RuleMap({"a": LSTMRule(hidden_size=size), "b": SGDRule(0.1)}, {"a": 2, "b": "*"}) for size in (2, 3)]
    model = small_problem(dtype=torch.float32).model
    from learned_optim import RuleOptimizer

    source, target = (RuleOptimizer(model.parameters(), rule) for rule in rules)
    before = everything(target)
    with pytest.raises(ValueError, match='"hidden_size": 2'):
        target.load_state_dict(source.state_dict())
    assert same(everything(target), before)
    assert math.isfinite(target.param_groups[0]["lr"])
