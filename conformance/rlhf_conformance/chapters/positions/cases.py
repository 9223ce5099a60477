"""Attention masks of padded rows."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_conformance.chapters._masked import Masks
from rlhf_conformance.judging.picks import Picked, Picks
from rlhf_conformance.judging.storing import stored


@stored
@dataclass(frozen=True)
class MaskCase:
    """Attention masks: `spans` holds (pads on the left, tokens, pads on the right) of each row, all of one width."""

    spans: tuple[tuple[int, int, int], ...]

    @property
    def size(self) -> tuple[int, int]:
        """Samples and tokens."""
        return len(self.spans), sum(sum(span) for span in self.spans)

    @property
    def masks(self) -> list[list[int]]:
        return [[0] * left + [1] * tokens + [0] * right for left, tokens, right in self.spans]


@stored
@dataclass(frozen=True)
class HoledMaskCase:
    """Attention masks with pads between the turns of a row."""

    masks: Masks

    @property
    def size(self) -> tuple[int, int]:
        """Samples and tokens."""
        return len(self.masks), sum(map(len, self.masks))


def holed_masks() -> Picked[HoledMaskCase]:
    """Up to 4 rows of one width with two or three turns, each padded on either side; the first has a hole."""

    def build(picks: Picks) -> HoledMaskCase:
        turns, widths = 2 + picks.below(2), [2 + picks.below(4) for _ in range(3)]
        slots = [picks.part(6) for _ in range(4)]
        rows = []
        for slot in [slots[i] for i in picks.some(4, 1)]:
            row: list[int] = []
            for width in widths[:turns]:
                tokens = 1 + slot.below(width - 1)
                left = slot.below(width - tokens) if row else width - tokens
                row += [0] * left + [1] * tokens + [0] * (width - tokens - left)
            rows.append(tuple(row))
        first, end = rows[0].index(1) + 1, len(rows[0]) - 1 - rows[0][::-1].index(1)
        if all(rows[0][first:end]):  # the turns have grown together
            rows[0] = (*rows[0][:-1], 0, 1)
            rows[1:] = [(*row, 0) for row in rows[1:]]
        return HoledMaskCase(tuple(rows))

    return Picked(4 + 24 + 4, build)


def masks() -> Picked[MaskCase]:
    """Up to 4 rows, up to 8 columns or more than bytes and bfloat16 can count, at least one token in each row."""

    def build(picks: Picks) -> MaskCase:
        is_long, long, short = picks.chance(1, 2), picks.of((130, 300)), 1 + picks.below(8)
        width = long if is_long else short
        slots = [picks.part(2) for _ in range(4)]
        spans = []
        for row in [slots[i] for i in picks.some(4, 1)]:
            tokens = width - row.below(40) if is_long else 1 + row.below(width)
            left = row.below(width - tokens + 1)
            spans.append((left, tokens, width - tokens - left))
        return MaskCase(tuple(spans))

    return Picked(16, build)
