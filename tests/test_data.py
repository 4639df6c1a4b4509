"""Data roots and readers."""

import gzip
import hashlib
import io
import pickle
import tarfile

import numpy
import pytest
import torch

from learned_optim import data
from learned_optim.data import (
    IMAGE_SETS,
    ImageSet,
    cifar10,
    data_root,
    digits,
    fashion_mnist,
    mnist,
    read_idx,
    subset,
    write_atomically,
)
from tests.python2 import python2


def idx(shape):
    content = torch.arange(int(torch.tensor(shape).prod())) % 251
    header = b"\0\0\x08" + bytes([len(shape)]) + b"".join(size.to_bytes(4, "big") for size in shape)
    return header + bytes(content.tolist())


def test_real_mnist():
    try:
        images = mnist()
    except FileNotFoundError as error:
        pytest.skip(f"needs MNIST: {error}")
    assert images.train_x.shape == (60000, 28, 28)
    assert images.test_x.shape == (10000, 28, 28)
    assert images.train_x.dtype == torch.uint8
    assert torch.bincount(images.test_y).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


def test_read_idx():
    assert torch.equal(read_idx(idx((3, 4))), (torch.arange(12) % 251).reshape(3, 4).to(torch.uint8))


@pytest.fixture
def small_source(monkeypatch):
    """A source with four small files in place of MNIST's."""
    shapes = {"train-images": (6, 28, 28), "train-labels": (6,), "t10k-images": (2, 28, 28), "t10k-labels": (2,)}
    files = {f"{name}.gz": gzip.compress(idx(shape)) for name, shape in shapes.items()}
    md5 = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    monkeypatch.setattr(data, "_MNIST_FILES", md5)
    asked = []

    def urlopen(url, timeout):
        asked.append(url.rpartition("/")[2])
        return io.BytesIO(files[asked[-1]])

    monkeypatch.setattr(data.urllib.request, "urlopen", urlopen)
    return asked


def test_download_is_asked_for_and_happens_once(small_source, tmp_path):
    with pytest.raises(FileNotFoundError, match="download=True"):
        mnist(tmp_path)
    assert not small_source
    assert mnist(tmp_path, download=True).train_x.shape == (6, 28, 28)
    assert len(small_source) == 4
    assert mnist(tmp_path).test_y.tolist() == [0, 1]
    assert len(small_source) == 4


def test_damaged_files_are_refused(small_source, tmp_path):
    mnist(tmp_path, download=True)
    path = tmp_path / "mnist" / "train-labels.gz"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"train-labels.gz is damaged: its MD5 .* fetch it again"):
        mnist(tmp_path)


# Fashion-MNIST, and parts

PAIRS = {"train": [f"train-{kind}" for kind in ("images", "labels")], "t10k": ["t10k-images", "t10k-labels"]}


@pytest.fixture
def small_fashion(monkeypatch, tmp_path):
    """Small files in place of Fashion-MNIST's, of which a folder gets those of some parts."""
    shapes = {"train-images": (10, 28, 28), "train-labels": (10,), "t10k-images": (5, 28, 28), "t10k-labels": (5,)}
    files = {f"{name}.gz": gzip.compress(idx(shape)) for name, shape in shapes.items()}
    monkeypatch.setattr(data, "_FASHION_FILES", {name: md5(content) for name, content in files.items()})
    monkeypatch.setattr(data.urllib.request, "urlopen", lambda url, timeout: io.BytesIO(files[url.rpartition("/")[2]]))

    def write(*parts):
        for part in parts:
            for name in PAIRS[part]:
                write_atomically(tmp_path / "fashion-mnist" / f"{name}.gz", files[f"{name}.gz"])
        return tmp_path

    return write


def md5(content):
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def test_all_of_fashion_mnist(small_fashion):
    images = fashion_mnist(small_fashion("train", "t10k"))
    assert images.name == "Fashion-MNIST"
    assert images.train_x.shape == (10, 28, 28)
    assert images.test_y.tolist() == [0, 1, 2, 3, 4]
    assert images.train_y.dtype == torch.int64


def test_a_part_is_asked_for_and_named(small_fashion):
    root = small_fashion("t10k")
    with pytest.raises(FileNotFoundError, match=r"train-images.gz is missing.*fashion-mnist/.* parts=\['t10k'\]"):
        fashion_mnist(root)
    images = fashion_mnist(root, parts="t10k")
    assert images.name == "Fashion-MNIST, 5 of its images (t10k)"
    assert images.test_y.tolist() == [0]
    assert images.train_y.tolist() == [1, 2, 3, 4]
    whole = fashion_mnist(small_fashion("train"), parts=["t10k", "train"])
    assert whole.name == "Fashion-MNIST"
    again = fashion_mnist(root, parts=("t10k",))  # the same images, whatever else is there
    assert torch.equal(again.train_x, images.train_x)


def test_a_part_is_fetched(small_fashion, tmp_path):
    assert fashion_mnist(tmp_path, parts="train", download=True).test_y.tolist() == [0, 5]
    assert len(list((tmp_path / "fashion-mnist").iterdir())) == 2


# CIFAR-10


def batch(seed, count=5):
    x = numpy.random.default_rng(seed).integers(256, size=(count, 3072), dtype=numpy.uint8)
    return {
        "data": x,
        "labels": [(seed + i) % 10 for i in range(count)],
        "batch_label": "",
        "filenames": ["a.png"] * count,
    }


@pytest.fixture
def small_cifar(monkeypatch, tmp_path):
    """Small files in place of CIFAR-10's, and their archive, which is what can be fetched."""
    files = {name: python2(batch(i)) for i, name in enumerate(data._CIFAR_FILES)}
    monkeypatch.setattr(data, "_CIFAR_FILES", {name: md5(content) for name, content in files.items()})
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for name, content in (files | {"readme.html": b"text"}).items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    monkeypatch.setattr(data, "_CIFAR_ARCHIVE", {"cifar-10-python.tar.gz": md5(archive.getvalue())})
    asked = []

    def urlopen(url, timeout):
        asked.append(url)
        return io.BytesIO(archive.getvalue())

    monkeypatch.setattr(data.urllib.request, "urlopen", urlopen)

    def write(*parts):
        for part in parts:
            write_atomically(tmp_path / "cifar10" / "cifar-10-batches-py" / part, files[part])
        return tmp_path

    write.asked, write.files = asked, files
    return write


def test_all_of_cifar(small_cifar):
    images = cifar10(small_cifar(*small_cifar.files))
    assert images.name == "CIFAR-10"
    assert images.train_x.shape == (25, 3, 32, 32)
    assert images.test_x.shape == (5, 3, 32, 32)
    assert images.train_x.dtype == torch.uint8
    assert images.test_y.tolist() == [5, 6, 7, 8, 9]
    expected = batch(2)["data"][4].reshape(3, 32, 32)
    assert torch.equal(images.train_x[14], torch.from_numpy(expected))
    assert not small_cifar.asked


def test_parts_of_cifar(small_cifar):
    root = small_cifar("data_batch_1", "data_batch_3", "test_batch")
    with pytest.raises(FileNotFoundError, match=r"data_batch_2 is missing.*cifar10/.* parts=\['data_batch_1', 'data_b"):
        cifar10(root)
    one = cifar10(root, parts="data_batch_1")
    assert one.name == "CIFAR-10, 5 of its images (data_batch_1)"
    assert (one.train_y.tolist(), one.test_y.tolist()) == ([1, 2, 3, 4], [0])
    some = cifar10(root, parts=["test_batch", "data_batch_3", "data_batch_1"])
    assert some.name == "CIFAR-10, 15 of its images (data_batch_1, data_batch_3, test_batch)"
    assert some.train_y.tolist() == [0, 1, 2, 3, 4, 2, 3, 4, 5, 6]
    assert some.test_y.tolist() == [5, 6, 7, 8, 9]


def test_cifar_from_its_archive(small_cifar, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"download=True$"):
        cifar10(tmp_path)
    assert not small_cifar.asked
    small_cifar("data_batch_1")
    assert len(cifar10(tmp_path, download=True).train_y) == 25
    assert small_cifar.asked == ["https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"]
    folder = tmp_path / "cifar10" / "cifar-10-batches-py"
    assert sorted(path.name for path in folder.iterdir()) == sorted(small_cifar.files)
    (folder / "test_batch").unlink()
    assert len(cifar10(tmp_path).test_y) == 5  # the archive is still there
    assert len(small_cifar.asked) == 1


def test_a_damaged_archive_is_refused(small_cifar, tmp_path):
    write_atomically(tmp_path / "cifar10" / "cifar-10-python.tar.gz", b"something else")
    with pytest.raises(ValueError, match=r"cifar-10-python.tar.gz is damaged: its MD5"):
        cifar10(tmp_path)


def test_cifar_is_verified_and_never_executed(small_cifar, monkeypatch):
    root = small_cifar("data_batch_1")
    path = root / "cifar10" / "cifar-10-batches-py" / "data_batch_1"
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(ValueError, match="data_batch_1 is damaged: its MD5"):
        cifar10(root, parts="data_batch_1")
    path.write_bytes(pickle.dumps(print))
    monkeypatch.setitem(data._CIFAR_FILES, "data_batch_1", md5(path.read_bytes()))
    with pytest.raises(ValueError, match=r"is refused: it asks for 'builtins.print'"):
        cifar10(root, parts="data_batch_1")


@pytest.mark.parametrize("load", [mnist, fashion_mnist, cifar10])
@pytest.mark.parametrize("parts", ["test", [], ["t10k", "data_batch_6"]])
def test_unknown_parts(load, parts):
    with pytest.raises(ValueError, match=f"{load.__name__}: parts must be some of .*, got"):
        load("/nowhere", parts=parts)


# Subsets, names and what is really there


def test_a_subset():
    x = torch.arange(12, dtype=torch.uint8).reshape(12, 1, 1)
    images = ImageSet("numbers", x, torch.arange(12) % 4, x[:8] + 100, torch.arange(8) % 4)
    kept = subset(images, [3, 1])
    assert kept.name == "numbers, labels 3, 1 only"
    assert kept.train_x.flatten().tolist() == [1, 3, 5, 7, 9, 11]
    assert kept.train_y.tolist() == [1, 0] * 3
    assert kept.test_x.flatten().tolist() == [101, 103, 105, 107]
    assert kept.test_y.tolist() == [1, 0] * 2
    for labels, message in (
        ([], "at least one"),
        ([1, 1], r"different labels.*\[1, 1\]"),
        ([7], "no image of label 7"),
    ):
        with pytest.raises(ValueError, match=message):
            subset(images, labels)


REAL = {
    "fashion-mnist": ((60000, 28, 28), 10000, 10),
    "fashion-mnist-t10k": ((8000, 28, 28), 2000, 10),
    "cifar10": ((50000, 3, 32, 32), 10000, 10),
    "cifar5": ((25000, 3, 32, 32), 5000, 5),
    "cifar2": ((10000, 3, 32, 32), 2000, 2),
    "cifar10-batch-1": ((8000, 3, 32, 32), 2000, 10),
    "cifar5-batch-1": ((4002, 3, 32, 32), 1024, 5),
    "cifar2-batch-1": ((1578, 3, 32, 32), 401, 2),
}


@pytest.mark.parametrize("name", REAL)
def test_real_images(name):
    try:
        images = IMAGE_SETS[name]()
    except FileNotFoundError as error:
        pytest.skip(f"needs real data: {error}")
    shape, testing, labels = REAL[name]
    assert images.train_x.shape == shape
    assert images.test_x.shape == (testing, *shape[1:])
    assert images.train_x.dtype == images.test_x.dtype == torch.uint8
    for y in (images.train_y, images.test_y):
        assert y.unique().tolist() == list(range(labels))
    whole = name in ("fashion-mnist", "cifar10", "cifar5", "cifar2")
    assert ("10,000 of its images" in images.name) != whole


def test_first_images_of_cifar():
    """A frog, of label 6, then two trucks, of label 9; for their colours: the ground is brown, the sky bright."""
    try:
        images = cifar10(parts="data_batch_1")
    except FileNotFoundError as error:
        pytest.skip(f"needs CIFAR-10: {error}")
    assert images.test_y[0] == 6
    assert images.train_y[:2].tolist() == [9, 9]
    assert images.test_x[0, :, 0, 0].tolist() == [59, 62, 63]


def test_data_root(monkeypatch, tmp_path):
    monkeypatch.setenv("LEARNED_OPTIM_DATA", str(tmp_path))
    assert data_root() == tmp_path
    assert data_root("elsewhere").name == "elsewhere"
    monkeypatch.delenv("LEARNED_OPTIM_DATA")
    assert data_root().parts[-2:] == ("learned_optim", "data")


def test_digits():
    images = digits()
    assert images.train_x.shape[1:] == (28, 28)
    assert len(images.train_y) + len(images.test_y) == 1797
    assert images.train_x.max() > 250
    assert sorted(set(images.test_y.tolist())) == list(range(10))


def test_write_atomically_replaces(tmp_path):
    for content in (b"one", b"two"):
        write_atomically(tmp_path / "folder" / "file", content)
    assert (tmp_path / "folder" / "file").read_bytes() == b"two"
    assert len(list((tmp_path / "folder").iterdir())) == 1
