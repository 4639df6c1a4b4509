"""The coordinatewise LSTM optimizer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from learned_optim.cells import lstm_cell
from learned_optim.chunks import step_in_chunks, steps_in_chunks
from learned_optim.features import FEATURES, StepCount, ever_seen, over_root
from learned_optim.fused import cells_, fusible
from learned_optim.horizon import checked_horizon, within
from learned_optim.reduction import all_finite, all_marked, tensor_means
from learned_optim.rule import Rule, Scope, overwrite
from learned_optim.secants import init_secants, quasi_newton
from learned_optim.types import RuleState, Scalar, Tensors


class LSTMRule(Rule):
    """[u, h'] = m(g, h; phi): one small LSTM looks at every coordinate, with shared weights and a state for each.

    The features of the gradient go through ``num_layers`` LSTM layers, and a linear head gives the update::

        u = output_scale * (w h + b [+ s features])                 bounded=False
        u = output_scale * tanh(w h + b [+ s features])             bounded=True
        u = output_scale * d / rms(d) * 10^tanh(mean(r))            normalised=True, with d and r two such outputs

    Args:
        features: A name of `learned_optim.features.FEATURES`, or several whose inputs are put side by side.
            ``"log_sign"``: log-magnitude and sign, as in the paper; ``"plain"``: the gradient itself, as there for
            quadratic functions. ``"moments"``: normalised moments as in RNNprop,
            which carry over to other activations because they do not depend on the gradient's scale.
            ``"time_scales"``: averages over four times; ``"magnitude"``: how large gradients are, for rules that see
            them normalised; ``"step_count"``: how long the training has gone on.
        hidden_size: H, units per layer (the paper: 20).
        num_layers: L (the paper: 2).
        output_scale: Unit of the update. The paper uses 0.1 for neural networks, its code 0.01.
        bounded: Whether the output goes through tanh (RNNprop). By default when a feature has lost the gradient's
            scale and the output is not normalised.
        shortcut: Adds a learned linear map s from the features to the output, as Wichrowska et al. 2017 do for the
            gradient. The map starts at a descent direction and the head at zero, so that the untrained rule already is
            a plain normalised descent with rate ``0.3 * output_scale``. Off by default, as in the paper.
        move_unseen: Whether coordinates move whose gradient has always been zero, as they do in the paper. By default
            they stay, with their state at zero: an unused embedding row or a dead pixel is left alone. The state
            itself tells, so that this costs no memory.
        normalised: Whether the output is divided by its root mean square over the tensor, so that the rule chooses a
            direction, and a step between a tenth and ten times ``output_scale``. Coordinates that do not move do not
            count. The rule then looks at whole tensors.
        secants: m; with it, the direction of limited-memory BFGS from the last m steps, in units of ``output_scale``,
            is one more input, and the shortcut starts with it alone, as that method with steps of length 1. For losses
            that are, or nearly are, functions of the parameters alone, with no or large minibatches: 2 m + 2 more
            numbers per coordinate. The rule then looks at whole tensors.
        horizon: The number of steps after which updates shrink as horizon / t, and ``"step_count"`` stands still, so
            that a rule settles where it would otherwise go on with what it never was trained for; None for never. It
            may be set as an attribute too, before an optimizer begins.
        count_until: Where ``"step_count"`` stands still, if not at the horizon: counts beyond those that a rule was
            trained on are new to it, long before its steps should shrink.
        state_dtype: In which hidden and cell values are kept between steps, a floating-point dtype or its name;
            ``"bfloat16"`` halves their memory. By default, and within a step always, that of the weights. It may be set
            as an attribute too, before an optimizer begins.

    Attributes:
        compiled: Whether steps on CPU go through one compiled function, `CHUNK` coordinates at a time; False until it
            is set. Not a part of `config`.

    The LSTM runs in the dtype of its weights, whatever the dtype of the parameters; so does its state, per coordinate
    ``hidden_i`` and ``cell_i`` of shape ``param.shape + (H,)`` for each layer i, beside what the features and secants
    remember; with a horizon or secants, ``step`` per tensor.

    Raises:
        ValueError: An unknown feature, a size, scale, horizon or number of secants out of range, a ``state_dtype`` that
            is none, or ``count_until`` without a count.

    Source: Andrychowicz et al. 2016, section 2.1; Lv et al. 2017, section 4, for ``"moments"`` and ``bounded``;
    Wichrowska et al. 2017, section 3.2, and Celo2 2026 for an update that is normalised over its tensor;
    `learned_optim.secants` for those.
    Deviations: ``move_unseen=False``; the forget gate's bias starts at 1; the length of a normalised step is the rule's
    own.
    """

    scope: Scope = "coordinate"

    def __init__(
        self,
        features: str | Sequence[str] = "log_sign",
        hidden_size: int = 20,
        num_layers: int = 2,
        output_scale: float = 0.1,
        *,
        bounded: bool | None = None,
        shortcut: bool = False,
        move_unseen: bool = False,
        normalised: bool = False,
        secants: int = 0,
        horizon: int | None = None,
        count_until: int | None = None,
        state_dtype: torch.dtype | str | None = None,
    ) -> None:
        super().__init__()
        self.features = (features,) if isinstance(features, str) else tuple(features)
        unknown = [name for name in self.features if name not in FEATURES]
        if unknown or not self.features:
            raise ValueError(f"LSTMRule: unknown features {unknown or features!r}; there are {sorted(FEATURES)}")
        if hidden_size < 1 or not 1 <= num_layers <= 100:
            raise ValueError(
                f"LSTMRule: hidden_size must be >= 1 and num_layers from 1 to 100, got {hidden_size} and {num_layers}"
            )
        if not (math.isfinite(output_scale) and output_scale > 0):
            raise ValueError(f"LSTMRule: output_scale must be finite and > 0, got {output_scale}")
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.output_scale = float(output_scale)
        if bounded is None:
            bounded = not normalised and any(FEATURES[name].bounded for name in self.features)
        if not (isinstance(secants, int) and 0 <= secants <= 100):
            raise ValueError(f"LSTMRule: secants must be a whole number from 0 to 100, got {secants!r}")
        self.state_dtype = state_dtype
        self.compiled = False
        self.count_until = checked_horizon("LSTMRule", count_until, "count_until")
        if count_until is not None and "step_count" not in self.features:
            raise ValueError(f"LSTMRule: count_until={count_until} needs the feature 'step_count', got {self.features}")
        self.horizon = horizon
        if bounded and normalised:
            raise ValueError("LSTMRule: an output is bounded or normalised, not both")
        self.bounded, self.normalised, self.move_unseen = bounded, normalised, move_unseen
        self.secants = secants
        if normalised or secants:
            self.scope = "tensor"
        inputs = sum(FEATURES[name].size for name in self.features) + (secants > 0)
        sizes = [inputs, *[hidden_size] * (num_layers - 1)]
        self.weights = nn.ParameterList(torch.empty(4 * hidden_size, size + hidden_size) for size in sizes)
        self.biases = nn.ParameterList(torch.empty(4 * hidden_size) for _ in sizes)
        self.head = nn.Linear(hidden_size, 2 if normalised else 1)
        self.shortcut = nn.Parameter(torch.empty(inputs)) if shortcut else None
        self.reset_parameters()

    @property
    def state_dtype(self) -> torch.dtype | None:
        """In which hidden and cell values are kept, None for the dtype of the weights."""
        return self._state_dtype

    @state_dtype.setter
    def state_dtype(self, given: torch.dtype | str | None) -> None:
        dtype = getattr(torch, given, None) if isinstance(given, str) else given
        if given is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise ValueError(
                f"LSTMRule: state_dtype must be a floating-point dtype such as 'bfloat16', or None, got {given!r}"
            )
        self._state_dtype = dtype

    @property
    def horizon(self) -> int | None:
        """The number of steps after which updates shrink as horizon / t, None for never."""
        return self._horizon

    @horizon.setter
    def horizon(self, given: int | None) -> None:
        self._horizon = checked_horizon("LSTMRule", given)
        until = self.count_until or given
        known = FEATURES if until is None else FEATURES | {"step_count": StepCount(until=until)}
        self._features = [known[name] for name in self.features]

    def reset_parameters(self) -> None:
        """Draws new weights, with torch's global random numbers and the bounds of ``nn.LSTM``."""
        bound = self.hidden_size**-0.5
        with torch.no_grad():
            for weight, bias in zip(self.weights, self.biases, strict=True):
                weight.uniform_(-bound, bound)
                bias.zero_()
                bias[self.hidden_size : 2 * self.hidden_size] = 1.0
            self.head.reset_parameters()
            if self.shortcut is not None:
                descent = [0.3 / len(self.features) * each for feature in self._features for each in feature.descent]
                self.shortcut.copy_(torch.tensor([0.0] * len(descent) + [1.0] if self.secants else descent))
                self.head.weight.zero_()
            self.head.bias.zero_()

    def init_state(self, params: Tensors, *, generator: torch.Generator | None = None) -> RuleState:
        dtype = self.head.weight.dtype
        per_param = {}
        for name, param in params.items():
            state: Tensors = {}
            for feature in self._features:
                state |= feature.init_state(param, dtype=dtype)
            if self.secants:
                state |= init_secants(param, self.secants, dtype=dtype)
            if self._counted and "step" not in state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=param.device)
            for i in range(self.num_layers):
                for key in (f"hidden_{i}", f"cell_{i}"):
                    kept = self.state_dtype or dtype
                    state[key] = torch.zeros(*param.shape, self.hidden_size, dtype=kept, device=param.device)
            per_param[name] = state
        return RuleState(per_param, {})

    def forward(self, grads: Tensors, state: RuleState, params: Tensors) -> tuple[Tensors, RuleState]:
        updates: Tensors = {}
        per_param = dict(state.per_param)
        grads = {name: grad.to(self.head.weight.dtype) for name, grad in grads.items()}
        directions, remembered = self._directions(grads, per_param, params)
        for name, grad in grads.items():
            own = per_param[name] | remembered.get(name, {})
            updates[name], per_param[name] = self._output(grad, own, directions.get(name))
        if self.normalised:
            updates = self._normalised(updates, params)
        updates = {name: self._scale(per_param[name], u) * u for name, u in updates.items()}
        return updates, RuleState(per_param, state.shared)

    def _scale(self, state: Tensors, like: Tensor) -> Scalar:
        """What the output is multiplied by at a step, given the state after it."""
        if self.horizon is None:
            return self.output_scale
        return self.output_scale * within(self.horizon, state["step"], like.dtype)

    def step_(
        self, grads: Tensors, state: RuleState, params: Tensors, *, finite: Tensor | None = None
    ) -> tuple[Tensors, Tensor]:
        if fusible(self, grads, state.per_param):
            return self._fused(grads, state, finite)
        # What is not finite elsewhere, on another shard, is left out here too.
        if self.scope == "coordinate" and steps_in_chunks(self, grads, state) and (finite is None or bool(finite)):
            updates = step_in_chunks(self, grads, state, compiled=self.compiled)
            return updates, all_finite(updates)
        return super().step_(grads, state, params, finite=finite)

    def _fused(self, grads: Tensors, state: RuleState, finite: Tensor | None) -> tuple[Tensors, Tensor]:
        """`step_` by `cells_`. Where the state is not finite, what there is of it goes on by blocks of coordinates."""
        finite = all_finite(grads) if finite is None else finite
        inputs: Tensors = {}
        remembered: dict[str, Tensors] = {name: {} for name in grads}
        if self.features != ("log_sign",) or self.horizon is not None:
            for name, grad in grads.items():
                given = grad.to(self.head.weight.dtype)
                inputs[name], remembered[name] = self._inputs(given, state.per_param[name])
            finite = finite & all_finite(inputs)
        outs = {
            name: cells_(self, inputs.get(name), grad, state.per_param[name], finite) for name, grad in grads.items()
        }
        if self.horizon is None:
            torch._foreach_mul_([*outs.values()], self.output_scale)
        else:
            outs = {name: self._scale(remembered[name], out) * out for name, out in outs.items()}
        for name in grads:
            overwrite(state.per_param[name], remembered[name], where=finite)
        return outs, finite & all_finite(outs)

    @property
    def _counted(self) -> bool:
        """Whether the state counts steps, whatever the features do."""
        return self.horizon is not None or self.secants > 0

    def _directions(
        self, grads: Tensors, per_param: dict[str, Tensors], params: Tensors
    ) -> tuple[Tensors, dict[str, Tensors]]:
        """With secants, their input for every tensor and their memory after the step."""
        if not self.secants:
            return {}, {}
        begun = {name: per_param[name]["step"] > 0 for name in grads}
        directions, remembered = quasi_newton(grads, per_param, params, begun)
        return {name: direction / self.output_scale for name, direction in directions.items()}, remembered

    def _inputs(self, grad: Tensor, state: Tensors) -> tuple[Tensor, Tensors]:
        """All features of a gradient, shape (..., F), and what they remember."""
        inputs: list[Tensor] = []
        remembered: Tensors = {}
        for feature in self._features:
            values, new = feature(grad, state)
            inputs.append(values)
            remembered |= new
        if self._counted and "step" not in remembered:
            remembered["step"] = state["step"] + 1
        return torch.cat(inputs, dim=-1) if len(inputs) > 1 else inputs[0], remembered

    def _output(self, grad: Tensor, state: Tensors, direction: Tensor | None) -> tuple[Tensor, Tensors]:
        """What the head says of each coordinate, shape (...), normalised (..., 3); and the new state.

        Args:
            grad: The gradient.
            state: Before the step, but for the memory of secants.
            direction: One more input, shape (...).
        """
        features, remembered = self._inputs(grad, state)
        if direction is not None:
            features = torch.cat((features, direction.unsqueeze(-1)), dim=-1)
        x, new = features, state | remembered

        seen = None if self.move_unseen or all_marked([grad != 0]) else ever_seen(grad, state["cell_0"])
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            hidden, cell = (state[f"{what}_{i}"].to(weight.dtype) for what in ("hidden", "cell"))
            x, cell = lstm_cell(x, hidden, cell, weight, bias)  # (..., H)
            if seen is not None:
                x, cell = x * seen.unsqueeze(-1), cell * seen.unsqueeze(-1)
            for key, value in ((f"hidden_{i}", x), (f"cell_{i}", cell)):
                new[key] = value.to(state[key].dtype)

        heads = self.head(x)  # (..., 1), normalised (..., 2)
        out = heads[..., 0]
        if self.shortcut is not None:
            out = out + features @ self.shortcut
        out = torch.tanh(out) if self.bounded else out
        out = out if seen is None else out * seen
        if not self.normalised:
            return out, new
        counted = torch.ones_like(out) if seen is None else seen.to(out.dtype)
        return torch.stack((out, counted * heads[..., 1], counted), dim=-1), new

    def _normalised(self, outputs: Tensors, params: Tensors) -> Tensors:
        """From direction d, size r and whether a coordinate counts to d / rms(d) * 10^tanh(mean(r))."""
        means = tensor_means(
            {name: torch.cat((out[..., :1].square(), out[..., 1:]), dim=-1) for name, out in outputs.items()}, params
        )
        updates = {}
        for name, out in outputs.items():
            square, size, counted = means[name].unbind(-1)
            counted = torch.where(counted > 0, counted, torch.ones_like(counted))
            updates[name] = over_root(out[..., 0], (square / counted).expand(out.shape[:-1])) * 10 ** torch.tanh(
                size / counted
            )
        return updates

    def config(self) -> dict[str, Any]:
        # Named where they are chosen only: states that were saved before there was a choice still fit.
        dtype = None if self.state_dtype is None else str(self.state_dtype).removeprefix("torch.")
        kept = {"horizon": self.horizon, "count_until": self.count_until, "state_dtype": dtype}
        return {
            "features": list(self.features),
            "hidden_size": self.hidden_size,
            "num_layers": self.num_layers,
            "output_scale": self.output_scale,
            "bounded": self.bounded,
            "shortcut": self.shortcut is not None,
            "move_unseen": self.move_unseen,
            "normalised": self.normalised,
            **({"secants": self.secants} if self.secants else {}),
            **{key: value for key, value in kept.items() if value is not None},
        }

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={value!r}" for key, value in self.config().items())
