"""Kernels in Triton. Imported only where there is one."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl


@triton.jit
def _gate(x: Any, h: Any, weight: Any, bias: Any, gate: Any, inputs: Any, size: Any, columns: Any, units: Any) -> Any:
    """W [x, h] + b of one gate, shape (BLOCK, UNITS); rows of W in the order i, f, g, o."""
    row = (gate * size + units[None, :]) * (inputs + size)
    inside = units[None, :] < size
    of_x = tl.load(weight + row + columns[:, None], mask=inside & (columns[:, None] < inputs), other=0.0)
    of_h = tl.load(weight + row + inputs + units[:, None], mask=inside & (units[:, None] < size), other=0.0)
    sums = tl.dot(x, of_x, input_precision="ieee") + tl.dot(h, of_h, input_precision="ieee")
    return sums + tl.load(bias + gate * size + units, mask=units < size, other=0.0)[None, :]


@triton.jit
def _layer(x: Any, h: Any, c: Any, weight: Any, bias: Any, inputs: Any, size: Any, columns: Any, units: Any) -> Any:
    """`learned_optim.cells.lstm_cell`: h' and c', shape (BLOCK, UNITS) each, zero beyond ``size``."""
    i = tl.sigmoid(_gate(x, h, weight, bias, 0, inputs, size, columns, units))
    f = tl.sigmoid(_gate(x, h, weight, bias, 1, inputs, size, columns, units))
    g = 2 * tl.sigmoid(2 * _gate(x, h, weight, bias, 2, inputs, size, columns, units)) - 1
    o = tl.sigmoid(_gate(x, h, weight, bias, 3, inputs, size, columns, units))
    cell = f * c + i * g
    return o * (2 * tl.sigmoid(2 * cell) - 1), cell


@triton.jit
def lstm_cells(
    features: Any,
    grad: Any,
    out: Any,
    where: Any,
    hidden_0: Any,
    cell_0: Any,
    hidden_1: Any,
    cell_1: Any,
    weight_0: Any,
    bias_0: Any,
    weight_1: Any,
    bias_1: Any,
    head: Any,
    head_bias: Any,
    shortcut: Any,
    number: Any,
    inputs: Any,
    size: Any,
    INPUTS: tl.constexpr,  # Triton's constants are written so
    UNITS: tl.constexpr,
    LAYERS: tl.constexpr,
    SHORTCUT: tl.constexpr,
    BOUNDED: tl.constexpr,
    MOVE_UNSEEN: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """What `learned_optim.fused.cells_` says, for ``BLOCK`` coordinates."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    columns, units = tl.arange(0, INPUTS), tl.arange(0, UNITS)
    there = rows < number
    kept = there[:, None] & (units[None, :] < size)
    places = rows[:, None] * size + units[None, :]

    given = there[:, None] & (columns[None, :] < inputs)
    x = tl.load(features + rows[:, None] * inputs + columns[None, :], mask=given, other=0.0)
    h0 = tl.load(hidden_0 + places, mask=kept, other=0.0).to(tl.float32)
    c0 = tl.load(cell_0 + places, mask=kept, other=0.0).to(tl.float32)
    seen = tl.full((BLOCK,), 1.0, tl.float32)
    if not MOVE_UNSEEN:
        moved = tl.load(grad + rows, mask=there, other=0.0) != 0
        seen = (moved | (tl.max(tl.abs(c0), axis=1) != 0)).to(tl.float32)

    h0, c0 = _layer(x, h0, c0, weight_0, bias_0, inputs, size, columns, units)
    h0, c0 = h0 * seen[:, None], c0 * seen[:, None]
    h1, c1 = h0, c0
    if LAYERS == 2:
        h1 = tl.load(hidden_1 + places, mask=kept, other=0.0).to(tl.float32)
        c1 = tl.load(cell_1 + places, mask=kept, other=0.0).to(tl.float32)
        h1, c1 = _layer(h0, h1, c1, weight_1, bias_1, size, size, units, units)
        h1, c1 = h1 * seen[:, None], c1 * seen[:, None]

    head_weights = tl.load(head + units, mask=units < size, other=0.0)
    value = tl.sum(h1 * head_weights[None, :], axis=1) + tl.load(head_bias)
    if SHORTCUT:
        value += tl.sum(x * tl.load(shortcut + columns, mask=columns < inputs, other=0.0)[None, :], axis=1)
    if BOUNDED:
        value = 2 * tl.sigmoid(2 * value) - 1
    value = value * seen
    tl.store(out + rows, value, mask=there)

    # Nothing is written of a step that is left out, nor where an output is not finite.
    lost = tl.max(tl.where(there & ~(tl.abs(value) < float("inf")), 1, 0), axis=0)
    end = number * tl.load(where).to(tl.int32) * (1 - lost)
    kept = (rows[:, None] < end) & (units[None, :] < size)
    tl.store(hidden_0 + places, h0.to(hidden_0.dtype.element_ty), mask=kept)
    tl.store(cell_0 + places, c0.to(cell_0.dtype.element_ty), mask=kept)
    if LAYERS == 2:
        tl.store(hidden_1 + places, h1.to(hidden_1.dtype.element_ty), mask=kept)
        tl.store(cell_1 + places, c1.to(cell_1.dtype.element_ty), mask=kept)
