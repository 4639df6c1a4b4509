"""Kernels in Triton. Imported only where there is one."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl


@triton.jit
def _sigmoid(x: Any, FAST: tl.constexpr) -> Any:  # Triton's constants are written so
    if FAST:
        half = tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [0.5 * x], tl.float32, True, 1)
        return 0.5 * half + 0.5
    return tl.sigmoid(x)


@triton.jit
def _tanh(x: Any, FAST: tl.constexpr) -> Any:
    if FAST:
        return tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1)
    return 2 * tl.sigmoid(2 * x) - 1


@triton.jit
def _matrix(
    weight: Any, gate: Any, first: Any, count: Any, width: Any, columns: Any, units: Any, SIZE: tl.constexpr
) -> Any:
    """The part of W^T for one gate and ``count`` inputs from ``first`` on, shape (columns, units), zero beyond them.
    The rows of W are in the order i, f, g, o and have ``width`` columns."""
    places = (gate * SIZE + units[None, :]) * width + first + columns[:, None]
    return tl.load(weight + places, mask=(units[None, :] < SIZE) & (columns[:, None] < count), other=0.0)


@triton.jit
def _bias(bias: Any, gate: Any, units: Any, SIZE: tl.constexpr) -> Any:
    return tl.load(bias + gate * SIZE + units, mask=units < SIZE, other=0.0)[None, :]


@triton.jit
def _cell(i: Any, f: Any, g: Any, o: Any, c: Any, FAST: tl.constexpr) -> Any:
    """The end of `learned_optim.cells.lstm_cell`: h' and c' of gates before their sigmoids and tanh."""
    cell = _sigmoid(f, FAST) * c + _sigmoid(i, FAST) * _tanh(g, FAST)
    return _sigmoid(o, FAST) * _tanh(cell, FAST), cell


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
    INPUTS: tl.constexpr,
    SIZE: tl.constexpr,
    COLUMNS: tl.constexpr,
    UNITS: tl.constexpr,
    LAYERS: tl.constexpr,
    LOG_SIGN: tl.constexpr,
    SHORTCUT: tl.constexpr,
    BOUNDED: tl.constexpr,
    MOVE_UNSEEN: tl.constexpr,
    PRECISION: tl.constexpr,
    FAST: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """What `learned_optim.fused.cells_` says, ``BLOCK`` coordinates at a time; the weights are loaded once."""
    columns, units = tl.arange(0, COLUMNS), tl.arange(0, UNITS)
    ones = tl.arange(0, 1)
    wide_0: tl.constexpr = INPUTS + SIZE
    wide_1: tl.constexpr = 2 * SIZE

    hi = _matrix(weight_0, 0, INPUTS, SIZE, wide_0, units, units, SIZE)
    hf = _matrix(weight_0, 1, INPUTS, SIZE, wide_0, units, units, SIZE)
    hg = _matrix(weight_0, 2, INPUTS, SIZE, wide_0, units, units, SIZE)
    ho = _matrix(weight_0, 3, INPUTS, SIZE, wide_0, units, units, SIZE)
    bi, bf = _bias(bias_0, 0, units, SIZE), _bias(bias_0, 1, units, SIZE)
    bg, bo = _bias(bias_0, 2, units, SIZE), _bias(bias_0, 3, units, SIZE)
    if LAYERS == 2:
        li = _matrix(weight_1, 0, 0, SIZE, wide_1, units, units, SIZE)
        lf = _matrix(weight_1, 1, 0, SIZE, wide_1, units, units, SIZE)
        lg = _matrix(weight_1, 2, 0, SIZE, wide_1, units, units, SIZE)
        lo = _matrix(weight_1, 3, 0, SIZE, wide_1, units, units, SIZE)
        mi = _matrix(weight_1, 0, SIZE, SIZE, wide_1, units, units, SIZE)
        mf = _matrix(weight_1, 1, SIZE, SIZE, wide_1, units, units, SIZE)
        mg = _matrix(weight_1, 2, SIZE, SIZE, wide_1, units, units, SIZE)
        mo = _matrix(weight_1, 3, SIZE, SIZE, wide_1, units, units, SIZE)
        ci, cf = _bias(bias_1, 0, units, SIZE), _bias(bias_1, 1, units, SIZE)
        cg, co = _bias(bias_1, 2, units, SIZE), _bias(bias_1, 3, units, SIZE)
    head_weights = tl.load(head + units, mask=units < SIZE, other=0.0)[None, :]
    constant = tl.load(head_bias)
    finite = tl.load(where).to(tl.int32)

    for block in range(tl.program_id(0), tl.cdiv(number, BLOCK), tl.num_programs(0)):
        rows = block * BLOCK + tl.arange(0, BLOCK).to(tl.int64)
        there = rows < number
        kept = there[:, None] & (units[None, :] < SIZE)
        places = rows[:, None] * SIZE + units[None, :]
        g = tl.load(grad + rows, mask=there, other=0.0).to(tl.float32)
        h0 = tl.load(hidden_0 + places, mask=kept, other=0.0).to(tl.float32)
        c0 = tl.load(cell_0 + places, mask=kept, other=0.0).to(tl.float32)
        h1, c1 = h0, c0
        if LAYERS == 2:
            h1 = tl.load(hidden_1 + places, mask=kept, other=0.0).to(tl.float32)
            c1 = tl.load(cell_1 + places, mask=kept, other=0.0).to(tl.float32)
        seen = tl.full((BLOCK,), 1.0, tl.float32)
        if not MOVE_UNSEEN:
            seen = ((g != 0) | (tl.max(tl.abs(c0), axis=1) != 0)).to(tl.float32)

        i = tl.dot(h0, hi, input_precision=PRECISION) + bi
        f = tl.dot(h0, hf, input_precision=PRECISION) + bf
        a = tl.dot(h0, hg, input_precision=PRECISION) + bg
        o = tl.dot(h0, ho, input_precision=PRECISION) + bo
        straight = tl.zeros((BLOCK,), tl.float32)
        if LOG_SIGN:
            # `learned_optim.features.log_and_sign` with p = 10
            small = tl.abs(g) < 4.5399929762484854e-05
            log = tl.where(small, -1.0, tl.log(tl.where(small, 1.0, tl.abs(g))) / 10.0)
            sign = tl.where(small, g * 22026.465794806718, tl.where(g > 0, 1.0, -1.0))
            i += log[:, None] * _matrix(weight_0, 0, 0, 1, wide_0, ones, units, SIZE)
            f += log[:, None] * _matrix(weight_0, 1, 0, 1, wide_0, ones, units, SIZE)
            a += log[:, None] * _matrix(weight_0, 2, 0, 1, wide_0, ones, units, SIZE)
            o += log[:, None] * _matrix(weight_0, 3, 0, 1, wide_0, ones, units, SIZE)
            i += sign[:, None] * _matrix(weight_0, 0, 1, 1, wide_0, ones, units, SIZE)
            f += sign[:, None] * _matrix(weight_0, 1, 1, 1, wide_0, ones, units, SIZE)
            a += sign[:, None] * _matrix(weight_0, 2, 1, 1, wide_0, ones, units, SIZE)
            o += sign[:, None] * _matrix(weight_0, 3, 1, 1, wide_0, ones, units, SIZE)
            if SHORTCUT:
                straight = log * tl.load(shortcut) + sign * tl.load(shortcut + 1)
        else:
            given = there[:, None] & (columns[None, :] < INPUTS)
            x = tl.load(features + rows[:, None] * INPUTS + columns[None, :], mask=given, other=0.0)
            i += tl.dot(x, _matrix(weight_0, 0, 0, INPUTS, wide_0, columns, units, SIZE), input_precision=PRECISION)
            f += tl.dot(x, _matrix(weight_0, 1, 0, INPUTS, wide_0, columns, units, SIZE), input_precision=PRECISION)
            a += tl.dot(x, _matrix(weight_0, 2, 0, INPUTS, wide_0, columns, units, SIZE), input_precision=PRECISION)
            o += tl.dot(x, _matrix(weight_0, 3, 0, INPUTS, wide_0, columns, units, SIZE), input_precision=PRECISION)
            if SHORTCUT:
                weights = tl.load(shortcut + columns, mask=columns < INPUTS, other=0.0)[None, :]
                straight = tl.sum(x * weights, axis=1)
        h0, c0 = _cell(i, f, a, o, c0, FAST)
        h0, c0 = h0 * seen[:, None], c0 * seen[:, None]
        last = h0
        if LAYERS == 2:
            i = tl.dot(h0, li, input_precision=PRECISION) + tl.dot(h1, mi, input_precision=PRECISION) + ci
            f = tl.dot(h0, lf, input_precision=PRECISION) + tl.dot(h1, mf, input_precision=PRECISION) + cf
            a = tl.dot(h0, lg, input_precision=PRECISION) + tl.dot(h1, mg, input_precision=PRECISION) + cg
            o = tl.dot(h0, lo, input_precision=PRECISION) + tl.dot(h1, mo, input_precision=PRECISION) + co
            h1, c1 = _cell(i, f, a, o, c1, FAST)
            h1, c1 = h1 * seen[:, None], c1 * seen[:, None]
            last = h1

        value = tl.sum(last * head_weights, axis=1) + constant + straight
        if BOUNDED:
            value = _tanh(value, FAST)
        value = value * seen
        tl.store(out + rows, value, mask=there)

        # Nothing is written of a step that is left out, nor where an output is not finite.
        lost = tl.max(tl.where(there & ~(tl.abs(value) < float("inf")), 1, 0), axis=0)
        kept = kept & (rows[:, None] < number * finite * (1 - lost))
        tl.store(hidden_0 + places, h0.to(hidden_0.dtype.element_ty), mask=kept)
        tl.store(cell_0 + places, c0.to(cell_0.dtype.element_ty), mask=kept)
        if LAYERS == 2:
            tl.store(hidden_1 + places, h1.to(hidden_1.dtype.element_ty), mask=kept)
            tl.store(cell_1 + places, c1.to(cell_1.dtype.element_ty), mask=kept)
