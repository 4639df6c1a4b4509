"""The derivatives of a function backwards, inside torch.func's transforms and outside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from learned_optim.eager import transformed

Pullback: TypeAlias = Callable[[Sequence[Tensor]], tuple[Tensor, ...]]
"""``pullback(cotangents)``: for each output one cotangent in, for each input one out; zeros where nothing flows."""


def vjp(function: Callable[..., Sequence[Tensor]], *primals: Tensor) -> tuple[Sequence[Tensor], Pullback]:
    """``torch.func.vjp`` of a function of tensors that returns several.

    Where it may it goes by plain autograd, without the wrappers of torch.func, which cost small networks more than
    their arithmetic.
    """
    recording = torch.is_grad_enabled()
    if transformed() or not all(_plain(primal, recording) for primal in primals):
        return _by_transform(function, *primals)
    with torch.enable_grad():
        at = _starts(primals, recording)
        outputs = function(*at)

    def pullback(cotangents: Sequence[Tensor]) -> tuple[Tensor, ...]:
        flowing = [pair for pair in zip(outputs, cotangents, strict=True) if pair[0].requires_grad]
        if not flowing:
            return tuple(torch.zeros_like(primal) for primal in primals)
        return torch.autograd.grad(
            [output for output, _ in flowing], at, [value for _, value in flowing],
            create_graph=torch.is_grad_enabled(), retain_graph=recording, materialize_grads=True,
        )  # fmt: skip

    return (outputs if recording else [output.detach() for output in outputs]), pullback


def _starts(primals: Sequence[Tensor], recording: bool) -> list[Tensor]:
    """Each primal again, where its derivative is to end: not at what it was made from, nor at its like among them.

    Without a record of what they were made from a leaf stands for itself, so that functions that have captured it need
    not be given another; unless it has hooks, which are for the gradients of others.
    """
    if recording:
        return [primal.view_as(primal) for primal in primals]
    starts: list[Tensor] = []
    for primal in primals:
        itself = primal.requires_grad and primal.is_leaf and not primal._backward_hooks
        if itself and all(primal is not start for start in starts):
            starts.append(primal)
        else:
            starts.append(primal.detach().requires_grad_())
    return starts


def _by_transform(function: Callable[..., Sequence[Tensor]], *primals: Tensor) -> tuple[Sequence[Tensor], Pullback]:
    outputs, pullback = torch.func.vjp(lambda *at: list(function(*at)), *primals)[:2]
    return outputs, lambda cotangents: pullback(list(cotangents))


def _plain(primal: Tensor, recording: bool) -> bool:
    """Whether autograd gives what the transform gives.

    It must not put a graph where there would be none, and a tangent of forward mode must not be lost; in inference mode
    it is off.
    """
    if torch.is_inference_mode_enabled() or primal.is_inference():
        return False
    tangent = unpack_dual(primal).tangent  # type: ignore[no-untyped-call]  # torch leaves it without types
    return (primal.requires_grad or not recording) and tangent is None
