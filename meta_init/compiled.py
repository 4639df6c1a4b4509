"""A function and its gradient, traced once for tasks of a size and compiled as one."""

from __future__ import annotations

import logging
import time
import types
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

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
        self._functions: dict[Any, _Made] = {}

    def __call__(self, module: nn.Module, tasks: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The value, whose gradient is ready, and what to log.

        Args:
            module: Its ``forward`` is what is differentiated by its parameters.
            tasks: A tree of tensors.

        Raises:
            RuntimeError: The forward pass cannot be traced, because it looks at the values of tensors.
        """
        parts = tuple(module.modules())
        # As they lie, which takes a fraction of the time that it takes to collect them by name.
        named = [
            (name, tensor)
            for part in parts
            for name, tensor in (*part._parameters.items(), *part._buffers.items())
            if tensor is not None
        ]
        held = [tensor for _, tensor in named]
        first: dict[int, int] = {}  # of several places with the same tensor
        leaves, structure = pytree.tree_flatten(tasks)
        key = (
            parts,
            structure,
            tuple(map(_layout, leaves)),
            tuple(
                (name, *_layout(tensor), tensor.requires_grad, first.setdefault(id(tensor), i))
                for i, (name, tensor) in enumerate(named)
            ),
            _settings(parts),
        )
        if key not in self._functions:
            self._functions[key] = self._made(module, held, leaves, structure)
        made = self._functions[key]
        inputs = [held[place].detach() for place in made.places] + leaves
        value, *outputs = made.function(*inputs)
        learned = [held[place] for place in made.places[: made.learned]]
        grads, logs = outputs[: made.learned], outputs[made.learned :]
        handed: Tensor = _Handed.apply(value, grads, *learned)  # type: ignore[no-untyped-call]  # Function.apply has no annotations
        return handed, dict(zip(made.logs, logs, strict=True))

    def _made(self, module: nn.Module, held: list[Tensor], leaves: list[Tensor], structure: Any) -> _Made:
        learned = dict(module.named_parameters())
        others = {**dict(nn.Module.named_parameters(module)), **dict(module.named_buffers())}
        names = [*learned, *(name for name in others if name not in learned)]
        where = {id(tensor): place for place, tensor in enumerate(held)}
        tensors = [(learned | others)[name] for name in names]
        logged: list[str] = []

        def gradient(*inputs: Tensor) -> tuple[Tensor, ...]:
            values = dict(zip(names, inputs[: len(names)], strict=True))
            tasks = pytree.tree_unflatten(list(inputs[len(names) :]), structure)

            def loss(params: Mapping[str, Tensor]) -> Any:
                return functional_call(module, values | dict(params), (tasks,))

            grads, (value, logs) = grad_and_value(loss, has_aux=True)({name: values[name] for name in learned})
            logged[:] = logs
            return value, *(grads[name] for name in learned), *logs.values()

        leaves = [tensor.detach() for tensor in tensors] + leaves
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
        return _Made(function, tuple(where[id(tensor)] for tensor in tensors), len(learned), tuple(logged))


class _Made(NamedTuple):
    """A function that was compiled.

    Attributes:
        function: Of tensors of the module and the leaves of the tasks; returns value, gradients and logs.
        places: Of its first inputs among the tensors that the module holds.
        learned: By so many of these there is a gradient.
        logs: Their names.
    """

    function: Callable[..., Any]
    places: tuple[int, ...]
    learned: int
    logs: tuple[str, ...]


class _Handed(torch.autograd.Function):
    """The value as a function of the parameters, with gradients that are known already."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, grads: list[Tensor], *params: Tensor) -> Tensor:
        ctx.grads = grads
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> Any:
        return None, None, *torch._foreach_mul(ctx.grads, upstream)


def _compiled(graph: torch.fx.GraphModule, leaves: list[Tensor]) -> Callable[..., Any]:
    """The graph's fastest form, or the graph itself where there is no compiler.

    What `torch.compile` would look at in each call, the key to the graph has told already. On CPU kernels are called
    from C++: from Python that takes as long as small ones do.
    """
    options = {"cpp_wrapper": all(leaf.device.type == "cpu" for leaf in leaves)}
    for node in graph.graph.nodes:
        node.meta.pop("val", None)  # each traced in a mode of its own, which the compiler refuses to mix
    try:
        with torch.no_grad():
            function: Callable[..., Any] = torch._inductor.compile(graph, [*leaves], options=options)
            function(*leaves)
    except (torch._dynamo.exc.BackendCompilerFailed, torch._inductor.exc.InvalidCxxCompiler) as error:
        warnings.warn(f"compile=True goes on without a compiler: {str(error).splitlines()[0]}", stacklevel=5)
        return graph
    return _captured(function, leaves) if all(leaf.is_cuda for leaf in leaves) else function


def _captured(function: Callable[..., Any], leaves: list[Tensor]) -> Callable[..., Any]:
    """The function as one graph of kernels on a GPU, which are launched together: one by one takes longer than they do.

    Args:
        function: It has run before. Each of its tensors lies on the GPU.
        leaves: Its arguments, as they lie in each call.
    """
    given = [leaf.clone() for leaf in leaves]
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad():
        function(*given)  # libraries must not set themselves up while it is recorded
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            results = function(*given)

    def call(*arguments: Tensor) -> list[Tensor]:
        torch._foreach_copy_(given, [*arguments])
        graph.replay()
        return [result.clone() for result in results]  # the next call writes into the same memory

    return call


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device


_PLAIN = frozenset((bool, int, float, str, types.FunctionType))
"""Types of attributes that are compiled in."""


def _settings(parts: tuple[nn.Module, ...]) -> tuple[Any, ...]:
    """What else a graph depends on: plain attributes of the modules, and autocast."""
    attributes = [(name, value) for part in parts for name, value in part.__dict__.items() if type(value) in _PLAIN]
    autocast = [
        (device, torch.get_autocast_dtype(device)) for device in ("cpu", "cuda") if torch.is_autocast_enabled(device)
    ]
    return (*attributes, *autocast)
