"""Horizons that grow as an optimizer learns."""

from __future__ import annotations

import math
from collections.abc import Sequence


class Curriculum:
    """One horizon after the other, each until validation has stood still for so many times.

    Args:
        horizons: Ascending.
        patience: How many validations without a lower loss end a stage.

    Attributes:
        stage: Which of the horizons is at hand.

    Source: Chen et al. 2020, "Training stronger baselines for learning to optimize", section 3.2.
    """

    def __init__(self, horizons: Sequence[int], patience: int) -> None:
        self.horizons, self.patience = tuple(horizons), patience
        self.stage = 0
        self._best, self._since = math.inf, 0

    @property
    def horizon(self) -> int:
        """The horizon at hand."""
        return self.horizons[self.stage]

    @property
    def ended(self) -> bool:
        """Whether it is the last one."""
        return self.stage == len(self.horizons) - 1

    def validated(self, loss: float) -> None:
        """Takes the next horizon where it is time to.

        A loss that is not finite does not count: the optimizer does not hold out as it is, and longer is no cure.
        """
        if self.ended or not math.isfinite(loss):
            return
        self._since = 0 if loss < self._best else self._since + 1
        self._best = min(loss, self._best)
        if self._since >= self.patience:
            self.stage, self._best, self._since = self.stage + 1, math.inf, 0

    def state_dict(self) -> dict[str, float]:
        """Where it is."""
        return {"stage": self.stage, "best": self._best, "since": self._since}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Goes on there, at the last horizon at most."""
        self.stage = min(int(state["stage"]), len(self.horizons) - 1)
        self._best, self._since = float(state["best"]), int(state["since"])
