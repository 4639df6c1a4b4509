"""The differentiable driver: several steps of a rule as one function of its first parameters and of phi."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from learned_optim.flat_memory import AT_ONCE, FlatSteps
from learned_optim.guard import Guard, guarded
from learned_optim.pullback import vjp
from learned_optim.rule import apply_updates, oriented
from learned_optim.types import LossFn, Minibatch, RuleState, Scalar, Tensors, Update


class Unrolled(NamedTuple):
    """What `unroll` returns.

    Attributes:
        params: theta_K, after the last step.
        state: The rule's state after the last step.
        losses: Shape (K,): the loss at theta_0, ..., theta_{K-1}, each on its step's batch.
    """

    params: Tensors
    state: RuleState
    losses: Tensor


def unroll(
    update: Update,
    loss_fn: LossFn,
    params: Tensors,
    state: RuleState,
    *,
    steps: int,
    batches: Iterable[Minibatch] | None = None,
    lr: Scalar | Mapping[str, Scalar] = 1.0,
    weight_decay: Scalar | Mapping[str, Scalar] = 0.0,
    maximize: bool = False,
    first_order: bool = False,
    guard: Guard | None = None,
    flat_memory: bool | int = False,
) -> Unrolled:
    """Takes ``steps`` steps of ``update`` on ``loss_fn`` and keeps everything differentiable.

    theta_{k+1} = theta_k + lr u_k, with [u_k, h_{k+1}] = update(grad L(theta_k), h_k, theta_k).

    Every parameter has a gradient here: one that the loss does not use has zeros, where ``backward()`` leaves ``None``
    and the eager driver leaves the parameter alone. Leave such parameters out of ``params``.

    The result can be differentiated by ``backward()`` and by torch.func, batched with vmap, and run under
    ``no_grad`` and ``inference_mode``. Truncated backpropagation is calling again with detached parameters and state
    (`detached`).

    Args:
        update: A rule, `bind` of one, or any callable of that signature.
        loss_fn: ``loss_fn(params)``, or ``loss_fn(params, batch)`` when ``batches`` is given; returns a scalar.
        params: theta_0 by name.
        state: ``rule.init_state(params)``, or the state of the last window.
        steps: K >= 0.
        batches: One batch for each step; more are left unread.
        lr: See `apply_updates`.
        weight_decay: See `apply_updates`.
        maximize: Ascend instead: the rule is given the negated gradients.
        first_order: Treats the gradients handed to the rule as constants, as Andrychowicz et al. 2016 and
            first-order MAML do: no second derivatives. phi and theta_0 keep their own gradients.
        guard: Keeps the steps within a trust region. Its memory is added to the returned state.
        flat_memory: Recomputes the steps in the backward pass, but for the last n: memory holds parameters and states
            at every n-th boundary of steps and n steps beside them. True is ten. See `FlatSteps`.

    Raises:
        ValueError: ``steps`` is negative or no whole number, ``batches`` ends early, the loss is no scalar, or
            ``flat_memory`` is below 0.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
        raise ValueError(f"unroll: steps must be a whole number >= 0, got {steps!r}")
    if not isinstance(flat_memory, int) or flat_memory < 0:
        raise ValueError(f"unroll: flat_memory must be True, False or a whole number >= 0, got {flat_memory!r}")
    options: dict[str, Any] = {"maximize": maximize, "first_order": first_order, "flat_memory": flat_memory}
    if torch.is_inference_mode_enabled():
        # There older torch takes every derivative for zero, and tensors from there cannot be differentiated elsewhere.
        with torch.inference_mode(False), torch.no_grad():
            given = {"lr": _copied(lr), "weight_decay": _copied(weight_decay), "guard": guard}
            copies = None if batches is None else map(_copied, batches)
            state = RuleState(*_copied(tuple(state)))
            return unroll(update, loss_fn, _copied(params), state, steps=steps, batches=copies, **given, **options)
    update = guarded(update, guard, lr=lr)

    def advance(params: Tensors, state: RuleState, grads: Tensors) -> tuple[Tensors, RuleState]:
        updates, state = update(oriented(grads, maximize=maximize), state, params)
        return apply_updates(params, updates, lr=lr, weight_decay=weight_decay), state

    value_and_grad = partial(_value_and_grad, first_order=first_order)
    flat = None
    if flat_memory and torch.is_grad_enabled():  # else nothing is remembered anyway
        flat = FlatSteps(loss_fn, value_and_grad, advance)
    at_once = AT_ONCE if flat_memory is True else int(flat_memory)
    losses: list[Tensor] = []
    stream = _arguments(batches, steps)
    while len(losses) < steps:
        if flat is not None and not losses:
            loss, params, state = flat.watched(params, state, next(stream))
            losses.append(loss)
        elif flat is None or steps - len(losses) <= at_once:  # the backward pass begins with the last ones
            loss, grads = value_and_grad(loss_fn, params, next(stream))
            params, state = advance(params, state, grads)
            losses.append(loss)
        else:
            more, params, state = flat.recomputed(params, state, [*islice(stream, at_once)])
            losses.extend(more)
    return Unrolled(params, state, torch.stack(losses) if losses else torch.empty(0))


def _copied(tree: Any) -> Any:
    return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, tree)


def _arguments(batches: Iterable[Minibatch] | None, steps: int) -> Iterator[tuple[Minibatch, ...]]:
    """What each step's loss is given beside the parameters."""
    stream = None if batches is None else iter(batches)
    for k in range(steps):
        if stream is None:
            yield ()
            continue
        try:
            batch = next(stream)
        except StopIteration:
            raise ValueError(f"unroll: batches ended after {k} of {steps} steps") from None
        yield (batch,)


def _value_and_grad(
    loss_fn: LossFn, params: Tensors, arguments: tuple[Minibatch, ...], *, first_order: bool
) -> tuple[Tensor, Tensors]:
    (loss,), pullback = vjp(
        lambda *theta: [loss_fn(dict(zip(params, theta, strict=True)), *arguments)], *params.values()
    )
    if loss.dim() != 0:
        raise ValueError(f"unroll: loss_fn must return a scalar, got shape {tuple(loss.shape)}")
    # Without this, first order would still record the graph of the gradient, only to drop it.
    with torch.set_grad_enabled(torch.is_grad_enabled() and not first_order):
        grads = pullback([torch.ones_like(loss)])
    return loss, {name: g.detach() if first_order else g for name, g in zip(params, grads, strict=True)}


def meta_loss(losses: Tensor, weights: Tensor | Sequence[float] | None = None) -> Tensor:
    """sum_t w_t L(theta_t): the objective on which an optimizer is trained.

    Args:
        losses: L(theta_t), shape (..., K).
        weights: w_t, shape (K,). All 1 by default.

    Source: Andrychowicz et al. 2016, equation 3.
    """
    return losses.sum(dim=-1) if weights is None else (losses * torch.as_tensor(weights).to(losses)).sum(dim=-1)


def detached(params: Tensors, state: RuleState) -> tuple[Tensors, RuleState]:
    """The same values without their history: where truncated backpropagation cuts."""
    per_param = {name: {key: value.detach() for key, value in own.items()} for name, own in state.per_param.items()}
    shared = {key: value.detach() for key, value in state.shared.items()}
    return {name: value.detach() for name, value in params.items()}, RuleState(per_param, shared)
