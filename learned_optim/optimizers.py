"""The named optimizers: each a thin constructor of a `RuleOptimizer`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from learned_optim.checkpoint import DEFAULT_CHECKPOINT, load_checkpoint, read_guard
from learned_optim.guard import Guard
from learned_optim.rule import Rule
from learned_optim.rule_optimizer import Params, RuleOptimizer
from learned_optim.rules import HierarchicalRNNRule, LSTMRule, MetaSGDRule
from learned_optim.types import Tensors


def _refuse_habit(name: str, checkpoint: Any) -> None:
    if checkpoint is not None and not isinstance(checkpoint, (str, os.PathLike)):
        option = "rule" if isinstance(checkpoint, Rule) else "lr"
        value = type(checkpoint).__name__ if option == "rule" else checkpoint
        raise TypeError(f"{name}: checkpoint must be a name or a file, got {value}; did you mean {option}=...?")


def _chosen(
    name: str,
    needed: type[Rule],
    checkpoint: str | os.PathLike[str] | None,
    rule: Rule | None,
    guard: bool | Guard | None,
    *,
    default: str,
) -> tuple[Rule, bool | Guard]:
    """The rule of a checkpoint, or the one that was given; and the guard, by default the checkpoint's."""
    _refuse_habit(name, checkpoint)
    article = "an" if needed is LSTMRule else "a"
    if rule is None:
        checkpoint = default if checkpoint is None else checkpoint
        rule = load_checkpoint(checkpoint)
        guard = read_guard(checkpoint) if guard is None else guard
    elif checkpoint is not None:
        raise ValueError(f"{name}: give a checkpoint or a rule, not both")
    if not isinstance(rule, needed):
        raise ValueError(
            f"{name}: needs {article} {needed.__name__}, got {type(rule).__name__}; use RuleOptimizer for others"
        )
    return rule, guard or False


class LSTMOptimizer(RuleOptimizer):
    """The learned LSTM optimizer, as a drop-in replacement for ``torch.optim.Adam``.

    A small LSTM, the same for all coordinates, reads each coordinate's gradient and writes its update; see `LSTMRule`.

    Args:
        params: Parameters, named parameters, or groups.
        checkpoint: A bundled name (`available_checkpoints`) or a file of `save_checkpoint`. With neither checkpoint nor
            rule the bundled default is loaded.
        rule: A rule to use instead; it is held, not copied.
        lr: A multiplier without unit; 1 is the optimizer as it was trained. Not a learning rate: 1e-3 nearly stops it.
        weight_decay: Decoupled decay per step.
        maximize: Ascend the objective instead.
        guard: Whether steps are kept within a trust region, with Adam to fall back on; see `Guard`, of which one may
            be given. By default the one that was saved with the checkpoint (`read_guard`), as with all bundled ones;
            none for a rule of your own.
        state_dtype: See `LSTMRule`; for the rule of a checkpoint.
        compile: Takes steps on CPU by one compiled function, 4,096 coordinates at a time, and what is left over as
            without. The first step then takes some fifteen seconds; the others are the same within rounding. Without a
            C++ compiler it goes on as without, with a warning. Not with ``torch.compile(optimizer.step)``, which makes
            one function of the whole step instead.

    Raises:
        ValueError: Both a checkpoint and a rule, ``state_dtype`` for a rule that is given, or see `RuleOptimizer`.
        CheckpointError: See `load_checkpoint`.

    Source: Andrychowicz et al. 2016.

    >>> import torch
    >>> model = torch.nn.Linear(4, 1)
    >>> optimizer = LSTMOptimizer(model.parameters(), checkpoint="mnist-mlp")
    >>> model(torch.ones(2, 4)).square().mean().backward()
    >>> optimizer.step()
    """

    def __init__(
        self,
        params: Params,
        checkpoint: str | os.PathLike[str] | None = None,
        *,
        rule: Rule | None = None,
        lr: float | Tensor = 1.0,
        weight_decay: float = 0.0,
        maximize: bool = False,
        guard: bool | Guard | None = None,
        state_dtype: torch.dtype | str | None = None,
        compile: bool = False,
    ) -> None:
        if rule is not None and state_dtype is not None:
            raise ValueError("LSTMOptimizer: state_dtype is for checkpoints; make the rule with it instead")
        rule, guard = _chosen("LSTMOptimizer", LSTMRule, checkpoint, rule, guard, default=DEFAULT_CHECKPOINT)
        assert isinstance(rule, LSTMRule)
        if state_dtype is not None:
            rule.state_dtype = state_dtype
        rule.compiled = rule.compiled or compile
        super().__init__(params, rule, lr=lr, weight_decay=weight_decay, maximize=maximize, guard=guard)


class HierarchicalRNNOptimizer(RuleOptimizer):
    """The hierarchical RNN optimizer: cells for coordinates, tensors and the network; see `HierarchicalRNNRule`.

    Args:
        params: Parameters, named parameters, or groups.
        checkpoint: A bundled name (`available_checkpoints`) or a file of `save_checkpoint`. With neither checkpoint nor
            rule the bundled ``"hierarchical"`` is loaded.
        rule: A rule to use instead; it is held, not copied.
        lr: A multiplier without unit; 1 is the optimizer as it was trained. Not a learning rate: those are the rule's.
        weight_decay: Decoupled decay per step.
        maximize: Ascend the objective instead.
        guard: As for `LSTMOptimizer`.

    Raises:
        ValueError: Both a checkpoint and a rule, or see `RuleOptimizer`.
        CheckpointError: See `load_checkpoint`.

    Source: Wichrowska et al. 2017.

    >>> import torch
    >>> model = torch.nn.Linear(4, 1)
    >>> optimizer = HierarchicalRNNOptimizer(model.parameters())
    >>> model(torch.ones(2, 4)).square().mean().backward()
    >>> optimizer.step()
    """

    def __init__(
        self,
        params: Params,
        checkpoint: str | os.PathLike[str] | None = None,
        *,
        rule: Rule | None = None,
        lr: float | Tensor = 1.0,
        weight_decay: float = 0.0,
        maximize: bool = False,
        guard: bool | Guard | None = None,
    ) -> None:
        rule, guard = _chosen(
            "HierarchicalRNNOptimizer", HierarchicalRNNRule, checkpoint, rule, guard, default="hierarchical"
        )
        super().__init__(params, rule, lr=lr, weight_decay=weight_decay, maximize=maximize, guard=guard)


class MetaSGD(RuleOptimizer):
    """Gradient descent with a learned rate for every coordinate; see `MetaSGDRule`.

    Rates of a checkpoint or rule match the parameters by name where the parameters are named, else by position.

    Args:
        params: Parameters, named parameters, or groups.
        checkpoint: A file of `save_checkpoint`.
        rule: A rule to use instead; it is held, not copied.
        alpha: First value of the rates, or a range to draw from, where neither checkpoint nor rule is given.
        lr: A multiplier of the update without unit.
        weight_decay: Decoupled decay per step.
        maximize: Ascend the objective instead.
        guard: Whether steps are kept within a trust region; see `RuleOptimizer`.

    Raises:
        ValueError: Rates and parameters do not match, a group is added to rates that came from a checkpoint or rule,
            both a checkpoint and a rule, or see `RuleOptimizer`.

    Source: Li et al. 2017.

    >>> import torch
    >>> model = torch.nn.Linear(4, 1)
    >>> optimizer = MetaSGD(model.named_parameters(), alpha=0.1)
    >>> model(torch.ones(2, 4)).square().mean().backward()
    >>> optimizer.step()
    """

    def __init__(
        self,
        params: Params,
        checkpoint: str | os.PathLike[str] | None = None,
        *,
        rule: MetaSGDRule | None = None,
        alpha: float | Sequence[float] = 0.01,
        lr: float | Tensor = 1.0,
        weight_decay: float = 0.0,
        maximize: bool = False,
        guard: bool | Guard = False,
    ) -> None:
        _refuse_habit("MetaSGD", checkpoint)
        if checkpoint is not None and rule is not None:
            raise ValueError("MetaSGD: give a checkpoint or a rule, not both")
        given = load_checkpoint(checkpoint) if checkpoint is not None else rule
        if given is not None and not isinstance(given, MetaSGDRule):
            raise ValueError(f"MetaSGD: needs a MetaSGDRule, got {type(given).__name__}")
        self._given = given is not None
        self._alpha = alpha
        self._complete = False
        options: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay, "maximize": maximize, "guard": guard}
        # Without given rates the rule is None until the first group creates it, in `_adopt`.
        super().__init__(params, given, **options)  # type: ignore[arg-type]
        if self._given and len(self._keys) != len(self._rates().names):
            unmatched = [name for name in self._rates().names if name not in self._keys.values()]
            raise ValueError(f"MetaSGD: there are rates for {unmatched}, but no such parameters")
        self._complete = True

    def _rates(self) -> MetaSGDRule:
        assert isinstance(self.rule, MetaSGDRule)
        return self.rule

    def _adopt(self, params: Tensors, *, named: bool) -> None:
        if self.rule is None:
            self.rule = MetaSGDRule(params, self._alpha)
        elif not self._given:
            for name, param in params.items():
                self._rates().add(name, param)
        elif self._complete:
            raise ValueError("MetaSGD: the rates came from a rule or checkpoint, which has none for a new group")
        else:
            params = self._matched(params, named=named)
        super()._adopt(params, named=named)

    def _matched(self, params: Tensors, *, named: bool) -> Tensors:
        alpha = self._rates().alpha
        if not named:
            free = [name for name in alpha if name not in self._keys.values()]
            if len(free) < len(params):
                raise ValueError(f"MetaSGD: {len(params)} more parameters, but rates for only {len(free)}: {free}")
            params = dict(zip(free, params.values(), strict=False))
        for name, param in params.items():
            if name not in alpha:
                raise ValueError(f"MetaSGD: no rates for parameter {name!r}; there are rates for {list(alpha)}")
            if alpha[name].shape != param.shape:
                shapes = f"{tuple(param.shape)}, its rates {tuple(alpha[name].shape)}"
                raise ValueError(f"MetaSGD: parameter {name!r} has shape {shapes}")
        return params

    def __getstate__(self) -> dict[str, Any]:
        own = {key: self.__dict__[key] for key in ("_given", "_alpha", "_complete")}
        return super().__getstate__() | own
