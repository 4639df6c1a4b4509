"""torchmeta 1.8.0 beside today's torch: its import, and its loaders as streams of tasks.

The learners and `MAMLModule` take the batches of torchmeta's BatchMetaDataLoader as they are (see `as_tasks`). What is
here makes torchmeta importable, and gives code of your own a `Task`.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import torch
from torch.utils._pytree import tree_map

from meta_init.tasks import Task, as_tasks

_NEEDS = {
    "torchvision": "torchvision",
    "numpy": "numpy",
    "PIL": "pillow",
    "h5py": "h5py",
    "tqdm": "tqdm",
    "requests": "requests",
    "ordered_set": "ordered-set",
}
"""Modules that torchmeta needs beside torch, and their distributions."""

_SCHEMAS = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
"""The compiled operators without whose schemas torchvision does not import."""

_declared: list[torch.library.Library] = []
"""Declarations last as long as these."""


def import_torchmeta() -> ModuleType:
    """Imports torchmeta 1.8.0 after supplying what it, or torchvision beside a CPU-only torch, lacks; then returns it.

    Call it before anything else imports torchvision, as Lightning does: beside a CPU-only torch and a torchvision built
    for GPUs ``import pytorch_lightning`` works only after it. Further calls cost nothing.

    Supplied are two private functions that torchvision has dropped; ``SubsetTask.__getitems__``, which torch has come
    to ask of subsets; and, where torchvision's compiled operators do not load, the schemas of those that its import
    needs. Such a torchvision transforms images, but its operators on boxes raise.

    Returns:
        The module ``torchmeta``.

    Raises:
        ImportError: torchmeta or what it needs is not installed; the message says how to install it.
    """
    missing = [name for name in ("torchmeta", *_NEEDS) if find_spec(name) is None]
    if missing:
        # Its metadata asks for a torch below 1.10, so that pip can install it only without its dependencies.
        raise ImportError(
            f"import_torchmeta: {', '.join(missing)} cannot be found; in an environment of its own, which has torch, "
            f"run `pip install {' '.join(_NEEDS.values())}` and `pip install --no-deps torchmeta==1.8.0`"
        )
    _declare_operators()
    downloads = importlib.import_module("torchvision.datasets.utils")
    for function in (_get_confirm_token, _save_response_content):
        if not hasattr(downloads, function.__name__):
            setattr(downloads, function.__name__, function)
    torchmeta = importlib.import_module("torchmeta")
    subset = torchmeta.utils.data.SubsetTask
    if "__getitems__" not in vars(subset):
        subset.__getitems__ = _getitems
    return torchmeta


def to_task(batch: Any, device: torch.device | str | None = None) -> Task:
    """A batch of torchmeta's BatchMetaDataLoader as stacked tasks, on ``device`` if it is given.

    Raises:
        TypeError, ValueError: Something else; see also `as_tasks`.
    """
    tasks = as_tasks(batch)
    if not isinstance(tasks, Task):
        raise TypeError(
            "to_task: a batch must be a dict of 'train' and 'test', as BatchMetaDataLoader yields it over a dataset "
            f"with a ClassSplitter; got a {type(batch).__name__}"
        )
    return tasks if device is None else tree_map(lambda leaf: leaf.to(device), tasks)


class SizedIterable(Sized, Iterable[Any], Protocol):
    """What has a length and can be iterated over."""


class TorchmetaLoader:
    """The batches of a torchmeta loader as stacked tasks, for whatever takes a loader of `Task` objects.

    Its length is that of the loader, for combinations of classes astronomic: give the Trainer ``max_steps`` and
    ``limit_val_batches``. Each process draws from the loader for itself.

    Args:
        loader: A BatchMetaDataLoader over a dataset with a ClassSplitter.
    """

    def __init__(self, loader: SizedIterable) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Task]:
        return map(to_task, self.loader)


def _declare_operators() -> None:
    if "torchvision" in sys.modules:
        return
    spec = find_spec("torchvision")
    for folder in (spec and spec.submodule_search_locations) or []:
        for library in Path(folder).glob("_C*"):
            # A library that was built for another torch. Where it loads, torchvision will find it loaded.
            with suppress(OSError):
                torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]  # torch's gap
    for name, schema in _SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, name):
            fragment = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]  # torch's gap
            fragment.define(name + schema)  # type: ignore[no-untyped-call]  # torch's gap
            _declared.append(fragment)


def _getitems(task: Any, indices: Sequence[int]) -> list[Any]:
    return [task[index] for index in indices]


def _get_confirm_token(response: Any) -> str | None:
    """The token with which Google Drive wants a download confirmed, as torchvision 0.8 found it."""
    return next((value for key, value in response.cookies.items() if key.startswith("download_warning")), None)


def _save_response_content(response: Any, destination: str | os.PathLike[str], chunk_size: int = 32768) -> None:
    """Writes a download to a file.

    Raises:
        RuntimeError: It is a page: Google Drive asks for something, or refuses.
    """
    if response.headers.get("content-type", "").startswith("text/html"):
        raise RuntimeError(
            f"instead of a file the server sent a page, such as a question or a quota; fetch {response.url} in a "
            f"browser and store it as {destination}"
        )
    with open(destination, "wb") as file:
        for chunk in response.iter_content(chunk_size):
            file.write(chunk)
