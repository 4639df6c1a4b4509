"""Your own labelled pictures: one folder for each class."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from meta_init.datasets.cache import cache_file, decoded_once, listing_key
from meta_init.datasets.classes import Classes
from meta_init.datasets.pictures import picture_endings, read_pictures


def class_folders(
    root: str | os.PathLike[str],
    *,
    size: int,
    grayscale: bool = False,
    cache: str | os.PathLike[str] | None = None,
) -> Classes:
    """All pictures below a folder, as uint8 images of ``size`` x ``size``; each folder that holds any is a class.

    They are decoded once and kept in ``cache``, until a file's name, size or modification time changes. Hidden files
    and folders, and files without the ending of a picture, are left out. Decoding needs Pillow.

    Args:
        root: Holds the class folders; their pictures may be of any size and of any format that Pillow reads.
        size: Pixels, by Lanczos resampling; a picture that is no square is squeezed into one.
        grayscale: One channel, shape (N, size, size), instead of (N, 3, size, size).
        cache: A folder; by default $LEARNED_OPTIM_CACHE, else ``~/.cache/learned_optim``.

    Returns:
        Classes named by their path below ``root``, such as ``a`` or ``a/b``, and sorted by it; the name of all is
        that of ``root``.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: There is no class folder, one has no picture, or a picture lies outside of them or is damaged.
    """
    if size < 1:
        raise ValueError(f"class_folders: size must be >= 1, got {size}")
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"class_folders: there is no folder {root}; name the one that holds the class folders")
    classes = dict(sorted(_class_folders(root)))
    if "." in classes:
        raise ValueError(f"class_folders: {classes['.'][0]} is in no class folder; make one for each class")
    if not classes:
        raise ValueError(f"class_folders: {root} has no class folder; make one for each class")
    files = [file for content in classes.values() for file in content]

    def decode() -> tuple[dict[str, int], Tensor]:
        counts = {name: len(content) for name, content in classes.items()}
        return counts, read_pictures(files, size=size, grayscale=grayscale)

    file = cache_file(cache, f"folders-{size}{'-grayscale' if grayscale else ''}", source=root)
    return decoded_once(file, decode, name=root.resolve().name, key=listing_key(root, files))


def _class_folders(
    root: Path, folder: Path | None = None, above: tuple[Path, ...] = ()
) -> Iterator[tuple[str, list[Path]]]:
    """Names and pictures of the folders that have any."""
    folder = folder or root
    here = folder.resolve()
    if here in above:
        raise ValueError(f"class_folders: {folder} is a link to a folder that holds it; remove it")
    content = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    folders = [path for path in content if path.is_dir()]
    pictures = [path for path in content if path.suffix.lower() in picture_endings() and path not in folders]
    if pictures:
        yield folder.relative_to(root).as_posix(), pictures
    elif not folders and folder != root:
        raise ValueError(f"class_folders: class folder {folder} has no picture; fill it or remove it")
    for inner in folders:
        yield from _class_folders(root, inner, (*above, here))
