"""The hierarchical RNN optimizer: cells for coordinates, for tensors and for the network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from learned_optim.cells import gru_cell
from learned_optim.features import averages_at_scales, begun, corrected_moments, ever_seen, over_root, relative_log
from learned_optim.horizon import checked_horizon, within
from learned_optim.invariance import alignment, invariant, products, ruled_out
from learned_optim.reduction import all_marked, marked_means, network_mean, numbered, totals
from learned_optim.rule import Rule, Scope, apply_updates
from learned_optim.seeds import scattered
from learned_optim.types import RuleState, Scalar, Tensors

PARTS: dict[str, str] = {
    "input_scaling": "averages over their root mean square; without it the averages themselves",
    "learned_decays": "decays from the coordinate's state; without it 0.89 of the gradient and 0.93 of squares",
    "products": "products of neighbouring time scales as inputs",
    "log_squares": "relative logs of the mean squares as inputs",
    "relative_rates": "each log learning rate less the network's mean as input",
    "dynamic_rates": "learning rates, and a direction that is normalised; without it the step is the bare direction, "
    "and there are no relative rates either",
    "shortcut": "the linear map from the scaled averages to the direction",
    "learned_start": "first states of all cells; without it they are zero",
}
"""What can be left out of a `HierarchicalRNNRule`, and what that means."""

FIXED_DECAYS = (0.89, 0.93)
LOG_RATES = (-33.0, 33.0)
"""Where log learning rates end. Source: the released code."""

LONG = 0.999
"""Decay of the squares that the directions of scale-invariant tensors are divided by. Source: Adam's."""


class HierarchicalRNNRule(Rule):
    """Gated recurrent units at three levels: one for each coordinate, one for each tensor, one for the network.

    What a level knows goes down as a bias of the cells below, what they find goes up as a mean::

        h'   = gru(x, h; b + B T + C N)                    of a coordinate
        T'   = gru(mean of [h', x], T; b + D N)            of a tensor, over its coordinates
        N'   = gru(mean of T', N; b)                       of the network, over its tensors

    A coordinate sees x, built from averages a_k of its gradient over S times that double (`averages_at_scales`), with
    decays of its own, d = sigmoid(w h + b), 0 at its first step, and from its log learning rate l::

        s_k = asinh(a_k' / sqrt(v_k')),    x = [s_k, s_k s_{k+1}, relative log v_k', l - mean of l over the network]

    Its state gives a direction, which is normalised over the tensor, and the learning rate::

        delta = w h' + c s,    l^ = clip(l + w h' + b, -33, 33),    l' = m l + (1 - m) l^,   m = sigmoid(memory)
        u = -exp(l^ + offset) delta / rms(delta)

    With ``attention`` the parameters are where the gradient is wanted next, a point ahead of those that are learned,
    theta: each step goes to theta - exp(l^) delta2 / rms(delta2), delta2 = w2 h' + c2 s. The state holds ``ahead``,
    how far that is from theta; `settled` goes back.

    Args:
        sizes: Units of a coordinate's, a tensor's and the network's cell. Fewer numbers leave out the levels above.
        time_scales: S; with 1 it is the gradient itself.
        rates: Between which first learning rates are drawn: a half of the logarithm for the tensor and a half for the
            coordinate.
        without: Names of `PARTS` to leave out.
        attention: The look-ahead point. Off by default, as in the released code.
        horizon: The number of steps after which learning rates change by horizon / t of what they would: where they
            fell exponentially they go on to fall as a power of t, which suits trainings of any length. None for never.
        invariant_steps: (κ, T): how tensors are trained whose scale the loss does not see, such as weights before a
            normalisation. Long steps do no harm to the loss there, but let the weights grow until later steps do
            nothing. So their steps have an rms of κ rms(theta), from step T on times T / t. They are told by their
            gradients, which are orthogonal to them from the first step on (`learned_optim.invariance`). A network that
            has any is trained on minibatches, with noise to the end: there all tensors go along the shortcut from
            averages over long squares, z in place of delta::

                v_k = 0.999 v_k + 0.001 a_k'^2,    z = c asinh(a_k' / sqrt(v_k / (1 - 0.999^t)))

            None for no difference.
        invariant_horizon: The horizon in networks that have scale-invariant tensors, in place of the other.
        move_unseen: Whether coordinates move whose gradient has always been zero, and take part in the means, as in the
            paper. By default they do neither, with their state as it began, and a tensor that has no others does not
            take part in the network's mean. The same goes for tensors without a gradient.

    The rule runs in the dtype of its weights; so does its state. It is per coordinate ``hidden`` (H), ``means`` and
    ``squares`` (S each), ``log_rate`` and ``ahead``, per tensor ``tensor`` and, with a horizon, ``step``, and
    ``network``; with ``invariant_steps`` per coordinate ``long_squares`` (S), per tensor ``step`` and ``alignment``. A
    cell whose state is zero has not begun: its first state, which is learned, enters at its first step, so that phi has
    a gradient there.

    Raises:
        ValueError: A size, count, rate or step out of range, an unknown part, or options about learning rates where
            there are none.

    Source: Wichrowska et al. 2017, section 3, https://arxiv.org/abs/1703.04813, and for all details and first values
    the released code, https://github.com/tensorflow/models/tree/master/research/learned_optimizer. Deviations: the
    network's cell gets the mean over all tensors, as in the paper, where the code passes on the last one's state;
    ``move_unseen=False``; 1e-8 beside root mean squares, where the code adds 1e-12 to squares and 1e-16 in logarithms;
    decays are computed from the state when they are needed, and not stored. ``horizon`` and ``invariant_steps`` are our
    own, the latter after You et al. 2017 (LARS), whose steps are all relative to the weights, and Heo et al. 2021
    (AdamP), who tell by the angle.

    >>> rule = HierarchicalRNNRule(without=("products",))
    >>> params = {"p": torch.zeros(3)}
    >>> updates, state = rule({"p": torch.ones(3)}, rule.init_state(params), params)
    """

    scope: Scope = "network"

    def __init__(
        self,
        sizes: Sequence[int] = (10, 20, 20),
        time_scales: int = 4,
        *,
        rates: Sequence[float] = (1e-6, 1e-2),
        without: Sequence[str] = (),
        attention: bool = False,
        horizon: int | None = None,
        invariant_steps: Sequence[float] | None = None,
        invariant_horizon: int | None = None,
        move_unseen: bool = False,
    ) -> None:
        super().__init__()
        self.sizes, self.time_scales, self.rates = tuple(sizes), time_scales, tuple(float(rate) for rate in rates)
        self.without = tuple(without)
        if not 1 <= len(self.sizes) <= 3 or min(self.sizes) < 1:
            raise ValueError(f"HierarchicalRNNRule: sizes must be one to three numbers >= 1, got {sizes}")
        if not 1 <= time_scales <= 20:
            raise ValueError(f"HierarchicalRNNRule: time_scales must be from 1 to 20, got {time_scales}")
        if len(self.rates) != 2 or not 0 < self.rates[0] <= self.rates[1] < math.inf:
            raise ValueError(f"HierarchicalRNNRule: rates must be a range (low, high) above 0, got {rates}")
        unknown = [part for part in self.without if part not in PARTS]
        if unknown:
            raise ValueError(f"HierarchicalRNNRule: unknown parts {unknown} in without; there are {list(PARTS)}")
        self.attention, self.move_unseen = attention, move_unseen
        self._parts = set(PARTS) - set(self.without)
        if "dynamic_rates" not in self._parts:
            self._parts -= {"relative_rates"}
            if horizon is not None or invariant_steps is not None:
                raise ValueError(
                    "HierarchicalRNNRule: horizon and invariant_steps are about learning rates, and without "
                    f"'dynamic_rates' there are none; got {horizon} and {invariant_steps}"
                )
        self.horizon = checked_horizon("HierarchicalRNNRule", horizon)
        self.invariant_steps = None if invariant_steps is None else self._checked_steps(invariant_steps)
        self.invariant_horizon = checked_horizon("HierarchicalRNNRule, invariant_horizon", invariant_horizon)
        if invariant_horizon is not None and invariant_steps is None:
            raise ValueError(
                "HierarchicalRNNRule: invariant_horizon is for networks that invariant_steps tell of, and these are "
                f"None; got {invariant_horizon}"
            )

        several = time_scales > 1
        own, *above = self.sizes
        seen = time_scales + (time_scales - 1) * self._has("products")
        self.inputs = seen + time_scales * (self._has("log_squares") and several) + self._has("relative_rates")
        joined = [self.inputs, own + self.inputs, *above[:1]]
        self.weights = nn.ParameterList(
            torch.empty(3 * size, below + size) for size, below in zip(self.sizes, joined, strict=False)
        )
        self.biases = nn.ParameterList(torch.empty(3 * size) for size in self.sizes)
        self.firsts = nn.ParameterList(torch.empty(size) for size in self.sizes if self._has("learned_start"))
        pairs = [(low, high) for low in range(len(self.sizes)) for high in range(low + 1, len(self.sizes))]
        self.maps = nn.ParameterDict(
            {f"{high}_to_{low}": torch.empty(3 * self.sizes[low], self.sizes[high]) for low, high in pairs}
        )
        self.directions = nn.Parameter(torch.empty(1 + attention, own))
        self.shortcuts = nn.Parameter(torch.empty(1 + attention, time_scales)) if self._has("shortcut") else None
        self.decays = nn.Linear(own, 1 + several) if self._has("learned_decays") else None
        if self._has("dynamic_rates"):
            self.rate = nn.Linear(own, 1)
            self.rate_memory, self.rate_offset = nn.Parameter(torch.empty(())), nn.Parameter(torch.empty(()))
        self.reset_parameters()

    def _checked_steps(self, given: Sequence[float]) -> tuple[float, int]:
        pair = tuple(given) if isinstance(given, Sequence) else (given,)
        share, horizon = pair if len(pair) == 2 else (math.nan, None)
        checked = checked_horizon("HierarchicalRNNRule, invariant_steps", horizon)
        if checked is None or not 0 < share < math.inf:
            raise ValueError(
                "HierarchicalRNNRule: invariant_steps must be a pair of a finite number > 0, the size of a step "
                f"relative to the weights, and a number of steps, got {given}"
            )
        if not self._has("shortcut"):
            raise ValueError("HierarchicalRNNRule: invariant_steps go along the shortcut, and without has 'shortcut'")
        return float(share), checked

    def _has(self, part: str) -> bool:
        return part in self._parts

    def reset_parameters(self) -> None:
        """Draws new weights as the released code does, with torch's global random numbers."""
        with torch.no_grad():
            for weight in (*self.weights, *self.maps.values()):
                weight.normal_(0.0, 0.5 * weight.shape[1] ** -0.5)
            for size, bias in zip(self.sizes, self.biases, strict=True):
                bias[: 2 * size], bias[2 * size :] = 2.2, 0.0
            for first in self.firsts:
                first.uniform_(-1.0, 1.0)
            scale = 0.5 * self.sizes[0] ** -0.5
            self.directions.copy_(self.directions[:1].normal_(0.0, scale).clone())
            if self.shortcuts is not None:
                self.shortcuts.normal_(1 / self.time_scales, 0.1 * self.time_scales**-0.5)
            if self.decays is not None:
                self.decays.weight.normal_(0.0, scale)
                self.decays.bias.copy_(torch.tensor((2.2, 3.2))[-self.decays.out_features :])
            if self._has("dynamic_rates"):
                self.rate.weight.zero_()
                self.rate.bias.zero_()
                self.rate_memory.fill_(3.2)
                self.rate_offset.fill_(-1.0)

    def init_state(self, params: Tensors, *, generator: torch.Generator | None = None) -> RuleState:
        """See `Rule.init_state`. First learning rates depend on the place of a coordinate in its tensor, that of the
        tensor among ``params``, and one number that is drawn from ``generator``; without one they are always the same,
        on all processes and in every run."""
        seed = 0 if generator is None else int(torch.randint(2**31, (), generator=generator, device=generator.device))
        dtype = self.directions.dtype
        per_param = {}
        for place, (name, param) in enumerate(params.items()):
            sizes = {"hidden": self.sizes[:1], "means": (self.time_scales,), "squares": (self.time_scales,)}
            if self.attention:
                sizes["ahead"] = ()
            own = {
                key: torch.zeros(*param.shape, *size, dtype=dtype, device=param.device) for key, size in sizes.items()
            }
            if self._has("dynamic_rates"):
                own["log_rate"] = self._first_rates(name, param, seed, place).to(dtype)
            if self.horizon is not None or self.invariant_steps is not None:
                own["step"] = torch.zeros((), dtype=torch.float32, device=param.device)
            if self.invariant_steps is not None:
                own["long_squares"] = torch.zeros_like(own["squares"])
                own["alignment"] = torch.zeros((), dtype=torch.float32, device=param.device)
            if len(self.sizes) > 1:
                own["tensor"] = torch.zeros(self.sizes[1], dtype=dtype, device=param.device)
            per_param[name] = own
        device = next(iter(params.values())).device if params else None
        shared = {"network": torch.zeros(self.sizes[2], dtype=dtype, device=device)} if len(self.sizes) > 2 else {}
        return RuleState(per_param, shared)

    def _first_rates(self, name: str, param: Tensor, seed: int, place: int) -> Tensor:
        """log low + (log high - log low) (a + b) / 2, a drawn for the tensor and b for the coordinate, in [0, 1)."""
        low, high = map(math.log, self.rates)
        numbers = numbered(name, param)
        drawn = scattered(torch.zeros_like(numbers), seed, place, 0) + scattered(numbers, seed, place, 1)
        return low + (high - low) * drawn / 2

    def forward(self, grads: Tensors, state: RuleState, params: Tensors) -> tuple[Tensors, RuleState]:
        grads = {name: grad.to(self.directions.dtype) for name, grad in grads.items()}
        olds = {name: _counted_on(state.per_param[name]) for name in grads}
        counted = {name: self._counted(grad, olds[name]["hidden"]) for name, grad in grads.items()}
        # Where a look tells that all move, nothing has to be kept as it was.
        everywhere = all_marked(counted.values())
        network = state.shared.get("network")

        news: dict[str, Tensors] = {}
        directions: Tensors = {}
        lasting: Tensors = {}
        told: dict[str, list[Tensor]] = {}
        none = self.invariant_steps is not None and ruled_out(old["alignment"] for old in olds.values())
        relative = self._relative_rates(olds, counted)
        for name, grad in grads.items():
            inputs, scaled, news[name] = self._inputs(grad, olds[name], relative.get(name))
            hidden = self._cell(0, inputs, olds[name]["hidden"], {1: olds[name].get("tensor"), 2: network})
            news[name]["hidden"] = hidden  # (..., H)
            directions[name] = self._directions(hidden, scaled)  # (..., 1), with attention (..., 2)
            told[name] = [hidden, inputs, directions[name].square()]
            if self.invariant_steps is not None:
                lasting[name], news[name]["long_squares"] = self._lasting(news[name]["means"], olds[name], none=none)
                told[name] += [lasting[name].square(), products(grad, params[name].to(grad.dtype))]

        means, anyone = marked_means(told, counted, params)
        own, rows = self.sizes[0] + self.inputs, 1 + self.attention
        below = {name: mean[:own] for name, mean in means.items()}
        aligned = self._alignments(means, olds, counted)
        marks = {name: invariant(means[name][-3:], mean, olds[name]["step"]) for name, mean in aligned.items()}
        normalised = torch.stack([*marks.values()]).any() if marks else None
        shared = dict(state.shared)
        if len(self.sizes) > 1:
            tensors = {name: self._cell(1, below[name], olds[name]["tensor"], {2: network}) for name in grads}
            if network is not None:
                shared["network"] = self._network(tensors, anyone, network)

        updates: Tensors = {}
        per_param = dict(state.per_param)
        for name, old in olds.items():
            squares = means[name][own:]
            along, size = self._along(directions[name], squares[:rows]), None
            if normalised is not None:
                along = torch.where(normalised, self._along(lasting[name], squares[rows : 2 * rows]), along)
                size = torch.where(marks[name], self._size(squares[-1], old), math.nan)
            steps, rates = self._steps(along, size, self._share(normalised, old), news[name]["hidden"], old)
            update, ahead = self._update(steps, old)
            updates[name], per_param[name] = update, news[name] | rates | ahead
            if not everywhere:
                updates[name] = torch.where(counted[name], update, 0.0)
                per_param[name] = {
                    key: torch.where(_over(counted[name], value), value, old[key])
                    for key, value in per_param[name].items()
                }
            if len(self.sizes) > 1:
                per_param[name]["tensor"] = torch.where(anyone[name], tensors[name], old["tensor"])
            if "step" in old:
                per_param[name]["step"] = old["step"]
            if name in aligned:
                per_param[name]["alignment"] = aligned[name]
        return updates, RuleState(per_param, shared)

    def _counted(self, grad: Tensor, hidden: Tensor) -> Tensor:
        """Which coordinates move and take part in means."""
        return torch.ones_like(grad, dtype=torch.bool) if self.move_unseen else ever_seen(grad, hidden)

    def _relative_rates(self, olds: dict[str, Tensors], counted: Tensors) -> Tensors:
        """l less its mean over all coordinates of the network, by parameter name."""
        if not self._has("relative_rates"):
            return {}
        rates = {name: old["log_rate"] for name, old in olds.items()}
        centre = network_mean(rates, counted)
        return {name: rate - centre for name, rate in rates.items()}

    def _inputs(self, grad: Tensor, old: Tensors, relative: Tensor | None) -> tuple[Tensor, Tensor, Tensors]:
        """x, shape (..., F); the scaled averages in it, (..., S); and the new averages."""
        decay, square_decay = self._decays(old["hidden"])
        means, squares = averages_at_scales(grad, old["means"], old["squares"], decay, square_decay)
        scaled = torch.asinh(over_root(means, squares) if self._has("input_scaling") else means)
        inputs = [scaled]
        if self._has("products"):
            inputs.append(scaled[..., :-1] * scaled[..., 1:])
        if self._has("log_squares") and self.time_scales > 1:
            inputs.append(relative_log(squares))
        if relative is not None:
            inputs.append(relative.unsqueeze(-1))
        return torch.cat(inputs, dim=-1), scaled, {"means": means, "squares": squares}

    def _decays(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """d of the gradient and s of squares, each (...); 0 at the first step, and d with one time scale."""
        if self.decays is None:
            both = hidden.new_tensor(FIXED_DECAYS).expand(*hidden.shape[:-1], 2)
        else:
            both = torch.sigmoid(self.decays(hidden))  # (..., 2), or (..., 1) where it is s alone
        both = torch.where(begun(hidden), both, 0.0)
        s = both[..., -1]
        return both[..., 0] if self.time_scales > 1 else torch.zeros_like(s), s

    def _cell(self, level: int, inputs: Tensor, hidden: Tensor, above: dict[int, Tensor | None]) -> Tensor:
        """The new state of a cell, or of all cells of a tensor, under the biases from the levels above."""
        bias = self.biases[level]
        for high, state in above.items():
            if state is not None:
                bias = bias + self.maps[f"{high}_to_{level}"] @ self._now(high, state)
        return gru_cell(inputs, self._now(level, hidden), self.weights[level], bias)

    def _now(self, level: int, hidden: Tensor) -> Tensor:
        """The state of cells as they see it: their first one where they have not begun."""
        return torch.where(begun(hidden), hidden, self.firsts[level]) if self._has("learned_start") else hidden

    def _network(self, tensors: Tensors, anyone: Tensors, network: Tensor) -> Tensor:
        """N' from the mean of T' over the tensors that take part."""
        marks = torch.stack([*anyone.values()]).unsqueeze(-1)
        total = torch.where(marks, torch.stack([*tensors.values()]), 0.0).sum(dim=0)
        new = self._cell(2, total / marks.sum().clamp(min=1), network, {})
        return torch.where(marks.any(), new, network)

    def _directions(self, hidden: Tensor, scaled: Tensor) -> Tensor:
        out = nn.functional.linear(hidden, self.directions)
        return out if self.shortcuts is None else out + nn.functional.linear(scaled, self.shortcuts)

    def _lasting(self, means: Tensor, old: Tensors, *, none: bool) -> tuple[Tensor, Tensor]:
        """z, like the directions, and the new long squares; zeros where none of the tensors is going to need z."""
        assert self.shortcuts is not None
        zero = torch.zeros_like(means)
        _, squares, _, unbiased = corrected_moments(means, zero, old["long_squares"], old["step"], betas=(0.0, LONG))
        if none:
            return means.new_zeros(*means.shape[:-1], self.shortcuts.shape[0]), squares
        scaled = torch.asinh(over_root(means, unbiased))
        return nn.functional.linear(scaled, self.shortcuts), squares

    def _alignments(self, means: Tensors, olds: dict[str, Tensors], counted: Tensors) -> Tensors:
        """Of the gradients with their tensors, by name; none where it does not matter."""
        if self.invariant_steps is None:
            return {}
        numbers = totals({name: mark.sum().to(means[name].dtype) for name, mark in counted.items()})
        return {name: alignment(means[name][-3:], numbers[name], old["alignment"]) for name, old in olds.items()}

    def _size(self, theta: Tensor, old: Tensors) -> Tensor:
        """κ rms(theta) min(1, T / t), from the mean of theta^2."""
        assert self.invariant_steps is not None
        share, horizon = self.invariant_steps
        # The root of 0 has an infinite slope, which would turn into NaN.
        return share * within(horizon, old["step"], theta.dtype) * torch.where(theta > 0, theta, 1.0).sqrt()

    def _along(self, directions: Tensor, squares: Tensor) -> Tensor:
        """Directions over the roots of their mean squares, where there are rates; with attention there are two."""
        return over_root(directions, squares.expand_as(directions)) if self._has("dynamic_rates") else directions

    def _share(self, normalised: Tensor | None, old: Tensors) -> Tensor | float:
        """Of what learning rates would change by, they do so much in this step."""
        usual = 1.0 if self.horizon is None else within(self.horizon, old["step"], self.directions.dtype)
        if self.invariant_horizon is None or normalised is None:
            return usual
        return torch.where(normalised, within(self.invariant_horizon, old["step"], self.directions.dtype), usual)

    def _steps(
        self, along: Tensor, size: Tensor | None, share: Tensor | float, hidden: Tensor, old: Tensors
    ) -> tuple[Tensor, Tensors]:
        """How far along the directions, and what coordinates remember of their rates. A size that is no NaN is the
        rate of all of the tensor."""
        if not self._has("dynamic_rates"):
            return along, {}
        aim, log_rate = self._rates(old, hidden, share)
        rates = torch.stack([aim + self.rate_offset, aim][: along.shape[-1]], dim=-1).exp()
        rates = rates if size is None else torch.where(size.isnan(), rates, size)
        return rates * along, {"log_rate": log_rate}

    def _update(self, steps: Tensor, old: Tensors) -> tuple[Tensor, Tensors]:
        """The updates of a tensor, and what its coordinates remember of the point ahead."""
        step = steps[..., 0]
        if not self.attention:
            return -step, {}
        # From theta + ahead to theta - look, while theta goes to theta - step.
        look = steps[..., 1]
        return -look - old["ahead"], {"ahead": step - look}

    def _rates(self, old: Tensors, hidden: Tensor, share: Tensor | float) -> tuple[Tensor, Tensor]:
        """l^ for this step and l' to remember."""
        log_rate = old["log_rate"]
        aim = log_rate + share * self.rate(hidden).squeeze(-1)
        # The slope is that of the number before it is clipped, so that meta-training can bring it back.
        aim = aim + (aim.clamp(*LOG_RATES) - aim).detach()
        memory = torch.sigmoid(self.rate_memory)
        return aim, memory * log_rate + (1 - memory) * aim

    def settled(self, params: Tensors, state: RuleState, *, lr: Scalar = 1.0) -> Tensors:
        """theta, where the parameters are points ahead of it; without attention the parameters themselves.

        Args:
            params: The parameters by name.
            state: The rule's state there.
            lr: What the updates were multiplied by.
        """
        if not self.attention:
            return params
        return apply_updates(params, {name: -own["ahead"] for name, own in state.per_param.items()}, lr=lr)

    def config(self) -> dict[str, Any]:
        # Named where they are chosen only: states that were saved before there was a choice still fit.
        pair = None if self.invariant_steps is None else [*self.invariant_steps]
        chosen = {"horizon": self.horizon, "invariant_steps": pair, "invariant_horizon": self.invariant_horizon}
        return {
            "sizes": list(self.sizes),
            "time_scales": self.time_scales,
            "rates": list(self.rates),
            "without": list(self.without),
            "attention": self.attention,
            "move_unseen": self.move_unseen,
            **{key: value for key, value in chosen.items() if value is not None},
        }

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={value!r}" for key, value in self.config().items())


def _counted_on(old: Tensors) -> Tensors:
    """The state with this step counted, where steps are counted."""
    return old | {"step": old["step"] + 1} if "step" in old else old


def _over(mark: Tensor, value: Tensor) -> Tensor:
    """A mark for each coordinate, to be used on a value of each coordinate or on several."""
    return mark.unsqueeze(-1) if value.dim() > mark.dim() else mark
