"""Rewards and values under a mask."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_conformance.judging.picks import Picked, Picks, outward
from rlhf_conformance.judging.storing import stored
from toy_chapters.toy_advantages.interface import ToyAdvantageOptions

Rows = tuple[tuple[float, ...], ...]
ROWS, WIDTH = 3, 5


@stored
@dataclass(frozen=True)
class ToyAdvantageCase:
    """One call; tables (B, T)."""

    rewards: Rows
    values: Rows
    action_mask: tuple[tuple[int, ...], ...]
    options: ToyAdvantageOptions

    @property
    def size(self) -> tuple[int, int]:
        """Samples and tokens."""
        return len(self.rewards), sum(map(len, self.rewards))


def toy_advantage_cases() -> Picked[ToyAdvantageCase]:
    """Up to 3 rows of up to 5 actions; numbers exact in bfloat16."""
    return Picked(8 + ROWS * (1 + 2 * WIDTH), _case)


def _case(picks: Picks) -> ToyAdvantageCase:
    options = ToyAdvantageOptions(picks.of((1.0, 0.5, 0.75)), picks.of((0.5, 0.0, 1.0)))
    width, count = 2 + picks.below(WIDTH - 1), 1 + picks.below(ROWS)
    rewards, values, masks = [], [], []
    for _ in range(count):
        length = 1 + picks.below(width)
        numbers = [[0.25 * picks.of(outward(8)) for _ in range(width)] for _ in range(2)]
        rewards.append(tuple(numbers[0]))
        values.append(tuple(numbers[1]))
        masks.append((1,) * length + (0,) * (width - length))
    return ToyAdvantageCase(tuple(rewards), tuple(values), tuple(masks), options)
