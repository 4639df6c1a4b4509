"""What lies under one parameter in ``optimizer.state``: the rule's own tensors, and others told apart by their keys."""

from __future__ import annotations

from collections.abc import Mapping

from learned_optim.types import Tensors

GUARD = "guard."
"""Begins the keys of the guard's memory."""
SHARED = "shared."
"""Begins the keys of the network's state, which lies under the first parameter, as with torch's LBFGS."""
SKIPPED = "skipped"
"""The number of steps left out, under the first parameter."""


def of_parameter(entry: Tensors) -> Tensors:
    """What the rule and the guard remember of this parameter."""
    return {key: value for key, value in entry.items() if not _of_network(key)}


def has_begun(entry: Tensors) -> bool:
    """Whether anything is remembered of this parameter."""
    return not all(map(_of_network, entry))


def divided(entries: Mapping[str, Tensors]) -> tuple[dict[str, Tensors], dict[str, Tensors]]:
    """What the rule remembers of each parameter, and what the guard does, where it does, without its prefix."""
    own: dict[str, Tensors] = {}
    guards: dict[str, Tensors] = {}
    places: dict[str, tuple[dict[str, Tensors] | None, str]] = {}
    for name, entry in entries.items():
        own[name] = {}
        for key, value in entry.items():
            if key not in places:  # thousands of parameters have the same few keys
                guard = key.startswith(GUARD)
                part_of = guards if guard else None if _of_network(key) else own
                places[key] = part_of, key.removeprefix(GUARD) if guard else key
            part_of, its_name = places[key]
            if part_of is not None:
                part_of.setdefault(name, {})[its_name] = value
    return own, guards


def part(entry: Tensors, prefix: str) -> Tensors:
    """The tensors whose keys begin with ``prefix``, without it."""
    return {key.removeprefix(prefix): value for key, value in entry.items() if key.startswith(prefix)}


def prefixed(tensors: Tensors, prefix: str) -> Tensors:
    """The inverse of `part`."""
    return {prefix + key: value for key, value in tensors.items()}


def _of_network(key: str) -> bool:
    return key.startswith(SHARED) or key == SKIPPED
