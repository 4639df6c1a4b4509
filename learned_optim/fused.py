"""The cells of an LSTM rule in one kernel for GPUs, which moves the state once through memory."""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from learned_optim.types import Tensors

LAYERS, ROOM = 2, 32
"""Up to so many layers, and so many hidden values, inputs and a one side by side: more weights do not fit into the
memory of a multiprocessor."""

MOST = 2**31 - 1024
"""Coordinates of a tensor, which are counted in 32 bits."""


class Shape(NamedTuple):
    """How the kernel is laid out.

    Attributes:
        block: Coordinates at a time.
        warps: Of a program.
        stages: Of the loop over blocks.
        programs: For each multiprocessor; each takes many blocks with the weights that it has loaded.
        shared: Bytes of a multiprocessor's memory that a program needs.
    """

    block: int
    warps: int
    stages: int
    programs: int
    shared: int = 0


SHAPES = {"tf32": Shape(32, 2, 1, 4, 57344), "tf32x3": Shape(64, 4, 1, 16, 114688), "ieee": Shape(64, 4, 1, 4)}
"""By the precision of the products, the fastest that were measured on an H200; ``"ieee"`` is for the interpreter."""


@functools.cache
def _kernel() -> Any:
    """The kernel, or None where there is no Triton: it comes with torch for CUDA."""
    if importlib.util.find_spec("triton") is None:
        return None
    from learned_optim.kernels import lstm_cells

    return lstm_cells


def fusible(rule: Any, grads: Tensors, per_param: dict[str, Tensors]) -> bool:
    """Whether `cells_` can take this step: eagerly, on NVIDIA's GPUs since Ampere, with ordinary contiguous tensors;
    or anywhere, slowly, where the environment asks Triton for its interpreter.

    Args:
        rule: An `LSTMRule` that looks at coordinates alone.
        grads: By parameter name.
        per_param: The state of each.
    """
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or rule.scope != "coordinate":
        return False
    if rule.num_layers > LAYERS or _room(rule) > ROOM or rule.head.weight.dtype != torch.float32:
        return False
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    return (
        all(type(grad) is Tensor and (_able(grad.device) or interpreted) for grad in grads.values())
        and all(grad.numel() < MOST for grad in grads.values())
        and all(tensor.is_contiguous() for name in grads for tensor in per_param[name].values())
        and _kernel() is not None
    )


def cells_(rule: Any, features: Tensor | None, grad: Tensor, state: Tensors, where: Tensor) -> Tensor:
    """What follows the features in `LSTMRule`: layers, head, shortcut and bound. Tested equal to it.

    On a GPU it is as exact as torch's own LSTM there: by TensorFloat-32, with an approximate tanh, unless
    ``torch.backends.cudnn.allow_tf32`` is switched off; then within rounding of float32, in more than twice the time.

    Args:
        rule: The rule.
        features: Its inputs, shape ``grad.shape + (F,)``; None for `log_and_sign`, which the kernel computes itself.
        grad: The gradient.
        state: Of the parameter; hidden and cell values are written in place.
        where: Whether they are, a 0-dimensional bool tensor on the device. They are not where an output of the same
            block of coordinates is not finite either.

    Returns:
        The output before it is scaled, of the shape of ``grad``.
    """
    number, size = grad.numel(), rule.hidden_size
    out = torch.empty(grad.shape, dtype=torch.float32, device=grad.device)
    if not number:
        return out
    layers = rule.num_layers
    first, last = 0, layers - 1  # of a single layer the second one's tensors are never looked at
    kept = [state[f"{what}_{i}"] for i in (first, last) for what in ("hidden", "cell")]
    weights: Sequence[Tensor] = [tensor for i in (first, last) for tensor in (rule.weights[i], rule.biases[i])]
    precision = _precision() if grad.is_cuda else "ieee"
    shape = SHAPES[precision]
    blocks = (number + shape.block - 1) // shape.block
    _kernel()[(min(blocks, shape.programs * _multiprocessors(grad.device)),)](
        grad if features is None else features.contiguous(),
        grad.contiguous(),
        out,
        where,
        *kept,
        *weights,
        rule.head.weight,
        rule.head.bias,
        rule.head.bias if rule.shortcut is None else rule.shortcut,
        number,
        INPUTS=rule.weights[0].shape[1] - size,
        SIZE=size,
        UNITS=_room(rule),
        LAYERS=layers,
        LOG_SIGN=features is None,
        SHORTCUT=rule.shortcut is not None,
        BOUNDED=rule.bounded,
        MOVE_UNSEEN=rule.move_unseen,
        PRECISION=precision,
        BLOCK=shape.block,
        num_warps=shape.warps,
        num_stages=shape.stages,
        enable_fp_fusion=True,
    )
    return out


def _able(device: torch.device) -> bool:
    return device.type == "cuda" and _shared(device) >= SHAPES[_precision()].shared


@functools.cache
def _shared(device: torch.device) -> int:
    """Bytes of memory that a program may have on a multiprocessor that multiplies matrices so; 0 on others."""
    if torch.version.cuda is None or torch.cuda.get_device_capability(device) < (8, 0):
        return 0
    return int(getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", 0))


def _precision() -> str:
    rnn = getattr(torch.backends.cudnn, "rnn", None)  # newer torch tells recurrent networks from convolutions
    fast = rnn.fp32_precision == "tf32" if rnn else torch.backends.cudnn.allow_tf32
    return "tf32" if fast else "tf32x3"


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def _room(rule: Any) -> int:
    """The smallest power of two that holds h, x and 1 side by side, and that Triton multiplies matrices of."""
    return max(16, 1 << int(rule.weights[0].shape[1]).bit_length())
