"""Whether a step is taken as it is written, so that it may look at numbers and go by what it sees."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack


def transformed() -> bool:
    """Whether a transform of torch.func is at work, or the compiler, which follows those alone."""
    # torch has no public way to ask.
    return torch.compiler.is_compiling() or peek_interpreter_stack() is not None


def may_look(tensors: Iterable[Tensor]) -> bool:
    """Whether a look at these tensors is allowed and waits for nobody: they are ordinary ones on CPU, and nothing of
    the step is recorded or transformed."""
    if torch.is_grad_enabled() or transformed():
        return False
    return all(type(tensor) is Tensor and tensor.device.type == "cpu" for tensor in tensors)
