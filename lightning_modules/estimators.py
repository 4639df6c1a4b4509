"""Two ways to the gradient of a learned optimizer's loss: backpropagation through its steps, and perturbed copies.

Both take one window of steps on several problems and return a loss whose ``backward()`` gives the estimate, together
with what the next window goes on from: a dict of tensors, `Carried`, that checkpoints hold.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from learned_optim import Rule, RuleState, Tensors, detached
from learned_optim.imitation import Imitating
from learned_optim.instances import Instances, Window
from learned_optim.sampled import SampledUpdate
from learned_optim.types import Update

ESTIMATORS = ("truncated", "evolution")

Carried: TypeAlias = dict[str, Any]
"""``params``, the rule's state as ``per_param`` and ``shared``, ``first``: the losses at the start, and more."""

Objective: TypeAlias = Callable[[Tensor, Tensor, range], Tensor]
"""``objective(losses, first, steps)``: a number for each problem, shape (I,), from L(theta) after each of the steps,
shape (I, K), and at the start, shape (I,)."""


class Estimator(ABC):
    """An estimate of the gradient of the objective by the rule's parameters."""

    copies = 1
    """How often each problem is run."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule

    def numbers(self, first: int, count: int) -> Sequence[int]:
        """The numbers of the problems that `start` and `window` are to be given."""
        return [*range(first, first + count)] * self.copies

    def start(self, instances: Instances) -> Carried:
        """What the first window goes on from."""
        params, state = instances.start(self.rule)
        with torch.no_grad():
            first = torch.vmap(instances.family.loss)(params, instances.batch(0))
        return _carried(params, state, first)

    @abstractmethod
    def window(
        self,
        instances: Instances,
        carried: Carried,
        steps: range,
        objective: Objective,
        *,
        generator: torch.Generator,
        teacher_weight: float = 0.0,
    ) -> tuple[Tensor, Carried]:
        """One window: its loss, whose ``backward()`` gives the estimate, and what the next one goes on from.

        Args:
            instances: The problems.
            carried: Of the window before, or `start`.
            steps: The numbers of the steps to take.
            objective: What is minimised.
            generator: Of the estimate's own randomness.
            teacher_weight: What the distance to the teacher's steps counts for, where there is a teacher.
        """


class TruncatedBackpropagation(Estimator):
    """Backpropagation through the window, and no further.

    Args:
        rule: The rule.
        first_order: Treats the optimizee's gradients as constants.
        coordinates: How many of each tensor keep their graph, see `SampledUpdate`; all by default.
        teacher: A rule to imitate, see `Imitating`.
        clip: The largest norm of a single problem's meta-gradient; longer ones are shortened to it before the mean over
            problems, and those that are not finite are left out. Without ``coordinates`` and ``teacher``.
        flat_memory: Recomputes steps in the backward pass, see `unroll`.

    Source: Andrychowicz et al. 2016, section 2; ``clip``: our own.
    """

    def __init__(
        self,
        rule: Rule,
        *,
        first_order: bool = True,
        coordinates: int | None = None,
        teacher: Rule | None = None,
        clip: float | None = None,
        flat_memory: bool | int = False,
    ) -> None:
        super().__init__(rule)
        self.first_order, self.coordinates, self.teacher, self.clip = first_order, coordinates, teacher, clip
        self.flat_memory = flat_memory

    def start(self, instances: Instances) -> Carried:
        carried = super().start(instances)
        if self.teacher is not None:
            self.teacher.to(instances.device)
            state = torch.vmap(self.teacher.init_state)(carried["params"])
            carried |= {"teacher_per_param": state.per_param, "teacher_shared": state.shared}
        return carried

    def window(
        self,
        instances: Instances,
        carried: Carried,
        steps: range,
        objective: Objective,
        *,
        generator: torch.Generator,
        teacher_weight: float = 0.0,
    ) -> tuple[Tensor, Carried]:
        params, state = carried["params"], RuleState(carried["per_param"], carried["shared"])
        if self.clip is not None:
            return self._clipped(instances, params, state, carried["first"], steps, objective, self.clip)
        update: Update = self.rule
        sample = imitating = None
        if self.coordinates is not None:
            one = {name: p[0] for name, p in params.items()}
            update = sample = SampledUpdate(self.rule, one, count=self.coordinates, generator=generator)
            state = torch.vmap(sample.extend)(state)
        if self.teacher is not None:
            update = imitating = Imitating(update, self.teacher)
            theirs = RuleState(carried["teacher_per_param"], carried["teacher_shared"])
            state = torch.vmap(imitating.extend)(state, params, theirs)
        result = instances.run(update, params, state, steps, first_order=self.first_order, flat_memory=self.flat_memory)

        loss = objective(result.losses[:, 1:], carried["first"], steps).mean()
        state, more = result.state, {}
        if imitating is not None:
            if teacher_weight:
                loss = loss + teacher_weight * imitating.distance(state).mean() / len(steps)
            state, theirs = imitating.reduce(state)
            _, theirs = detached({}, theirs)
            more = {"teacher_per_param": theirs.per_param, "teacher_shared": theirs.shared}
        if sample is not None:
            state = sample.reduce(state)
        return loss, _carried(*detached(result.params, state), carried["first"]) | more | _after(result)

    def _clipped(
        self,
        instances: Instances,
        params: Tensors,
        state: RuleState,
        first: Tensor,
        steps: range,
        objective: Objective,
        clip: float,
    ) -> tuple[Tensor, Carried]:
        """The window with a copy of phi for each problem, so that each has a gradient of its own."""
        phi = {
            name: p.detach().expand(len(instances), *p.shape).clone().requires_grad_()
            for name, p in trained(self.rule).items()
        }
        result = instances.run(
            self.rule, params, state, steps, first_order=self.first_order, phi=phi, flat_memory=self.flat_memory
        )
        values = objective(result.losses[:, 1:], first, steps)  # (I,)
        each = torch.autograd.grad(values.sum(), [*phi.values()], allow_unused=True, materialize_grads=True)
        norms = torch.cat([grad.reshape(len(grad), -1) for grad in each], dim=1).norm(dim=1)
        kept = torch.isfinite(norms) & torch.isfinite(values)
        # Where none is kept the loss is NaN, and the module leaves the window out.
        scales = torch.where(kept, clip / norms.clamp(min=clip), 0.0) / kept.sum()
        grads = {
            name: torch.einsum("i,i...->...", scales, torch.where(_over(kept, grad), grad, 0.0))
            for name, grad in zip(phi, each, strict=True)
        }
        loss = values.detach()[kept].mean() + _handed(self.rule, grads)
        return loss, _carried(*detached(result.params, result.state), first) | _after(result)


class PersistentEvolution(Estimator):
    """Persistent evolution strategies: an unbiased estimate for any number of windows, without backpropagation.

    Each problem is run twice, with phi + e and phi - e, e drawn anew for each problem and window from N(0, std^2). The
    gradient is the mean over problems of xi (L+ - L-) / (2 std^2), where xi is the sum of a problem's e since its
    start: the perturbations of earlier windows keep their share in what they have led to, which truncation drops.

    Args:
        rule: The rule.
        std: Standard deviation of the perturbations.

    Source: Vicol et al. 2021, algorithm 2, with antithetic pairs.
    """

    copies = 2

    def __init__(self, rule: Rule, *, std: float = 0.01) -> None:
        super().__init__(rule)
        self.std = std

    def start(self, instances: Instances) -> Carried:
        pairs = len(instances) // 2
        noise = {name: p.new_zeros(pairs, *p.shape) for name, p in trained(self.rule).items()}
        return super().start(instances) | {"noise": {name: value.detach() for name, value in noise.items()}}

    def window(
        self,
        instances: Instances,
        carried: Carried,
        steps: range,
        objective: Objective,
        *,
        generator: torch.Generator,
        teacher_weight: float = 0.0,
    ) -> tuple[Tensor, Carried]:
        pairs = len(instances) // 2
        phi = {name: p.detach() for name, p in trained(self.rule).items()}
        fresh = {
            name: self.std * torch.randn(pairs, *p.shape, generator=generator, dtype=p.dtype).to(p.device)
            for name, p in phi.items()
        }
        noise = {name: carried["noise"][name] + fresh[name] for name in phi}
        perturbed = {name: torch.cat((p + fresh[name], p - fresh[name])) for name, p in phi.items()}
        state = RuleState(carried["per_param"], carried["shared"])
        with torch.no_grad():
            result = instances.run(self.rule, carried["params"], state, steps, phi=perturbed)
            values = objective(result.losses[:, 1:], carried["first"], steps)  # (2 pairs,)
            slopes = (values[:pairs] - values[pairs:]) / (2 * self.std**2)
            kept = torch.isfinite(slopes)  # a pair of which one has diverged tells nothing
            slopes, count = torch.where(kept, slopes, 0.0), kept.sum().clamp(min=1)
            grads = {name: torch.einsum("i,i...->...", slopes, value) / count for name, value in noise.items()}
        loss = values[kept.repeat(2)].mean() + _handed(self.rule, grads)
        return loss, _carried(result.params, result.state, carried["first"]) | {"noise": noise} | _after(result)


def trained(rule: Rule) -> Tensors:
    """The parameters that are trained, by name: those that require a gradient."""
    return {name: p for name, p in rule.named_parameters() if p.requires_grad}


def nothing(rule: Rule) -> Tensor:
    """Zero, with zeros for gradients."""
    return _handed(rule, {name: torch.zeros_like(p) for name, p in trained(rule).items()})


def _handed(rule: Rule, grads: Tensors) -> Tensor:
    """Zero, with these gradients."""
    return torch.stack([((p - p.detach()) * grads[name]).sum() for name, p in trained(rule).items()]).sum()


def _over(kept: Tensor, value: Tensor) -> Tensor:
    """A mark for each problem, in the shape of ``value``."""
    return kept.reshape(-1, *[1] * (value.dim() - 1))


def _carried(params: Tensors, state: RuleState, first: Tensor) -> Carried:
    return {"params": params, "per_param": state.per_param, "shared": state.shared, "first": first}


def _after(result: Window) -> Carried:
    return {"after": result.losses[:, -1].detach()}


def estimator_of(
    rule: Rule,
    name: str,
    *,
    first_order: bool,
    coordinates: int | None,
    clip: float | None,
    flat_memory: bool | int,
    teacher: Rule | None,
    std: float,
) -> Estimator:
    """The estimator that `LearnedOptimizerModule` names so, with its options, of which not all go together.

    Raises:
        ValueError: An unknown name, a number out of range, or options that exclude each other.
    """
    who = "LearnedOptimizerModule"
    if name not in ESTIMATORS:
        raise ValueError(f"{who}: estimator must be one of {ESTIMATORS}, got {name!r}")
    if clip is not None:
        if not (math.isfinite(clip) and clip > 0):
            raise ValueError(f"{who}: clip must be finite and > 0, or None, got {clip}")
        if coordinates is not None or teacher is not None:
            raise ValueError(f"{who}: clip cannot be combined with coordinates or teacher")
    if name == "evolution":
        if teacher is not None or coordinates is not None or clip is not None or flat_memory or not first_order:
            raise ValueError(
                f"{who}: teacher, coordinates, clip, flat_memory and first_order=False need estimator='truncated'"
            )
        if not (math.isfinite(std) and std > 0):
            raise ValueError(f"{who}: std must be finite and > 0, got {std}")
        return PersistentEvolution(rule, std=std)
    if coordinates is not None and not first_order:
        raise ValueError(f"{who}: coordinates needs first_order=True, where coordinates are independent")
    return TruncatedBackpropagation(
        rule,
        first_order=first_order,
        coordinates=coordinates,
        teacher=teacher,
        clip=clip,
        flat_memory=flat_memory,
    )
