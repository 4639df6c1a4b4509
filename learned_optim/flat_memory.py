"""Steps of an unroll that are recomputed in the backward pass instead of being remembered."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.func import grad, grad_and_value, jvp, vjp
from torch.overrides import _get_current_function_mode_stack
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_map, tree_unflatten

from learned_optim.captured import Captured
from learned_optim.types import LossFn, Minibatch, RuleState, Tensors

Advance: TypeAlias = Callable[[Tensors, RuleState, Tensors], tuple[Tensors, RuleState]]
"""``advance(params, state, grads)``: the parameters and the state after a step."""

Step: TypeAlias = Callable[[Tensors, RuleState, tuple[Minibatch, ...]], tuple[Tensor, Tensors, RuleState]]
"""``step(params, state, arguments)``: the loss before it, and the parameters and the state after it."""


class FlatSteps:
    """Steps whose memory is that of the parameters and states at some of their boundaries.

    The backward pass goes from boundary to boundary: it computes each step's gradient g anew, pulls what it is given
    back through the rule, to (theta, h, phi) and to g as c, and from there through the gradient by the product of the
    second derivatives of the loss with c, as the directional derivative of the gradient along c: forward over reverse,
    which stores nothing but the layers of a single evaluation.

    The first step is taken in the ordinary way, to see which tensors the functions use that they are not given, such as
    phi. They must be functions of their arguments and these: with the same ones, the same results. Torch's own random
    numbers are drawn again as they were.

    Args:
        loss_fn: As in `unroll`.
        advance: The rest of the step, once the gradients are known.
        step: The whole of it, in the ordinary way, for a loss function and the rest of a step.
        first_order: See `unroll`.

    Source: Griewank 1992 (recomputation); Kemaev et al. 2025, "Scalable meta-learning via mixed-mode differentiation"
    (forward over reverse for meta-gradients).
    """

    def __init__(self, loss_fn: LossFn, advance: Advance, step: Callable[..., Any], *, first_order: bool) -> None:
        self.loss_fn, self.advance, self.step, self.first_order = loss_fn, advance, step, first_order
        self.of_loss, self.of_advance = Captured(), Captured()
        self.drawn: list[Tensor] = []  # where the random numbers were at the last segment
        self._forward_mode = True

    def watched(
        self, params: Tensors, state: RuleState, arguments: tuple[Minibatch, ...]
    ) -> tuple[Tensor, Tensors, RuleState]:
        """One step in the ordinary way."""

        def loss_fn(*args: Any) -> Tensor:
            return self.of_loss.watch(self.loss_fn, *args)

        def advance(*args: Any) -> tuple[Tensors, RuleState]:
            return self.of_advance.watch(self.advance, *args)

        result: tuple[Tensor, Tensors, RuleState] = self.step(loss_fn, advance, params, state, arguments)
        return result

    def second(
        self, loss: Callable[..., Tensor], params: Tensors, chosen: list[Tensor], along: Tensors
    ) -> tuple[Tensors, list[Tensor]]:
        """The second derivatives of ``loss(params, chosen)``, by params and by either, times ``along``."""
        if self._forward_mode:
            try:
                found: tuple[Tensors, list[Tensor]] = jvp(
                    lambda params: grad(loss, argnums=(0, 1))(params, chosen), (params,), (along,)
                )[1]
                return found
            except NotImplementedError as error:
                warnings.warn(
                    f"flat_memory: the loss has no forward-mode derivative; each step goes through the graph of its "
                    f"gradient instead, which takes more memory. torch said: {error}",
                    stacklevel=2,
                )
                self._forward_mode = False
        pull = vjp(grad(loss), params, chosen)[1]
        found = pull(along)
        return found

    def recomputed(
        self, params: Tensors, state: RuleState, arguments: Sequence[tuple[Minibatch, ...]]
    ) -> tuple[list[Tensor], Tensors, RuleState]:
        """A step for each of the arguments, of which only the first parameters and states are kept."""
        held = (self.of_loss.tensors, self.of_advance.tensors)
        leaves, structure = tree_flatten((params, tuple(state), list(arguments), held))
        segment = _Segment(self, leaves, structure)
        outputs = _Recomputed.apply(  # type: ignore[no-untyped-call]
            segment, *[leaf for leaf in leaves if isinstance(leaf, Tensor)]
        )
        losses, params, state = tree_unflatten(list(outputs), segment.result)
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

    def taken(self, params: Tensors, state: RuleState, arguments: Any, held: Any) -> tuple[Tensor, Tensors, RuleState]:
        """A step, without a graph."""
        steps = self.steps

        def loss_fn(*args: Any) -> Tensor:
            return steps.of_loss.call(steps.loss_fn, held[0], *args)

        def advance(*args: Any) -> tuple[Tensors, RuleState]:
            return steps.of_advance.call(steps.advance, held[1], *args)

        result: tuple[Tensor, Tensors, RuleState] = steps.step(loss_fn, advance, params, state, arguments)
        return result


class _Recomputed(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(segment: _Segment, *tensors: Tensor) -> tuple[Tensor, ...]:
        params, state, arguments, held = segment.parts(tensors)
        losses = []
        for given in arguments:
            loss, params, state = segment.taken(params, state, given, held)
            losses.append(loss)
        leaves, segment.result = tree_flatten((losses, params, tuple(state)))
        # What is handed on as it came would be an input and an output at once.
        given = {id(tensor) for tensor in tensors}
        return tuple(leaf.clone() if id(leaf) in given else leaf for leaf in leaves)

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.segment = inputs[0]  # type: ignore[attr-defined]
        ctx.save_for_backward(*inputs[1:])
        ctx.mark_non_differentiable(*[leaf for leaf in output if not _smooth(leaf)])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        segment: _Segment = ctx.segment
        params, state, arguments, held = segment.parts(ctx.saved_tensors)
        *_, arguments_need, held_need = segment.parts(ctx.needs_input_grad[1:])
        of_losses, *towards = tree_unflatten(list(cotangents), segment.result)
        with segment.surroundings.again(), segment.random.again():
            boundaries = []
            for given in arguments:
                boundaries.append((params, state, segment.random.now()))
                if len(boundaries) < len(arguments):
                    _, params, state = segment.taken(params, state, given, held)
            of_arguments, of_held = [], (None, None)
            for given, need, of_loss in zip(arguments[::-1], arguments_need[::-1], of_losses[::-1], strict=True):
                params, state, then = boundaries.pop()
                found = _pulled_back(segment, params, state, given, held, (need, *held_need), (of_loss, *towards), then)
                *towards, of_given, by_loss, by_advance = found
                of_arguments.append(of_given)
                of_held = _sum(of_held[0], by_loss), _sum(of_held[1], by_advance)
        grads = tree_leaves((*towards, of_arguments[::-1], of_held))
        return None, *[grads[place] for place in segment.places]


def _pulled_back(
    segment: _Segment,
    params: Tensors,
    state: RuleState,
    arguments: Any,
    held: Any,
    needs: tuple[Any, Any, Any],
    towards: tuple[Tensor, Any, Any],
    then: Any,
) -> tuple[Any, Any, Any, Any, Any]:
    """Pulls ``towards``, of a step's loss, parameters and state, back to its parameters and state, its arguments, and
    what its two functions capture. Where nothing can be pulled back to there is None."""
    steps = segment.steps
    in_loss, in_state = _Chosen((arguments, held[0]), (needs[0], needs[1])), _Chosen(tuple(state), None)
    in_advance = _Chosen(held[1], needs[2])

    def loss(params: Tensors, chosen: list[Tensor]) -> Tensor:
        arguments, values = in_loss.put(chosen)
        return steps.of_loss.call(steps.loss_fn, values, params, *arguments)

    segment.random.back(then)
    (grads, by_chosen), _ = grad_and_value(loss, argnums=(0, 1))(params, in_loss.chosen)

    smooth: list[bool] = []

    def advance(grads: Tensors, params: Tensors, own: list[Tensor], chosen: list[Tensor]) -> list[Tensor]:
        state, values = RuleState(*in_state.put(own)), in_advance.put(chosen)
        leaves = tree_leaves(steps.of_advance.call(steps.advance, values, params, state, grads))
        smooth[:] = map(_smooth, leaves)
        return [leaf for leaf in leaves if _smooth(leaf)]

    inputs = (params, in_state.chosen, in_advance.chosen)
    if steps.first_order:
        pull = vjp(lambda *inputs: advance(grads, *inputs), *inputs)[1]
    else:
        pull = vjp(advance, grads, *inputs)[1]
    of_after = [leaf for leaf, kept in zip(tree_leaves(towards[1:]), smooth, strict=True) if kept]
    *of_grads, of_params, of_state, of_advance = pull(of_after)
    del pull  # and the graph with it, before the next one grows

    of_params = {name: value + towards[0] * grads[name] for name, value in of_params.items()}
    of_loss = [towards[0] * value for value in by_chosen]
    if not steps.first_order:
        segment.random.back(then)
        by_params, by_chosen = steps.second(loss, params, in_loss.chosen, of_grads[0])
        of_params = {name: value + by_params[name] for name, value in of_params.items()}
        of_loss = [value + more for value, more in zip(of_loss, by_chosen, strict=True)]
    return of_params, in_state.spread(of_state), *in_loss.spread(of_loss), in_advance.spread(of_advance)


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
    modes: list[Any] = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    return modes


def _smooth(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex())


def _sum(one: Any, other: Any) -> Any:
    if one is None:
        return other
    return tree_map(lambda a, b: None if a is None else a + b, one, other)
