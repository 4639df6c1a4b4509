"""Data roots and readers."""

import gzip
import hashlib
import io

import pytest
import torch

from learned_optim import data
from learned_optim.data import data_root, digits, mnist, read_idx, write_atomically


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
