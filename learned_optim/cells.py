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
    # tanh(a) = 2 sigmoid(2 a) - 1, for torch's sigmoid takes far less time than its tanh on CPU: one over the
    # contiguous block of all four gates, and one over the new cell.
    # It is written into what it is taken of, the largest tensor here.
    size = hidden.shape[-1]
    scale = torch.ones(4 * size, dtype=weight.dtype, device=weight.device)
    scale[2 * size : 3 * size] = 2.0
    gates = F.linear(torch.cat((x, hidden), dim=-1), weight * scale.unsqueeze(-1), bias * scale).sigmoid_()
    i, f, g, o = gates.chunk(4, dim=-1)  # (..., H) each
    cell = torch.addcmul(f * cell, i, g - 0.5, value=2.0)
    return torch.addcmul(-o, o, torch.sigmoid(2 * cell), value=2.0), cell


def parameter_cell(
    hidden: Tensor, param: Tensor, grad: Tensor, gates: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """One step of a cell whose state is a parameter and whose candidate is the negative gradient.

    i', f' = sigmoid(W [h, theta, .] + b) with i and f in place of the dot, theta' = f' theta - i' g.

    Args:
        hidden: h, shape (..., H).
        param: theta, shape (...).
        grad: g, shape (...).
        gates: i and f of the step before, shape (..., 2).
        weight: W, shape (2, H + 2), a row for each gate.
        bias: b, shape (2,).

    Returns:
        theta' - theta, shape (...), and the new gates, shape (..., 2).

    Source: Ravi & Larochelle 2017, section 3.1.
    """
    x = torch.cat((hidden, param.unsqueeze(-1)), dim=-1)  # (..., H + 1)
    logits = F.linear(x, weight[:, :-1], bias) + gates * weight[:, -1]  # (..., 2)
    new = torch.sigmoid(logits)
    # f' - 1 = -sigmoid(-a), which loses no digits where f' is near 1.
    return -torch.sigmoid(-logits[..., 1]) * param - new[..., 0] * grad, new


def gru_cell(x: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """One step of a gated recurrent unit.

    r, u = sigmoid(W [x, h] + b), c = tanh(W_c [x, r h] + b_c), h' = u h + (1 - u) c.

    Args:
        x: Inputs, shape (..., F).
        hidden: h, shape (..., H).
        weight: Shape (3 H, F + H): the rows of the gates r and u, then those of the candidate c; the columns of x
            before those of h.
        bias: Shape (3 H,).

    Returns:
        h', shape (..., H).

    Source: Cho et al. 2014, section 2.3. The reset gate r acts on h before the weights; in ``nn.GRUCell`` it acts on
    their product, and has a bias of its own there.
    """
    size, inputs = hidden.shape[-1], x.shape[-1]
    seen = F.linear(x, weight[:, :inputs], bias)  # (..., 3 H)
    gates = torch.sigmoid(seen[..., : 2 * size] + F.linear(hidden, weight[: 2 * size, inputs:]))
    r, u = gates.chunk(2, dim=-1)  # (..., H) each
    c = torch.tanh(seen[..., 2 * size :] + F.linear(r * hidden, weight[2 * size :, inputs:]))
    return u * hidden + (1 - u) * c
