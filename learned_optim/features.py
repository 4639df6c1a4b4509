"""What a learned rule sees of a gradient: preprocessing per coordinate, some of it with a memory.

A feature set has a number of inputs per coordinate (``size``), a first state, and a pure step. `FEATURES` is their
table; `LSTMRule` takes one name or several.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from learned_optim.types import Tensors


class Features(ABC):
    """Inputs of a coordinatewise rule, computed from the gradient and a state of their own."""

    size: int
    """Inputs per coordinate."""
    descent: tuple[float, ...]
    """The weights that make of the inputs a plain descent direction of about unit size."""
    bounded: bool
    """Whether the natural output on top is bounded: inputs without the gradient's scale ask for one."""

    def init_state(self, param: Tensor, *, dtype: torch.dtype) -> Tensors:
        """The state of one parameter: tensors of its shape, or 0-dimensional."""
        return {}

    @abstractmethod
    def __call__(self, grad: Tensor, state: Tensors) -> tuple[Tensor, Tensors]:
        """Inputs of shape ``grad.shape + (size,)``, and the new values of what `init_state` created in ``state``."""


def log_and_sign(grad: Tensor, *, p: float = 10.0) -> tuple[Tensor, Tensor]:
    """(log|g| / p, sign g) where |g| >= e^-p, else (-1, e^p g).

    Neighbouring orders of magnitude become neighbouring numbers, and tiny gradients go linearly to zero.

    Source: Andrychowicz et al. 2016, appendix A. The authors' code clamps the logarithm and e^p g instead.
    """
    magnitude = grad.abs()
    small = magnitude < math.exp(-p)
    # The logarithm is not even computed at zero: its infinite slope would turn into NaN behind the second `where`.
    log = torch.where(small, -1.0, torch.where(small, 1.0, magnitude).log() / p)
    sign = torch.where(small, grad * math.exp(p), torch.sign(grad))
    return log, sign


def corrected_moments(
    grad: Tensor, m: Tensor, v: Tensor, step: Tensor, *, betas: tuple[float, float]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Running means of g and g^2, and the same without the bias towards their first value, zero.

    m' = b1 m + (1 - b1) g, v' = b2 v + (1 - b2) g^2, m^ = m' / (1 - b1^t), v^ = v' / (1 - b2^t).

    Args:
        grad: g, any shape.
        m: First moment, shape of g.
        v: Second moment, shape of g.
        step: t, this step included, 0-dimensional.
        betas: b1 and b2 in [0, 1).

    Returns:
        m', v', m^ and v^.

    Source: Kingma & Ba 2015, algorithm 1.
    """
    m = betas[0] * m + (1 - betas[0]) * grad
    v = betas[1] * v + (1 - betas[1]) * grad.square()
    t = step.to(m.dtype)  # the counter is float32, beta^t should not be
    return m, v, m / (1 - betas[0] ** t), v / (1 - betas[1] ** t)


def over_root(numerator: Tensor, v: Tensor, *, eps: float = 1e-8) -> Tensor:
    """numerator / (sqrt(v) + eps), and 0 with finite derivatives where v = 0."""
    seen = v > 0
    root = torch.where(seen, v, torch.ones_like(v)).sqrt()
    return torch.where(seen, numerator / (root + eps), torch.zeros_like(numerator))


def relative_log(v: Tensor) -> Tensor:
    """log v less its mean over the last dimension, and 0 with finite derivatives where v = 0."""
    seen = v > 0
    log = torch.where(seen, v, torch.ones_like(v)).log()
    return torch.where(seen, log - log.mean(dim=-1, keepdim=True), torch.zeros_like(log))


def averages_at_scales(
    grad: Tensor, means: Tensor, squares: Tensor, decay: Tensor, square_decay: Tensor
) -> tuple[Tensor, Tensor]:
    """Averages of the gradient over times that double, and of the squares of these averages.

    m_k' = d_k m_k + (1 - d_k) g with d_k = d^(1 / 2^k), and v_k' = s v_k + (1 - s) m_k'^2, for k = 0, ..., S - 1.

    Args:
        grad: g, any shape.
        means: m, shape ``grad.shape + (S,)``.
        squares: v, likewise.
        decay: d in [0, 1), of the shape of g: every coordinate has its own.
        square_decay: s, likewise.

    Returns:
        m' and v'.

    Source: Wichrowska et al. 2017, section 3.2, as in the released code.
    """
    # The root of 0 has an infinite slope, which would turn into NaN.
    positive = torch.where(decay > 0, decay, torch.ones_like(decay)).unsqueeze(-1)
    exponents = 0.5 ** torch.arange(means.shape[-1], dtype=grad.dtype, device=grad.device)
    d = torch.where(decay.unsqueeze(-1) > 0, positive**exponents, 0.0)  # (..., S)
    s = square_decay.unsqueeze(-1)
    means = d * means + (1 - d) * grad.unsqueeze(-1)
    return means, s * squares + (1 - s) * means.square()


def ever_seen(grad: Tensor, memory: Tensor) -> Tensor:
    """Whether a coordinate has, or ever had, a gradient other than zero: a bool tensor of the shape of ``grad``.

    Args:
        grad: This step's gradient.
        memory: Shape ``grad.shape + (H,)``, zero as long as the coordinate has not been seen.
    """
    return (grad != 0) | begun(memory).squeeze(-1)


def begun(memory: Tensor) -> Tensor:
    """Where anything is remembered, shape (..., 1): where of (..., H) any is not zero."""
    # A sum of magnitudes is zero where all are; ``any`` over the last dimension takes longer on CPU.
    return memory.detach().abs().sum(dim=-1, keepdim=True) != 0


class Plain(Features):
    """The gradient as it is: one input, no state.

    For problems of one scale, on which a rule may be nearly linear: gradient descent with momentum is. Source:
    Andrychowicz et al. 2016, section 3.1, for quadratic functions.
    """

    size = 1
    descent = (-1.0,)
    bounded = False

    def __call__(self, grad: Tensor, state: Tensors) -> tuple[Tensor, Tensors]:
        return grad.unsqueeze(-1), {}


class LogSign(Features):
    """`log_and_sign` of the gradient: two inputs, no state. Source: Andrychowicz et al. 2016."""

    size = 2
    descent = (0.0, -1.0)
    bounded = False

    def __call__(self, grad: Tensor, state: Tensors) -> tuple[Tensor, Tensors]:
        return torch.stack(log_and_sign(grad), dim=-1), {}


class Moments(Features):
    """(m^ / sqrt(v^), g / sqrt(v^)): two inputs that do not depend on the gradient's scale.

    The state per coordinate is m and v, and the step counter per tensor.

    Source: Lv et al. 2017 (RNNprop), section 4, beta = 0.95 for both moments.
    """

    size = 2
    descent = (-1.0, 0.0)
    bounded = True
    betas = (0.95, 0.95)

    def init_state(self, param: Tensor, *, dtype: torch.dtype) -> Tensors:
        zeros = torch.zeros_like(param, dtype=dtype)
        return {"step": zeros.new_zeros((), dtype=torch.float32), "m": zeros, "v": zeros.clone()}

    def __call__(self, grad: Tensor, state: Tensors) -> tuple[Tensor, Tensors]:
        step = state["step"] + 1
        m, v, m_hat, v_hat = corrected_moments(grad, state["m"], state["v"], step, betas=self.betas)
        inputs = torch.stack((over_root(m_hat, v_hat), over_root(grad, v_hat)), dim=-1)
        return inputs, {"step": step, "m": m, "v": v}


class TimeScales(Features):
    """Averages of the gradient over four times, each over its own root mean square, and how that changes with the time.

    For each decay d: m^_d / sqrt(v^_d), and log sqrt(v^_d) less its mean over d, halved: eight inputs, none of which
    depends on the gradient's scale. The state per coordinate is the four m and the four v, and the step counter per
    tensor.

    Source: Wichrowska et al. 2017, section 3.2.3, for averages at several time scales and the relative log of their
    mean squares. Deviations: fixed decays; no asinh, since these ratios lie within [-1, 1] by themselves; half the log.
    """

    decays = (0.5, 0.9, 0.99, 0.999)
    size = 8
    descent = (0.0, -1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    bounded = True

    def init_state(self, param: Tensor, *, dtype: torch.dtype) -> Tensors:
        zeros = torch.zeros(*param.shape, len(self.decays), dtype=dtype, device=param.device)
        return {"step": zeros.new_zeros((), dtype=torch.float32), "means": zeros, "squares": zeros.clone()}

    def __call__(self, grad: Tensor, state: Tensors) -> tuple[Tensor, Tensors]:
        step = state["step"] + 1
        scales = [
            corrected_moments(grad, m, v, step, betas=(decay, decay))
            for m, v, decay in zip(state["means"].unbind(-1), state["squares"].unbind(-1), self.decays, strict=True)
        ]
        m, v, m_hat, v_hat = (torch.stack(parts, dim=-1) for parts in zip(*scales, strict=True))  # (..., 4)
        inputs = torch.cat((over_root(m_hat, v_hat), relative_log(v_hat) / 4), dim=-1)
        return inputs, {"step": step, "means": m, "squares": v}


class Magnitude(Features):
    """log(v^ + e^-20) / 20: how large the gradients of a coordinate are, from -1 for none; one input.

    For rules that, like gradient descent with momentum, go further where gradients are larger, beside features that
    have lost that scale. Unlike the logarithm of a single gradient it is smooth, so that exact meta-gradients of long
    unrolls stay finite. The state per coordinate is v, and the step counter per tensor.

    Source: our own, after the logarithm of Andrychowicz et al. 2016, appendix A; beta = 0.9.
    """

    decay = 0.9
    size = 1
    descent = (0.0,)
    bounded = True

    def init_state(self, param: Tensor, *, dtype: torch.dtype) -> Tensors:
        zeros = torch.zeros_like(param, dtype=dtype)
        return {"step": zeros.new_zeros((), dtype=torch.float32), "magnitude": zeros}

    def __call__(self, grad: Tensor, state: Tensors) -> tuple[Tensor, Tensors]:
        step = state["step"] + 1
        _, v, _, v_hat = corrected_moments(grad, grad, state["magnitude"], step, betas=(self.decay, self.decay))
        return torch.log(v_hat + math.exp(-20)).unsqueeze(-1) / 20, {"step": step, "magnitude": v}


class StepCount(Features):
    """tanh(t / x - 1) for x = 10, 30, 100, ..., 10,000: how far a training is, the same for all coordinates.

    Args:
        until: Where the count stays.

    Source: the released code of Metz et al. 2022, from memory; there x runs from 1 to 100,000.
    """

    times = (10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10000.0)
    size = 7
    descent = (0.0,) * 7
    bounded = False

    def __init__(self, until: float = math.inf) -> None:
        self.until = until

    def init_state(self, param: Tensor, *, dtype: torch.dtype) -> Tensors:
        return {"step": torch.zeros((), dtype=torch.float32, device=param.device)}

    def __call__(self, grad: Tensor, state: Tensors) -> tuple[Tensor, Tensors]:
        step = state["step"] + 1
        t = step.clamp(max=self.until).to(grad.dtype)  # the counter is float32
        inputs = torch.stack([torch.tanh(t / time - 1) for time in self.times])
        return inputs.expand(*grad.shape, self.size), {"step": step}


FEATURES: dict[str, Features] = {
    "plain": Plain(),
    "log_sign": LogSign(),
    "moments": Moments(),
    "time_scales": TimeScales(),
    "magnitude": Magnitude(),
    "step_count": StepCount(),
}
