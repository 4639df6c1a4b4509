"""mini-ImageNet in the layouts in circulation."""

import csv
import os
import pickle

import numpy
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from meta_init.datasets import Classes, mini_imagenet
from meta_init.episodes import Episodes
from tests.python2 import python2

PARTS = {"train": ["n01", "n02", "n03"], "val": ["n04", "n05"], "test": ["n06", "n07", "n08"]}
EACH = 3


def image(label, number, size=8):
    """One colour that tells the class and the number."""
    return Image.new("RGB", (size, size), (20 * label, 50 * number, 7))


def label_of(name):
    return int(name[1:])


def pixels(names, size=8):
    """Images of the classes, shape (N, size, size, 3), those of a class apart from each other."""
    return numpy.stack([numpy.asarray(image(label_of(one), i, size)) for i in range(EACH) for one in names])


def is_in_order(classes, names):
    assert classes.names == tuple(names)
    assert classes.counts.tolist() == [EACH] * len(names)
    for name, start in zip(names, classes.starts.tolist(), strict=True):
        for number in range(EACH):
            colour = classes.x[start + number, :, 3, 3].tolist()
            assert colour == [20 * label_of(name), 50 * number, 7], (name, number)


def csv_layout(root):
    (root / "images").mkdir()
    for part, names in PARTS.items():
        rows = [(f"{name}{i:08}.jpg", name) for i in range(EACH) for name in names]
        for file, name in rows:
            image(label_of(name), int(file[3:11])).save(root / "images" / file, quality=100, subsampling=0)
        with (root / f"{part}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("filename", "label"), *rows])


def folder_layout(root):
    for part, names in PARTS.items():
        for name in names:
            (root / part / name).mkdir(parents=True)
            for i in range(EACH):
                image(label_of(name), i).save(root / part / name / f"{i}.png")


def cache_content(names, size=8):
    return {
        "image_data": pixels(names, size),
        "class_dict": {one: list(range(i, EACH * len(names), len(names))) for i, one in enumerate(names)},
    }


def category_content(names, named="catname2label"):
    labels = [label_of(one) for one in names] * EACH
    content = {"data": pixels(names), "labels": labels}
    if named == "catname2label":
        content[named] = {one: label_of(one) for one in names}
    elif named == "label2catname":
        content[named] = {label_of(one): one for one in names}
    return content


CATEGORY_FILES = {"train": "train_phase_train", "val": "val", "test": "test"}


def cache_pickles(root, dump=pickle.dumps, **options):
    for part, names in PARTS.items():
        (root / f"mini-imagenet-cache-{part}.pkl").write_bytes(dump(cache_content(names, **options)))


def category_pickles(root, dump=pickle.dumps, **options):
    for part, names in PARTS.items():
        path = root / f"miniImageNet_category_split_{CATEGORY_FILES[part]}.pickle"
        path.write_bytes(dump(category_content(names, **options)))


def both_csv_and_folders(root):
    """As where the pictures were moved from one layout to the other."""
    folder_layout(root)
    for part in PARTS:
        (root / f"{part}.csv").write_text("filename,label\nn0100000000.jpg,n01\n")


LAYOUTS = {
    "csv": csv_layout,
    "folders": folder_layout,
    "csv without pictures, and folders": both_csv_and_folders,
    "cache pickles": cache_pickles,
    "category pickles": category_pickles,
    "category pickles, other names": lambda root: category_pickles(root, named="label2catname"),
    **{
        f"cache pickles of Python 2, {i}": lambda root, i=i: cache_pickles(root, lambda x: python2(x, i))
        for i in (0, 2)
    },
    **{f"category pickles, {i}": lambda root, i=i: category_pickles(root, lambda x: python2(x, i)) for i in (0, 1, 2)},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_mini_imagenet(tmp_path, layout):
    (tmp_path / "mini-imagenet").mkdir()
    LAYOUTS[layout](tmp_path / "mini-imagenet")
    for _ in range(2):
        parts = mini_imagenet(tmp_path, size=8, cache=tmp_path / "cache")
        assert list(parts) == ["train", "val", "test"]
        for part, names in PARTS.items():
            assert parts[part].name == f"mini-ImageNet, {part}"
            assert parts[part].x.shape == (EACH * len(names), 3, 8, 8)
            assert parts[part].x.dtype == torch.uint8
            if layout == "csv":
                parts[part] = exact(parts[part])
            is_in_order(parts[part], names)
    task = Episodes(parts["test"], ways=3, shots=2, queries=1).sample(2, torch.Generator())
    assert task.support.x.shape == (2, 6, 3, 8, 8)


def exact(classes):
    """Without what JPEG changes."""
    x = ((classes.x.float() - torch.tensor([0, 0, 7.0]).view(3, 1, 1)) / 10).round() * 10
    x = (x + torch.tensor([0, 0, 7.0]).view(3, 1, 1)).to(torch.uint8)
    return Classes(classes.name, x, classes.names, classes.counts.tolist())


def test_labels_without_names_are_names(tmp_path):
    (tmp_path / "mini-imagenet").mkdir()
    category_pickles(tmp_path / "mini-imagenet", named=None)
    parts = mini_imagenet(tmp_path, size=8)
    assert {part: one.names for part, one in parts.items()} == {
        "train": ("1", "2", "3"),
        "val": ("4", "5"),
        "test": ("6", "7", "8"),
    }


@pytest.mark.parametrize("layout", ["cache pickles", "csv", "folders"])
def test_mini_imagenet_of_another_size(tmp_path, layout):
    (tmp_path / "mini-imagenet").mkdir()
    LAYOUTS[layout](tmp_path / "mini-imagenet")
    parts = mini_imagenet(tmp_path, cache=tmp_path / "cache")
    assert parts["train"].x.shape == (9, 3, 84, 84)
    assert_close(parts["train"].x[1, :, 0, 0], torch.tensor([20, 50, 7], dtype=torch.uint8), atol=2, rtol=0)  # JPEG


@pytest.mark.parametrize("layout", ["csv", "folders"])
def test_mini_imagenet_reads_pictures_once(tmp_path, opened, layout):
    (tmp_path / "mini-imagenet").mkdir()
    LAYOUTS[layout](tmp_path / "mini-imagenet")
    for _ in range(2):
        mini_imagenet(tmp_path, size=8, cache=tmp_path / "cache")
        assert len(opened) == 24
    (file, *_) = sorted((tmp_path / "cache").iterdir())
    file.write_bytes(file.read_bytes()[:-1])
    mini_imagenet(tmp_path, size=8, cache=tmp_path / "cache")
    assert 24 < len(opened) < 48


def without(layout, *names):
    def make(root):
        layout(root)
        for name in names:
            (root / name).unlink()

    return make


def changed_cache(**changes):
    """A training file in which some entries differ, or, with None, are absent."""

    def make(root):
        cache_pickles(root)
        content = cache_content(PARTS["train"])
        for name, value in changes.items():
            content[name] = value(content[name])
        content = {name: value for name, value in content.items() if value is not None}
        (root / "mini-imagenet-cache-train.pkl").write_bytes(pickle.dumps(content))

    return make


def changed_category(**changes):
    def make(root):
        category_pickles(root)
        content = category_content(PARTS["train"]) | changes
        path = root / "miniImageNet_category_split_train_phase_train.pickle"
        path.write_bytes(pickle.dumps(content))

    return make


def changed_csv(content):
    def make(root):
        csv_layout(root)
        (root / "train.csv").write_bytes(content)

    return make


def shared_class(root):
    folder_layout(root)
    (root / "val" / "n04").rename(root / "val" / "n01")


def cut_pickle(root):
    cache_pickles(root)
    path = root / "mini-imagenet-cache-val.pkl"
    path.write_bytes(path.read_bytes()[:-100])


class Command:
    def __reduce__(self):
        return os.system, ("touch executed",)


def circular():
    labels = []
    labels.append(labels)
    return labels


BAD_FILES = {
    "nothing": (lambda root: None, r"is not in .*mini-imagenet. Set \$LEARNED_OPTIM_DATA"),
    "a part": (
        without(cache_pickles, "mini-imagenet-cache-val.pkl"),
        "is not whole: the cache pickles lack mini-imagenet-cache-val.pkl; fetch it again",
    ),
    "a list": (without(csv_layout, "val.csv", "test.csv"), "the lists lack val.csv, test.csv; fetch"),
    "shared class": (shared_class, "class 'n01' is in both 'train' and 'val'; the parts must share no class"),
    "shared label": (
        lambda root: category_pickles(
            root, lambda x: pickle.dumps({"data": x["data"], "labels": [0] * len(x["data"])})
        ),
        "class '0' is in both 'train' and 'val'",
    ),
    "cut": (cut_pickle, "mini-imagenet-cache-val.pkl is damaged: it ends in the middle; fetch it again"),
    "command": (changed_cache(class_dict=lambda _: Command()), "is refused: it asks for 'posix.system'; only numbers"),
    "no dict": (lambda root: cache_pickles(root, lambda _: pickle.dumps([1])), "must hold a dict with 'image_data'"),
    "no images": (changed_cache(image_data=lambda _: None), "must hold a dict with 'image_data' and 'class_dict'"),
    "floats": (
        changed_cache(image_data=lambda x: x / 255),
        r"must be uint8 images .* got float64 of shape \(9, 8, 8, 3\)",
    ),
    "shape": (
        changed_cache(image_data=lambda x: x[..., 0]),
        r"shape \(N, height, width, 3\), got uint8 of shape \(9, 8",
    ),
    "no array": (changed_cache(image_data=lambda _: [1]), "'image_data' must be .* got a list"),
    "no classes": (changed_cache(class_dict=lambda _: [1]), "the numbers of each class's images under 'class_dict'"),
    "number": (changed_cache(class_dict=lambda x: x | {"n01": [9]}), "class 'n01' must have a list .* below 9"),
    "empty": (changed_cache(class_dict=lambda x: x | {"n01": []}), "class 'n01' must have a list .* below 9"),
    "circular": (changed_cache(class_dict=lambda x: x | {"n01": circular()}), "class 'n01' must have a list"),
    "twice": (changed_cache(class_dict=lambda x: x | {"n02": [0]}), "an image of class 'n02' is in a class already"),
    "left over": (changed_cache(class_dict=lambda x: x | {"n02": [1, 4]}), "image 7 is in no class"),
    "labels": (changed_category(labels=[1]), "a whole number for each of its 9 images under 'labels'"),
    "text": (changed_category(labels=["a"] * 9), "a whole number for each of its 9 images under 'labels'"),
    "circular labels": (changed_category(labels=circular()), "a whole number for each of its 9 images"),
    "unnamed": (changed_category(catname2label={"n01": 1}), "has no name for the label 2"),
    "names": (changed_category(catname2label=3), "under 'catname2label' or 'label2catname'"),
    "columns": (changed_csv(b"file,label\na.jpg,n01\n"), r"train.csv must have the columns .* got \['file', 'label'\]"),
    "no rows": (changed_csv(b"filename,label\n"), "train.csv names no picture"),
    "row": (changed_csv(b"filename,label\nn0100000000.jpg\n"), "train.csv, row 2: must have the name"),
    "elsewhere": (changed_csv(b"filename,label\n../../a.jpg,n01\n"), "train.csv, row 2: must have .* a file in images"),
    "lost": (
        changed_csv(b"filename,label\nlost.jpg,n01\n"),
        "train.csv names lost.jpg, which is not in .*images; fetch",
    ),
    "no text": (changed_csv(b"filename,label\n\xff\n"), "train.csv is damaged"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_mini_imagenet(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    make, message = BAD_FILES[name]
    (tmp_path / "mini-imagenet").mkdir()
    make(tmp_path / "mini-imagenet")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        mini_imagenet(tmp_path, size=8, cache=tmp_path / "cache")
    assert not (tmp_path / "executed").exists()
