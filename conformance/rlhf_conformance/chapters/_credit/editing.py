"""What must not matter to some numbers: others elsewhere, in cells of other tokens or rows, or under the mask."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlhf_conformance._lazy import torch
from rlhf_conformance.chapters._credit.asking import GARBAGE, Quantity, at_actions, part
from rlhf_conformance.chapters._credit.cases import GRID
from rlhf_conformance.chapters._masked import DressedCase, MaskedCase, exactly
from rlhf_conformance.judging.checks import Questions, Requirement, Template
from rlhf_conformance.judging.picks import Picked, Picks
from rlhf_conformance.judging.questions import COMPARED, Against, Answered, Call, Question, Reading
from rlhf_conformance.judging.storing import stored
from rlhf_conformance.judging.subject import Subject

if TYPE_CHECKING:
    Case = Any  # of whichever kind the check draws
else:
    Case = MaskedCase

EDITS = 100
"""At most so many cells get a number of their own."""


@stored
@dataclass(frozen=True)
class ElsewhereCase:
    """A case, and the same with other numbers everywhere but where they matter to some cells of a row.

    start, stop     the columns of these cells
    """

    case: Case
    other: Case
    row: int
    start: int
    stop: int


Place = tuple[int, int]
Matters = Callable[[Place, Place], bool]
"""(a cell, the one that was chosen) -> whether the numbers of the cell may matter."""


def own_token(cell: Place, chosen: Place) -> bool:
    return cell == chosen


def own_row(cell: Place, chosen: Place) -> bool:
    return cell[0] == chosen[0]


def from_here_on(cell: Place, chosen: Place) -> bool:
    """Of the same row, not before; other rows are left as they are."""
    return cell[0] != chosen[0] or cell[1] >= chosen[1]


def unmoved(
    quantity: Quantity,
    matters: Matters,
    what: str,
    *requires: Requirement,
    numbers: Sequence[float] = GRID,
    **shape: Any,
) -> Template:
    """The numbers of an action, or of those of its row which are like it, are what they were with others elsewhere."""

    def check(subject: Subject, case: ElsewhereCase) -> Questions:
        yield from asks_unmoved(quantity, subject, case, what)

    return quantity.template(check, lambda s: elsewhere(quantity, matters, s, numbers, **shape), *requires)


def asks_unmoved(quantity: Quantity, subject: Subject, case: ElsewhereCase, what: str) -> Questions:
    """Are the numbers of the row what they were?"""
    there, call = quantity.call(subject, case.case), quantity.call(subject, case.other)
    yield there
    for one in (quantity, *quantity.beside):
        allowed = one.allowed(subject.adapter, case.case, subject.dtype)[case.row][case.start : case.stop]
        reading = at_actions(one.field, row=case.row, start=case.start, stop=case.stop)
        yield Question(
            f"{one.word} with {what}",
            call,
            Against((there,), reading),
            [2 * x for x in allowed],
            reading=reading,
            place=lambda index: f"row {case.row}, column {case.start + index[0]}" if index else "",
        )


def elsewhere(
    quantity: Quantity, matters: Matters, subject: Subject, numbers: Sequence[float], **shape: Any
) -> Picked[ElsewhereCase]:
    """Cases of a shape with other numbers where they do not matter to an action, or to its row."""

    def edited(case: MaskedCase, picks: Picks) -> ElsewhereCase:
        i, j = picks.of(case.actions)
        fields: dict[str, Any] = {}
        for name in case.TABLES:
            fields[name] = tuple(
                tuple(
                    x
                    if matters((r, c), (i, j)) or not case.action_mask[r][c]
                    else exactly(picks.of(numbers), subject.dtype)
                    for c, x in enumerate(row)
                )
                for r, row in enumerate(getattr(case, name))
            )
        for name in case.PER_ROW if matters is own_row else ():
            column = enumerate(getattr(case, name))
            fields[name] = tuple(x if r == i else exactly(picks.of(numbers), subject.dtype) for r, x in column)
        start = 0 if matters is own_row else j
        stop = j + 1 if matters is own_token else case.shape[1]
        return ElsewhereCase(case, case.changed(**fields), i, start, stop)

    return quantity.draw(subject, **shape).with_more(1 + EDITS, edited)


def masked_cells(
    quantity: Quantity, *requires: Requirement, besides: Callable[[Any, Any], set[Place]] = lambda s, case: set()
) -> Template:
    """Cells that are no actions are 0, `besides` those that the quantity fills."""

    def check(subject: Subject, case: DressedCase) -> Questions:
        call, filled = quantity.call(subject, case.dressed, about=case.case), besides(subject, case.case)
        for one in (quantity, *quantity.beside):
            yield zeros(one, call, case.case, filled)

    def cases(subject: Subject) -> Picked[DressedCase]:
        return quantity.dressed_cases(subject, GARBAGE[:-1], holes=True, columns=3)

    return quantity.template(check, cases, *requires)


def zeros(quantity: Quantity, call: Call, case: MaskedCase, filled: set[Place] | None = None) -> Question:
    """Are the cells that are no actions 0?"""
    kept = torch.tensor(
        [[bool(m) or (i, j) in (filled or ()) for j, m in enumerate(row)] for i, row in enumerate(case.action_mask)]
    )

    def numbers(subject: Any, answers: Sequence[Answered]) -> Any:
        answer = part(answers[-1], quantity.field)
        return answer.detach().masked_fill(kept.to(answer.device), 0.0)

    nothing = [[0.0] * len(row) for row in case.action_mask]
    what = f"{quantity.word} of a cell that is no action"
    return Question(what, call, nothing, reading=Reading(numbers, wanted=COMPARED))
