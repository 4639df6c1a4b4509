"""Pictures decoded once: verified files beside the data, made again when they are damaged or out of date."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from learned_optim import write_atomically
from meta_init.datasets.classes import Classes

Folder = str | os.PathLike[str] | None


def cache_file(cache: Folder, stem: str, *, source: Path | None = None) -> Path:
    """A file in the folder ``cache``, else in $LEARNED_OPTIM_CACHE, else in ``~/.cache/learned_optim``.

    Args:
        cache: The folder.
        stem: What tells the file from others of its kind.
        source: A folder with the data, of which there may be several of one name.
    """
    folder = Path(cache or os.environ.get("LEARNED_OPTIM_CACHE") or Path.home() / ".cache" / "learned_optim")
    place = "" if source is None else "-" + hashlib.sha256(os.fsencode(source.resolve())).hexdigest()[:16]
    return folder / f"{stem}{place}.safetensors"


def decoded_once(
    file: Path, decode: Callable[[], tuple[dict[str, int], Tensor]], *, name: str, key: str = ""
) -> Classes:
    """The classes in a cache file; where it is missing, damaged or of another key they are decoded and written to it.

    Args:
        file: The cache file.
        decode: Returns how many examples each class has, in order, and all examples, shape (N, ...).
        name: What they are, for reports.
        key: Of what they are decoded from, such as a `listing_key`.
    """
    cached = _read(file, key)
    if cached is None:
        counts, x = decode()
        classes = json.dumps(counts)
        write_atomically(file, save({"x": x}, {"classes": classes, "key": key, "sha256": _digest(classes, key, x)}))
    else:
        counts, x = cached
    return Classes(name, x, list(counts), list(counts.values()))


def listing_key(folder: Path, files: Iterable[Path]) -> str:
    """A hash of the files' names below ``folder``, their sizes and their modification times."""
    digest = hashlib.sha256()
    for path in files:
        status = path.stat()
        # ASCII, since a file's name need not be text, and JSON, since it may hold any separator.
        entry = [path.relative_to(folder).as_posix(), status.st_size, status.st_mtime_ns]
        digest.update(json.dumps(entry).encode())
    return digest.hexdigest()


def _read(file: Path, key: str) -> tuple[dict[str, int], Tensor] | None:
    try:
        with safe_open(file, framework="pt") as content:
            metadata, x = content.metadata() or {}, content.get_tensor("x")
    except (OSError, SafetensorError):
        return None
    classes = metadata.get("classes", "")
    if metadata.get("key") != key or metadata.get("sha256") != _digest(classes, key, x):
        return None
    counts: dict[str, int] = json.loads(classes)
    return counts, x


def _digest(classes: str, key: str, x: Tensor) -> str:
    digest = hashlib.sha256(json.dumps([classes, key, str(x.dtype), list(x.shape)]).encode())
    digest.update(x.contiguous().numpy().data)
    return digest.hexdigest()
