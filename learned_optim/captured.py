"""The tensors that a function uses without being given them, found by watching it run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

Result = TypeVar("Result")


class Captured:
    """Watches functions run; the tensors that they took from elsewhere become arguments of `call`.

    A gradient by such tensors, say the weights of a layer that the function closes over, cannot be computed by a
    function of the arguments alone. What is watched is torch's own functions: tensors that only a custom
    ``autograd.Function`` uses go unseen.

    Attributes:
        tensors: What was found, in the order of first use.
    """

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []

    def watch(self, function: Callable[..., Result], *args: Any) -> Result:
        """``function(*args)``; what it takes from elsewhere is added to ``tensors``."""
        with _Watching(args) as watching:
            result = function(*args)
        found = {id(tensor): tensor for tensor in (*self.tensors, *watching.found.values())}
        self.tensors = list(found.values())
        return result

    def call(self, function: Callable[..., Result], values: Sequence[Tensor], *args: Any) -> Result:
        """``function(*args)`` with ``values`` in place of ``tensors``."""
        replaced = {id(old): new for old, new in zip(self.tensors, values, strict=True) if old is not new}
        if not replaced:
            return function(*args)
        with _Replacing(replaced):
            return function(*args)


class _Watching(TorchFunctionMode):
    def __init__(self, given: Any) -> None:
        super().__init__()
        # By identity; they are held so that no other tensor takes the place of one that is gone.
        self.known = {id(leaf): leaf for leaf in tree_leaves(given) if isinstance(leaf, Tensor)}
        self.found: dict[int, Tensor] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor) and id(leaf) not in self.known:
                self.found[id(leaf)] = leaf
        result = func(*args, **kwargs)
        self.known |= {id(leaf): leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)}
        return result


class _Replacing(TorchFunctionMode):
    def __init__(self, replaced: dict[int, Tensor]) -> None:
        super().__init__()
        self.replaced = replaced

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return func(*self._of(args), **(self._of(kwargs) if kwargs else {}))

    def _of(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self.replaced.get(id(value), value)
        if type(value) in (list, tuple):
            return type(value)([self._of(item) for item in value])
        if type(value) is dict:
            return {key: self._of(item) for key, item in value.items()}
        return value
