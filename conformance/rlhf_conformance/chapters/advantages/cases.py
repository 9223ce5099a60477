"""Rewards of tokens and values of their states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import rlhf_spec.advantages as spec
from rlhf_conformance.adapter import Adapter
from rlhf_conformance.chapters._credit.cases import MANY_ROWS, MASK_PICKS, ROWS, WIDTH, action_masks
from rlhf_conformance.chapters._masked import MaskedCase, Masks, Rows, exactly
from rlhf_conformance.chapters.advantages.interface import AdvantageOptions
from rlhf_conformance.judging.picks import Picked, Picks, outward
from rlhf_conformance.judging.storing import stored
from rlhf_conformance.judging.subject import Subject

Place = tuple[int, int]


@stored
@dataclass(frozen=True)
class AdvantageCase(MaskedCase):
    """One call of the advantages, or of the returns, which take no values."""

    TABLES = ("token_rewards", "values")

    token_rewards: Rows
    values: Rows
    action_mask: Masks
    options: AdvantageOptions


def last_actions(case: MaskedCase) -> set[Place]:
    """Row and column of the last action of each row that has one."""
    return {(i, max(j for j, m in enumerate(row) if m)) for i, row in enumerate(case.action_mask) if any(row)}


def read_cells(adapter: Adapter, case: MaskedCase) -> dict[str, set[Place]]:
    """Row and column of the cells that are no actions and may be read all the same, by the names of their tables."""
    behind = {(i, j + 1) for i, j in last_actions(case) if j + 1 < case.shape[1]}
    found: dict[str, set[Place]] = {"token_rewards": set(), "values": set()}
    if adapter.after_last_action != "nothing":
        found["values"] |= behind
    if adapter.after_last_action == "step":
        found["token_rewards"] |= behind
    if adapter.observations == "value-steps":
        between = {
            (i, j)
            for i, mask in enumerate(case.action_mask)
            for j in spec.row_steps(mask, "value-steps")
            if not mask[j]
        }
        found["values"] |= between
        found["token_rewards"] |= between
    return found


REWARDS = tuple(0.13 * k + 0.137 for k in outward(16))
VALUES = tuple(0.11 * k + 0.263 for k in outward(16))
GAMMAS = (0.9, 0.99, 0.5, 1.0, 0.97)
LAMBDAS = (0.95, 0.8, 0.3, 1.0, 0.6)


@dataclass(frozen=True)
class AdvantageShape:
    """What a strategy is asked for.

    gammas, lambdas     of the options
    factors             what all rewards and values are multiplied by
    single              each row has one action
    """

    gammas: Sequence[float] = GAMMAS
    lambdas: Sequence[float] = LAMBDAS
    factors: Sequence[float] = (1.0,)
    single: bool = False
    min_rows: int = 1
    columns: int = 1
    empty_row: bool = False
    holes: bool = False


def advantage_cases(subject: Subject, **shape: Any) -> Picked[AdvantageCase]:
    """Up to 4 rows, now and then more, of up to 6 cells: the masks have holes. Now and then all rewards are 0 but
    those of last actions, or all values. Cells that are no actions hold numbers where they are read, and 0
    elsewhere."""
    wanted, adapter, dtype = AdvantageShape(**shape), subject.adapter, subject.dtype

    def build(picks: Picks) -> AdvantageCase:
        options = AdvantageOptions(picks.of(wanted.gammas), picks.of(wanted.lambdas))
        factor = picks.of(wanted.factors)
        least = max(wanted.min_rows, 2 if wanted.empty_row else 1)
        rows, many = least + picks.below(ROWS + 1 - least), picks.of(MANY_ROWS)
        rows = many if picks.chance(1, 10) else rows
        width, nothing, one = max(wanted.columns, 1 + picks.below(WIDTH)), picks.below(8), picks.below(WIDTH)
        masks = action_masks(
            picks.part(MASK_PICKS), rows=rows, width=width, empty_row=wanted.empty_row, holes=wanted.holes
        )
        if wanted.single:
            masks = tuple(tuple(int(j == (one + i) % width) for j in range(width)) for i in range(rows))
        empty = tuple((0.0,) * width for _ in masks)
        case = AdvantageCase(empty, empty, masks, options)
        read = {name: {*case.actions, *cells} for name, cells in read_cells(adapter, case).items()}
        at_the_end = nothing == 7
        if at_the_end:
            read["token_rewards"] &= last_actions(case)
        if nothing == 6:
            read["values"] = set()
        between = {*case.actions, *(cell for cell in read["token_rewards"] if _is_behind(case, cell))}
        read["token_rewards"] &= between

        def table(name: str, numbers: Sequence[float]) -> Rows:
            return tuple(
                tuple(exactly(factor * picks.of(numbers), dtype) if (i, j) in read[name] else 0.0 for j in range(width))
                for i in range(rows)
            )

        return case.changed(token_rewards=table("token_rewards", REWARDS), values=table("values", VALUES))

    return Picked(9 + MASK_PICKS + 2 * max(MANY_ROWS) * WIDTH, build)


def _is_behind(case: AdvantageCase, cell: Place) -> bool:
    """Whether it lies behind the last action of its row: an observation between two has no reward."""
    return any(row == cell[0] and column < cell[1] for row, column in last_actions(case))


def restored(adapter: Adapter, case: Any, dressed: Any) -> Any:
    """The dressed case with the numbers that are read under the mask put back."""
    fields = {}
    for name, cells in read_cells(adapter, case).items():
        if name not in case.TABLES:
            continue
        tables = zip(getattr(case, name), getattr(dressed, name), strict=True)
        fields[name] = tuple(
            tuple(own if (i, j) in cells else other for j, (own, other) in enumerate(zip(*rows, strict=True)))
            for i, rows in enumerate(tables)
        )
    return dressed.changed(**fields)
