"""Learning from a hand-designed optimizer: how far each update is from the one that a teacher would have taken."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

from learned_optim.rule import Rule
from learned_optim.types import RuleState, Tensors, Update

T = TypeVar("T")

_DISTANCE = "imitation"


class Imitating:
    """An update that keeps account of its distance to a teacher's, which sees the same gradients.

    The distance of a step is sum (u - v)^2 / (sum u^2 + sum v^2) over all coordinates of the network, v the teacher's
    step: 0 where both agree, 1 where one of them does nothing, at most 2. The trajectory is the learner's own.

    Use as the ``update`` of `unroll`, with the state that `extend` returns; `distance` is what has been added up::

        update = Imitating(rule, AdamRule(0.02))
        unrolled = unroll(update, loss_fn, params, update.extend(state, params), steps=20, first_order=True)
        penalty = update.distance(unrolled.state)

    Args:
        update: The learner: a rule, or another update.
        teacher: A rule; its step is taken as a constant.

    Source: Chen et al. 2020, "Training stronger baselines for learning to optimize", section 3.3. Deviations: along the
    learner's trajectory instead of the teacher's; relative to the steps, so that its weight has no unit.
    """

    def __init__(self, update: Update, teacher: Rule) -> None:
        self.update, self.teacher = update, teacher

    def extend(self, state: RuleState, params: Tensors, teacher: RuleState | None = None) -> RuleState:
        """The learner's state with the teacher's beside it, fresh by default, and no distance yet."""
        theirs = self.teacher.init_state(params) if teacher is None else teacher
        zero = next(iter(params.values())).new_zeros(())
        return RuleState(
            state.per_param | {_beside(name): own for name, own in theirs.per_param.items()},
            state.shared | {_beside(name): value for name, value in theirs.shared.items()} | {_DISTANCE: zero},
        )

    def reduce(self, state: RuleState) -> tuple[RuleState, RuleState]:
        """The learner's state and the teacher's."""
        per_param, theirs = _divided(state.per_param)
        shared, their_shared = _divided(state.shared)
        shared.pop(_DISTANCE)
        return RuleState(per_param, shared), RuleState(theirs, their_shared)

    def distance(self, state: RuleState) -> Tensor:
        """The sum of all steps' distances since `extend`, a scalar."""
        return state.shared[_DISTANCE]

    def __call__(self, grads: Tensors, state: RuleState, params: Tensors) -> tuple[Tensors, RuleState]:
        own, theirs = self.reduce(state)
        updates, own = self.update(grads, own, params)
        with torch.no_grad():
            targets, theirs = self.teacher(grads, theirs, params)
        apart = sum((updates[name] - target).square().sum() for name, target in targets.items())
        unit = sum(updates[name].square().sum() + target.square().sum() for name, target in targets.items())
        assert isinstance(apart, Tensor)
        assert isinstance(unit, Tensor)  # sums of at least one
        distance = torch.where(unit > 0, apart / torch.where(unit > 0, unit, torch.ones_like(unit)), 0.0)
        new = self.extend(own, params, theirs)
        return updates, RuleState(new.per_param, new.shared | {_DISTANCE: state.shared[_DISTANCE] + distance})


def _beside(name: str) -> str:
    return f"{name} (teacher)"


def _divided(entries: dict[str, T]) -> tuple[dict[str, T], dict[str, T]]:
    """The learner's entries and the teacher's."""
    mark = _beside("")
    theirs = {name.removesuffix(mark): value for name, value in entries.items() if name.endswith(mark)}
    return {name: value for name, value in entries.items() if not name.endswith(mark)}, theirs
