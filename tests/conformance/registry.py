"""What all checks share: their table, what may come out of one, and the problem on which they run."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torch.testing._internal.common_optimizers import OptimizerInfo

from learned_optim import RuleOptimizer

OK = "ok"
REFUSED = "refused"
"""The check asks for something that we do not do, and has seen that it is refused by an error that says so."""

REASONS = {
    "GPU": "Runs where there is a CUDA device.",
    "2 GPUs": "Runs where there are two CUDA devices.",
    "tensorwise": "It looks at a tensor or network as a whole, or at the number of dimensions, so that a complex "
    "tensor is not two real ones; `complex` checks that it is one of pairs.",
    "stateless": "Its rule remembers nothing of a parameter, so that there is nothing to keep.",
    "names": "States go between named parameters and between unnamed ones. From one to the other they are refused, "
    "because the rates belong to names.",
}
"""What a cell says where a check does not apply, and why."""

Check = Callable[[OptimizerInfo], "str | None"]
CHECKS: dict[str, Check] = {}
"""The checks by name, in the order of the table; each is a function of an optimizer's description. It raises where the
optimizer fails, and returns `REFUSED`, a key of `REASONS`, or None for `OK`."""


def check(function: Check) -> Check:
    """Enters a check into the table."""
    assert function.__name__ not in CHECKS, function.__name__
    CHECKS[function.__name__] = function
    return function


def needs_gpus(count: int) -> Callable[[Check], Check]:
    """Marks a check that runs only where there are so many CUDA devices, and says so in its cell everywhere."""

    def mark(function: Check) -> Check:
        function.gpus = count  # type: ignore[attr-defined]  # functions may carry attributes, their type says nothing
        return function

    return mark


def missing_gpus(function: Check) -> str | None:
    """The reason for which a check cannot run here."""
    if getattr(function, "gpus", 0) > torch.cuda.device_count():
        return gpu_reason(function)
    return None


def gpu_reason(function: Check) -> str | None:
    """The cell of a check that needs a GPU, whether or not there is one here."""
    return {0: None, 1: "GPU", 2: "2 GPUs"}[getattr(function, "gpus", 0)]


class Line:
    """Torch's problem for these checks: the squared length of W x + b is to go down."""

    def __init__(
        self, *, contiguous: bool = True, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        shapes: list[tuple[int, ...]] = [(10, 5), (10,)] if contiguous else [(10, 5, 2), (10, 2)]
        tensors = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
        tensors = [tensor.to(device, dtype) for tensor in tensors]
        self.weight, self.bias = [nn.Parameter(tensor if contiguous else tensor[..., 0]) for tensor in tensors]
        self.x = torch.randn(5, generator=generator, dtype=torch.float64).to(device, dtype)

    @property
    def params(self) -> list[nn.Parameter]:
        return [self.weight, self.bias]

    @property
    def named(self) -> list[tuple[str, nn.Parameter]]:
        return [("weight", self.weight), ("bias", self.bias)]

    def loss(self) -> Tensor:
        return (self.weight.mv(self.x) + self.bias).pow(2).sum()

    def backward(self, optimizer: torch.optim.Optimizer) -> Tensor:
        optimizer.zero_grad()
        loss = self.loss()
        loss.backward()
        return loss.detach()

    def train(self, optimizer: torch.optim.Optimizer, steps: int) -> None:
        for _ in range(steps):
            self.backward(optimizer)
            optimizer.step()


def setups(info: OptimizerInfo) -> Iterator[tuple[dict[str, Any], Line]]:
    """Fresh options and a fresh problem for each of the optimizer's inputs."""
    for optim_input in info.optim_inputs_func(device="cpu"):
        yield optim_input.kwargs, Line()


def same(actual: Any, expected: Any, *, rtol: float = 0.0, atol: float = 0.0) -> None:
    """Asserts that nested containers hold equal values, tensors bit for bit unless said otherwise."""
    if isinstance(expected, Tensor):
        assert_close(actual, expected, rtol=rtol, atol=atol)
    elif isinstance(expected, dict):
        assert actual.keys() == expected.keys()
        for key, value in expected.items():
            same(actual[key], value, rtol=rtol, atol=atol)
    elif isinstance(expected, (list, tuple)):
        assert len(actual) == len(expected)
        for one, other in zip(actual, expected, strict=True):
            same(one, other, rtol=rtol, atol=atol)
    else:
        assert actual == expected


def snapshot(optimizer: RuleOptimizer) -> Any:
    """All that a step or a load may change, copied."""
    params = [p.detach() for group in optimizer.param_groups for p in group["params"]]
    return copy.deepcopy((params, optimizer.state_dict()))


def own_decay(optimizer: RuleOptimizer) -> float:
    """How much of a parameter the rule itself takes away at each step."""
    options = getattr(optimizer.rule, "options", {})
    return options.get("weight_decay", 0.0) * options.get("lr", 0.0)
