"""Masks of responses with several turns, and numbers for their actions."""

from __future__ import annotations

from collections.abc import Sequence

from rlhf_conformance._lazy import torch
from rlhf_conformance.chapters._masked import Masks, exactly
from rlhf_conformance.judging.picks import Picks, outward

ROWS, WIDTH = 4, 6
MANY_ROWS = (9, 12)
"""Now and then: more than what small batches are cut into."""
ROW_PICKS = 4 + WIDTH
MASK_PICKS = 4 + ROWS * ROW_PICKS


def action_masks(picks: Picks, *, rows: int, width: int, empty_row: bool = False, holes: bool = False) -> Masks:
    """Masks (rows, width), read off MASK_PICKS choices: each row has an action, unless one is asked to be empty.

    A row's actions begin at its left, or are cells anywhere, or are the turns of a dialogue with observations between
    and perhaps behind them. In one case of eight all rows are alike. With `holes` there is a row with two turns, where
    three columns are asked for.
    """
    alike, empty, holed = picks.chance(1, 8), picks.below(rows), picks.below(rows)
    picks = picks.part(ROWS * ROW_PICKS)
    masks = [_row(picks.part(ROW_PICKS), width) for _ in range(min(rows, ROWS))]
    masks = [masks[0 if alike else i % len(masks)] for i in range(rows)]
    if holes and width > 2 and not any("01" in "".join(map(str, row)).lstrip("0") for row in masks):
        masks[holed] = [1, 0, 1, *masks[holed][3:]]
    if empty_row:
        masks[empty] = [0] * width
    return tuple(map(tuple, masks))


def _row(picks: Picks, width: int) -> list[int]:
    kind, first, second, ends = picks.below(3), picks.below(width), picks.below(width), picks.chance(1, 2)
    if kind == 0:  # from the left
        return [1] * (1 + first) + [0] * (width - 1 - first)
    if kind == 1:  # anywhere
        cells = [picks.below(2) for _ in range(width)]
        return cells if any(cells) else [int(i == first) for i in range(width)]
    cells = [1] * width
    cells[first] = cells[second] = 0
    cells[-1] = 0 if ends else cells[-1]
    return cells if any(cells) else [int(i == first) for i in range(width)]


GRID = tuple(0.13 * k for k in outward(12))
"""Numbers of a usual size, of which float32 holds none exactly."""


def spread(numbers: Sequence[float], center: float, scale: float, dtype: torch.dtype) -> list[float]:
    """Numbers around a center, whose mean is not many times their spread: where they are too much alike, the first two
    are moved apart. All are exactly what the dtype holds."""
    found = list(numbers)
    mean = sum(found) / len(found)
    if len(found) > 1 and sum((x - mean) ** 2 for x in found) < 0.2 * len(found):
        found[:2] = 1.57, -0.88
    return [exactly(center + scale * x, dtype) for x in found]
