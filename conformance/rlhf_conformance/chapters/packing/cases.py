"""Sequences to pack."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_conformance.judging.picks import Picked, Picks
from rlhf_conformance.judging.storing import stored

IDS, WIDTH = 10, 6
"""Token ids are drawn below the first, so that equal ones meet; a sequence has at most so many as the second."""


@stored
@dataclass(frozen=True)
class PackCase:
    """Sequences to be put into one row."""

    sequences: tuple[tuple[int, ...], ...]

    @property
    def size(self) -> tuple[int, int]:
        """Samples and tokens."""
        return len(self.sequences), sum(len(s) for s in self.sequences)


def packs() -> Picked[PackCase]:
    """Two to four sequences of one to six tokens."""

    def build(picks: Picks) -> PackCase:
        slots = [picks.part(1 + WIDTH) for _ in range(4)]
        rows = [slots[i] for i in picks.some(4, 2)]
        return PackCase(tuple(tuple(row.below(IDS) for _ in range(1 + row.below(WIDTH))) for row in rows))

    return Picked(4 + 4 * (1 + WIDTH), build)
