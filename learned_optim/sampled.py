"""Meta-gradients from a sample of the coordinates: memory and time that do not grow with the optimizee."""

from __future__ import annotations

import torch
from torch import Tensor

from learned_optim.rule import Rule
from learned_optim.types import RuleState, Tensors


class SampledUpdate:
    """The updates of a coordinatewise rule, with a graph behind a random sample of the coordinates only.

    Where the gradients handed to the rule are constants (``first_order``), a coordinate influences the loss only
    through its own updates, so that the meta-gradient is a sum over coordinates. Keeping the graph of m of a tensor's n
    coordinates, each weighted by n / m, gives an unbiased estimate of it; the trajectory itself is exact. Tensors of at
    most ``count`` coordinates keep them all.

    Use as the ``update`` of `unroll`, with ``first_order=True`` and the state that `extend` returns::

        update = SampledUpdate(rule, params, count=1024, generator=generator)
        unrolled = unroll(update, loss_fn, params, update.extend(state), steps=100, first_order=True)
        state = update.reduce(unrolled.state)

    Args:
        rule: A rule of the scope ``"coordinate"``.
        params: Parameters by name; their shapes are used.
        count: m, coordinates kept of each tensor.
        generator: Draws the sample.

    Raises:
        ValueError: The rule is not coordinatewise, or ``count`` is not positive.
    """

    def __init__(self, rule: Rule, params: Tensors, *, count: int, generator: torch.Generator) -> None:
        if rule.scope != "coordinate":
            raise ValueError(f"SampledUpdate: {type(rule).__name__} is not coordinatewise; use it without sampling")
        if count < 1:
            raise ValueError(f"SampledUpdate: count must be >= 1, got {count}")
        self.rule = rule
        self.shapes = {name: p.shape for name, p in params.items()}
        self.index = {
            name: torch.randperm(p.numel(), generator=generator)[: min(count, p.numel())].to(p.device)
            for name, p in params.items()
        }

    def extend(self, state: RuleState) -> RuleState:
        """The rule's state with the sampled coordinates' own beside it."""
        sampled = {_beside(name): self._pick_state(name, own) for name, own in state.per_param.items()}
        return RuleState(state.per_param | sampled, state.shared)

    def reduce(self, state: RuleState) -> RuleState:
        """The rule's state alone."""
        return RuleState({name: state.per_param[name] for name in self.index}, state.shared)

    def __call__(self, grads: Tensors, state: RuleState, params: Tensors) -> tuple[Tensors, RuleState]:
        whole = self.reduce(state)
        with torch.no_grad():
            updates, new = self.rule(grads, whole, params)
        part_updates, part = self.rule(
            {name: self._pick(name, grad) for name, grad in grads.items()},
            RuleState({name: state.per_param[_beside(name)] for name in self.index}, state.shared),
            {name: self._unweighted(name, self._pick(name, params[name])) for name in grads},
        )
        result = {}
        for name, value in updates.items():
            graph = self._weight(name) * (part_updates[name] - part_updates[name].detach())  # zero, with the gradient
            result[name] = value.flatten().index_add(0, self.index[name], graph.flatten()).reshape(value.shape)
        # Counters belong to the whole tensor.
        counts = {
            name: {key: new.per_param[name][key] for key in own if key == "step"}
            for name, own in part.per_param.items()
        }
        beside = {_beside(name): own | counts[name] for name, own in part.per_param.items()}
        return result, RuleState(new.per_param | beside, new.shared)

    def _weight(self, name: str) -> float:
        return self.shapes[name].numel() / len(self.index[name])

    def _unweighted(self, name: str, value: Tensor) -> Tensor:
        """Parameters for a rule that reads them: earlier updates are weighted, and shall not be weighted twice."""
        return value.detach() + (value - value.detach()) / self._weight(name)

    def _pick(self, name: str, value: Tensor) -> Tensor:
        """The sampled coordinates of a tensor, in the shape (m, 1, ...) of its rank, by which a rule may route."""
        dims = len(self.shapes[name])
        rest = value.shape[dims:]
        shape = (-1, *[1] * (dims - 1), *rest) if dims else value.shape
        return value.reshape(-1, *rest)[self.index[name]].reshape(shape)

    def _pick_state(self, name: str, own: Tensors) -> Tensors:
        return {key: value if key == "step" else self._pick(name, value) for key, value in own.items()}


def _beside(name: str) -> str:
    return f"{name} (sampled)"
