"""The options of a parameter group: which there are, and what they may be."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from learned_optim.types import Scalar

OPTIONS = ("lr", "weight_decay", "maximize")
_UNSUPPORTED = ("foreach", "fused", "capturable", "differentiable")


def check_options(group: Mapping[str, Any], whose: str) -> None:
    """Refuses a group with a rate that is no finite number >= 0, or with a flag of implementations that there are not.

    Raises:
        ValueError: What is wrong; it begins with ``whose``.
    """
    for option in ("lr", "weight_decay"):
        value = group[option]
        if isinstance(value, Tensor) and value.numel() != 1:
            raise ValueError(f"{whose}: Tensor {option} must be 1-element, got one of shape {tuple(value.shape)}")
        if not _is_rate(value):
            raise ValueError(f"{whose}: {option} must be a finite number >= 0, got {value!r}")
    if not isinstance(group["maximize"], bool):
        raise ValueError(f"{whose}: maximize must be True or False, got {group['maximize']!r}")
    for flag in _UNSUPPORTED:
        if group.get(flag):
            raise ValueError(f"{whose}: {flag}={group[flag]!r} is not supported; leave it out")


def _is_rate(value: Any) -> bool:
    if isinstance(value, Tensor):
        return not (value.is_meta or value.is_complex()) and 0 <= float(value) < math.inf
    return isinstance(value, (int, float)) and 0 <= value <= sys.float_info.max


def number(value: Scalar) -> Scalar:
    """A tensor of one element without its dimensions."""
    return value.reshape(()) if isinstance(value, Tensor) else value
