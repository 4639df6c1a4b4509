"""One rule for parameters on several devices."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from learned_optim.reduction import all_finite
from learned_optim.rule import Rule
from learned_optim.types import RuleState, Tensors


class RuleOnDevices:
    """Steps a rule on each device for the parameters there; the rule itself is where the first of them is."""

    def __init__(self) -> None:
        self._replicas: dict[torch.device, Rule] = {}

    def step_(self, rule: Rule, grads: Tensors, state: RuleState, params: Tensors) -> tuple[Tensors, Tensor]:
        """`Rule.step_`.

        Raises:
            RuntimeError: The rule looks at all parameters together, and they are on several devices.
        """
        finite = all_finite(grads)
        devices = list(dict.fromkeys(p.device for p in params.values()))
        if len(devices) == 1:
            weight = next(rule.parameters(), None)
            if weight is not None and weight.device != devices[0]:
                rule.to(devices[0])
            return rule.step_(grads, state, params, finite=finite)
        if rule.scope == "network":
            raise RuntimeError(
                f"{type(rule).__name__} looks at all parameters together, so that they must be on one device; they are "
                f"on {', '.join(map(str, devices))}"
            )
        updates: Tensors = {}
        for device in devices:
            here = {key: p for key, p in params.items() if p.device == device}
            part = RuleState({key: state.per_param[key] for key in here}, state.shared)
            its_updates, ok = self._replica(rule, device).step_(
                {key: grads[key] for key in here}, part, here, finite=finite.to(device)
            )
            updates |= its_updates
            finite = finite & ok.to(finite.device)
        return updates, finite

    def _replica(self, rule: Rule, device: torch.device) -> Rule:
        """The rule with its present weights on another device."""
        weights = list(rule.parameters())
        if not weights or weights[0].device == device:
            return rule
        replica = self._replicas.get(device)
        if replica is None or len(list(replica.parameters())) != len(weights):
            replica = self._replicas[device] = copy.deepcopy(rule).to(device)
        for own, weight in zip(replica.parameters(), weights, strict=True):
            own.copy_(weight)
        return replica
