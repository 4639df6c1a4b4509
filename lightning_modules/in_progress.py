"""The sets of problems that meta-training is at work on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lightning_modules.estimators import Carried
from lightning_modules.processes import gathered, process


@dataclass
class Episode:
    """One set of problems.

    Attributes:
        number: Names it.
        position: Steps taken.
        carried: What the next window goes on from; None before the first.
    """

    number: int
    position: int = 0
    carried: Carried | None = None


class InProgress:
    """Episodes that take turns, window by window; one that has ended makes room for the next number.

    Args:
        count: How many.
    """

    def __init__(self, count: int) -> None:
        self._episodes = [Episode(number) for number in range(count)]
        self._turn = 0
        self._next = count

    @property
    def current(self) -> Episode:
        """The one whose turn it is."""
        return self._episodes[self._turn]

    def advance(self, position: int, carried: Carried, *, ended: bool) -> None:
        """The current one has taken a window."""
        if ended:
            self._episodes[self._turn] = self._new()
        else:
            self.current.position, self.current.carried = position, carried
        self._turn = (self._turn + 1) % len(self._episodes)

    def state_dict(self) -> dict[str, Any]:
        """Of all processes."""
        return {
            "turn": self._turn,
            "next": self._next,
            "episodes": [(episode.number, episode.position) for episode in self._episodes],
            "carried": gathered([episode.carried for episode in self._episodes]),
        }

    def load_state_dict(self, saved: dict[str, Any], *, same: bool) -> None:
        """Goes on from there.

        Args:
            saved: The state.
            same: Whether problems and options are those of then: with others, or another number of processes, the
                episodes could not go on, and new ones take their places.
        """
        rank, world = process()
        self._next = saved["next"]
        if same and len(saved["carried"]) == world:
            self._turn = saved["turn"]
            self._episodes = [
                Episode(number, position, carried)
                for (number, position), carried in zip(saved["episodes"], saved["carried"][rank], strict=True)
            ]
        else:
            self._episodes = [self._new() for _ in self._episodes]

    def _new(self) -> Episode:
        self._next += 1
        return Episode(self._next - 1)
