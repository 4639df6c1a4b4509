"""Recurrent cells as pure functions.

``nn.LSTMCell`` has no batching rule for vmap on CPU, so the arithmetic is written out. It runs everywhere, under every
transform, and equals ``nn.LSTMCell`` to rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def lstm_cell(x: Tensor, hidden: Tensor, cell: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """One step of a long short-term memory cell.

    i, f, o = sigmoid(W [x, h] + b), g = tanh(W [x, h] + b), c' = f c + i g, h' = o tanh(c').

    Args:
        x: Inputs, shape (..., F).
        hidden: h, shape (..., H).
        cell: c, shape (..., H).
        weight: Shape (4 H, F + H), the gates in torch's order i, f, g, o; the columns of x before those of h.
        bias: Shape (4 H,). torch's two biases always appear summed; this is their sum.

    Returns:
        h' and c', shape (..., H) each.

    Source: Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000.
    """
    # tanh(a) = 2 sigmoid(2 a) - 1: one sigmoid over the contiguous block of all four gates is several times faster on
    # CPU than four functions over its strided quarters.
    scale = weight.new_tensor((1.0, 1.0, 2.0, 1.0)).repeat_interleave(hidden.shape[-1])  # (4 H,)
    gates = torch.sigmoid(F.linear(torch.cat((x, hidden), dim=-1), weight * scale.unsqueeze(-1), bias * scale))
    i, f, g, o = gates.chunk(4, dim=-1)  # (..., H) each
    cell = f * cell + i * (2 * g - 1)
    return o * torch.tanh(cell), cell
