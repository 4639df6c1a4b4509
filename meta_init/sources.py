"""The tasks of the published experiments, by name and part: what a configuration file can ask for."""

from __future__ import annotations

import os

from meta_init.class_batches import ClassBatches
from meta_init.datasets import Classes, mini_imagenet, omniglot, split_classes
from meta_init.episodes import Episodes

OMNIGLOT_PARTS = {"train": 1100, "val": 100, "test": 423}
"""Characters to train, select and test on, as in the released code of MAML."""


def omniglot_classes(
    part: str,
    *,
    root: str | os.PathLike[str] | None = None,
    split_seed: int = 0,
    size: int = 28,
    download: bool = False,
) -> Classes:
    """The characters of one part: 1,100 to train, 100 to validate and 423 to test on, drawn under ``split_seed``.

    Raises:
        ValueError: There is no such part.
        FileNotFoundError: See `omniglot`.

    Source: Finn et al. 2017, released code; the paper has 1,200 to train on.
    """
    if part not in OMNIGLOT_PARTS:
        raise ValueError(f"omniglot_classes: unknown part {part!r}; there are {list(OMNIGLOT_PARTS)}")
    return split_classes(omniglot(root, size=size, download=download), OMNIGLOT_PARTS, seed=split_seed)[part]


def omniglot_episodes(
    part: str = "train",
    *,
    ways: int = 5,
    shots: int = 1,
    queries: int | None = None,
    rotations: str = "view",
    root: str | os.PathLike[str] | None = None,
    split_seed: int = 0,
    download: bool = False,
) -> Episodes:
    """N-way K-shot tasks of Omniglot's characters.

    Args:
        part: ``"train"``, ``"val"`` or ``"test"``; see `omniglot_classes`.
        ways: N.
        shots: K.
        queries: Of each class; by default K.
        rotations: See `Episodes`; by default each class of a task is turned at random, as in the released code of MAML.
        root: Where the data is; see `learned_optim.data_root`.
        split_seed: Of the division of the characters.
        download: See `omniglot`.
    """
    classes = omniglot_classes(part, root=root, split_seed=split_seed, download=download)
    return Episodes(classes, ways=ways, shots=shots, queries=queries, rotations=rotations)


def omniglot_batches(
    part: str = "train",
    *,
    size: int = 64,
    rotations: str = "none",
    root: str | os.PathLike[str] | None = None,
    split_seed: int = 0,
    download: bool = False,
) -> ClassBatches:
    """Batches of Omniglot's characters under global labels, to train a classifier of all of a part's characters.

    Args:
        part: ``"train"``, ``"val"`` or ``"test"``; see `omniglot_classes`.
        size: See `ClassBatches`.
        rotations: See `ClassBatches`.
        root: Where the data is; see `learned_optim.data_root`.
        split_seed: Of the division of the characters.
        download: See `omniglot`.
    """
    classes = omniglot_classes(part, root=root, split_seed=split_seed, download=download)
    return ClassBatches(classes, size=size, rotations=rotations)


def mini_imagenet_episodes(
    part: str = "train",
    *,
    ways: int = 5,
    shots: int = 1,
    queries: int = 15,
    root: str | os.PathLike[str] | None = None,
) -> Episodes:
    """N-way K-shot tasks of mini-ImageNet, with 15 query images of each class as in the released code of MAML.

    Args:
        part: ``"train"``, ``"val"`` or ``"test"``: 64, 16 and 20 classes.
        ways: N.
        shots: K.
        queries: Of each class.
        root: Where the data is; see `learned_optim.data_root`.
    """
    return Episodes(_mini_imagenet_classes(part, root), ways=ways, shots=shots, queries=queries)


def mini_imagenet_batches(
    part: str = "train", *, size: int = 64, root: str | os.PathLike[str] | None = None
) -> ClassBatches:
    """Batches of mini-ImageNet's images under global labels, to train a classifier of all of a part's classes.

    Args:
        part: ``"train"``, ``"val"`` or ``"test"``: 64, 16 and 20 classes.
        size: See `ClassBatches`.
        root: Where the data is; see `learned_optim.data_root`.
    """
    return ClassBatches(_mini_imagenet_classes(part, root), size=size)


def _mini_imagenet_classes(part: str, root: str | os.PathLike[str] | None) -> Classes:
    parts = mini_imagenet(root)
    if part not in parts:
        raise ValueError(f"mini-ImageNet: unknown part {part!r}; there are {list(parts)}")
    return parts[part]
