"""Where data sets lie, and how their files are read."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import os
import tarfile
import tempfile
import urllib.request
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from learned_optim.pickles import read_pickle

ENVIRONMENT = "LEARNED_OPTIM_DATA"
"""The environment variable that names the data root."""


class ImageSet(NamedTuple):
    """Labelled images.

    Attributes:
        name: What they are, for reports.
        train_x: Shape (N, height, width), in colour (N, 3, height, width), uint8.
        train_y: Shape (N,), int64.
        test_x: Shape (M, height, width) or (M, 3, height, width), uint8.
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
_FASHION_SOURCE = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
_FASHION_FILES = {
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}
_IDX_PARTS = ("train", "t10k")
_CIFAR_SOURCE = "https://www.cs.toronto.edu/~kriz/"
_CIFAR_ARCHIVE = {"cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a"}
_CIFAR_FOLDER = "cifar-10-batches-py"
_CIFAR_FILES = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}


def data_root(root: str | os.PathLike[str] | None = None) -> Path:
    """The folder with the data sets: ``root``, else $LEARNED_OPTIM_DATA, else ``~/.cache/learned_optim/data``."""
    if root is not None:
        return Path(root)
    return Path(os.environ.get(ENVIRONMENT) or Path.home() / ".cache" / "learned_optim" / "data")


def mnist(
    root: str | os.PathLike[str] | None = None, *, parts: str | Sequence[str] | None = None, download: bool = False
) -> ImageSet:
    """MNIST from the four IDX files in ``root/mnist``, verified by their published MD5.

    Args:
        root: See `data_root`.
        parts: Which of the published parts to take, ``"train"`` (60,000 images) or ``"t10k"`` (10,000), for those who
            have no more; by default both. The images of one part alone are split anew: every fifth is for testing.
            `ImageSet.name` then says so.
        download: Fetch missing files (11 MB).

    Raises:
        FileNotFoundError: A file is missing and ``download`` is off.
        ValueError: A file is not the published one, or there is no such part.

    Source: LeCun et al. 1998.
    """
    folder = data_root(root) / "mnist"
    return _idx_set("MNIST", folder, _chosen("mnist", parts, _IDX_PARTS), _MNIST_FILES, _MNIST_SOURCE, download)


def fashion_mnist(
    root: str | os.PathLike[str] | None = None, *, parts: str | Sequence[str] | None = None, download: bool = False
) -> ImageSet:
    """Fashion-MNIST from the four IDX files in ``root/fashion-mnist``, verified by their published MD5.

    Args:
        root: See `data_root`.
        parts: As for `mnist`.
        download: Fetch missing files (31 MB).

    Raises:
        FileNotFoundError: A file is missing and ``download`` is off.
        ValueError: A file is not the published one, or there is no such part.

    Source: Xiao et al. 2017, github.com/zalandoresearch/fashion-mnist.
    """
    folder = data_root(root) / "fashion-mnist"
    chosen = _chosen("fashion_mnist", parts, _IDX_PARTS)
    return _idx_set("Fashion-MNIST", folder, chosen, _FASHION_FILES, _FASHION_SOURCE, download)


def cifar10(
    root: str | os.PathLike[str] | None = None, *, parts: str | Sequence[str] | None = None, download: bool = False
) -> ImageSet:
    """CIFAR-10 from the files in ``root/cifar10/cifar-10-batches-py``, verified by their published MD5.

    They are pickles, of which nothing is executed (`learned_optim.read_pickle`). Where files are missing and the
    published archive ``cifar-10-python.tar.gz`` lies in ``root/cifar10``, they are taken from it.

    Args:
        root: See `data_root`.
        parts: Which of the published files to take, of ``"data_batch_1"`` to ``"data_batch_5"`` and ``"test_batch"``
            (10,000 images each), for those who have no more; by default all. Without ``"test_batch"``, or with nothing
            else, the images are split anew: every fifth is for testing. `ImageSet.name` then says so.
        download: Fetch the archive where files are missing (163 MiB).

    Raises:
        FileNotFoundError: A file is missing and ``download`` is off.
        ValueError: A file is not the published one, or there is no such part.

    Source: Krizhevsky 2009, www.cs.toronto.edu/~kriz/cifar.html.
    """
    chosen = _chosen("cifar10", parts, tuple(_CIFAR_FILES))
    folder = data_root(root) / "cifar10" / _CIFAR_FOLDER
    if any(not (folder / part).exists() for part in chosen):
        _unpack_cifar(folder, chosen, download)
    read = {}
    for part in chosen:
        _verified(folder / part, _CIFAR_FILES[part])
        content = read_pickle(folder / part)
        x = torch.from_numpy(content["data"]).reshape(-1, 3, 32, 32)  # (N, 3, height, width)
        read[part] = x, torch.tensor(content["labels"])
    return _image_set("CIFAR-10", read, whole=len(_CIFAR_FILES))


def subset(images: ImageSet, labels: Sequence[int]) -> ImageSet:
    """The images of some labels only.

    Args:
        images: The images.
        labels: Which to keep; the images of ``labels[i]`` get the label i.

    Raises:
        ValueError: No label, the same twice, or one that no training or no test image has.

    Source: Andrychowicz et al. 2016, section 3.3, judges an optimizer learned on CIFAR-10 on such subsets, CIFAR-5 and
    CIFAR-2. Which labels they keep is not known to us: those of `IMAGE_SETS` are the first five and two.
    """
    if not labels or len(set(labels)) < len(labels):
        raise ValueError(f"subset: labels must be different labels, at least one, got {list(labels)}")
    for label in labels:
        if not bool((images.train_y == label).any()) or not bool((images.test_y == label).any()):
            raise ValueError(f"subset: {images.name} has no image of label {label} for training or none for testing")

    def kept(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        matches = y.unsqueeze(1) == torch.tensor(labels)  # (N, k)
        chosen = matches.any(dim=1)
        return x[chosen], matches[chosen].long().argmax(dim=1)

    name = f"{images.name}, labels {', '.join(map(str, labels))} only"
    return ImageSet(name, *kept(images.train_x, images.train_y), *kept(images.test_x, images.test_y))


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


def _chosen(loader: str, parts: str | Sequence[str] | None, known: tuple[str, ...]) -> tuple[str, ...]:
    """The parts asked for, in the order in which they are published."""
    asked = known if parts is None else (parts,) if isinstance(parts, str) else tuple(parts)
    unknown = [part for part in asked if part not in known]
    if unknown or not asked:
        raise ValueError(f"{loader}: parts must be some of {list(known)}, got {list(asked)}")
    return tuple(part for part in known if part in asked)


def _image_set(name: str, read: dict[str, tuple[Tensor, Tensor]], whole: int = 2) -> ImageSet:
    """Joins parts, of which the published set has ``whole``."""
    test = next((part for part in read if part in ("t10k", "test_batch")), None)
    if test is not None and len(read) > 1:
        test_x, test_y = read[test]
        rest = [read[part] for part in read if part != test]
        train_x, train_y = (torch.cat(tensors) for tensors in zip(*rest, strict=True))
    else:
        x, y = (torch.cat(tensors) for tensors in zip(*read.values(), strict=True))
        testing = torch.arange(len(y)) % 5 == 0
        train_x, train_y, test_x, test_y = x[~testing], y[~testing], x[testing], y[testing]
    if len(read) < whole:
        name = f"{name}, {len(train_y) + len(test_y):,} of its images ({', '.join(read)})"
    return ImageSet(name, train_x, train_y, test_x, test_y)


def _idx_set(
    name: str, folder: Path, parts: tuple[str, ...], files: dict[str, str], source: str, download: bool
) -> ImageSet:
    needed = {part: [file for file in files if file.startswith(f"{part}-")] for part in _IDX_PARTS}
    whole = [part for part, names in needed.items() if all((folder / file).exists() for file in names)]
    read = {}
    for part in parts:
        for file in needed[part]:
            if not (folder / file).exists():
                if not download:
                    raise _missing(name, folder, file, whole)
                download_file(source + file, folder / file)
        x, y = (read_idx(gzip.decompress(_verified(folder / file, files[file]))) for file in needed[part])
        read[part] = x, y.long()
    return _image_set(name, read)


def _unpack_cifar(folder: Path, parts: tuple[str, ...], download: bool) -> None:
    """Takes what is missing from the archive beside ``folder``, after fetching that where asked to."""
    ((archive, md5),) = _CIFAR_ARCHIVE.items()
    path = folder.parent / archive
    lost = [part for part in parts if not (folder / part).exists()]
    if not path.exists():
        if not download:
            whole = [part for part in _CIFAR_FILES if (folder / part).exists()]
            raise _missing("CIFAR-10", folder, lost[0], whole, holds="cifar10")
        download_file(_CIFAR_SOURCE + archive, path)
    with tarfile.open(fileobj=io.BytesIO(_verified(path, md5))) as content:
        for part in lost:
            member = content.extractfile(f"{_CIFAR_FOLDER}/{part}")
            assert member is not None  # each is a regular file of the verified archive
            write_atomically(folder / part, member.read())


def _missing(name: str, folder: Path, file: str, whole: list[str], holds: str | None = None) -> FileNotFoundError:
    alone = f", or take only what is there, parts={whole}" if whole else ""
    return FileNotFoundError(
        f"{name} is not in {folder}: {file} is missing. Set ${ENVIRONMENT} to the folder that holds "
        f"{holds or folder.name}/, or pass download=True{alone}"
    )


def _verified(path: Path, md5: str) -> bytes:
    content = path.read_bytes()
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
        raise ValueError(f"{path} is damaged: its MD5 is not the published {md5}; delete it and fetch it again")
    return content


def _cifar_subset(labels: int, parts: str | None = None) -> ImageSet:
    return subset(cifar10(parts=parts), range(labels))


IMAGE_SETS: dict[str, Callable[[], ImageSet]] = {
    "mnist": mnist,
    "digits": digits,
    "fashion-mnist": fashion_mnist,
    "fashion-mnist-t10k": partial(fashion_mnist, parts="t10k"),
    "cifar10": cifar10,
    "cifar5": partial(_cifar_subset, 5),
    "cifar2": partial(_cifar_subset, 2),
    "cifar10-batch-1": partial(cifar10, parts="data_batch_1"),
    "cifar5-batch-1": partial(_cifar_subset, 5, "data_batch_1"),
    "cifar2-batch-1": partial(_cifar_subset, 2, "data_batch_1"),
}
"""Image sets by name. Each name is the same images everywhere: some take only one of the published files."""


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
