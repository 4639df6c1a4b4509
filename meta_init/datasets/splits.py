"""Which classes are for what, in a file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from learned_optim import write_atomically


def write_split(path: str | os.PathLike[str], parts: Mapping[str, Sequence[str]]) -> None:
    """Writes the classes of each part to a JSON file, atomically.

    Args:
        path: The file.
        parts: For each part the names of its classes, as `split_classes` takes them.

    Raises:
        ValueError: There is no part, one is no list of names, or a class stands twice.
    """
    content = {part: names if isinstance(names, str) else list(names) for part, names in parts.items()}
    _check(content, "write_split")
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())


def read_split(path: str | os.PathLike[str]) -> dict[str, list[str]]:
    """The classes of each part, for `split_classes`, from a file of `write_split`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no JSON object of lists of names, or a class stands twice.
    """
    caller = f"read_split: {path}"
    try:
        content = json.loads(Path(path).read_bytes(), object_pairs_hook=lambda pairs: _once(pairs, caller))
    except _TwiceError:
        raise
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{caller} is no JSON: {error}; write it by write_split") from error
    return _check(content, caller)


class _TwiceError(ValueError):
    pass


def _once(pairs: list[tuple[str, Any]], caller: str) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):  # of which json would keep the last one only
        keys = [key for key, _ in pairs]
        raise _TwiceError(f"{caller}: part {next(key for key in keys if keys.count(key) > 1)!r} stands twice")
    return result


def _check(content: object, caller: str) -> dict[str, list[str]]:
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{caller}: the parts must be at least one, each with its classes' names")
    where: dict[str, str] = {}
    for part, names in content.items():
        if not isinstance(names, list) or not names or not all(isinstance(one, str) for one in names):
            raise ValueError(f"{caller}: part {part!r} must be a list of classes' names, at least one")
        for one in names:
            if one in where:
                raise ValueError(f"{caller}: class {one!r} is in both {where[one]!r} and {part!r}; leave it in one")
            where[one] = part
    return content
