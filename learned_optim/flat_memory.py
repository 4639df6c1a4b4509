"""Steps of an unroll that are recomputed in the backward pass instead of being remembered."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.overrides import _get_current_function_mode_stack
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from learned_optim.captured import Captured
from learned_optim.pullback import vjp
from learned_optim.types import LossFn, Minibatch, RuleState, Tensors

ValueAndGrad: TypeAlias = Callable[[LossFn, Tensors, tuple[Minibatch, ...]], tuple[Tensor, Tensors]]
"""``value_and_grad(loss_fn, params, arguments)``."""

Advance: TypeAlias = Callable[[Tensors, RuleState, Tensors], tuple[Tensors, RuleState]]
"""``advance(params, state, grads)``: the parameters and the state after a step."""

AT_ONCE = 10
"""Steps between what is kept, unless one asks for another number.

Ten graphs are held at once, and a tenth of the boundaries. A stretch costs time of its own, which ten steps share.
"""

Held: TypeAlias = tuple[list[Tensor], list[Tensor]]
"""What the loss and the rest of the step capture."""


class FlatSteps:
    """Steps whose memory is that of the parameters and states at some of their boundaries.

    The backward pass goes from boundary to boundary, takes the steps in between once more, this time with their graph,
    and pulls back through it what it is given.

    The first step is taken in the ordinary way, to see which tensors the functions use that they are not given, such as
    phi. They must be functions of their arguments and these: with the same ones, the same results. Torch's own random
    numbers, which the loss may use, are drawn again as they were.

    Args:
        loss_fn: As in `unroll`.
        value_and_grad: How loss and gradients are computed.
        advance: The rest of the step, once the gradients are known.

    Source: Griewank 1992 (recomputation). Deviation: Kemaev et al. 2025, "Scalable meta-learning via mixed-mode
    differentiation", take the second derivatives of each step forward over reverse, which needs no graph of the
    gradient. In torch that had to keep the gradients at every boundary, and took longer than the graph of a single
    step, which is small beside them.
    """

    def __init__(self, loss_fn: LossFn, value_and_grad: ValueAndGrad, advance: Advance) -> None:
        self.loss_fn, self.value_and_grad, self.advance = loss_fn, value_and_grad, advance
        self.of_loss, self.of_advance = Captured(), Captured()
        # Of the last segment: where the random numbers were, and how its tensors lay.
        self.drawn: list[Tensor] = []
        self.structure: TreeSpec | None = None

    def watched(
        self, params: Tensors, state: RuleState, arguments: tuple[Minibatch, ...]
    ) -> tuple[Tensor, Tensors, RuleState]:
        """One step in the ordinary way."""

        def loss_fn(*args: Any) -> Tensor:
            return self.of_loss.watch(self.loss_fn, *args)

        loss, grads = self.value_and_grad(loss_fn, params, arguments)
        return loss, *self.of_advance.watch(self.advance, params, state, grads)

    def taken(
        self, params: Tensors, state: RuleState, arguments: Sequence[tuple[Minibatch, ...]], held: Held
    ) -> tuple[list[Tensor], Tensors, RuleState]:
        """A step for each of the arguments, with ``held`` in place of what the functions capture."""

        def loss_fn(*args: Any) -> Tensor:
            return self.of_loss.call(self.loss_fn, held[0], *args)

        losses = []
        for own in arguments:
            loss, grads = self.value_and_grad(loss_fn, params, own)
            params, state = self.of_advance.call(self.advance, held[1], params, state, grads)
            losses.append(loss)
        return losses, params, state

    def recomputed(
        self, params: Tensors, state: RuleState, arguments: Sequence[tuple[Minibatch, ...]]
    ) -> tuple[list[Tensor], Tensors, RuleState]:
        """A step for each of the arguments, of which only the first parameters and states are kept."""
        held = (self.of_loss.tensors, self.of_advance.tensors)
        leaves, structure = tree_flatten((params, tuple(state), list(arguments), held))
        segment = _Segment(self, leaves, structure)
        outputs = _Recomputed.apply(  # type: ignore[no-untyped-call]  # torch leaves it without types
            segment, *[leaf for leaf in leaves if isinstance(leaf, Tensor)]
        )
        losses, params, state = tree_unflatten(list(outputs), segment.result)
        return losses, params, RuleState(*state)


class _Segment:
    """What a stretch of steps is, beside its tensors."""

    def __init__(self, steps: FlatSteps, leaves: list[Any], structure: TreeSpec) -> None:
        # One for all alike: it is larger than what else there is to remember.
        steps.structure = structure = steps.structure if steps.structure == structure else structure
        self.steps, self.structure = steps, structure
        self.others = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self.places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        self.result: TreeSpec
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        self.random, self.surroundings = _Random(tensors, steps.drawn), _Surroundings(tensors)
        steps.drawn = self.random.start

    def __call__(self, tensors: Sequence[Tensor]) -> list[Any]:
        """Losses, parameters and states after the steps, flat."""
        leaves = list(self.others)
        for place, tensor in zip(self.places, tensors, strict=True):
            leaves[place] = tensor
        params, state, arguments, held = tree_unflatten(leaves, self.structure)
        losses, params, state = self.steps.taken(params, RuleState(*state), arguments, held)
        outputs, self.result = tree_flatten((losses, params, tuple(state)))
        return outputs


class _Recomputed(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(segment: _Segment, *tensors: Tensor) -> tuple[Tensor, ...]:
        # What is handed on as it came would be an input and an output at once.
        given = {id(tensor) for tensor in tensors}
        return tuple(leaf.clone() if id(leaf) in given else leaf for leaf in segment(tensors))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.segment = inputs[0]
        ctx.save_for_backward(*inputs[1:])
        ctx.mark_non_differentiable(*[leaf for leaf in output if not _smooth(leaf)])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        segment: _Segment = ctx.segment
        tensors = list(ctx.saved_tensors)
        wanted = [i for i, needed in enumerate(ctx.needs_input_grad[1:]) if needed and _smooth(tensors[i])]
        smooth: list[bool] = []

        def again(*chosen: Tensor) -> list[Tensor]:
            inputs = list(tensors)
            for i, value in zip(wanted, chosen, strict=True):
                inputs[i] = value
            outputs = segment(inputs)
            smooth.extend(map(_smooth, outputs))
            return [leaf for leaf in outputs if _smooth(leaf)]

        with segment.surroundings.again(), segment.random.again():
            pull = vjp(again, *[tensors[i] for i in wanted])[1]
            found = pull([value for value, mark in zip(cotangents, smooth, strict=True) if mark])
        by: list[Tensor | None] = [None] * len(tensors)
        for i, value in zip(wanted, found, strict=True):
            by[i] = value
        return None, *by


class _Random:
    """Torch's own random numbers, on the CPU and on the devices of some tensors."""

    def __init__(self, tensors: Sequence[Tensor], last: list[Tensor]) -> None:
        self.devices = sorted({tensor.device.index for tensor in tensors if tensor.is_cuda})
        start = [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in self.devices)]
        # Five kilobytes that most steps need not have of their own.
        self.start = last if len(last) == len(start) and all(map(torch.equal, last, start)) else start

    @contextmanager
    def again(self) -> Iterator[None]:
        """As at the start; outside all goes on as if nothing had been drawn."""
        with torch.random.fork_rng(self.devices):
            torch.set_rng_state(self.start[0])
            for device, state in zip(self.devices, self.start[1:], strict=True):
                torch.cuda.set_rng_state(state, device)
            yield


class _Surroundings:
    """What else a computation depends on where it stands: autocast, and modes such as `differentiable_twice`."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.autocast = [
            torch.autocast(
                kind,
                enabled=torch.is_autocast_enabled(kind),
                dtype=torch.get_autocast_dtype(kind),
                cache_enabled=torch.is_autocast_cache_enabled(),
            )
            for kind in sorted({tensor.device.type for tensor in tensors})
            if torch.amp.is_autocast_available(kind)
        ]
        self.modes = _modes()

    @contextmanager
    def again(self) -> Iterator[None]:
        with ExitStack() as entered:
            for context in (*self.autocast, *(mode for mode in self.modes if mode not in _modes())):
                entered.enter_context(context)
            yield


def _modes() -> list[Any]:
    # There is no public way to them; torch leaves it without types.
    modes: list[Any] = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    return modes


def _smooth(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex())
