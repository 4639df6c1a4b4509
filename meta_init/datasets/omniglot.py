"""Omniglot: 1,623 handwritten characters of 50 alphabets, each drawn by 20 people."""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from learned_optim import data_root, write_atomically
from meta_init.datasets.classes import Classes

_ARCHIVES = ("images_background", "images_evaluation")
_CHARACTERS, _DRAWERS = 1623, 20
_SHA256 = "3cd5d5800c2751294591100b93dddb2cb6f5fea9503d6fb2e279ee06d019163d"
"""Of all pictures' names and pixels, in order."""


def omniglot(
    root: str | os.PathLike[str] | None = None, *, size: int = 28, cache: str | os.PathLike[str] | None = None
) -> Classes:
    """All characters of ``root/omniglot``, as uint8 images of ``size`` x ``size`` in which ink is 255 and paper 0.

    They are read from the official archives ``images_background.zip`` and ``images_evaluation.zip`` or from the folders
    in them, verified, decoded once and kept in ``cache``. Decoding needs Pillow.

    Args:
        root: See `learned_optim.data_root`.
        size: Pixels; 28 as in the papers, by Lanczos resampling as in the released code of MAML.
        cache: A folder; by default $LEARNED_OPTIM_CACHE, else ``~/.cache/learned_optim``.

    Returns:
        1,623 classes of 20 images, named ``Alphabet/characterNN`` and sorted by name.

    Raises:
        FileNotFoundError: The archives are not there.
        ValueError: A picture is missing or damaged.

    Source: Lake et al. 2015, github.com/brendenlake/omniglot. One pair of its pictures is a duplicate, drawers 3 and 19
    of ``Braille/character01``.
    """
    if size < 1:
        raise ValueError(f"omniglot: size must be >= 1, got {size}")
    folder = Path(cache or os.environ.get("LEARNED_OPTIM_CACHE") or Path.home() / ".cache" / "learned_optim")
    file = folder / f"omniglot-{size}.safetensors"
    cached = _cached(file)
    if cached is None:
        names, x = _decoded(data_root(root) / "omniglot", size)
        metadata = {"names": "\n".join(names), "sha256": _digest(names, x)}
        write_atomically(file, save({"x": x}, metadata))
    else:
        names, x = cached
    return Classes("Omniglot", x, names, [_DRAWERS] * len(names))


def _cached(file: Path) -> tuple[list[str], Tensor] | None:
    """The content of a whole cache file; a damaged one is made again."""
    try:
        with safe_open(file, framework="pt") as content:
            metadata, x = content.metadata() or {}, content.get_tensor("x")
    except (OSError, SafetensorError):
        return None
    names = metadata.get("names", "").split("\n")
    return (names, x) if metadata.get("sha256") == _digest(names, x) else None


def _digest(names: list[str], x: Tensor) -> str:
    digest = hashlib.sha256("\n".join([*names, str(tuple(x.shape))]).encode())
    digest.update(x.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _decoded(folder: Path, size: int) -> tuple[list[str], Tensor]:
    """Names of the classes and all images, (N, size, size), verified before they are scaled."""
    from PIL import Image, UnidentifiedImageError

    pictures = dict(sorted(_pictures(folder)))
    if len(pictures) != _CHARACTERS * _DRAWERS:
        raise ValueError(
            f"Omniglot in {folder} has {len(pictures)} pictures instead of {_CHARACTERS * _DRAWERS}; fetch it again"
        )
    verified = hashlib.sha256()
    images = []
    for name, content in pictures.items():
        try:
            picture = Image.open(io.BytesIO(content)).convert("L")
        except (OSError, UnidentifiedImageError) as error:
            raise ValueError(f"Omniglot in {folder}: {name} is damaged: {error}") from error
        verified.update(name.encode() + picture.tobytes())
        ink = Image.eval(picture, lambda value: 255 - value)
        images.append(numpy.asarray(ink.resize((size, size), Image.Resampling.LANCZOS)))
    if verified.hexdigest() != _SHA256:
        raise ValueError(f"Omniglot in {folder} is not the published one: a picture differs; fetch it again")
    names = list(dict.fromkeys(name.rpartition("/")[0] for name in pictures))
    return names, torch.from_numpy(numpy.stack(images))


def _pictures(folder: Path) -> Iterator[tuple[str, bytes]]:
    """``Alphabet/characterNN/dddd_dd.png`` and its bytes, in any order."""
    for archive in _ARCHIVES:
        if (folder / archive).is_dir():
            for path in (folder / archive).rglob("*.png"):
                yield path.relative_to(folder / archive).as_posix(), path.read_bytes()
        elif (folder / f"{archive}.zip").is_file():
            with zipfile.ZipFile(folder / f"{archive}.zip") as content:
                for name in content.namelist():
                    if name.endswith(".png"):
                        yield name.partition("/")[2], content.read(name)
        else:
            raise FileNotFoundError(
                f"Omniglot is not in {folder}: {archive}.zip is missing. Set $LEARNED_OPTIM_DATA to the folder that "
                "holds omniglot/"
            )
