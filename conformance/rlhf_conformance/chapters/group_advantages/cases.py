"""Scores of responses in groups: interleaved, of different sizes, and seldom alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import rlhf_spec.group_advantages as spec
from rlhf_conformance.adapter import Adapter
from rlhf_conformance.chapters._credit.cases import GRID, MASK_PICKS, WIDTH, action_masks, spread
from rlhf_conformance.chapters._masked import MaskedCase, Masks, exactly
from rlhf_conformance.chapters.group_advantages.interface import GroupAdvantageOptions
from rlhf_conformance.judging.picks import Picked, Picks
from rlhf_conformance.judging.storing import stored
from rlhf_conformance.judging.subject import Subject

if TYPE_CHECKING:
    from typing_extensions import Self


@stored
@dataclass(frozen=True)
class GroupCase(MaskedCase):
    """One call: a score and a group for each response, and what of it are actions."""

    TABLES = ()

    scores: tuple[float, ...]
    group_ids: tuple[int, ...]
    action_mask: Masks
    options: GroupAdvantageOptions

    def rows(self, order: Sequence[int]) -> Self:
        """Only these responses, in this order."""
        taken = {name: tuple(getattr(self, name)[i] for i in order) for name in ("scores", "group_ids")}
        return super().rows(order).changed(**taken)

    @property
    def groups(self) -> list[list[int]]:
        """The rows of each group."""
        return list(spec.members(self.group_ids).values())


GROUPS, LARGE = 4, (9, 16)
SIZES = (2, 3, 4, 5)
MOST = GROUPS * SIZES[-1] + LARGE[-1]
"""Responses of a case, at most."""
SIZE_PICKS, SCORE_PICKS = GROUPS + 5, 5 + LARGE[-1]
IDS = (3, 0, 11, 7)
CENTERS, SPREADS = (0.3, -0.7, 0.0, 2.1), (1.0, 0.3, 3.0)
LONE = (1.0, 0.37, 0.05)


@dataclass(frozen=True)
class GroupShape:
    """What a strategy is asked for.

    kind        the baseline and the scale; None: any that are declared
    min_groups  the least number of groups
    mixed       rows of different groups alternate
    unequal     the sizes of the groups differ
    lone        in the first group all scores but one are alike
    alike       in the first group all scores are one of these
    many        how many responses the first group may have; empty: as the others
    one         the last group has one member
    own         the scale is not the batch's
    scaled      there is a scale
    spreads, centers    how far scores lie from each other, and around what
    """

    kind: tuple[str, str] | None = None
    min_groups: int = 1
    mixed: bool = False
    unequal: bool = False
    lone: bool = False
    alike: tuple[float, ...] = ()
    many: tuple[int, ...] = ()
    one: bool = False
    own: bool = False
    scaled: bool = False
    spreads: tuple[float, ...] = SPREADS
    centers: tuple[float, ...] = CENTERS


def kinds(adapter: Adapter) -> list[tuple[str, str]]:
    """The baselines and scales that are asked together: who leaves one out divides by nothing."""
    of_mean = [("mean", scale) for scale in adapter.group_scales if "mean" in adapter.group_baselines]
    return [*of_mean, *[(b, "none") for b in adapter.group_baselines if b != "mean"]]


def group_cases(subject: Subject, **shape: Any) -> Picked[GroupCase]:
    """Up to 4 groups of 2 to 5 responses, now and then a large one, as the adapter declares that they may stand."""
    wanted, adapter, dtype = GroupShape(**shape), subject.adapter, subject.dtype
    possible = [k for k in kinds(adapter) if not (wanted.own and k[1] == "batch-std")]
    possible = [k for k in possible if not (wanted.scaled and k[1] == "none")] or possible

    def build(picks: Picks) -> GroupCase:
        options = GroupAdvantageOptions(*(wanted.kind or picks.of(possible)))
        sizes = _sizes(picks.part(SIZE_PICKS), adapter, wanted)
        how, order = picks.part(2), picks.part(MOST)
        masks = action_masks(picks.part(MASK_PICKS), rows=sum(sizes), width=1 + picks.below(WIDTH))
        scores = []
        for i, size in enumerate(sizes):
            scores += _scores(picks.part(SCORE_PICKS), size, wanted, dtype, first=i == 0)
        ids = [IDS[i] for i, size in enumerate(sizes) for _ in range(size)]
        case = GroupCase(tuple(scores), tuple(ids), masks, options)
        return case.rows(_order(how, order, case, adapter, wanted))

    return Picked(1 + SIZE_PICKS + 2 + MOST + MASK_PICKS + 1 + GROUPS * SCORE_PICKS, build)


def _sizes(picks: Picks, adapter: Adapter, wanted: GroupShape) -> list[int]:
    least = max(wanted.min_groups, 2 if wanted.mixed or wanted.unequal or wanted.one else 1)
    count = least + picks.below(GROUPS + 1 - least)
    sizes = [picks.of(SIZES) for _ in range(count)]
    if picks.chance(1, 10):
        sizes[0] = picks.of(LARGE)
    if adapter.group_layout == "equal" or (picks.chance(1, 8) and not wanted.unequal):
        sizes = [sizes[0]] * count if sizes[0] in SIZES else [4] * count
    if wanted.unequal and len(set(sizes)) == 1:
        sizes[-1] += 1 if sizes[-1] < SIZES[-1] else -1
    many = picks.of(wanted.many or (3,))
    if wanted.lone or wanted.alike:
        sizes[0] = many if wanted.many else max(sizes[0], 3)
        sizes = sizes[:1] * count if adapter.group_layout == "equal" else sizes
    if wanted.one:
        sizes = [1] * count if adapter.group_layout == "equal" else [*sizes[:-1], 1]
    return sizes


def _scores(picks: Picks, size: int, wanted: GroupShape, dtype: Any, *, first: bool) -> list[float]:
    center, scale, where, off = picks.of(wanted.centers), picks.of(wanted.spreads), picks.below(size), picks.of(LONE)
    alike = picks.of(wanted.alike or (0.0,))
    if first and wanted.alike:
        return [exactly(alike, dtype)] * size
    if first and wanted.lone:
        return [exactly(center + (off if i == where else 0.0), dtype) for i in range(size)]
    return spread([picks.of(GRID) for _ in range(size)], center, scale, dtype)


def _order(how: Picks, order: Picks, case: GroupCase, adapter: Adapter, wanted: GroupShape) -> list[int]:
    """The rows as they stand: group by group, in turn, or anyhow."""
    rows = list(range(len(case.scores)))
    if adapter.group_layout != "any":
        return rows
    kind = how.below(3)
    if kind == 1 or (wanted.mixed and kind == 0):  # one of each group in turn
        place = {row: (i, k) for k, group in enumerate(case.groups) for i, row in enumerate(group)}
        return sorted(rows, key=lambda row: place[row])
    if kind == 2:
        drawn = [order.below(256) for _ in rows]
        return sorted(rows, key=lambda row: (drawn[row], row))
    return rows


@stored
@dataclass(frozen=True)
class RescoredCase:
    """A case, and the same with other scores or other names of its groups."""

    case: GroupCase
    other: GroupCase


def rescored(subject: Subject, change: Callable[[GroupCase, Picks], GroupCase], count: int, **shape: Any) -> Any:
    """Cases with what `change` makes of each and of `count` further choices."""

    def changed(case: GroupCase, picks: Picks) -> RescoredCase:
        return RescoredCase(case, change(case, picks))

    return group_cases(subject, **shape).with_more(count, changed)


def others_changed(subject: Subject) -> Any:
    """Scores outside of the first row's group are others."""

    def change(case: GroupCase, picks: Picks) -> GroupCase:
        own = case.group_ids[0]
        drawn = [exactly(3 * picks.of(GRID) - 1.1, subject.dtype) for _ in case.scores]
        pairs = zip(case.scores, drawn, case.group_ids, strict=True)
        return replace(case, scores=tuple(s if g == own else other for s, other, g in pairs))

    return rescored(subject, change, MOST, min_groups=2, own=True)


def shifted(subject: Subject) -> Any:
    """A number of its own is added to all scores of each group."""

    def change(case: GroupCase, picks: Picks) -> GroupCase:
        offsets = {g: picks.of((5.0, -3.0, 0.9, 20.0)) for g in dict.fromkeys(case.group_ids)}
        pairs = zip(case.scores, case.group_ids, strict=True)
        return replace(case, scores=tuple(exactly(s + offsets[g], subject.dtype) for s, g in pairs))

    return rescored(subject, change, GROUPS, own=True)


def scaled(subject: Subject) -> Any:
    """All scores are multiplied by one positive number."""

    def change(case: GroupCase, picks: Picks) -> GroupCase:
        factor = picks.of((40.0, 0.03, 1000.0, 7.0))
        return replace(case, scores=tuple(exactly(factor * s, subject.dtype) for s in case.scores))

    return rescored(subject, change, 1)


NAMES = (2**24 + 1, 2**24, 5, 261, 0, 2**40 + 3, 1, 1000)
"""Ids of which a float32 cannot tell two, nor a byte two others."""


def renamed(subject: Subject) -> Any:
    """The groups have other ids, in no order."""

    def change(case: GroupCase, picks: Picks) -> GroupCase:
        left = list(NAMES)
        start = picks.below(len(left))
        left = left[start:] + left[:start]
        names = {g: left.pop(0) for g in dict.fromkeys(case.group_ids)}
        return replace(case, group_ids=tuple(names[g] for g in case.group_ids))

    return rescored(subject, change, 1, min_groups=2)


@stored
@dataclass(frozen=True)
class RemaskedCase:
    """A case, and the same with other actions."""

    case: GroupCase
    other: GroupCase


def remasked(subject: Subject) -> Any:
    def change(case: GroupCase, picks: Picks) -> RemaskedCase:
        rows, width = len(case.scores), 3 + picks.below(WIDTH - 2)
        masks = action_masks(picks, rows=rows, width=width, holes=True)
        return RemaskedCase(case, replace(case, action_mask=masks))

    return group_cases(subject).with_more(1 + MASK_PICKS, change)
