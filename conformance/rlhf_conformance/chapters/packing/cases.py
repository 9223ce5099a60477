"""Sequences to pack."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_conformance.judging.picks import Picked, Picks
from rlhf_conformance.judging.storing import stored

IDS, WIDTH, SEQUENCES = 10, 6, 4
"""Token ids are drawn below the first, so that equal ones meet; a sequence has at most so many as the second, a pack
so many sequences as the third."""


@stored
@dataclass(frozen=True)
class PackCase:
    """Sequences to be put into one row."""

    sequences: tuple[tuple[int, ...], ...]

    @property
    def size(self) -> tuple[int, int]:
        """Samples and tokens."""
        return len(self.sequences), sum(len(s) for s in self.sequences)


def packs(alone: int = 1) -> Picked[PackCase]:
    """Two to four sequences of one to six tokens; now and then a single one, of so many tokens at least as `alone`."""

    def build(picks: Picks) -> PackCase:
        slots = [picks.part(1 + WIDTH) for _ in range(SEQUENCES)]
        single = picks.chance(1, 6)
        rows, least = (slots[:1], alone) if single else ([slots[i] for i in picks.some(SEQUENCES, 2)], 1)
        lengths = [least + row.below(WIDTH + 1 - least) for row in rows]
        return PackCase(tuple(tuple(row.below(IDS) for _ in range(n)) for row, n in zip(rows, lengths, strict=True)))

    return Picked(1 + SEQUENCES + SEQUENCES * (1 + WIDTH), build)


def packs_with_empty() -> Picked[PackCase]:
    """The same with an empty sequence, or two, anywhere among the others."""

    def emptied(case: PackCase, picks: Picks) -> PackCase:
        sequences = list(case.sequences)
        for _ in range(1 + picks.below(2)):
            sequences.insert(picks.below(len(sequences) + 1), ())
        return PackCase(tuple(sequences))

    return packs().with_more(3, emptied)
