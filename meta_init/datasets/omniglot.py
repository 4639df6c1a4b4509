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
from torch import Tensor

from learned_optim import data_root, download_file
from meta_init.datasets.cache import cache_file, decoded_once
from meta_init.datasets.classes import Classes

_ARCHIVES = ("images_background", "images_evaluation")
_SOURCE = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python/"
_CHARACTERS, _DRAWERS = 1623, 20
_SHA256 = "3cd5d5800c2751294591100b93dddb2cb6f5fea9503d6fb2e279ee06d019163d"
"""Of all pictures' names and pixels, in order."""


def omniglot(
    root: str | os.PathLike[str] | None = None,
    *,
    size: int = 28,
    cache: str | os.PathLike[str] | None = None,
    download: bool = False,
) -> Classes:
    """All characters of ``root/omniglot``, as uint8 images of ``size`` x ``size`` in which ink is 255 and paper 0.

    They are read from the official archives ``images_background.zip`` and ``images_evaluation.zip`` or from the folders
    in them, verified, decoded once and kept in ``cache``. Decoding needs Pillow.

    Args:
        root: See `learned_optim.data_root`.
        size: Pixels; 28 as in the papers, by Lanczos resampling as in the released code of MAML.
        cache: A folder; by default $LEARNED_OPTIM_CACHE, else ``~/.cache/learned_optim``.
        download: Fetch missing archives (15 MB).

    Returns:
        1,623 classes of 20 images, named ``Alphabet/characterNN`` and sorted by name.

    Raises:
        FileNotFoundError: The archives are not there, and ``download`` is off.
        ValueError: A picture is missing or damaged.

    Source: Lake et al. 2015, github.com/brendenlake/omniglot. One pair of its pictures is a duplicate, drawers 3 and 19
    of ``Braille/character01``.
    """
    if size < 1:
        raise ValueError(f"omniglot: size must be >= 1, got {size}")
    file = cache_file(cache, f"omniglot-{size}")
    return decoded_once(file, lambda: _decoded(data_root(root) / "omniglot", size, download=download), name="Omniglot")


def _decoded(folder: Path, size: int, *, download: bool) -> tuple[dict[str, int], Tensor]:
    """The classes and all images, (N, size, size), verified before they are scaled."""
    from PIL import Image, UnidentifiedImageError

    pictures = dict(sorted(_pictures(folder, download=download)))
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
    counts = dict.fromkeys((name.rpartition("/")[0] for name in pictures), _DRAWERS)
    return counts, torch.from_numpy(numpy.stack(images))


def _pictures(folder: Path, *, download: bool) -> Iterator[tuple[str, bytes]]:
    """``Alphabet/characterNN/dddd_dd.png`` and its bytes, in any order."""
    for archive in _ARCHIVES:
        unpacked, packed = folder / archive, folder / f"{archive}.zip"
        if unpacked.is_dir():
            for path in unpacked.rglob("*.png"):
                yield path.relative_to(unpacked).as_posix(), path.read_bytes()
            continue
        if not packed.is_file():
            if not download:
                raise FileNotFoundError(
                    f"Omniglot is not in {folder}: {packed.name} is missing. Set $LEARNED_OPTIM_DATA to the folder "
                    "that holds omniglot/, or pass download=True"
                )
            download_file(_SOURCE + packed.name, packed)
        with zipfile.ZipFile(packed) as content:
            for name in content.namelist():
                if name.endswith(".png"):
                    yield name.partition("/")[2], content.read(name)
