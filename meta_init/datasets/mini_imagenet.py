"""mini-ImageNet: 100 classes of 600 colour pictures from ImageNet, in the split of Ravi and Larochelle."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from learned_optim import data_root, read_pickle
from meta_init.datasets.cache import Folder, cache_file, decoded_once, listing_key
from meta_init.datasets.classes import Classes
from meta_init.datasets.folders import class_folders
from meta_init.datasets.pictures import read_pictures, resized
from meta_init.datasets.tensors import tensor_classes

PARTS = ("train", "val", "test")


def mini_imagenet(
    root: str | os.PathLike[str] | None = None, *, size: int = 84, cache: str | os.PathLike[str] | None = None
) -> dict[str, Classes]:
    """The parts ``train``, ``val`` and ``test`` of ``root/mini-imagenet``: 64, 16 and 20 classes of 600 images.

    They are found in any of the layouts in circulation: ``train.csv``, ``val.csv`` and ``test.csv`` beside a folder
    ``images``; folders ``train``, ``val`` and ``test`` of class folders; ``mini-imagenet-cache-train.pkl`` and so on;
    ``miniImageNet_category_split_train_phase_train.pickle``, ``..._val.pickle`` and ``..._test.pickle``. Pictures are
    decoded once and kept in ``cache``, which needs Pillow. Pickles are read each time, and nothing in them is executed
    (`learned_optim.read_pickle`).

    Args:
        root: See `learned_optim.data_root`.
        size: Pixels; by Lanczos resampling where the files have another size. Default: the papers' and the pickles'.
        cache: A folder; by default $LEARNED_OPTIM_CACHE, else ``~/.cache/learned_optim``.

    Returns:
        For each part its classes: uint8 images, shape (N, 3, size, size). As many as the files hold.

    Raises:
        FileNotFoundError: There are no such files, or those of a part are missing.
        ValueError: A file is damaged or is not in its layout, or a class is in two parts.

    Source: Vinyals et al. 2016 (the pictures); Ravi and Larochelle 2017, github.com/twitter-research/meta-learning-lstm
    (the split); the pickles of Ren et al. 2018 and of Gidaris and Komodakis 2018.
    """
    if size < 1:
        raise ValueError(f"mini_imagenet: size must be >= 1, got {size}")
    folder = data_root(root) / "mini-imagenet"
    layout = _found(folder)
    parts = {part: layout.read(folder, part, size, cache) for part in PARTS}
    where: dict[str, str] = {}
    for part, classes in parts.items():
        for one in classes.names:
            if one in where:
                raise ValueError(
                    f"mini-ImageNet in {folder}: class {one!r} is in both {where[one]!r} and {part!r}; the parts must "
                    "share no class"
                )
            where[one] = part
    return parts


class _Layout(NamedTuple):
    """A way in which the files lie: those of each part, what else there must be, and how a part is read."""

    files: dict[str, str]
    beside: tuple[str, ...]
    read: Callable[[Path, str, int, Folder], Classes]


def _found(folder: Path) -> _Layout:
    """The first layout of which everything is there."""
    missing = {}
    for name, layout in _LAYOUTS.items():
        needed = [*layout.files.values(), *layout.beside]
        missing[name] = [one for one in needed if not (folder / one).exists()]
        if not missing[name]:
            return layout
        if len(missing[name]) == len(needed):
            del missing[name]
    if missing:
        lacks = "; ".join(f"the {name} lack {', '.join(files)}" for name, files in missing.items())
        raise FileNotFoundError(f"mini-ImageNet in {folder} is not whole: {lacks}; fetch it again")
    raise FileNotFoundError(
        f"mini-ImageNet is not in {folder}. Set $LEARNED_OPTIM_DATA to the folder that holds mini-imagenet/"
    )


def _from_csv(folder: Path, part: str, size: int, cache: Folder) -> Classes:
    path = folder / f"{part}.csv"
    classes: dict[str, list[Path]] = {}
    for number, row in enumerate(_rows(path), start=2):
        name, label = row["filename"], row["label"]
        if not name or not label or Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(
                f"{path}, row {number}: must have the name of a file in images and a label, got {row!r:.100}"
            )
        classes.setdefault(label, []).append(folder / "images" / name)
    if not classes:
        raise ValueError(f"{path} names no picture; fetch it again")
    classes = dict(sorted(classes.items()))
    pictures = [picture for content in classes.values() for picture in content]
    lost = next((picture for picture in pictures if not picture.is_file()), None)
    if lost is not None:
        raise FileNotFoundError(f"{path} names {lost.name}, which is not in {folder / 'images'}; fetch it again")

    def decode() -> tuple[dict[str, int], Tensor]:
        return {label: len(content) for label, content in classes.items()}, read_pictures(pictures, size=size)

    file = cache_file(cache, f"mini-imagenet-{part}-{size}", source=folder)
    return decoded_once(file, decode, name=_name(part), key=listing_key(folder, [path, *pictures]))


def _rows(path: Path) -> list[dict[str, str | None]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file)
            rows, columns = list(table), table.fieldnames
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path} is damaged: {error}; fetch it again") from error
    if not {"filename", "label"} <= set(columns or ()):
        raise ValueError(f"{path} must have the columns filename and label, got {columns!r:.100}")
    return rows


def _from_folders(folder: Path, part: str, size: int, cache: Folder) -> Classes:
    classes = class_folders(folder / part, size=size, cache=cache)
    return Classes(_name(part), classes.x, classes.names, classes.counts.tolist())


def _from_cache_pickle(folder: Path, part: str, size: int, cache: Folder) -> Classes:
    path = folder / _CACHE_PICKLES[part]
    images, content = _pickled(path, "image_data", "class_dict")
    groups = content["class_dict"]
    if not isinstance(groups, dict) or not all(isinstance(one, str) for one in groups):
        raise ValueError(f"{path} must have the numbers of each class's images under 'class_dict'")
    names = sorted(groups)
    labels = torch.full((len(images),), -1)
    for label, one in enumerate(names):
        numbers = _whole_numbers(groups[one])
        if not numbers or not all(0 <= i < len(images) for i in numbers):
            raise ValueError(f"{path}: class {one!r} must have a list of numbers of images below {len(images)}")
        if len(set(numbers)) < len(numbers) or bool((labels[numbers] >= 0).any()):
            raise ValueError(f"{path}: an image of class {one!r} is in a class already; fetch it again")
        labels[numbers] = label
    if bool((labels < 0).any()):
        raise ValueError(f"{path}: image {int(labels.argmin())} is in no class; fetch it again")
    return tensor_classes(_name(part), resized(images, size), labels, names)


def _from_category_pickle(folder: Path, part: str, size: int, cache: Folder) -> Classes:
    path = folder / _CATEGORY_PICKLES[part]
    images, content = _pickled(path, "data", "labels")
    labels = _whole_numbers(content["labels"])
    if labels is None or len(labels) != len(images):
        raise ValueError(f"{path} must have a whole number for each of its {len(images)} images under 'labels'")
    kinds = sorted(set(labels))
    names = {kind: str(kind) for kind in kinds}
    if "catname2label" in content or "label2catname" in content:  # which not every copy has
        names = _category_names(path, content)
    unnamed = [kind for kind in kinds if kind not in names]
    if unnamed:
        raise ValueError(f"{path} has no name for the label {unnamed[0]}; fetch it again")
    numbers = {kind: i for i, kind in enumerate(kinds)}
    y = torch.tensor([numbers[label] for label in labels])
    return tensor_classes(_name(part), resized(images, size), y, [names[kind] for kind in kinds])


def _category_names(path: Path, content: dict[str, Any]) -> dict[int, str]:
    names = content.get("label2catname")
    if isinstance(content.get("catname2label"), dict):
        names = {label: name for name, label in content["catname2label"].items() if isinstance(label, int)}
    elif isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not all(isinstance(one, str) for one in names.values()):
        raise ValueError(f"{path} must have the names of its labels under 'catname2label' or 'label2catname'")
    return names


def _pickled(path: Path, images: str, labels: str) -> tuple[NDArray[numpy.uint8], dict[str, Any]]:
    """The images of a pickle, (N, height, width, 3), and all that it holds."""
    content = read_pickle(path)
    if not isinstance(content, dict) or images not in content or labels not in content:
        raise ValueError(f"{path} must hold a dict with {images!r} and {labels!r}; fetch it again")
    x = content[images]
    if not isinstance(x, numpy.ndarray) or x.dtype != numpy.uint8 or x.ndim != 4 or x.shape[-1] != 3 or not x.size:
        found = f"{x.dtype} of shape {x.shape}" if isinstance(x, numpy.ndarray) else f"a {type(x).__name__}"
        raise ValueError(f"{path}: {images!r} must be uint8 images of shape (N, height, width, 3), got {found}")
    return x, content


def _whole_numbers(values: object) -> list[int] | None:
    """A list of whole numbers, if it is one. Each is looked at, since lists from a file may hold themselves."""
    if isinstance(values, numpy.ndarray):
        values = values.tolist() if values.ndim == 1 else None
    if not isinstance(values, list) or not all(type(one) is int and abs(one) < 2**62 for one in values):
        return None
    return values


def _name(part: str) -> str:
    return f"mini-ImageNet, {part}"


_CACHE_PICKLES = {part: f"mini-imagenet-cache-{part}.pkl" for part in PARTS}
_CATEGORY_PICKLES = {
    "train": "miniImageNet_category_split_train_phase_train.pickle",
    "val": "miniImageNet_category_split_val.pickle",
    "test": "miniImageNet_category_split_test.pickle",
}
_LAYOUTS = {
    "lists": _Layout({part: f"{part}.csv" for part in PARTS}, ("images",), _from_csv),
    "folders": _Layout({part: part for part in PARTS}, (), _from_folders),
    "cache pickles": _Layout(_CACHE_PICKLES, (), _from_cache_pickle),
    "category pickles": _Layout(_CATEGORY_PICKLES, (), _from_category_pickle),
}
"""By name, in the order in which they are looked for."""
