"""Training a network of your own on data of your own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy

from learned_optim.normalisation import differentiable_twice
from learned_optim.problems.base import Problem, ProblemFamily
from learned_optim.types import Minibatch, Tensors

Pair: TypeAlias = tuple[Tensor, Tensor]
"""Inputs and targets, each with one example per row."""

DrawData: TypeAlias = Callable[[torch.Generator], Pair]
"""Draws the data of one problem, the same for a generator in the same state."""

_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


class NetworkProblems(ProblemFamily):
    """Fitting a network to data: f(theta) = loss(model(x; theta), y).

    A problem is an initialisation, an order of minibatches and, where ``data`` draws them, data of its own:

    >>> def curves(generator):
    ...     x = torch.rand(50, 1, generator=generator)
    ...     return x, torch.sin(6 * torch.rand(1, generator=generator) * x)
    >>> family = NetworkProblems(lambda: nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1)), curves)
    >>> problem = family.sample(torch.Generator())
    >>> loss = family.loss(problem.params, problem.batch(torch.Generator()))

    Args:
        model: Makes a fresh network; called under a seed, so that its initialisation belongs to the problem. Parameters
            without ``requires_grad`` and buffers are constants of the family. Batch and instance norms use the
            statistics of the batch, as in training, and keep no running ones; in ``eval()`` mode they use those that
            they have. Meta-training runs it under `torch.vmap`, which has no rule for ``nn.LSTM`` and ``nn.GRU``.
        data: Inputs x and targets y, each with one example per row; or a function ``data(generator) -> (x, y)`` that
            draws them for each problem, in the same shapes.
        loss: ``loss(prediction, y)``, a scalar: a function, or a module without parameters.
        batch_size: Examples per batch, drawn with replacement; by default all of them in each.
        held_out: Data of the same kind for `test_loss`, which batches do not hold. With drawn data, too, they are those
            of all problems.
        start_std: Draws theta_0 from N(0, start_std^2), apart from the parameters of norms; by default the network's
            own initialisation. The code of Andrychowicz et al. 2016 has 0.01 here.
        model_options: Keyword arguments for ``model`` in configuration files; Python has ``functools.partial``.

    Raises:
        TypeError: ``model`` is a network and not what makes one.
        ValueError: An argument makes no sense; or, when the first problem is drawn, the network is not the same
            function at each call (dropout, buffers that it writes), or the loss is no scalar.
    """

    def __init__(
        self,
        model: Callable[[], nn.Module],
        data: Pair | DrawData,
        *,
        loss: nn.Module | Callable[[Tensor, Tensor], Tensor] = F.mse_loss,
        batch_size: int | None = None,
        held_out: Pair | None = None,
        start_std: float | None = None,
        model_options: dict[str, Any] | None = None,
    ) -> None:
        who = type(self).__name__
        if isinstance(model, nn.Module):
            raise TypeError(
                f"{who}: model must make a fresh network, such as lambda: MyNet(), got a {_kind(model)}; in a "
                "configuration file give the path of the function, and its arguments as model_options"
            )
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"{who}: batch_size must be >= 1, or None for all data, got {batch_size}")
        if start_std is not None and not start_std > 0:
            raise ValueError(f"{who}: start_std must be > 0, got {start_std}")
        self.model: Callable[[], nn.Module] = partial(model, **model_options) if model_options else model
        self.data = data if callable(data) else _checked(data, f"{who}: data")
        self.loss_of = loss
        self.batch_size = batch_size
        self.held_out = None if held_out is None else _checked(held_out, f"{who}: held_out")
        self.start_std = start_std
        self._skeleton = _without_running_statistics(self.model())
        if any(is_lazy(p) for p in self._skeleton.parameters()):
            raise ValueError(f"{who}: model has parameters without a size; give its lazy layers their input sizes")
        self._constants = _constants(self._skeleton)
        self._shapes: tuple[torch.Size, torch.Size] | None = None

    def sample(self, generator: torch.Generator) -> Problem:
        seed = int(torch.randint(2**62, (), generator=generator))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = self.model()
            if self.start_std is not None:
                _draw(network, self.start_std)
        params = {name: param.detach() for name, param in network.named_parameters() if param.requires_grad}
        data = self.data(generator) if callable(self.data) else self.data
        problem = Problem(params, lambda batches: self._batch(data, batches))
        self._check(network, problem, data)
        return problem

    def prepared(self, x: Tensor, y: Tensor) -> Pair:
        """What a batch holds of chosen examples; for subclasses to override."""
        return x, y

    def _batch(self, data: Pair, generator: torch.Generator) -> Pair:
        x, y = data
        if self.batch_size is None:
            return self.prepared(x, y)
        chosen = torch.randint(len(y), (self.batch_size,), generator=generator)
        return self.prepared(x[chosen], y[chosen])

    def loss(self, params: Tensors, batch: Minibatch) -> Tensor:
        x, y = batch
        constants = {name: value.to(x.device) for name, value in self._constants.items()}
        # Fused kernels are faster, but under vmap norms have wrong second derivatives and attention has no rule.
        with _plain_kernels() if _batched(params) else nullcontext():
            out: Tensor = self.loss_of(functional_call(self._skeleton, {**constants, **params}, (x,)), y)
        return out

    def to(self, device: torch.device | str) -> None:
        if not callable(self.data):
            self.data = _moved(self.data, device)
        self.held_out = None if self.held_out is None else _moved(self.held_out, device)

    def test_loss(self, params: Tensors) -> Tensor | None:
        return None if self.held_out is None else self.loss(params, self.prepared(*self.held_out))

    # That the loss is a function of its arguments, looked at once: for the first problem

    def _check(self, network: nn.Module, problem: Problem, data: Pair) -> None:
        who = type(self).__name__
        if callable(self.data):
            x, y = _checked(data, f"{who}: data(generator)")
            if self._shapes not in (None, (x.shape, y.shape)):
                raise ValueError(f"{who}: data must have the same shapes for each problem, got {x.shape}, {y.shape}")
        if self._shapes is not None:
            return
        if network is self._skeleton:
            raise ValueError(f"{who}: model must make a fresh network at each call, but returned the same one twice")
        for name, value in _constants(network).items():
            if not torch.equal(value, self._constants[name]):
                raise ValueError(
                    f"{who}: {name!r} is no parameter to learn, but differs from network to network; make it a constant"
                )
        before = {name: value.clone() for name, value in self._constants.items()}
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            state = torch.get_rng_state()
            params = {name: p.to(data[0].device) for name, p in problem.params.items()}
            loss = self.loss(params, problem.batch(torch.Generator()))
            drawn = not torch.equal(state, torch.get_rng_state())
        if drawn:
            raise ValueError(
                f"{who}: the network or its loss draws random numbers, as dropout does; the loss must be a function of "
                "parameters and batch alone: make it with dropout 0 or in eval() mode"
            )
        for name, value in self._constants.items():
            if not torch.equal(value, before[name]):
                raise ValueError(f"{who}: the network writes its buffer {name!r} at each call; switch that off")
        if loss.shape != ():
            raise ValueError(f"{who}: loss must return a scalar, got shape {tuple(loss.shape)}")
        self._shapes = data[0].shape, data[1].shape


@contextmanager
def _plain_kernels() -> Iterator[None]:
    with differentiable_twice(), sdpa_kernel(SDPBackend.MATH):
        yield


def _batched(params: Tensors) -> bool:
    """Whether vmap is at work."""
    return any(torch._C._functorch.is_batchedtensor(_inside_grad(p)) for p in params.values())


def _inside_grad(tensor: Tensor) -> Tensor:
    while torch._C._functorch.is_gradtrackingtensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


def _moved(pair: Pair, device: torch.device | str) -> Pair:
    return pair[0].to(device), pair[1].to(device)


def _kind(value: object) -> str:
    return type(value).__name__


def _checked(data: object, what: str) -> Pair:
    pair = tuple(data) if isinstance(data, (tuple, list)) else ()
    if len(pair) != 2 or not all(isinstance(one, Tensor) and one.dim() for one in pair):
        raise ValueError(f"{what} must be two tensors (x, y) with one example per row, got {_kind(data)}")
    if len(pair[0]) != len(pair[1]) or not len(pair[0]):
        raise ValueError(f"{what}: x and y must have as many rows, at least one, got {len(pair[0])} and {len(pair[1])}")
    return pair


def _constants(network: nn.Module) -> Tensors:
    frozen = {name: p.detach() for name, p in network.named_parameters() if not p.requires_grad}
    return {**frozen, **dict(_without_running_statistics(network).named_buffers())}


def _without_running_statistics(network: nn.Module) -> nn.Module:
    """The network, its norms in training by the statistics of the batch alone: these are not written then."""
    for module in network.modules():
        if isinstance(module, _NormBase) and module.training:
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
    return network


def _draw(network: nn.Module, std: float) -> None:
    kept = {id(p) for module in network.modules() if isinstance(module, _NORMS) for p in module.parameters()}
    with torch.no_grad():
        for param in network.parameters():
            if param.requires_grad and id(param) not in kept:
                param.normal_(0, std)
