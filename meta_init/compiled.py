"""A function and its gradient, traced once for tasks of a size and compiled as one."""

from __future__ import annotations

import logging
import time
import types
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call, grad_and_value
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

logger = logging.getLogger(__name__)

_SIZES = 8
"""So many different sizes of tasks, each compiled anew, are taken for an oversight."""


class CompiledGradient:
    """``module(tasks)``, a scalar and a dict to log, with a gradient that is computed along with it.

    The derivative of a derivative is beyond what compilers do with ``backward()``. Here value and gradient are written
    as one function with torch.func, traced into a graph of plain operations and compiled; the ready gradient is handed
    to autograd, so that ``backward()``, accumulation, gradient scaling and hooks go on as ever.

    What is not a tensor is compiled in: numbers, flags and strings among the attributes of the modules are looked at in
    each call, and a new value compiles anew.

    Attributes:
        seconds: What tracing and compiling has taken so far.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._functions: dict[Any, Callable[..., Any]] = {}

    def __call__(self, module: nn.Module, tasks: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The value, whose gradient is ready, and what to log.

        Args:
            module: Its ``forward`` is what is differentiated by its parameters.
            tasks: A tree of tensors.

        Raises:
            RuntimeError: The forward pass cannot be traced, because it looks at the values of tensors.
        """
        learned = dict(module.named_parameters())
        params = {name: param.detach() for name, param in learned.items()}
        held = {**dict(nn.Module.named_parameters(module)), **dict(module.named_buffers())}
        constants = {name: value.detach() for name, value in held.items() if name not in learned}
        leaves, structure = pytree.tree_flatten((params, constants, tasks))
        key = (structure, tuple((leaf.shape, leaf.dtype, leaf.device) for leaf in leaves), _settings(module))
        if key not in self._functions:
            self._functions[key] = self._made(module, leaves, structure)
        grads, value, logs = self._functions[key](*leaves)
        handed: Tensor = _Handed.apply(value, grads, *learned.values())  # type: ignore[no-untyped-call]  # torch's gap
        return handed, logs

    def _made(self, module: nn.Module, leaves: list[Tensor], structure: Any) -> Callable[..., Any]:
        def gradient(*leaves: Tensor) -> Any:
            params, constants, tasks = pytree.tree_unflatten(list(leaves), structure)

            def loss(params: Mapping[str, Tensor]) -> Any:
                return functional_call(module, (dict(params), constants), (tasks,))

            grads, (value, logs) = grad_and_value(loss, has_aux=True)(params)
            return tuple(grads[name] for name in params), value, logs

        start = time.perf_counter()
        try:
            graph = make_fx(gradient)(*leaves)
        except RuntimeError as error:
            gradient(*leaves)  # an error that has nothing to do with tracing says more by itself
            raise RuntimeError(
                f"{type(module).__name__} cannot be compiled, because something in it looks at values of tensors; use "
                f"compile=False. Tracing said: {error}"
            ) from error
        function = _compiled(graph, leaves)
        self.seconds += time.perf_counter() - start
        logger.info("compiled %s in %.1f s", type(module).__name__, self.seconds)
        if len(self._functions) == _SIZES:
            warnings.warn(
                f"{type(module).__name__} was compiled for {_SIZES} sizes of tasks or settings already, in "
                f"{self.seconds:.0f} s; with sizes that always differ compile=False is faster",
                stacklevel=4,
            )
        return function


class _Handed(torch.autograd.Function):
    """The value as a function of the parameters, with gradients that are known already."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, grads: tuple[Tensor, ...], *params: Tensor) -> Tensor:
        ctx.grads = grads
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> Any:
        return None, None, *(upstream * grad for grad in ctx.grads)


def _compiled(graph: torch.fx.GraphModule, leaves: list[Tensor]) -> Callable[..., Any]:
    """The graph's fastest form, or the graph itself where there is no compiler."""
    function: Callable[..., Any] = torch.compile(graph, dynamic=False)
    try:
        function(*leaves)
    except torch._dynamo.exc.BackendCompilerFailed as error:
        warnings.warn(f"compile=True goes on without a compiler: {str(error).splitlines()[0]}", stacklevel=5)
        return graph
    return function


def _settings(module: nn.Module) -> tuple[Any, ...]:
    """What else a graph depends on: plain attributes of the modules, and autocast."""
    plain = (bool, int, float, str, types.FunctionType)
    attributes = [
        (name, value) for part in module.modules() for name, value in part.__dict__.items() if type(value) in plain
    ]
    autocast = [
        (device, torch.get_autocast_dtype(device)) for device in ("cpu", "cuda") if torch.is_autocast_enabled(device)
    ]
    return (*attributes, *autocast)
