"""Families made of other families: the same problems in other coordinates, with other objectives or other gradients.

Each draws the problem of the family inside first, so that the same generator gives the same problem with and without
it, and then constants of its own, which travel in the batch: ``(batch inside, constants)``. They can be nested.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from learned_optim.problems.base import Problem, ProblemFamily
from learned_optim.problems.synthetic import check_range, log_uniform
from learned_optim.types import Minibatch, Tensors

RNNPROP_SCALES = (math.exp(-3), math.exp(3))
EXTRA = "convex"
"""The name of the coordinates that `ConvexMix` adds."""


class _Wrapper(ProblemFamily):
    """A family around another."""

    def __init__(self, family: ProblemFamily) -> None:
        if not isinstance(family, ProblemFamily):
            raise TypeError(f"{type(self).__name__}: family must be a ProblemFamily, got a {type(family).__name__}")
        self.family = family

    def to(self, device: torch.device | str) -> None:
        self.family.to(device)


class Rescaled(_Wrapper):
    """f'(theta) = f(c o theta) from theta_0 / c: the same start and the same function in other units.

    c is drawn for each problem: a factor for each coordinate times one for all of them, each log-uniform.

    Args:
        family: The problems.
        coordinates: Range of the factor of each coordinate; by default exp(-3) to exp(3). None: 1.
        overall: Range of the factor of all coordinates; by default 1. (1e-3, 1e3) is that of Celo2.

    Raises:
        ValueError: A range makes no sense.

    `test_loss` is None, since it does not know c.

    Source: Lv et al. 2017, section 4, random scaling; the default range is that of the authors' code
    (github.com/vfleaking/rnnprop). One factor for all coordinates: Celo2 (arXiv 2602.19142).
    """

    def __init__(
        self,
        family: ProblemFamily,
        *,
        coordinates: tuple[float, float] | None = RNNPROP_SCALES,
        overall: tuple[float, float] | None = None,
    ) -> None:
        super().__init__(family)
        self.coordinates = None if coordinates is None else check_range(coordinates, "Rescaled: coordinates")
        self.overall = None if overall is None else check_range(overall, "Rescaled: overall")

    def sample(self, generator: torch.Generator) -> Problem:
        inside = self.family.sample(generator)
        one = log_uniform(self.overall or (1.0, 1.0), (), generator)
        scales = {name: one.expand(p.shape) for name, p in inside.params.items()}
        if self.coordinates is not None:
            scales = {name: c * log_uniform(self.coordinates, (*c.shape,), generator) for name, c in scales.items()}
        params = {name: p / scales[name] for name, p in inside.params.items()}
        return Problem(params, lambda batches: (inside.batch(batches), scales))

    def loss(self, params: Tensors, batch: Minibatch) -> Tensor:
        inner, scales = batch
        return self.family.loss({name: scales[name] * p for name, p in params.items()}, inner)


class ConvexMix(_Wrapper):
    """f'(theta, x) = f(theta) + weight / n sum_i (x_i - v_i)^2: something easy to learn beside something hard.

    v is drawn for each problem, uniform in [-1, 1].

    Args:
        family: The problems.
        extra: How many coordinates x are added, as the parameter ``"convex"``, starting from 0. None: x is theta, all
            of whose coordinates are then drawn to v, and the parameters keep their shapes.
        weight: Of the convex function.

    Raises:
        ValueError: ``extra`` or ``weight`` is not positive; or the family has a parameter ``"convex"`` already.

    `test_loss` is that of the family, without the convex function.

    Source: Lv et al. 2017, section 4, combination with convex functions, and their code: 20 extra coordinates, x_0 = 0.
    Deviations: there the squares are clipped at 10, and x is rescaled at random, for which there is `Rescaled`;
    x = theta is ours.
    """

    def __init__(self, family: ProblemFamily, *, extra: int | None = 20, weight: float = 1.0) -> None:
        super().__init__(family)
        if extra is not None and extra < 1:
            raise ValueError(f"ConvexMix: extra must be >= 1, or None for the family's own coordinates, got {extra}")
        if not 0 < weight < math.inf:
            raise ValueError(f"ConvexMix: weight must be a number > 0, got {weight}")
        self.extra, self.weight = extra, weight

    def sample(self, generator: torch.Generator) -> Problem:
        inside = self.family.sample(generator)
        params = dict(inside.params)
        mixed = params
        if self.extra is not None:
            if EXTRA in params:
                raise ValueError(f"ConvexMix: the family has a parameter {EXTRA!r} already; use extra=None")
            mixed = {EXTRA: torch.zeros(self.extra)}
            params |= mixed
        points = {name: 2 * torch.rand(p.shape, generator=generator) - 1 for name, p in mixed.items()}
        return Problem(params, lambda batches: (inside.batch(batches), points))

    def loss(self, params: Tensors, batch: Minibatch) -> Tensor:
        inner, points = batch
        squares = torch.cat([(params[name] - point).square().flatten() for name, point in points.items()])
        return self.family.loss(self._own(params), inner) + self.weight * squares.mean()

    def test_loss(self, params: Tensors) -> Tensor | None:
        return self.family.test_loss(self._own(params))

    def _own(self, params: Tensors) -> Tensors:
        return params if self.extra is None else {name: p for name, p in params.items() if name != EXTRA}


class _OtherGradients(_Wrapper):
    """The loss of the family with other gradients; what changes them is drawn for each batch."""

    def sample(self, generator: torch.Generator) -> Problem:
        inside = self.family.sample(generator)

        def batch(batches: torch.Generator) -> Minibatch:
            inner = inside.batch(batches)
            return inner, {name: self._drawn(p, batches) for name, p in inside.params.items()}

        return Problem(inside.params, batch)

    @abstractmethod
    def _drawn(self, param: Tensor, generator: torch.Generator) -> Tensor:
        """What changes the gradient of one parameter, in its shape."""

    def test_loss(self, params: Tensors) -> Tensor | None:
        return self.family.test_loss(params)


class SparseGradients(_OtherGradients):
    """f with a gradient in some coordinates only, others at each step: the gradients elsewhere are zero.

    Args:
        family: The problems.
        density: The probability of a coordinate to have a gradient.

    Raises:
        ValueError: ``density`` is not between 0 and 1.

    Values are those of f. A loss that is to teach an optimizer has the sparse gradients, too: on average ``density``
    times the full one.

    Source: Wichrowska et al. 2017, section 4; 0.01 is the default of their code. Deviation: there the loss that teaches
    the optimizer has all gradients.
    """

    def __init__(self, family: ProblemFamily, *, density: float = 0.01) -> None:
        super().__init__(family)
        if not 0 < density <= 1:
            raise ValueError(f"SparseGradients: density must be > 0 and <= 1, got {density}")
        self.density = density

    def _drawn(self, param: Tensor, generator: torch.Generator) -> Tensor:
        return torch.rand(param.shape, generator=generator) < self.density

    def loss(self, params: Tensors, batch: Minibatch) -> Tensor:
        inner, seen = batch
        return self.family.loss({name: torch.where(seen[name], p, p.detach()) for name, p in params.items()}, inner)


class NoisyGradients(_OtherGradients):
    """f with noise in its gradients: g + std epsilon, epsilon standard Gaussian and new at each step.

    Args:
        family: The problems.
        std: Standard deviation of the noise.

    Raises:
        ValueError: ``std`` is negative.

    Values are those of f: the loss is f(theta) + std <epsilon, theta - theta'> with theta' = theta held constant. A
    loss that is to teach an optimizer has the noise, too, which is zero on average.

    Source: Wichrowska et al. 2017, section 4.
    """

    def __init__(self, family: ProblemFamily, *, std: float = 1.0) -> None:
        super().__init__(family)
        if not 0 <= std < math.inf:
            raise ValueError(f"NoisyGradients: std must be a number >= 0, got {std}")
        self.std = std

    def _drawn(self, param: Tensor, generator: torch.Generator) -> Tensor:
        return self.std * torch.randn(param.shape, generator=generator)

    def loss(self, params: Tensors, batch: Minibatch) -> Tensor:
        inner, noise = batch
        zero = torch.stack([(noise[name] * (p - p.detach())).sum() for name, p in params.items()]).sum()
        return self.family.loss(params, inner) + zero


_SMALLEST = 1e-6
TRANSFORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda f: f,
    "log": lambda f: torch.log(f + _SMALLEST) - math.log(_SMALLEST),
    "root": lambda f: torch.sqrt(f + _SMALLEST),
    "square": torch.square,
    "asinh": torch.asinh,
}
"""Functions that grow with f: all of them for f >= 0, ``"identity"`` and ``"asinh"`` for any f."""


class Transformed(_Wrapper):
    """f' = scale transform(f): the same minima with other heights.

    Args:
        family: The problems.
        transform: A name in `TRANSFORMS`. Of minibatch losses it is taken batch by batch.
        scale: Range of the scale, log-uniform, drawn for each problem; by default 1.

    Raises:
        ValueError: An unknown transform, or the range makes no sense.

    `test_loss` is that of the family, transformed, where the scale is the same for all problems, else None.

    Source: Wichrowska et al. 2017, section 4, and their code for ``"log"``: log(f + 1e-6) - log(1e-6).
    """

    def __init__(
        self, family: ProblemFamily, transform: str = "log", *, scale: tuple[float, float] = (1.0, 1.0)
    ) -> None:
        super().__init__(family)
        if transform not in TRANSFORMS:
            raise ValueError(f"Transformed: unknown transform {transform!r}; there are {sorted(TRANSFORMS)}")
        self.transform = transform
        self.scale = check_range(scale, "Transformed: scale")

    def sample(self, generator: torch.Generator) -> Problem:
        inside = self.family.sample(generator)
        scale = log_uniform(self.scale, (), generator)
        return Problem(inside.params, lambda batches: (inside.batch(batches), scale))

    def loss(self, params: Tensors, batch: Minibatch) -> Tensor:
        inner, scale = batch
        out: Tensor = scale * TRANSFORMS[self.transform](self.family.loss(params, inner))
        return out

    def test_loss(self, params: Tensors) -> Tensor | None:
        inner = self.family.test_loss(params)
        if inner is None or self.scale[0] < self.scale[1]:
            return None
        return self.scale[0] * TRANSFORMS[self.transform](inner)
