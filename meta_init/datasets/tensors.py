"""Your own labelled examples: tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from meta_init.datasets.classes import Classes


def tensor_classes(name: str, x: Tensor, y: Tensor, names: Sequence[str] | None = None) -> Classes:
    """Examples sorted into classes by their labels; those of a class keep their order.

    Args:
        name: What they are, for reports.
        x: Examples, shape (N, ...), of any dtype.
        y: Their labels, shape (N,), integers >= 0.
        names: Of the classes: label i is of class ``names[i]``. By default the labels that occur, as text.

    Raises:
        ValueError: There is no example, the lengths differ, the labels are no integers or out of range, or a named
            class has no example.

    >>> tensor_classes("numbers", torch.tensor([1.0, 2.0, 3.0]), torch.tensor([7, 0, 7])).names
    ('0', '7')
    """
    if y.dim() != 1 or y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise ValueError(f"tensor_classes: y must be integer labels of shape (N,), got {y.dtype} of {tuple(y.shape)}")
    if x.dim() < 1 or len(x) != len(y) or not len(y):
        raise ValueError(
            f"tensor_classes: x and y must have the same length >= 1, got shapes {tuple(x.shape)} and {tuple(y.shape)}"
        )
    y = y.long()
    low, high = int(y.min()), int(y.max())
    if low < 0 or (names is not None and high >= len(names)):
        allowed = "at least 0" if names is None else f"from 0 to {len(names) - 1}, as there are {len(names)} names"
        raise ValueError(f"tensor_classes: the labels of {name} must be {allowed}, got {low} to {high}")
    counts = dict(sorted(Counter(y.tolist()).items()))
    if names is not None and len(counts) < len(names):
        missing = min(set(range(len(names))) - set(counts))
        raise ValueError(f"tensor_classes: class {names[missing]!r} of {name} has no example; take it out of the names")
    chosen = [str(label) for label in counts] if names is None else names
    return Classes(name, x[y.argsort(stable=True).to(x.device)], chosen, list(counts.values()))
