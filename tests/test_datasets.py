"""Labelled examples from folders and tensors, and files of splits."""

import json
import os

import numpy
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from meta_init.datasets import (
    class_folders,
    mini_imagenet,
    omniglot,
    read_split,
    split_classes,
    tensor_classes,
    write_split,
)
from meta_init.episodes import Episodes

EACH = 3


def image(label, number, size=8):
    """One colour that tells the class and the number."""
    return Image.new("RGB", (size, size), (20 * label, 50 * number, 7))


def made_folder(root, classes=("a", "b", "c/d"), ending="png", **options):
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for number in range(EACH):
            image(label, number, **options).save(root / name / f"{number}.{ending}")
    return root


# Folders


def test_folders_are_classes(tmp_path):
    root = made_folder(tmp_path / "data")
    (root / "c" / "notes.txt").write_text("no picture")
    (root / ".hidden").mkdir()
    (root / "a" / "other.bmp").write_bytes(b"")
    image(0, 4, size=20).resize((30, 10)).save(root / "a" / "other.bmp")
    classes = class_folders(root, size=8, cache=tmp_path / "cache")
    assert (classes.name, classes.names) == ("data", ("a", "b", "c/d"))
    assert classes.counts.tolist() == [4, 3, 3]
    assert classes.x.dtype == torch.uint8
    assert classes.x.shape == (10, 3, 8, 8)
    assert classes.x[3, :, 0, 0].tolist() == [0, 200, 7]
    task = Episodes(classes, ways=3, shots=1, queries=2).sample(4, torch.Generator().manual_seed(0))
    assert task.support.x.shape == (4, 3, 3, 8, 8)
    assert task.query.x.shape == (4, 6, 3, 8, 8)
    assert_close(task.support.x[:, :, 2], torch.full((4, 3, 8, 8), 7 / 255))


def test_transparent_paper_is_white_and_a_turned_picture_stands(tmp_path):
    (tmp_path / "data" / "a").mkdir(parents=True)
    drawn = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    drawn.paste((0, 0, 0, 255), (0, 0, 8, 2))  # ink, in the two upper rows
    drawn.save(tmp_path / "data" / "a" / "0.png")
    turned = Image.new("L", (8, 8), 255)
    turned.paste(0, (0, 0, 2, 8))  # in the two left columns
    orientation = Image.Exif()
    orientation[0x0112] = 6  # to be turned by a quarter to the right
    turned.save(tmp_path / "data" / "a" / "1.png", exif=orientation)
    first, second = class_folders(tmp_path / "data", size=8, grayscale=True, cache=tmp_path / "cache").x
    assert first[:2].tolist() == [[0] * 8] * 2
    assert first[2:].min() == 255
    assert torch.equal(first, second)


def test_grayscale_has_no_channels(tmp_path):
    root = made_folder(tmp_path / "data")
    classes = class_folders(root, size=5, grayscale=True, cache=tmp_path / "cache")
    assert classes.x.shape == (9, 5, 5)
    assert class_folders(root, size=5, cache=tmp_path / "cache").x.shape == (9, 3, 5, 5)


def test_pictures_are_read_once(tmp_path, opened):
    root = made_folder(tmp_path / "data")
    first = class_folders(root, size=8, cache=tmp_path / "cache")
    assert len(opened) == 9
    second = class_folders(root, size=8, cache=tmp_path / "cache")
    assert len(opened) == 9
    assert torch.equal(first.x, second.x)
    assert (first.name, first.names, first.counts.tolist()) == (second.name, second.names, second.counts.tolist())


def touched(root):
    status = (root / "b" / "1.png").stat()
    os.utime(root / "b" / "1.png", ns=(status.st_atime_ns, status.st_mtime_ns + 1))


CHANGES = {
    "time": touched,
    "name": lambda root: (root / "b" / "1.png").rename(root / "b" / "9.png"),
    "class": lambda root: (root / "b").rename(root / "z"),
    "fewer": lambda root: (root / "b" / "1.png").unlink(),
    "size": lambda root: image(1, 1, size=30).save(root / "b" / "1.png"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_of_the_files_is_seen(tmp_path, opened, name):
    root = made_folder(tmp_path / "data")
    class_folders(root, size=8, cache=tmp_path / "cache")
    CHANGES[name](root)
    opened.clear()
    class_folders(root, size=8, cache=tmp_path / "cache")
    assert len(opened) == (8 if name == "fewer" else 9)
    assert len(list((tmp_path / "cache").iterdir())) == 1  # in place of what is out of date


@pytest.mark.parametrize("place", [0, 5, 60, 200, -1, -100, None])
def test_a_damaged_cache_is_made_again(tmp_path, opened, place):
    root = made_folder(tmp_path / "data")
    first = class_folders(root, size=8, cache=tmp_path / "cache")
    (file,) = (tmp_path / "cache").iterdir()
    content = bytearray(file.read_bytes())
    if place is None:
        content = content[: len(content) // 2]
    else:
        content[place] ^= 1
    file.write_bytes(content)
    opened.clear()
    second = class_folders(root, size=8, cache=tmp_path / "cache")
    assert len(opened) == 9
    assert torch.equal(first.x, second.x)
    assert first.names == second.names


def test_folders_of_one_name_do_not_share_a_cache(tmp_path, opened):
    for one in ("here", "there"):
        class_folders(made_folder(tmp_path / one / "data"), size=8, cache=tmp_path / "cache")
    assert len(opened) == 18
    assert len(list((tmp_path / "cache").iterdir())) == 2


def nothing(root):
    root.mkdir()


def empty_class(root):
    made_folder(root)
    (root / "e").mkdir()


def only_text(root):
    made_folder(root)
    (root / "e").mkdir()
    (root / "e" / "notes.txt").write_text("no picture")


def loose_picture(root):
    made_folder(root)
    image(0, 0).save(root / "loose.png")


def damaged_picture(root):
    made_folder(root, ending="jpg", size=40)
    path = root / "b" / "1.jpg"
    path.write_bytes(path.read_bytes()[:-20])


def no_picture(root):
    made_folder(root)
    (root / "b" / "1.png").write_text("no picture")


def deep_picture(root):
    made_folder(root)
    Image.fromarray(numpy.full((8, 8), 40000, numpy.uint16)).save(root / "b" / "1.png")


def circle(root):
    made_folder(root)
    (root / "a" / "again").symlink_to(root, target_is_directory=True)


BAD_FOLDERS = {
    "no folder": (lambda root: None, FileNotFoundError, r"there is no folder .*data; name the one"),
    "no class": (nothing, ValueError, r"data has no class folder; make one for each class"),
    "empty class": (empty_class, ValueError, r"class folder .*data/e has no picture; fill it or remove it"),
    "no picture in a class": (only_text, ValueError, r"class folder .*data/e has no picture"),
    "loose": (loose_picture, ValueError, r"data/loose.png is in no class folder"),
    "damaged": (damaged_picture, ValueError, r"picture .*data/b/1.jpg is damaged: .*truncated.*; fetch it again"),
    "none": (no_picture, ValueError, r"picture .*data/b/1.png is damaged: cannot identify"),
    "16 bits": (deep_picture, ValueError, r"data/b/1.png has more than 8 bits for each colour \(mode I;16\)"),
    "circle": (circle, ValueError, r"data/a/again is a link to a folder that holds it; remove it"),
}


@pytest.mark.parametrize("name", BAD_FOLDERS)
def test_bad_folders(tmp_path, name):
    make, error, message = BAD_FOLDERS[name]
    make(tmp_path / "data")
    with pytest.raises(error, match=message):
        class_folders(tmp_path / "data", size=8, cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


# Tensors


def test_tensors_are_sorted_into_classes():
    y = torch.tensor([2, 0, 1, 0, 2, 2])
    x = torch.arange(6.0).unsqueeze(1)
    classes = tensor_classes("numbers", x, y, ["a", "b", "c"])
    assert classes.names == ("a", "b", "c")
    assert classes.x.squeeze(1).tolist() == [1, 3, 2, 0, 4, 5]
    assert classes.counts.tolist() == [2, 1, 3]
    assert tensor_classes("numbers", x, 10 * y.to(torch.uint8)).names == ("0", "10", "20")
    task = Episodes(classes.select([0, 2]), ways=2).sample(2, torch.Generator())
    assert task.support.x.shape == (2, 2, 1)


X, Y = torch.zeros(3, 2), torch.tensor([0, 1, 1])
BAD_TENSORS = {
    "lengths": ((X, Y[:2]), r"the same length >= 1, got shapes \(3, 2\) and \(2,\)"),
    "none": ((X[:0], Y[:0]), r"the same length >= 1, got shapes \(0, 2\) and \(0,\)"),
    "floats": ((X, Y.float()), r"integer labels of shape \(N,\), got torch.float32 of \(3,\)"),
    "bools": ((X, Y.bool()), "integer labels .* got torch.bool"),
    "one-hot": ((X, Y.unsqueeze(1)), r"got torch.int64 of \(3, 1\)"),
    "too high": ((X, Y, ["a"]), "the labels of x must be from 0 to 0, as there are 1 names, got 0 to 1"),
    "negative": ((X, Y - 1), "the labels of x must be at least 0, got -1 to 0"),
    "no example": ((X, 2 * Y, ["a", "b", "c"]), "class 'b' of x has no example; take it out of the names"),
    "names": ((X, Y, ["a", "a"]), "several classes of the name 'a'"),
}


@pytest.mark.parametrize("name", BAD_TENSORS)
def test_bad_tensors(name):
    arguments, message = BAD_TENSORS[name]
    with pytest.raises(ValueError, match=message):
        tensor_classes("x", *arguments)


# Splits


def test_splits_go_through_a_file(tmp_path):
    classes = tensor_classes("x", torch.zeros(4), torch.arange(4), ["a/1", "ü", "c", "d\udcff"])
    parts = split_classes(classes, {"train": 2, "val": 1, "test": 1})
    write_split(tmp_path / "split.json", {part: one.names for part, one in parts.items()})
    again = split_classes(classes, read_split(tmp_path / "split.json"))
    assert {part: one.names for part, one in again.items()} == {part: one.names for part, one in parts.items()}
    assert [file.name for file in tmp_path.iterdir()] == ["split.json"]


OVERLAP = "class 'b' is in both 'train' and 'test'; leave it in one"
BAD_SPLITS = {
    "overlap": ({"train": ["a", "b"], "test": ["b"]}, OVERLAP),
    "twice": ({"train": ["b", "b"]}, "class 'b' is in both 'train' and 'train'"),
    "none": ({}, "must be at least one"),
    "empty": ({"train": []}, "part 'train' must be a list of classes' names, at least one"),
    "text": ({"train": "abc"}, "part 'train' must be a list"),
    "numbers": ({"train": [1]}, "part 'train' must be a list"),
}


@pytest.mark.parametrize("name", BAD_SPLITS)
def test_bad_splits(tmp_path, name):
    parts, message = BAD_SPLITS[name]
    with pytest.raises(ValueError, match="write_split: .*" + message):
        write_split(tmp_path / "split.json", parts)
    assert not list(tmp_path.iterdir())
    (tmp_path / "split.json").write_text(json.dumps(parts))
    with pytest.raises(ValueError, match="read_split: .*split.json: .*" + message):
        read_split(tmp_path / "split.json")


BAD_SPLIT_FILES = {
    "no JSON": (b"train: a", r"split.json is no JSON: .*; write it by write_split"),
    "no text": (b"\xff\xfe\x00", "split.json is no JSON"),
    "deep": (b"[" * 100_000, "split.json is no JSON"),
    "list": (b'["a"]', "the parts must be at least one"),
    "same part": (b'{"train": ["a"], "train": ["b"]}', "split.json: part 'train' stands twice"),
}


@pytest.mark.parametrize("name", BAD_SPLIT_FILES)
def test_bad_split_files(tmp_path, name):
    content, message = BAD_SPLIT_FILES[name]
    (tmp_path / "split.json").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_split(tmp_path / "split.json")


@pytest.mark.parametrize("call", [omniglot, mini_imagenet, class_folders])
def test_bad_sizes(tmp_path, call):
    with pytest.raises(ValueError, match=r"size must be >= 1, got 0"):
        call(tmp_path, size=0)
