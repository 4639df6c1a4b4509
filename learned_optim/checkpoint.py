"""Rules in files: safetensors with the rule's class and sizes, its training record and a hash of its tensors.

A file may hold the state of a model beside the rule: the initialisation that was learned together with it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from learned_optim.data import write_atomically
from learned_optim.guard import Guard
from learned_optim.rule import Rule
from learned_optim.sharding import whole
from learned_optim.types import Tensors

FORMAT = "learned_optim.rule"
FORMAT_VERSION = 1
DEFAULT_CHECKPOINT = "default"
"""The checkpoint that is loaded where none is named."""

_MODEL = "model/"
"""Begins the keys of the model's tensors; no name of a module has a slash."""

_BUNDLED = Path(__file__).parent / "checkpoints"
_MAX_BYTES = 2**30
_MAX_DEPTH = 100  # of modules in modules, so that no recursion over them comes near Python's limit


class CheckpointError(ValueError):
    """A checkpoint cannot be found, is damaged, or is not one of this package; the message is one line."""

    def __init__(self, message: str) -> None:
        line = message.partition("\n")[0]  # what a file says may be long, and torch adds traces to its reasons
        super().__init__(line if len(line) <= 1000 else f"{line[:1000]} ...")


def save_checkpoint(
    path: str | os.PathLike[str],
    rule: Rule,
    *,
    model: Mapping[str, Tensor] | None = None,
    record: Mapping[str, Any] | None = None,
    guard: Guard | None = None,
) -> None:
    """Writes a rule to a file, atomically.

    Args:
        path: The file; conventionally ``NAME.safetensors``.
        rule: Any rule whose `config` holds JSON values.
        model: The ``state_dict()`` of a model to keep with it; `read_model` returns it.
        record: How it was trained: any JSON values. `read_record` returns it.
        guard: What keeps the steps of the rule within bounds, where an `LSTMOptimizer` or `HierarchicalRNNOptimizer`
            is made of the file.

    Raises:
        TypeError: ``record`` or the rule's configuration is not JSON.
    """
    named = rule.state_dict() | {_MODEL + name: value for name, value in (model or {}).items()}
    # Cloned, since safetensors refuses tensors that share memory, such as tied weights.
    tensors = {
        name: whole(value.detach()).cpu().clone(memory_format=torch.contiguous_format) for name, value in named.items()
    }
    metadata = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "rule": type(rule).__name__,
        "config": json.dumps(rule.config()),
        "record": json.dumps(dict(record or {}), sort_keys=True),
    }
    if guard is not None:
        metadata["guard"] = json.dumps(guard.config())
    write_atomically(path, save(tensors, metadata | {"sha256": _hash(tensors, metadata)}))


def load_checkpoint(name_or_path: str | os.PathLike[str], *, options: Mapping[str, Any] | None = None) -> Rule:
    """Loads a rule: verified, and without executing anything that the file says.

    Args:
        name_or_path: A bundled name, such as ``"mnist-mlp"`` (its newest version) or ``"mnist-mlp@1"``, or a file.
        options: Arguments of the rule that are to be others than those in the file, such as ``{"horizon": 500}``. Those
            that change what weights there are cannot be.

    Raises:
        CheckpointError: There is no such checkpoint (the message lists the names); the file is damaged, not of this
            package, of a newer format, or names an unknown rule; or the rule has no such options.
    """
    path = _resolve(name_or_path)
    metadata, tensors = _read(path)
    tensors = {name: value for name, value in tensors.items() if not name.startswith(_MODEL)}
    rule = _build(path, metadata, tensors, options or {})
    rule.load_state_dict(tensors, assign=True)
    for parameter in rule.parameters():
        parameter.requires_grad_(True)
    return rule


def read_record(name_or_path: str | os.PathLike[str]) -> dict[str, Any]:
    """The training record that was saved with a checkpoint.

    Raises:
        CheckpointError: As `load_checkpoint`, or the record is no JSON object.
    """
    path = _resolve(name_or_path)
    metadata, _ = _read(path)
    try:
        record = json.loads(metadata["record"])
    except (KeyError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: its record is no JSON: {_reason(error)}") from error
    if not isinstance(record, dict):
        raise CheckpointError(f"{path}: its record is no JSON object, but a {type(record).__name__}")
    return record


def read_guard(name_or_path: str | os.PathLike[str]) -> Guard | None:
    """The guard that was saved with a checkpoint; without one that of the defaults for a bundled name, else None.

    Raises:
        CheckpointError: As `load_checkpoint`, or it is no guard.
    """
    path = _resolve(name_or_path)
    metadata, _ = _read(path)
    if "guard" not in metadata:
        return Guard() if is_bundled(name_or_path) else None
    try:
        return Guard(**json.loads(metadata["guard"]))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise CheckpointError(f"{path}: no guard can be made from its numbers: {_reason(error)}") from error


def read_model(name_or_path: str | os.PathLike[str]) -> Tensors:
    """The ``state_dict`` of the model that was saved with a checkpoint.

    Raises:
        CheckpointError: As `load_checkpoint`, or there is none.
    """
    path = _resolve(name_or_path)
    _, tensors = _read(path)
    model = {name.removeprefix(_MODEL): value for name, value in tensors.items() if name.startswith(_MODEL)}
    if not model:
        raise CheckpointError(f"{path} holds a rule, but no model that was learned with it")
    return model


def available_checkpoints() -> list[str]:
    """The names of the bundled checkpoints, each with its versions: ``["mnist-mlp", "mnist-mlp@1"]``."""
    versioned = sorted(path.stem for path in _BUNDLED.glob("*@*.safetensors"))
    return sorted({name.partition("@")[0] for name in versioned} | set(versioned))


def is_bundled(name_or_path: str | os.PathLike[str]) -> bool:
    """Whether it names a bundled checkpoint."""
    return isinstance(name_or_path, str) and name_or_path in available_checkpoints()


def _resolve(name_or_path: str | os.PathLike[str]) -> Path:
    if is_bundled(name_or_path):
        candidates = [path for path in _BUNDLED.glob("*@*.safetensors") if name_or_path in (path.stem, _plain(path))]
        return max(candidates, key=lambda path: int(path.stem.partition("@")[2]))
    path = Path(name_or_path)
    if not os.path.isfile(path):  # also of names that no file can have
        names = ", ".join(available_checkpoints())
        raise CheckpointError(f"no checkpoint {str(name_or_path)!r}: no such file, and the bundled names are: {names}")
    return path


def _plain(path: Path) -> str:
    return path.stem.partition("@")[0]


def _read(path: Path) -> tuple[dict[str, str], Tensors]:
    """The verified content of a file."""
    if path.stat().st_size > _MAX_BYTES:
        raise CheckpointError(f"{path} has {path.stat().st_size:,} bytes; no checkpoint of a rule is so large")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name).clone() for name in sorted(file.keys())}
    except Exception as error:  # safetensors takes sizes that torch refuses, in ways of its own
        raise CheckpointError(f"{path} is damaged, or no safetensors file: {_reason(error)}") from error
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of learned_optim; save_checkpoint writes those")
    version = metadata.get("format_version", "")
    if not re.fullmatch("[0-9]{1,9}", version) or int(version) > FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {version!r}; this learned_optim reads up to {FORMAT_VERSION}: upgrade it"
        )
    if metadata.get("sha256") != _hash(tensors, metadata):
        raise CheckpointError(f"{path} is damaged: its content does not have the SHA-256 that it records")
    return metadata, tensors


def _build(path: Path, metadata: Mapping[str, str], tensors: Tensors, options: Mapping[str, Any]) -> Rule:
    name = metadata.get("rule", "")
    if name not in Rule.known:
        known = ", ".join(sorted(Rule.known))
        raise CheckpointError(f"{path} holds a rule of the unknown class {name!r}; import it first (known: {known})")
    try:
        with torch.device("meta"):  # sizes only, so that nothing is allocated before they have been compared
            expected = Rule.rebuilt({"class": name, "config": json.loads(metadata["config"]) | options})
        depth = max(inner.count(".") for inner, _ in expected.named_modules())
        needed = {key: tuple(value.shape) for key, value in expected.state_dict().items()}
    except Exception as error:  # a constructor, perhaps a user's, may raise anything on values that it does not expect
        changed = f" with {dict(options)}" if options else ""
        raise CheckpointError(
            f"{path}: no {name} can be made from its configuration{changed}: {_reason(error)}"
        ) from error
    if depth > _MAX_DEPTH:
        raise CheckpointError(f"{path}: no {name} can be made from its configuration: it is nested too deeply")
    for key in needed | tensors:
        found = tuple(tensors[key].shape) if key in tensors else None
        if found != needed.get(key):
            raise CheckpointError(f"{path}: tensor {key!r} has shape {found}, but its {name} needs {needed.get(key)}")
        if not tensors[key].is_floating_point():
            raise CheckpointError(f"{path}: tensor {key!r} is {tensors[key].dtype}, not of a floating-point type")
    return expected


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _hash(tensors: Tensors, metadata: Mapping[str, str]) -> str:
    digest = hashlib.sha256()
    keys = ["format", "format_version", "rule", "config", "record"]
    for key in [*keys, "guard"] if "guard" in metadata else keys:
        digest.update(f"{key} {metadata.get(key)}\n".encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
