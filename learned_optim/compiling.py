"""A rule's step as one compiled function."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable

import torch

from learned_optim.rule import Rule
from learned_optim.types import RuleState, Tensors

Step = Callable[[Rule, Tensors, RuleState], tuple[Tensors, RuleState]]


def step(rule: Rule, grads: Tensors, state: RuleState) -> tuple[Tensors, RuleState]:
    """The step of a rule that looks at no parameters."""
    return rule(grads, state, {})


@functools.cache
def compiled_step() -> Step:
    """`step`, compiled anew for rules and shapes that it has not met; for the process, since that takes long.

    Without a compiler it is `step` itself, with a warning at the first call.
    """
    from torch._dynamo.exc import BackendCompilerFailed  # takes seconds to import
    from torch._inductor.exc import InvalidCxxCompiler

    function: Step = torch.compile(step, dynamic=False)

    def call(rule: Rule, grads: Tensors, state: RuleState) -> tuple[Tensors, RuleState]:
        nonlocal function
        try:
            return function(rule, grads, state)
        except (BackendCompilerFailed, InvalidCxxCompiler) as error:
            warnings.warn(f"compile=True goes on without a compiler: {str(error).splitlines()[0]}", stacklevel=2)
            function = step
            return step(rule, grads, state)

    return call
