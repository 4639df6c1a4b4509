"""The meta-learner LSTM: an optimizer that is a cell whose state is the parameter."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from learned_optim.cells import lstm_cell, parameter_cell
from learned_optim.features import ever_seen, log_and_sign
from learned_optim.rule import Rule
from learned_optim.types import RuleState, Tensors


class MetaLearnerLSTMRule(Rule):
    """theta' = f theta - i g: gradient descent whose rate i and decay f are the gates of a cell with state theta.

    Every coordinate has its own state, and all share the weights. An ordinary LSTM layer reads the preprocessed
    gradient, and its hidden state h goes to the gates::

        h', c' = lstm(log_and_sign(g), h, c)
        i' = sigmoid(W_I [h', theta, i] + b_I)
        f' = sigmoid(W_F [h', theta, f] + b_F)
        u = (f' - 1) theta - i' g

    Both gates are 0 before the first step. Weights start in [-0.01, 0.01], b_I in [-5, -4] and b_F in [4, 5], so that
    the untrained rule is gradient descent with a rate of about 0.01 and a weight decay of about 0.01 per step.

    As the inner rule of a learner it is the paper's method, which learns theta_0 too, and takes gradients as constants:
    ``MetaLearner(model, MetaLearnerLSTMRule(), steps=5, first_order=True)``.

    Args:
        hidden_size: H, units of the first layer (the authors' code: 20).
        move_unseen: Whether coordinates move whose gradient has always been zero, as in the paper, where they decay. By
            default they stay, with their state at zero, as in `LSTMRule`.

    The rule runs in the dtype of its weights, whatever the dtype of the parameters; so does its state, per coordinate
    ``hidden_0`` and ``cell_0`` of shape ``param.shape + (H,)`` and ``gates``, i and f, of shape ``param.shape + (2,)``.

    Raises:
        ValueError: ``hidden_size`` is below 1.

    Source: Ravi & Larochelle 2017, section 3, https://openreview.net/forum?id=rJY0-Kcll; the first layer, its size and
    all first values from the authors' code, https://github.com/twitter-research/meta-learning-lstm. Deviations: the
    loss is no input of the first layer, since rules see gradients, state and parameters only; ``move_unseen=False``.
    The authors' code feeds the gates back as they are before the sigmoid, here it is i and f as in the paper.
    """

    scope = "coordinate"

    def __init__(self, hidden_size: int = 20, *, move_unseen: bool = False) -> None:
        super().__init__()
        if hidden_size < 1:
            raise ValueError(f"MetaLearnerLSTMRule: hidden_size must be >= 1, got {hidden_size}")
        self.hidden_size = hidden_size
        self.move_unseen = move_unseen
        self.weight = nn.Parameter(torch.empty(4 * hidden_size, 2 + hidden_size))
        self.bias = nn.Parameter(torch.empty(4 * hidden_size))
        self.gate_weight = nn.Parameter(torch.empty(2, hidden_size + 2))
        self.gate_bias = nn.Parameter(torch.empty(2))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws new weights, with torch's global random numbers and the bounds of the authors' code."""
        with torch.no_grad():
            for parameter in (self.weight, self.bias, self.gate_weight):
                parameter.uniform_(-0.01, 0.01)
            self.gate_bias[0].uniform_(-5.0, -4.0)
            self.gate_bias[1].uniform_(4.0, 5.0)

    def init_state(self, params: Tensors, *, generator: torch.Generator | None = None) -> RuleState:
        sizes = {"hidden_0": self.hidden_size, "cell_0": self.hidden_size, "gates": 2}
        per_param = {
            name: {
                key: torch.zeros(*param.shape, size, dtype=self.weight.dtype, device=param.device)
                for key, size in sizes.items()
            }
            for name, param in params.items()
        }
        return RuleState(per_param, {})

    def forward(self, grads: Tensors, state: RuleState, params: Tensors) -> tuple[Tensors, RuleState]:
        updates: Tensors = {}
        per_param = dict(state.per_param)
        dtype = self.weight.dtype
        for name, grad in grads.items():
            updates[name], per_param[name] = self._step(grad.to(dtype), state.per_param[name], params[name].to(dtype))
        return updates, RuleState(per_param, state.shared)

    def _step(self, grad: Tensor, state: Tensors, param: Tensor) -> tuple[Tensor, Tensors]:
        x = torch.stack(log_and_sign(grad), dim=-1)  # (..., 2)
        hidden, cell = lstm_cell(x, state["hidden_0"], state["cell_0"], self.weight, self.bias)  # (..., H)
        update, gates = parameter_cell(hidden, param, grad, state["gates"], self.gate_weight, self.gate_bias)
        new = {"hidden_0": hidden, "cell_0": cell, "gates": gates}
        if self.move_unseen:
            return update, new
        seen = ever_seen(grad, state["cell_0"])
        return update * seen, {key: value * seen.unsqueeze(-1) for key, value in new.items()}

    def config(self) -> dict[str, Any]:
        return {"hidden_size": self.hidden_size, "move_unseen": self.move_unseen}

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={value!r}" for key, value in self.config().items())
