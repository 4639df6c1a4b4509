"""Steps of an unroll that are recomputed in the backward pass instead of being remembered."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.func import grad, jvp, vjp
from torch.overrides import _get_current_function_mode_stack
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_map, tree_unflatten

from learned_optim.captured import Captured
from learned_optim.types import LossFn, Minibatch, RuleState, Tensors

ValueAndGrad: TypeAlias = Callable[[LossFn, Tensors, tuple[Minibatch, ...]], tuple[Tensor, Tensors]]
"""``value_and_grad(loss_fn, params, arguments)``."""

Advance: TypeAlias = Callable[[Tensors, RuleState, Tensors], tuple[Tensors, RuleState]]
"""``advance(params, state, grads)``: the parameters and the state after a step."""


class FlatSteps:
    """Steps whose memory is that of the parameters and states at some of their boundaries.

    The backward pass goes from boundary to boundary. It pulls what it is given back through the rule, to (theta, h,
    phi) and to the gradient g as c, and from there by the product of the second derivatives of the loss with c, as the
    directional derivative of the gradient along c: forward over reverse, which stores nothing but the layers of a
    single evaluation.

    The first step is taken in the ordinary way, to see which tensors the functions use that they are not given, such as
    phi. They must be functions of their arguments and these: with the same ones, the same results. Torch's own random
    numbers, which the loss may use, are drawn again as they were.

    Args:
        loss_fn: As in `unroll`.
        value_and_grad: How loss and gradients are computed in the ordinary way.
        advance: The rest of the step, once the gradients are known.
        first_order: See `unroll`.

    Source: Griewank 1992 (recomputation); Kemaev et al. 2025, "Scalable meta-learning via mixed-mode differentiation"
    (forward over reverse for meta-gradients).
    """

    def __init__(self, loss_fn: LossFn, value_and_grad: ValueAndGrad, advance: Advance, *, first_order: bool) -> None:
        self.loss_fn, self.value_and_grad, self.advance = loss_fn, value_and_grad, advance
        self.first_order = first_order
        self.of_loss, self.of_advance = Captured(), Captured()
        self.drawn: list[Tensor] = []  # where the random numbers were at the last segment
        self._forward_mode = True

    def watched(
        self, params: Tensors, state: RuleState, arguments: tuple[Minibatch, ...]
    ) -> tuple[Tensor, Tensors, RuleState]:
        """One step in the ordinary way."""

        def loss_fn(*args: Any) -> Tensor:
            return self.of_loss.watch(self.loss_fn, *args)

        loss, grads = self.value_and_grad(loss_fn, params, arguments)
        return loss, *self.of_advance.watch(self.advance, params, state, grads)

    def second(
        self, loss: Callable[..., Tensor], params: Tensors, chosen: list[Tensor], along: Tensors
    ) -> tuple[list[Tensor], tuple[Tensors, list[Tensor]]]:
        """The gradient of ``loss(params, chosen)`` by chosen, and its second derivatives by params and by either, times
        ``along``."""
        gradient = grad(loss, argnums=(0, 1))
        if self._forward_mode:
            try:
                now, along_it = jvp(lambda params: gradient(params, chosen), (params,), (along,))[:2]
                return now[1], along_it
            # So says torch of operations without a forward-mode derivative; a loss that raises it for a reason of its
            # own does so again below.
            except NotImplementedError as error:
                warnings.warn(
                    f"flat_memory: the loss has no forward-mode derivative; each step goes through the graph of its "
                    f"gradient instead, which takes more memory. torch said: {error}",
                    stacklevel=2,
                )
                self._forward_mode = False
        now, pull = vjp(gradient, params, chosen)[:2]
        return now[1], pull((along, [torch.zeros_like(value) for value in now[1]]))

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
        losses, params, state = tree_unflatten(list(outputs[: segment.result.num_leaves]), segment.result)
        return losses, params, RuleState(*state)


class _Segment:
    """What a stretch of steps is, beside its tensors."""

    def __init__(self, steps: FlatSteps, leaves: list[Any], structure: TreeSpec) -> None:
        self.steps, self.structure = steps, structure
        self.others = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self.places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        self.result: TreeSpec
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        self.random, self.surroundings = _Random(tensors, steps.drawn), _Surroundings(tensors)
        steps.drawn = self.random.start

    def parts(self, tensors: Sequence[Any]) -> tuple[Tensors, RuleState, list[Any], tuple[list[Tensor], list[Tensor]]]:
        """Parameters, state, arguments of each step, and what the functions capture."""
        leaves = list(self.others)
        for place, tensor in zip(self.places, tensors, strict=True):
            leaves[place] = tensor
        params, state, arguments, held = tree_unflatten(leaves, self.structure)
        return params, RuleState(*state), arguments, held

    def gradient(self, params: Tensors, arguments: Any, held: Any) -> tuple[Tensor, Tensors]:
        """Loss and gradients."""
        steps = self.steps

        def loss_fn(*args: Any) -> Tensor:
            return steps.of_loss.call(steps.loss_fn, held[0], *args)

        return steps.value_and_grad(loss_fn, params, arguments)

    def advanced(self, params: Tensors, state: RuleState, grads: Tensors, held: Any) -> tuple[Tensors, RuleState]:
        """Parameters and state after a step."""
        return self.steps.of_advance.call(self.steps.advance, held[1], params, state, grads)


class _Recomputed(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(segment: _Segment, *tensors: Tensor) -> tuple[Tensor, ...]:
        params, state, arguments, held = segment.parts(tensors)
        losses, all_grads = [], []
        for own in arguments:
            loss, grads = segment.gradient(params, own, held)
            params, state = segment.advanced(params, state, grads, held)
            losses.append(loss)
            all_grads.append(grads)
        leaves, segment.result = tree_flatten((losses, params, tuple(state)))
        # What is handed on as it came would be an input and an output at once.
        given = {id(tensor) for tensor in tensors}
        # A single step's gradients are kept; nothing can be pulled back before they are known.
        kept = list(all_grads[0].values()) if len(arguments) == 1 else []
        return *[leaf.clone() if id(leaf) in given else leaf for leaf in leaves], *kept

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.segment = segment = inputs[0]
        kept = output[segment.result.num_leaves :]
        ctx.save_for_backward(*inputs[1:], *kept)
        ctx.mark_non_differentiable(*kept, *[leaf for leaf in output if not _smooth(leaf)])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        segment: _Segment = ctx.segment
        inputs = len(segment.places)
        params, state, arguments, held = segment.parts(ctx.saved_tensors[:inputs])
        *_, arguments_need, held_need = segment.parts(ctx.needs_input_grad[1:])
        of_losses, *towards = tree_unflatten(list(cotangents[: segment.result.num_leaves]), segment.result)
        with segment.surroundings.again(), segment.random.again():
            boundaries = []
            if len(arguments) == 1:
                grads = dict(zip(params, ctx.saved_tensors[inputs:], strict=True))
                boundaries.append((params, state, grads, segment.random.start))
            else:
                for own in arguments:
                    then = segment.random.now()
                    grads = segment.gradient(params, own, held)[1]
                    boundaries.append((params, state, grads, then))
                    if len(boundaries) < len(arguments):
                        params, state = segment.advanced(params, state, grads, held)
            of_arguments, of_held = [], (None, None)
            for own, need, of_loss in zip(arguments[::-1], arguments_need[::-1], of_losses[::-1], strict=True):
                params, state, grads, then = boundaries.pop()
                segment.random.back(then)
                step = _Pullback(segment.steps, (params, state, grads), (own, *held), (need, *held_need))
                *towards, of_own, by_loss, by_advance = step(of_loss, *towards)
                of_arguments.append(of_own)
                of_held = _sum(of_held[0], by_loss), _sum(of_held[1], by_advance)
        found = tree_leaves((*towards, of_arguments[::-1], of_held))
        return None, *[found[place] for place in segment.places]


class _Pullback:
    """From the derivatives by what a step has led to, to those by what it came from.

    Args:
        steps: What it is a step of.
        before: Parameters, state and gradients.
        given: The step's arguments, and what its two functions capture.
        needs: By which of these derivatives are wanted.
    """

    def __init__(
        self, steps: FlatSteps, before: tuple[Tensors, RuleState, Tensors], given: tuple[Any, ...], needs: Any
    ) -> None:
        self.steps = steps
        self.params, state, self.grads = before
        self.state = _Chosen(tuple(state), None)
        self.of_loss, self.of_advance = _Chosen(given[:2], needs[:2]), _Chosen(given[2], needs[2])
        self.smooth: list[bool] = []

    def loss(self, params: Tensors, chosen: list[Tensor]) -> Tensor:
        arguments, values = self.of_loss.put(chosen)
        return self.steps.of_loss.call(self.steps.loss_fn, values, params, *arguments)

    def advance(self, params: Tensors, own: list[Tensor], chosen: list[Tensor], grads: Tensors) -> list[Tensor]:
        state, values = RuleState(*self.state.put(own)), self.of_advance.put(chosen)
        leaves = tree_leaves(self.steps.of_advance.call(self.steps.advance, values, params, state, grads))
        self.smooth = [_smooth(leaf) for leaf in leaves]
        return [leaf for leaf, smooth in zip(leaves, self.smooth, strict=True) if smooth]

    def __call__(self, of_loss: Tensor, *of_after: Any) -> tuple[Any, Any, Any, Any, Any]:
        """Derivatives by the parameters and the state before it, the arguments, and what the loss and the rest of the
        step capture; where there is none stands None.

        Args:
            of_loss: Derivative by the loss.
            of_after: By the parameters and the state after the step.
        """
        inputs = (self.params, self.state.chosen, self.of_advance.chosen)
        if self.steps.first_order:
            pull = vjp(partial(self.advance, grads=self.grads), *inputs)[1]
        else:
            pull = vjp(self.advance, *inputs, self.grads)[1]
        towards = [leaf for leaf, smooth in zip(tree_leaves(of_after), self.smooth, strict=True) if smooth]
        of_params, of_state, of_advance, *along = pull(towards)
        del pull  # and the graph with it, before the next one grows

        of_params = {name: value + of_loss * self.grads[name] for name, value in of_params.items()}
        by_chosen: list[Tensor] = []
        if along:
            by_chosen, (more, more_chosen) = self.steps.second(self.loss, self.params, self.of_loss.chosen, along[0])
            of_params = {name: value + more[name] for name, value in of_params.items()}
            by_chosen = [of_loss * one + other for one, other in zip(by_chosen, more_chosen, strict=True)]
        elif self.of_loss.chosen:
            by_chosen = [of_loss * one for one in grad(self.loss, argnums=1)(self.params, self.of_loss.chosen)]
        return (
            of_params,
            self.state.spread(of_state),
            *self.of_loss.spread(by_chosen),
            self.of_advance.spread(of_advance),
        )


class _Chosen:
    """The tensors of a tree by which there is to be a derivative."""

    def __init__(self, tree: Any, needs: Any) -> None:
        self.leaves, self.structure = tree_flatten(tree)
        needed = [True] * len(self.leaves) if needs is None else tree_leaves(needs)
        self.marks = [need is True and _smooth(leaf) for leaf, need in zip(self.leaves, needed, strict=True)]
        self.chosen = [leaf for leaf, mark in zip(self.leaves, self.marks, strict=True) if mark]

    def put(self, values: Sequence[Any]) -> Any:
        """The tree with these in their places."""
        return self._with(values, self.leaves)

    def spread(self, values: Sequence[Any]) -> Any:
        """The tree of these, with None elsewhere."""
        return self._with(values, [None] * len(self.leaves))

    def _with(self, values: Sequence[Any], others: Sequence[Any]) -> Any:
        rest = iter(values)
        leaves = [next(rest) if mark else other for mark, other in zip(self.marks, others, strict=True)]
        return tree_unflatten(leaves, self.structure)


class _Random:
    """Torch's own random numbers, on the CPU and on the devices of some tensors."""

    def __init__(self, tensors: Sequence[Tensor], last: list[Tensor]) -> None:
        self.devices = sorted({tensor.device.index for tensor in tensors if tensor.is_cuda})
        start = self.now()
        # Five kilobytes that most steps need not have of their own.
        self.start = last if len(last) == len(start) and all(map(torch.equal, last, start)) else start

    def now(self) -> list[Tensor]:
        return [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in self.devices)]

    def back(self, states: list[Tensor]) -> None:
        """To where they were ``then``."""
        torch.set_rng_state(states[0])
        for device, state in zip(self.devices, states[1:], strict=True):
            torch.cuda.set_rng_state(state, device)

    @contextmanager
    def again(self) -> Iterator[None]:
        """As at the start; outside all goes on as if nothing had been drawn."""
        with torch.random.fork_rng(self.devices):
            self.back(self.start)
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


def _sum(one: Any, other: Any) -> Any:
    if one is None:
        return other
    return tree_map(lambda a, b: None if a is None else a + b, one, other)
