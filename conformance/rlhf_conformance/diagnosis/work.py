"""What a diagnosis may cost, in work: a busy machine takes longer for the same, and finds the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

CALLS = 96
"""Calls of the adapter for the diagnosis of one failure. At half a second a call that is 48 s at most."""
ASKED, OF_A_MODEL = 4000, 5
"""Calls of candidates, and one more for each case that one of them is asked for; each counts as several where models
are loaded."""


def _nobody() -> None:
    pass


@dataclass
class Work:
    """What is left of it.

    calls       of the adapter
    asked       calls of candidates
    tried, untried      candidates that were asked all that they had to be, and those that were not
    alive       is told of each piece that is done: whoever limits the time can tell a long search from one that hangs
    """

    calls: int = CALLS
    asked: int = ASKED
    tried: int = 0
    untried: int = 0
    alive: Callable[[], None] = _nobody

    def spend(self, *, calls: int = 0, asked: int = 0) -> None:
        """A piece of it is done."""
        self.calls -= calls
        self.asked -= asked
        self.alive()

    @property
    def spent(self) -> bool:
        """Whether the adapter is to be left alone."""
        return self.calls <= 0

    @property
    def cut(self) -> str:
        """In words, where the search ended before its end; empty where it did not."""
        if not self.untried:
            return ""
        return f"the search for a cause was cut after {self.tried} candidates: {self.untried} were not tried"
