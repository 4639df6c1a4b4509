"""Different rules for different parameters, as one rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from learned_optim.rule import Rule
from learned_optim.types import RuleState, Tensors

Assignment: TypeAlias = Mapping[str, str | int | Sequence[str | int]]


class RuleMap(Rule):
    """Routes each parameter to one of several rules, by name or by rank.

    ``RuleMap({"conv": r1, "dense": r2}, assign={"conv": 4, "dense": "*"})`` gives tensors of four dimensions to ``r1``
    and all others to ``r2``. Andrychowicz et al. 2016 train one LSTM for convolutions and one for dense layers (section
    3.3).

    Args:
        rules: Rules by a name of their own, without dots. They are held, not copied.
        assign: For each of those names what goes to it: a number of dimensions, a pattern of parameter names
            (``"features.*"``, as in the shell), or a list of such. The first that matches wins, in this order.

    Raises:
        ValueError: The names of ``rules`` and ``assign`` differ, or a parameter matches nothing.
    """

    def __init__(self, rules: Mapping[str, Rule], assign: Assignment) -> None:
        super().__init__()
        if not rules or set(rules) != set(assign):
            raise ValueError(f"RuleMap: rules and assign must have the same names, got {list(rules)}, {list(assign)}")
        for name, rule in rules.items():
            if not isinstance(rule, Rule):
                raise ValueError(f"RuleMap: rules[{name!r}] must be a Rule, got {type(rule).__name__}")
        self.rules = nn.ModuleDict(rules)
        self.assign: dict[str, list[str | int]] = {
            name: [entry] if isinstance(entry, (str, int)) else list(entry) for name, entry in assign.items()
        }
        for name, entries in self.assign.items():
            if not all(isinstance(entry, (str, int)) and not isinstance(entry, bool) for entry in entries):
                raise ValueError(
                    f"RuleMap: assign[{name!r}] must hold patterns and numbers of dimensions, got {entries}"
                )
        self._routes: dict[tuple[str, int], str] = {}
        scopes = [rule.scope for rule in rules.values()]
        self.scope = max(scopes, key=("coordinate", "tensor", "network").index)

    def route(self, name: str, param: Tensor) -> str:
        """Which rule takes a parameter."""
        place = (name, param.dim())
        if place not in self._routes:  # patterns are compared once, out of the sight of torch.compile
            self._routes[place] = self._match(name, param)
        return self._routes[place]

    def _match(self, name: str, param: Tensor) -> str:
        for key, entries in self.assign.items():
            for entry in entries:
                if entry == param.dim() if isinstance(entry, int) else fnmatchcase(name, entry):
                    return key
        raise ValueError(
            f"RuleMap: no rule for parameter {name!r} of {param.dim()} dimensions; assign is {self.assign}. Patterns "
            "need named parameters, and '*' takes all that are left"
        )

    def _parts(self, params: Tensors) -> dict[str, Tensors]:
        parts: dict[str, Tensors] = {key: {} for key in self.assign}
        for name, param in params.items():
            parts[self.route(name, param)][name] = param
        return {key: part for key, part in parts.items() if part}

    def init_state(self, params: Tensors, *, generator: torch.Generator | None = None) -> RuleState:
        per_param: dict[str, Tensors] = {}
        shared: Tensors = {}
        for key, part in self._parts(params).items():
            state = self._rule(key).init_state(part, generator=generator)
            per_param |= state.per_param
            shared |= {f"{key}.{name}": value for name, value in state.shared.items()}
        return RuleState({name: per_param[name] for name in params}, shared)

    def place(self, params: Tensors) -> None:
        for key, part in self._parts(params).items():
            self._rule(key).place(part)

    def forward(self, grads: Tensors, state: RuleState, params: Tensors) -> tuple[Tensors, RuleState]:
        updates: Tensors = {}
        per_param, shared = dict(state.per_param), dict(state.shared)
        for key, part in self._parts({name: params[name] for name in grads}).items():
            own = {name.removeprefix(f"{key}."): v for name, v in state.shared.items() if name.startswith(f"{key}.")}
            some = {name: grads[name] for name in part}
            its_updates, new = self._rule(key)(some, RuleState(state.per_param, own), params)
            updates |= its_updates
            per_param |= {name: new.per_param[name] for name in part}
            shared |= {f"{key}.{name}": value for name, value in new.shared.items()}
        return {name: updates[name] for name in grads}, RuleState(per_param, shared)

    def _rule(self, key: str) -> Rule:
        rule = self.rules[key]
        assert isinstance(rule, Rule)
        return rule

    def config(self) -> dict[str, Any]:
        return {"rules": {key: self._rule(key).described() for key in self.assign}, "assign": self.assign}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> RuleMap:
        return cls({key: Rule.rebuilt(part) for key, part in config["rules"].items()}, config["assign"])
