"""Numbers of a batch that are to be whitened."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from rlhf_conformance.chapters._credit.cases import (
    GRID,
    MANY_ROWS,
    MASK_PICKS,
    ROWS,
    WIDTH,
    action_masks,
    spread,
)
from rlhf_conformance.chapters._masked import MaskedCase, Masks, Rows, exactly
from rlhf_conformance.chapters.whitening.interface import WhiteningOptions
from rlhf_conformance.judging.picks import Picked, Picks
from rlhf_conformance.judging.storing import stored
from rlhf_conformance.judging.subject import Subject


@stored
@dataclass(frozen=True)
class WhiteningCase(MaskedCase):
    """One call of whitening."""

    TABLES = ("values",)

    values: Rows
    action_mask: Masks
    options: WhiteningOptions

    @property
    def numbers(self) -> list[float]:
        """Those of the actions."""
        return [self.values[i][j] for i, j in self.actions]


CENTERS, SCALES = (0.0, 0.3, -0.7, 1.9), (1.0, 0.3, 3.0)


@dataclass(frozen=True)
class WhiteningShape:
    """What a strategy is asked for.

    centers, scales     where the numbers lie, and how far from each other
    kept                whether the mean is kept; None: either, where the adapter can keep it
    columns             the least width
    """

    centers: tuple[float, ...] = CENTERS
    scales: tuple[float, ...] = SCALES
    kept: bool | None = None
    min_rows: int = 1
    columns: int = 1
    few: bool = False
    empty_row: bool = False
    holes: bool = False
    square: bool = False


def whitening_cases(subject: Subject, **shape: Any) -> Picked[WhiteningCase]:
    """Up to 4 rows, now and then more, of up to 6 cells, with at least two actions: the masks have holes."""
    wanted, dtype = WhiteningShape(**shape), subject.dtype

    def build(picks: Picks) -> WhiteningCase:
        kept = picks.chance(1, 2) and subject.adapter.whitening_keeps_mean
        options = WhiteningOptions(not (kept if wanted.kept is None else wanted.kept))
        center, scale = picks.of(wanted.centers), picks.of(wanted.scales)
        least = max(wanted.min_rows, 2 if wanted.empty_row else 1)
        rows = 2 if wanted.few else least + picks.below(ROWS + 1 - least)
        rows = picks.of(MANY_ROWS) if picks.chance(1, 10) and not wanted.few else rows
        width = max(wanted.columns, 1 + picks.below(WIDTH))
        width = rows if wanted.square and picks.chance(1, 3) and rows > 1 else width
        masks = action_masks(
            picks.part(MASK_PICKS), rows=rows, width=width, empty_row=wanted.empty_row, holes=wanted.holes
        )
        case = WhiteningCase(tuple((0.0,) * len(row) for row in masks), masks, options)
        if len(case.actions) < 2:
            case = _with_two_actions(case)
        numbers = iter(spread([picks.of(GRID) for _ in case.actions], center, scale, dtype))
        return case.changed(values=tuple(tuple(next(numbers) if m else 0.0 for m in row) for row in case.action_mask))

    return Picked(10 + MASK_PICKS + max(MANY_ROWS) * max(WIDTH, *MANY_ROWS), build)


def _with_two_actions(case: WhiteningCase) -> WhiteningCase:
    """A batch of one action, or of one and an empty row, with one more: in a column of its own."""
    mask = tuple((*row, int(any(row))) for row in case.action_mask)
    return replace(case, values=tuple((0.0,) * len(row) for row in mask), action_mask=mask)


@stored
@dataclass(frozen=True)
class ChangedCase:
    """A case, and the same with all its numbers changed alike."""

    case: WhiteningCase
    other: WhiteningCase


def scaled(subject: Subject, factors: tuple[float, ...]) -> Picked[ChangedCase]:
    def change(case: WhiteningCase, picks: Picks) -> ChangedCase:
        factor = picks.of(factors)
        return ChangedCase(case, _mapped(case, lambda x: exactly(factor * x, subject.dtype)))

    return whitening_cases(subject).with_more(1, change)


def shifted(subject: Subject, offsets: tuple[float, ...]) -> Picked[ChangedCase]:
    def change(case: WhiteningCase, picks: Picks) -> ChangedCase:
        offset = picks.of(offsets)
        return ChangedCase(case, _mapped(case, lambda x: exactly(x + offset, subject.dtype)))

    return whitening_cases(subject).with_more(1, change)


def _mapped(case: WhiteningCase, change: Any) -> WhiteningCase:
    rows = zip(case.values, case.action_mask, strict=True)
    return replace(case, values=tuple(tuple(change(x) if m else x for x, m in zip(*r, strict=True)) for r in rows))


def near_epsilon(eps: float, place: str) -> tuple[float, ...]:
    """Spreads of about the size at which a declared eps decides; where there is none, spreads that are small."""
    size = (eps if place == "std" else math.sqrt(eps)) or 1e-4
    return (size, 0.4 * size, 2.5 * size)


EQUAL = (0.97, -0.31, 0.0, 1.0, 12.7, 1e-3)


def equal_numbers(subject: Subject) -> Picked[WhiteningCase]:
    def change(case: WhiteningCase, picks: Picks) -> WhiteningCase:
        number = exactly(picks.of(EQUAL), subject.dtype)
        return _mapped(case, lambda x: number)

    return whitening_cases(subject).with_more(1, change)


def few_actions(subject: Subject) -> Picked[WhiteningCase]:
    """A case with all of its actions, of which the check leaves one and none."""
    return whitening_cases(subject, few=True)


def with_first(case: WhiteningCase, count: int) -> WhiteningCase:
    """The case with no more than so many of its actions."""
    left = set(case.actions[:count])
    masks = (tuple(int((i, j) in left) for j in range(len(row))) for i, row in enumerate(case.action_mask))
    return replace(case, action_mask=tuple(masks))
