"""Episodes: N-way K-shot tasks drawn from classes."""

from __future__ import annotations

import torch
from torch import Tensor

from meta_init.datasets.classes import Classes
from meta_init.tasks import Batch, Task

ROTATIONS = ("none", "view", "class")


class Episodes:
    """N-way K-shot classification: each task has ``ways`` classes under new labels 0, ..., ways - 1.

    Sampling is indexing into one tensor. A task depends on the generator alone, so that the stream is the same for any
    number of workers.

    Args:
        classes: Where to draw from.
        ways: N, classes in a task.
        shots: K, examples of each class in the support set.
        queries: Examples of each class in the query set; by default K, as in the released code of MAML.
        rotations: Of square images by multiples of 90 degrees. ``"none"``. ``"view"``: each class of a task under a
            random one (Finn et al. 2017, released code). ``"class"``: each rotation is a class of its own, four times
            as many, of which a task may hold several (Santoro et al. 2016; Vinyals et al. 2016).
        scale: Multiplies the examples, which become float32. By default 1/255 for uint8 and 1 for floats.

    Raises:
        ValueError: More ways than classes, more shots and queries than a class has examples, a count below 1, or
            rotations of what are not square images.
    """

    def __init__(
        self,
        classes: Classes,
        *,
        ways: int = 5,
        shots: int = 1,
        queries: int | None = None,
        rotations: str = "none",
        scale: float | None = None,
    ) -> None:
        queries = shots if queries is None else queries
        if min(ways, shots, queries) < 1:
            raise ValueError(f"Episodes: ways, shots and queries must be >= 1, got {ways}, {shots} and {queries}")
        if rotations not in ROTATIONS:
            raise ValueError(f"Episodes: unknown rotations {rotations!r}; there are {list(ROTATIONS)}")
        if rotations != "none" and (classes.x.dim() < 3 or classes.x.shape[-1] != classes.x.shape[-2]):
            raise ValueError(f"Episodes: only square images can be rotated, got shape {tuple(classes.x.shape[1:])}")
        self.kinds = len(classes) * (4 if rotations == "class" else 1)
        if ways > self.kinds:
            raise ValueError(f"Episodes: {ways} ways, but {classes.name} has {self.kinds} classes")
        fewest = int(classes.counts.min())
        if shots + queries > fewest:
            name = classes.names[int(classes.counts.argmin())]
            raise ValueError(
                f"Episodes: {shots} shots and {queries} queries, but class {name!r} of {classes.name} has only {fewest}"
            )
        self.classes, self.ways, self.shots, self.queries, self.rotations = classes, ways, shots, queries, rotations
        self.scale = (1 / 255 if classes.x.dtype == torch.uint8 else 1.0) if scale is None else scale

    def sample(self, count: int, generator: torch.Generator) -> Task:
        """Draws ``count`` tasks: x of shape (count, ways * K, ...), y of shape (count, ways * K), sorted by class."""
        if count < 1:
            raise ValueError(f"Episodes: count must be >= 1, got {count}")
        device = self.classes.x.device
        kinds = torch.rand(count, self.kinds, generator=generator).argsort(dim=1)[:, : self.ways]  # (T, N)
        chosen = kinds % len(self.classes)
        each = self.shots + self.queries
        counts = self.classes.counts.cpu()[chosen].unsqueeze(-1)
        order = torch.rand(count, self.ways, int(counts.max()), generator=generator)
        order = order.masked_fill(torch.arange(order.shape[-1]) >= counts, 2.0)
        picked = order.argsort(dim=-1)[..., :each] + self.classes.starts.cpu()[chosen].unsqueeze(-1)  # (T, N, K + Q)
        x = self.classes.x[picked.to(device)].float() * self.scale
        if self.rotations != "none":
            turns = kinds // len(self.classes)
            if self.rotations == "view":
                turns = torch.randint(4, (count, self.ways), generator=generator)
            x = _rotated(x, turns.to(device))
        y = torch.arange(self.ways, device=device).view(1, -1, 1).expand(count, -1, each)
        return Task(self._part(x, y, slice(self.shots)), self._part(x, y, slice(self.shots, each)))

    def _part(self, x: Tensor, y: Tensor, part: slice) -> Batch:
        return Batch(x[:, :, part].flatten(1, 2), y[:, :, part].flatten(1, 2))


def _rotated(x: Tensor, turns: Tensor) -> Tensor:
    """x of shape (T, N, K, ..., S, S), each class turned so many times by 90 degrees."""
    turns = turns.reshape(*turns.shape, *[1] * (x.dim() - 2))
    for turn in range(1, 4):
        x = torch.where(turns == turn, x.rot90(turn, dims=(-2, -1)), x)
    return x
