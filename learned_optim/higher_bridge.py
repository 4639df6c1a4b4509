"""Rules inside ``higher``: registration of our optimizers, and `inner_loop` on top of it.

Imported by ``import learned_optim`` where ``higher`` is installed. Then ``higher.innerloop_ctx(model, optimizer)``
takes every `RuleOptimizer`, subclasses of users included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import higher
import torch
from higher.optim import DifferentiableOptimizer
from torch import Tensor, nn
from torch.optim import Optimizer

from learned_optim import entry
from learned_optim.guard import guarded
from learned_optim.rule import apply_updates, oriented
from learned_optim.rule_optimizer import RuleOptimizer, on_subclass
from learned_optim.types import RuleState, Tensors


class DifferentiableRuleOptimizer(DifferentiableOptimizer):  # type: ignore[misc]  # higher has no types
    """`RuleOptimizer` as ``higher`` runs it: a step makes new parameters, with a graph back to theta_0 and phi."""

    def __init__(self, other: RuleOptimizer, *args: Any, **kwargs: Any) -> None:
        self.rule, self.guard = other.rule, other.guard
        self._names = [[other._keys[p] for p in group["params"]] for group in other.param_groups]
        super().__init__(other, *args, **kwargs)

    def _update(self, grouped_grads: list[list[Tensor | None]], **kwargs: Any) -> None:
        grads: Tensors = {}
        params: Tensors = {}
        places: dict[str, tuple[int, int]] = {}
        for g, (group, group_grads) in enumerate(zip(self.param_groups, grouped_grads, strict=True)):
            present = {self._names[g][i]: grad for i, grad in enumerate(group_grads) if grad is not None}
            grads |= oriented(present, maximize=group["maximize"])
            for i, name in enumerate(self._names[g]):
                if name in present:
                    params[name], places[name] = group["params"][i], (g, i)
        if not grads:
            return
        lr = {name: self.param_groups[g]["lr"] for name, (g, _) in places.items()}
        update = guarded(self.rule, self.guard, lr=lr)
        updates, new = update(grads, self._rule_state(params, places), params)
        for name, (g, i) in places.items():
            group = self.param_groups[g]
            moved = apply_updates({name: params[name]}, updates, lr=group["lr"], weight_decay=group["weight_decay"])
            group["params"][i] = moved[name]
            self.state[g][i] = {**self.state[g][i], **new.per_param[name]}
        self.state[0][0] = {**self.state[0][0], **entry.prefixed(new.shared, entry.SHARED)}

    def _rule_state(self, params: Tensors, places: dict[str, tuple[int, int]]) -> RuleState:
        kept = {name: entry.of_parameter(self.state[g][i]) for name, (g, i) in places.items()}
        own, _ = entry.divided(kept)
        fresh = self.rule.init_state({name: params[name] for name in places if not own[name]})
        shared = fresh.shared | entry.part(self.state[0][0], entry.SHARED)
        return RuleState({name: fresh.per_param.get(name, {}) | past for name, past in kept.items()}, shared)


def _register(optimizer: type[RuleOptimizer]) -> None:
    # higher looks an optimizer up by its exact class.
    higher.register_optim(optimizer, DifferentiableRuleOptimizer)
    for subclass in optimizer.__subclasses__():
        _register(subclass)


_register(RuleOptimizer)
on_subclass.append(_register)


@contextmanager
def inner_loop(
    model: nn.Module,
    optimizer: Optimizer,
    *,
    first_order: bool = False,
    truncate_every: int | None = None,
    copy_initial_weights: bool = False,
    override: dict[str, list[Any]] | None = None,
    device: torch.device | None = None,
) -> Iterator[tuple[Any, DifferentiableOptimizer]]:
    """``higher.innerloop_ctx`` with a first-order mode and truncation, for our optimizers and for torch's.

    Inside, ``fast_model, fast_optimizer`` stand for the model and the optimizer; ``fast_optimizer.step(loss)`` makes
    parameters that are differentiable in theta_0 and in the optimizer's own weights.

    Args:
        model: The model; its parameters are theta_0 and receive meta-gradients.
        optimizer: Any optimizer that higher knows, ours included, over the model's parameters.
        first_order: Treats the gradients handed to the optimizer as constants. theta_0 and phi keep their own
            gradients, other than with higher's ``track_higher_grads=False``, which drops phi too.
        truncate_every: Cuts the graph behind the parameters and the optimizer's state after so many steps. Call
            ``backward()`` on the losses of a window before the step that ends it.
        copy_initial_weights: Start from a copy, which keeps meta-gradients away from the model itself.
        override: Differentiable options, as in higher: ``{"lr": [tensor]}``.
        device: Move the copies there.

    Raises:
        ValueError: ``truncate_every`` is not positive.
    """
    if truncate_every is not None and truncate_every < 1:
        raise ValueError(f"inner_loop: truncate_every must be >= 1, got {truncate_every}")
    with higher.innerloop_ctx(
        model, optimizer, device=device, copy_initial_weights=copy_initial_weights, override=override
    ) as (fast_model, fast_optimizer):
        plain_step: Callable[..., Any] = fast_optimizer.step
        taken = 0

        def step(loss: Tensor, *args: Any, grad_callback: Any = None, **kwargs: Any) -> Any:
            nonlocal taken
            if first_order:
                grad_callback = _constant if grad_callback is None else _then_constant(grad_callback)
            result = plain_step(loss, *args, grad_callback=grad_callback, **kwargs)
            taken += 1
            if truncate_every is not None and taken % truncate_every == 0:
                fast_model.update_params([p.detach().requires_grad_(p.requires_grad) for p in fast_model.parameters()])
                fast_optimizer.state = [_detached(entries) for entries in fast_optimizer.state]
            return result

        fast_optimizer.step = step
        yield fast_model, fast_optimizer


def _constant(grads: list[Tensor | None]) -> list[Tensor | None]:
    return [None if grad is None else grad.detach() for grad in grads]


def _then_constant(callback: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda grads: _constant(callback(grads))


def _detached(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, dict):
        for key in value:
            value[key] = _detached(value[key])
    return value
