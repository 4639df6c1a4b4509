"""Where data sets lie, and how their files are read."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import tempfile
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

ENVIRONMENT = "LEARNED_OPTIM_DATA"
"""The environment variable that names the data root."""


class ImageSet(NamedTuple):
    """Labelled images.

    Attributes:
        name: What they are, for reports.
        train_x: Shape (N, height, width), uint8.
        train_y: Shape (N,), int64.
        test_x: Shape (M, height, width), uint8.
        test_y: Shape (M,), int64.
    """

    name: str
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor


_MNIST_SOURCE = "https://ossci-datasets.s3.amazonaws.com/mnist/"
_MNIST_FILES = {
    "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
}


def data_root(root: str | os.PathLike[str] | None = None) -> Path:
    """The folder with the data sets: ``root``, else $LEARNED_OPTIM_DATA, else ``~/.cache/learned_optim/data``."""
    if root is not None:
        return Path(root)
    return Path(os.environ.get(ENVIRONMENT) or Path.home() / ".cache" / "learned_optim" / "data")


def mnist(root: str | os.PathLike[str] | None = None, *, download: bool = False) -> ImageSet:
    """MNIST from the four IDX files in ``root/mnist``, verified by their published MD5.

    Args:
        root: See `data_root`.
        download: Fetch missing files (11 MB).

    Raises:
        FileNotFoundError: A file is missing and ``download`` is off.
        ValueError: A file is not the published one.

    Source: LeCun et al. 1998.
    """
    folder = data_root(root) / "mnist"
    parts = []
    for name, md5 in _MNIST_FILES.items():
        path = folder / name
        if not path.exists():
            if not download:
                raise FileNotFoundError(
                    f"MNIST is not in {folder}: {name} is missing. Set ${ENVIRONMENT} to the folder that holds "
                    "mnist/, or pass download=True"
                )
            download_file(_MNIST_SOURCE + name, path)
        content = path.read_bytes()
        if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
            raise ValueError(f"{path} is damaged: its MD5 is not the published {md5}; delete it and fetch it again")
        parts.append(read_idx(gzip.decompress(content)))
    return ImageSet("MNIST", parts[0], parts[1].long(), parts[2], parts[3].long())


def digits() -> ImageSet:
    """The 1,797 digits of 8 x 8 pixels that ship inside scikit-learn, enlarged to 28 x 28; every fifth is for testing.

    A stand-in for MNIST that needs no download. Needs scikit-learn.
    """
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x = torch.as_tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) * (255 / 16)
    x = torch.nn.functional.interpolate(x, size=28, mode="bilinear").round().clamp(0, 255).to(torch.uint8).squeeze(1)
    y = torch.as_tensor(labels, dtype=torch.int64)
    test = torch.arange(len(y)) % 5 == 0
    return ImageSet("scikit-learn digits, enlarged to 28 x 28", x[~test], y[~test], x[test], y[test])


IMAGE_SETS: dict[str, Callable[[], ImageSet]] = {"mnist": mnist, "digits": digits}
"""Image sets by name."""


def read_idx(content: bytes) -> Tensor:
    """The array in an IDX file of unsigned bytes.

    Raises:
        ValueError: The header is not that of such a file, or the length does not fit it.
    """
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise ValueError(f"not an IDX file of unsigned bytes: it starts with {content[:4].hex()}")
    dims = content[3]
    shape = [int.from_bytes(content[4 + 4 * i : 8 + 4 * i], "big") for i in range(dims)]
    count = 1
    for size in shape:
        count *= size
    if len(content) != 4 + 4 * dims + count:
        raise ValueError(f"IDX file of shape {shape} must have {4 + 4 * dims + count} bytes, got {len(content)}")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=4 + 4 * dims).reshape(shape)


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes a file that is either the old one or the whole new one, even when the process is killed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):  # it may have got its name already
            os.unlink(temporary)
        raise


def download_file(url: str, path: str | os.PathLike[str]) -> None:
    """Fetches a file, which is there whole or not at all.

    Raises:
        OSError: The network or the address does not answer.
    """
    with urllib.request.urlopen(url, timeout=60) as response:
        write_atomically(path, response.read())
