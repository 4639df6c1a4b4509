"""Kernels in Triton. Imported only where there is one. Its compiler takes no annotations but those of constants."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _unit(gate, PRECISION: tl.constexpr):
    """What a gate is multiplied by before `_sigmoid`, or the third one before `_tanh`: it is done to the weights."""
    if PRECISION == "tf32":
        return tl.where(gate == 2, 1.0, 0.5)
    elif PRECISION == "tf32x3":
        return tl.where(gate == 2, 2.8853900817779268, -1.4426950408889634)  # times log2(e)
    else:
        return 1.0


@triton.jit
def _sigmoid(x, PRECISION: tl.constexpr):
    """Of what `_unit` has scaled: by the approximate tanh, by 2^x and 1 / x, or plainly in the interpreter."""
    if PRECISION == "tf32":
        return 0.5 * tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1) + 0.5
    elif PRECISION == "tf32x3":
        power = tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1)
        return tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [1.0 + power], tl.float32, True, 1)
    else:
        return tl.sigmoid(x)


@triton.jit
def _tanh(x, PRECISION: tl.constexpr):
    """Likewise."""
    if PRECISION == "tf32":
        return tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1)
    elif PRECISION == "tf32x3":
        return 1.0 - 2.0 * _sigmoid(x, PRECISION)
    else:
        return 2.0 * tl.sigmoid(2.0 * x) - 1.0


@triton.jit
def _first(weight, bias, gate, units, INPUTS: tl.constexpr, SIZE: tl.constexpr, PRECISION: tl.constexpr):
    """What a gate of the first layer multiplies [h, x, 1] with, shape (UNITS, UNITS), zero where there is nothing. The
    rows of W are in the order i, f, g, o, and its columns of x before those of h."""
    row, k = gate * SIZE + units[None, :], units[:, None]
    column = tl.where(k < SIZE, k + INPUTS, k - SIZE)
    inside = units[None, :] < SIZE
    of_both = tl.load(weight + row * (INPUTS + SIZE) + column, mask=inside & (k < SIZE + INPUTS), other=0.0)
    of_one = tl.load(bias + row, mask=inside & (k == SIZE + INPUTS), other=0.0)
    return (of_both + of_one) * _unit(gate, PRECISION)


@triton.jit
def _second(weight, bias, gate, units, SIZE: tl.constexpr, PRECISION: tl.constexpr):
    """Likewise of the second layer, [x, 1] where x is the h of the first."""
    row, k = gate * SIZE + units[None, :], units[:, None]
    inside = units[None, :] < SIZE
    of_x = tl.load(weight + row * (2 * SIZE) + k, mask=inside & (k < SIZE), other=0.0)
    of_one = tl.load(bias + row, mask=inside & (k == SIZE), other=0.0)
    return (of_x + of_one) * _unit(gate, PRECISION)


@triton.jit
def _recurrent(weight, gate, units, SIZE: tl.constexpr, PRECISION: tl.constexpr):
    """Likewise, h of the second layer itself."""
    row, k = gate * SIZE + units[None, :], units[:, None]
    inside = (units[None, :] < SIZE) & (k < SIZE)
    return tl.load(weight + row * (2 * SIZE) + SIZE + k, mask=inside, other=0.0) * _unit(gate, PRECISION)


@triton.jit
def _cell(i, f, g, o, c, seen, PRECISION: tl.constexpr):
    """The end of `learned_optim.cells.lstm_cell`: h' and c' of scaled gates. Where a coordinate was never seen c is
    zero, and so is what is added to it."""
    cell = _sigmoid(f, PRECISION) * c + _sigmoid(i, PRECISION) * (_tanh(g, PRECISION) * seen[:, None])
    return _sigmoid(o, PRECISION) * _tanh(cell * _unit(2, PRECISION), PRECISION), cell


@triton.jit
def lstm_cells(
    features,
    grad,
    out,
    where,
    hidden_0,
    cell_0,
    hidden_1,
    cell_1,
    weight_0,
    bias_0,
    weight_1,
    bias_1,
    head,
    head_bias,
    shortcut,
    number,
    INPUTS: tl.constexpr,
    SIZE: tl.constexpr,
    UNITS: tl.constexpr,
    LAYERS: tl.constexpr,
    LOG_SIGN: tl.constexpr,
    SHORTCUT: tl.constexpr,
    BOUNDED: tl.constexpr,
    MOVE_UNSEEN: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """What `learned_optim.fused.cells_` says, ``BLOCK`` coordinates at a time; the weights are loaded once.

    ``UNITS``, a power of two, has room for h, x and 1 side by side, so that a gate is one product of matrices.
    """
    units = tl.arange(0, UNITS)
    unit = units[None, :]
    first_i = _first(weight_0, bias_0, 0, units, INPUTS, SIZE, PRECISION)
    first_f = _first(weight_0, bias_0, 1, units, INPUTS, SIZE, PRECISION)
    first_g = _first(weight_0, bias_0, 2, units, INPUTS, SIZE, PRECISION)
    first_o = _first(weight_0, bias_0, 3, units, INPUTS, SIZE, PRECISION)
    if LAYERS == 2:
        second_i, again_i = (
            _second(weight_1, bias_1, 0, units, SIZE, PRECISION),
            _recurrent(weight_1, 0, units, SIZE, PRECISION),
        )
        second_f, again_f = (
            _second(weight_1, bias_1, 1, units, SIZE, PRECISION),
            _recurrent(weight_1, 1, units, SIZE, PRECISION),
        )
        second_g, again_g = (
            _second(weight_1, bias_1, 2, units, SIZE, PRECISION),
            _recurrent(weight_1, 2, units, SIZE, PRECISION),
        )
        second_o, again_o = (
            _second(weight_1, bias_1, 3, units, SIZE, PRECISION),
            _recurrent(weight_1, 3, units, SIZE, PRECISION),
        )
    head_weights = tl.load(head + unit, mask=unit < SIZE, other=0.0)
    constant = tl.load(head_bias)
    finite = tl.load(where).to(tl.int32)

    for block in range(tl.program_id(0), tl.cdiv(number, BLOCK), tl.num_programs(0)):
        rows = block * BLOCK + tl.arange(0, BLOCK).to(tl.int64)
        there = rows < number
        kept = there[:, None] & (unit < SIZE)
        places = rows[:, None] * SIZE + unit
        g = tl.load(grad + rows, mask=there, other=0.0).to(tl.float32)
        h = tl.load(hidden_0 + places, mask=kept, other=0.0).to(tl.float32)
        c = tl.load(cell_0 + places, mask=kept, other=0.0).to(tl.float32)
        seen = tl.full((BLOCK,), 1.0, tl.float32)
        if not MOVE_UNSEEN:
            seen = ((g != 0) | (tl.max(tl.abs(c), axis=1) != 0)).to(tl.float32)
        if LOG_SIGN:
            # `learned_optim.features.log_and_sign` with p = 10
            small = tl.abs(g) < 4.5399929762484854e-05
            log = tl.where(small, -1.0, tl.log(tl.where(small, 1.0, tl.abs(g))) / 10.0)
            sign = tl.where(small, g * 22026.465794806718, tl.where(g > 0, 1.0, -1.0))
            x = tl.where(unit == SIZE, log[:, None], tl.where(unit == SIZE + 1, sign[:, None], 0.0))
        else:
            given = there[:, None] & (unit >= SIZE) & (unit < SIZE + INPUTS)
            x = tl.load(features + rows[:, None] * INPUTS + (unit - SIZE), mask=given, other=0.0)
        straight = tl.zeros((BLOCK,), tl.float32)
        if SHORTCUT:
            inside = (unit >= SIZE) & (unit < SIZE + INPUTS)
            straight = tl.sum(x * tl.load(shortcut + (unit - SIZE), mask=inside, other=0.0), axis=1)

        all = h + x + tl.where(unit == SIZE + INPUTS, 1.0, 0.0)
        i = tl.dot(all, first_i, input_precision=PRECISION)
        f = tl.dot(all, first_f, input_precision=PRECISION)
        a = tl.dot(all, first_g, input_precision=PRECISION)
        o = tl.dot(all, first_o, input_precision=PRECISION)
        h, c = _cell(i, f, a, o, c, seen, PRECISION)
        last, last_c = h, c
        if LAYERS == 2:
            last = tl.load(hidden_1 + places, mask=kept, other=0.0).to(tl.float32)
            last_c = tl.load(cell_1 + places, mask=kept, other=0.0).to(tl.float32)
            all = h + tl.where(unit == SIZE, 1.0, 0.0)
            i = tl.dot(all, second_i, tl.dot(last, again_i, input_precision=PRECISION), input_precision=PRECISION)
            f = tl.dot(all, second_f, tl.dot(last, again_f, input_precision=PRECISION), input_precision=PRECISION)
            a = tl.dot(all, second_g, tl.dot(last, again_g, input_precision=PRECISION), input_precision=PRECISION)
            o = tl.dot(all, second_o, tl.dot(last, again_o, input_precision=PRECISION), input_precision=PRECISION)
            last, last_c = _cell(i, f, a, o, last_c, seen, PRECISION)

        value = tl.sum(last * head_weights, axis=1) + constant + straight
        if BOUNDED:
            value = _tanh(value * _unit(2, PRECISION), PRECISION)
        value = value * seen
        tl.store(out + rows, value, mask=there)

        # Nothing is written of a step that is left out, nor where an output is not finite.
        lost = tl.max(tl.where(there & ~(tl.abs(value) < float("inf")), 1, 0), axis=0)
        kept = kept & (rows[:, None] < number * finite * (1 - lost))
        tl.store(hidden_0 + places, h.to(hidden_0.dtype.element_ty), mask=kept)
        tl.store(cell_0 + places, c.to(cell_0.dtype.element_ty), mask=kept)
        if LAYERS == 2:
            tl.store(hidden_1 + places, last.to(hidden_1.dtype.element_ty), mask=kept)
            tl.store(cell_1 + places, last_c.to(cell_1.dtype.element_ty), mask=kept)
