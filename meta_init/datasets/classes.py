"""Examples in classes, held as one tensor, and their division into classes to train, validate and test on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


class Classes:
    """Examples sorted by class, on one device.

    Args:
        name: What they are, for reports.
        x: Examples, shape (N, ...), of any dtype; those of a class next to each other.
        names: The classes' names, in the order of their examples, C of them.
        counts: How many examples each class has.

    Raises:
        ValueError: The counts do not add up to N, there is no class, or a name stands twice.
    """

    def __init__(self, name: str, x: Tensor, names: Sequence[str], counts: Sequence[int]) -> None:
        if not names or len(names) != len(counts) or min(counts) < 1 or sum(counts) != len(x):
            raise ValueError(
                f"Classes: {len(names)} names and {len(counts)} counts, each >= 1, must add up to {len(x)} examples; "
                f"the counts add up to {sum(counts)}"
            )
        twice = sorted({one for one in names if list(names).count(one) > 1}) if len(set(names)) < len(names) else []
        if twice:
            raise ValueError(f"Classes: there are several classes of the name {twice[0]!r}")
        self.name, self.x, self.names = name, x, tuple(names)
        self.counts = torch.tensor(counts, device=x.device)
        self.starts = self.counts.cumsum(0) - self.counts

    def __len__(self) -> int:
        return len(self.names)

    def to(self, device: torch.device | str) -> Classes:
        """The same on another device."""
        return Classes(self.name, self.x.to(device), self.names, self.counts.tolist())

    def select(self, chosen: Sequence[int], name: str | None = None) -> Classes:
        """Some of the classes, by number.

        Raises:
            ValueError: A number is out of range or stands twice.
        """
        if len(set(chosen)) != len(chosen) or not all(0 <= i < len(self) for i in chosen):
            raise ValueError(f"Classes: chosen must be different numbers below {len(self)}, got {list(chosen)!r:.100}")
        starts, counts = self.starts.tolist(), self.counts.tolist()
        x = torch.cat([self.x[starts[i] : starts[i] + counts[i]] for i in chosen])
        return Classes(name or self.name, x, [self.names[i] for i in chosen], [counts[i] for i in chosen])


def split_classes(
    classes: Classes, parts: Mapping[str, int | Sequence[str]], *, seed: int | None = 0
) -> dict[str, Classes]:
    """Divides classes into disjoint parts, such as those to train, validate and test on.

    Args:
        classes: What to divide.
        parts: For each part either how many classes it gets, drawn under ``seed``, or their names.
        seed: Of the draw; with None they are taken in their order. The first part gets the first ones.

    Raises:
        ValueError: A part is neither a number nor names, there are not enough classes, a name is unknown, or a class
            is in two parts.
    """
    for part, content in parts.items():
        if isinstance(content, (bool, float, str)) or not (isinstance(content, int) or len(content)):
            raise ValueError(
                f"split_classes: part {part!r} must be a number of classes or a list of names, got {content!r}"
            )
    numbers = {name: i for i, name in enumerate(classes.names)}
    named = [(part, one) for part, content in parts.items() if not isinstance(content, int) for one in content]
    taken: dict[str, str] = {}
    for part, one in named:
        if one not in numbers:
            raise ValueError(f"split_classes: {classes.name} has no class {one!r}, which {part!r} names")
        if one in taken:
            raise ValueError(f"split_classes: class {one!r} is in both {taken[one]!r} and {part!r}")
        taken[one] = part
    order = range(len(classes)) if seed is None else _permuted(len(classes), seed)
    free = [i for i in order if classes.names[i] not in taken]
    needed = sum(content for content in parts.values() if isinstance(content, int))
    if needed > len(free) or any(isinstance(content, int) and content < 1 for content in parts.values()):
        raise ValueError(f"split_classes: parts of {dict(parts)!r:.100} from {len(free)} classes of {classes.name}")
    result = {}
    for part, content in parts.items():
        if isinstance(content, int):
            chosen, free = free[:content], free[content:]
        else:
            chosen = [numbers[one] for one in content]
        result[part] = classes.select(chosen, f"{classes.name}, {part}")
    return result


def _permuted(count: int, seed: int) -> list[int]:
    permuted: list[int] = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    return permuted
