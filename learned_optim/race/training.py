"""One optimizer trains one problem."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from learned_optim.problems import ProblemFamily
from learned_optim.seeds import seeded

MakeOptimizer: TypeAlias = Callable[..., Optimizer]
"""``make(params, **setting)`` makes an optimizer of a list of named parameters."""


class Run(NamedTuple):
    """One optimizer on one problem; or on several, and then every tensor has their axis first.

    Attributes:
        losses: Training loss before each step, on its minibatch, shape (steps,).
        test_loss: After the last step, on data that no batch holds; NaN where the family has none.
        seconds: Wall-clock of one step, its batch included: the mean over all but the first step, in which libraries
            set themselves up.
    """

    losses: Tensor
    test_loss: Tensor
    seconds: Tensor


class Job(NamedTuple):
    """What `train` is to do, in a form that can be handed to another process.

    Attributes:
        make: ``make(params, **setting)``.
        setting: Options of the optimizer, such as its learning rate.
        steps: Steps to take.
        seed: See `train`.
        role: See `train`.
        device: See `train`.
    """

    make: MakeOptimizer
    setting: Mapping[str, float]
    steps: int
    seed: int
    role: str = "test"
    device: str | None = None

    def run(self, family: ProblemFamily) -> Run:
        """Does it."""
        make = partial(self.make, **self.setting)
        return train(family, make, steps=self.steps, seed=self.seed, role=self.role, device=self.device)


def train(
    family: ProblemFamily,
    make: MakeOptimizer,
    *,
    steps: int,
    seed: int,
    role: str = "test",
    device: str | None = None,
) -> Run:
    """Trains one problem in a plain PyTorch loop.

    Args:
        family: The family of the problem.
        make: ``make(params)`` makes the optimizer.
        steps: Steps to take.
        seed: Of the problem and its batches: with ``role`` it names the same problem for every optimizer. What draws
            from torch's global generator, such as dropout, is seeded too.
        role: ``"test"`` or ``"val"``; neither meets the problems of `LearnedOptimizerModule`.
        device: Where it is trained; by default where the problem is. It is the same one on each.
    """
    if device is not None:
        family.to(device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeded("race", role, seed, "rest").initial_seed())
        problem = family.sample(seeded("race", role, seed))
        params = {name: p.clone().requires_grad_() for name, p in _on(device, problem.params).items()}
        optimizer = make(list(params.items()))
        batches = seeded("race", role, seed, "batches")
        losses = torch.empty(steps, device=next(iter(params.values())).device)
        start = time.perf_counter()
        for step in range(steps):
            loss = family.loss(params, _on(device, problem.batch(batches)))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch has not typed it
            optimizer.step()
            losses[step] = loss.detach()
            if step == 0 and steps > 1:
                float(losses[0])  # waits for the device
                start = time.perf_counter()
        losses = losses.cpu()  # waits for the device
        seconds = (time.perf_counter() - start) / max(steps - 1, 1)
        with torch.no_grad():
            test_loss = family.test_loss(params)
    held_out = torch.tensor(math.nan) if test_loss is None else test_loss.cpu()
    return Run(losses, held_out, torch.tensor(seconds, dtype=torch.float64))


def _on(device: str | None, tree: Any) -> Any:
    return tree if device is None else tree_map(lambda leaf: leaf.to(device), tree)


def stacked(runs: Iterable[Run]) -> Run:
    """Several runs as one, with a first axis for them."""
    return Run(*(torch.stack(parts) for parts in zip(*runs, strict=True)))


def repeat(family: ProblemFamily, make: MakeOptimizer, *, steps: int, seeds: Iterable[int], role: str = "test") -> Run:
    """`train` on several seeds: losses of shape (seeds, steps), test losses and seconds of shape (seeds,)."""
    return stacked(train(family, make, steps=steps, seed=seed, role=role) for seed in seeds)


def trailing_mean(losses: Tensor, width: int) -> Tensor:
    """The mean of the ``width`` losses that end at each step, of fewer at the beginning; shape (..., steps)."""
    padded = F.pad(losses.double(), (width - 1, 0))
    counts = torch.arange(1, losses.shape[-1] + 1).clamp(max=width)
    means: Tensor = padded.unfold(-1, width, 1).sum(dim=-1) / counts
    return means


def final_losses(losses: Tensor, window: int) -> Tensor:
    """The mean of the last ``window`` losses, shape (...)."""
    return trailing_mean(losses, window)[..., -1]
