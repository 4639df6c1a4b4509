"""Updates into parameters, in place."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from learned_optim.rule import apply_updates
from learned_optim.together import as_one, small_together
from learned_optim.types import Scalar, Tensors

_ALL = "all"


def move_(
    params: Tensors,
    updates: Tensors,
    *,
    lr: Mapping[str, Scalar],
    weight_decay: Mapping[str, Scalar],
    finite: Tensor,
) -> None:
    """`apply_updates` in place, where ``finite``, a 0-dimensional bool tensor.

    Args:
        params: By name; they are written.
        updates: One for each.
        lr: See `apply_updates`; tensors whose options are the same objects go together.
        weight_decay: Likewise.
        finite: Where it is False nothing moves.
    """
    for names in small_together(params, lambda name: (updates[name].dtype, id(lr[name]), id(weight_decay[name]))):
        owners = [params[name] for name in names]
        theta, u = as_one(owners), as_one(updates[name] for name in names)
        moved = apply_updates({_ALL: theta}, {_ALL: u}, lr=lr[names[0]], weight_decay=weight_decay[names[0]])[_ALL]
        moved = torch.where(finite.to(theta.device), moved, theta)
        if len(owners) == 1:
            owners[0].copy_(moved)
            continue
        parts = torch.split(moved, [p.numel() for p in owners])
        shaped = [part if p.dim() == 1 else part.view(p.shape) for p, part in zip(owners, parts, strict=True)]
        torch._foreach_copy_(owners, shaped)
