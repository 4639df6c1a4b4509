"""Several problems of one family, side by side."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from learned_optim.joined import JoinedUpdate, joinable
from learned_optim.problems import ProblemFamily
from learned_optim.rule import Rule, bind
from learned_optim.seeds import seeded
from learned_optim.types import Minibatch, RuleState, Tensors, Update
from learned_optim.unroll import unroll


class Window(NamedTuple):
    """Steps on several problems.

    Attributes:
        params: After the last step, each of shape (I, ...).
        state: The rule's, likewise.
        losses: L(theta_k) for k = 0..K, shape (I, K + 1): from where the steps begin to after the last, there on
            the batch of the step that would come next.
    """

    params: Tensors
    state: RuleState
    losses: Tensor


class Instances:
    """I problems of a family, each known by its number: the same ones for the same seed, role and episode.

    Args:
        family: What they are drawn from.
        purpose: Names the stream of problems, such as ``(seed, "train", episode)``.
        numbers: Which of them.
        device: Where they live.
    """

    def __init__(
        self,
        family: ProblemFamily,
        purpose: Sequence[int | str],
        numbers: Iterable[int],
        *,
        device: torch.device | str = "cpu",
    ) -> None:
        self.family, self.purpose, self.numbers = family, tuple(purpose), list(numbers)
        self.device = device
        family.to(device)
        # A number may come several times.
        self._problems = {i: family.sample(seeded(*self.purpose, i)) for i in self.numbers}
        self._last: tuple[list[Any], Minibatch] | None = None

    def __len__(self) -> int:
        return len(self.numbers)

    def start(self, rule: Rule) -> tuple[Tensors, RuleState]:
        """First parameters and states, each of shape (I, ...)."""
        problems = [self._problems[i] for i in self.numbers]
        params = {
            name: torch.stack([problem.params[name] for problem in problems]).to(self.device)
            for name in problems[0].params
        }
        with torch.no_grad():
            states = [
                tuple(rule.init_state(problem.params, generator=seeded(*self.purpose, i, "state")))
                for i, problem in zip(self.numbers, problems, strict=True)
            ]
        per_param, shared = tree_map(lambda *leaves: torch.stack(leaves).to(self.device), *states)
        return params, RuleState(per_param, shared)

    def batch(self, step: int) -> Minibatch:
        """The step's batches, each tensor of shape (I, ...)."""
        each = {i: problem.batch(seeded(*self.purpose, i, step)) for i, problem in self._problems.items()}
        leaves, structure = tree_flatten([each[i] for i in self.numbers])
        # Families without minibatches hand out the same tensors at every step, and some for every problem: these are
        # not copied so many times.
        if self._last is None or any(new is not old for new, old in zip(leaves, self._last[0], strict=True)):
            batch = tree_map(lambda *drawn: _stacked(drawn).to(self.device), *tree_unflatten(leaves, structure))
            self._last = leaves, batch
        return self._last[1]

    def run(
        self,
        update: Update,
        params: Tensors,
        state: RuleState,
        steps: range,
        *,
        first_order: bool = True,
        phi: Tensors | None = None,
        flat_memory: bool | int = False,
    ) -> Window:
        """Takes ``steps`` with ``update`` on every problem.

        Args:
            update: Of one problem; it is batched with vmap.
            params: Shape (I, ...).
            state: Likewise.
            steps: Their numbers, which name the batches.
            first_order: See `unroll`.
            phi: Each problem's own meta-parameters, shape (I, ...); ``update`` then is a rule.
            flat_memory: See `unroll`.
        """
        batches = [self.batch(step) for step in range(steps.start, steps.stop + 1)]

        one_dtype = len({p.dtype for p in params.values()}) == 1
        alike = isinstance(update, Rule) and joinable(update) and one_dtype

        def one(params: Tensors, state: RuleState, batches: list[Minibatch], phi: Tensors | None) -> Window:
            own = update if phi is None else bind(cast(Rule, update), phi)
            joined = JoinedUpdate(own, params) if alike else None
            unrolled = unroll(
                joined or own,
                self.family.loss,
                params,
                joined.extend(state) if joined else state,
                steps=len(steps),
                batches=batches[:-1],
                first_order=first_order,
                flat_memory=flat_memory,
            )
            after = self.family.loss(unrolled.params, batches[-1])
            state = joined.reduce(unrolled.state) if joined else unrolled.state
            return Window(unrolled.params, state, torch.cat((unrolled.losses, after.unsqueeze(0))))

        dims = (0, 0, 0, None if phi is None else 0)
        result: Window = torch.vmap(one, in_dims=dims, randomness="different")(params, state, batches, phi)
        return result


def _stacked(drawn: Sequence[Tensor]) -> Tensor:
    """What `torch.stack` gives, without copies where all are the same tensor."""
    one = drawn[0]
    return one.expand(len(drawn), *one.shape) if all(other is one for other in drawn) else torch.stack(list(drawn))
