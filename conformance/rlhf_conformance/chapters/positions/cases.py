"""Attention masks of padded rows."""

from __future__ import annotations

from dataclasses import dataclass

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
