"""What lies under one parameter in ``optimizer.state``: the rule's own tensors, and others told apart by their keys."""

from __future__ import annotations

from learned_optim.types import Tensors

GUARD = "guard."
"""Begins the keys of the guard's memory."""
SHARED = "shared."
"""Begins the keys of the network's state, which lies under the first parameter, as with torch's LBFGS."""
SKIPPED = "skipped"
"""The number of steps left out, under the first parameter."""


def of_parameter(entry: Tensors) -> Tensors:
    """What the rule and the guard remember of this parameter."""
    return {key: value for key, value in entry.items() if not key.startswith(SHARED) and key != SKIPPED}


def own(entry: Tensors) -> Tensors:
    """What the rule remembers of this parameter."""
    return {key: value for key, value in of_parameter(entry).items() if not key.startswith(GUARD)}


def part(entry: Tensors, prefix: str) -> Tensors:
    """The tensors whose keys begin with ``prefix``, without it."""
    return {key.removeprefix(prefix): value for key, value in entry.items() if key.startswith(prefix)}


def prefixed(tensors: Tensors, prefix: str) -> Tensors:
    """The inverse of `part`."""
    return {prefix + key: value for key, value in tensors.items()}
