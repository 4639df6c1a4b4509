"""Batches of examples under the labels that they have in the whole data set."""

from __future__ import annotations

import torch
from torch import Tensor

from meta_init.datasets.classes import Classes
from meta_init.tasks import Batch, Task

ROTATIONS = ("none", "class")


class ClassBatches:
    """Examples with global labels, drawn class by class: what a classifier of all training classes learns from.

    They come as tasks, so that whatever takes a `TaskSource` takes them: support and query set are alike, and
    `Pretrained` learns from both. A step on ``count`` tasks sees ``2 * size * count`` examples.

    Args:
        classes: Where to draw from.
        size: Examples of a support set, and of a query set.
        rotations: ``"none"``; ``"class"``: each rotation of square images by a multiple of 90 degrees is a class of its
            own, four times as many, as in `Episodes`.
        scale: Multiplies the examples, which become float32. By default 1/255 for uint8 and 1 for floats.

    Attributes:
        kinds: How many labels there are; label k is class ``k % len(classes)`` under ``k // len(classes)`` turns.

    Raises:
        ValueError: ``size`` below 1, or rotations of what are not square images.
    """

    def __init__(
        self, classes: Classes, *, size: int = 32, rotations: str = "none", scale: float | None = None
    ) -> None:
        if size < 1:
            raise ValueError(f"ClassBatches: size must be >= 1, got {size}")
        if rotations not in ROTATIONS:
            raise ValueError(f"ClassBatches: unknown rotations {rotations!r}; there are {list(ROTATIONS)}")
        if rotations != "none" and (classes.x.dim() < 3 or classes.x.shape[-1] != classes.x.shape[-2]):
            raise ValueError(f"ClassBatches: only square images can be rotated, got shape {tuple(classes.x.shape[1:])}")
        self.kinds = len(classes) * (4 if rotations == "class" else 1)
        self.classes, self.size, self.rotations = classes, size, rotations
        self.scale = (1 / 255 if classes.x.dtype == torch.uint8 else 1.0) if scale is None else scale

    def sample(self, count: int, generator: torch.Generator) -> Task:
        """Draws ``count`` tasks: x of shape (count, size, ...), y of shape (count, size)."""
        kinds = torch.randint(self.kinds, (count, 2 * self.size), generator=generator)
        chosen = kinds % len(self.classes)
        # In double precision the product stays below the count.
        share = torch.rand(chosen.shape, generator=generator, dtype=torch.float64)
        picked = self.classes.starts.cpu()[chosen] + (share * self.classes.counts.cpu()[chosen]).long()
        device = self.classes.x.device
        x = self.classes.x[picked.to(device)].float() * self.scale  # (T, 2 S, ...)
        turns, y = (kinds // len(self.classes)).to(device), kinds.to(device)
        for turn in range(1, self.kinds // len(self.classes)):
            x[turns == turn] = x[turns == turn].rot90(turn, dims=(-2, -1))
        return Task(self._part(x, y, slice(self.size)), self._part(x, y, slice(self.size, None)))

    def _part(self, x: Tensor, y: Tensor, part: slice) -> Batch:
        return Batch(x[:, part], y[:, part])
