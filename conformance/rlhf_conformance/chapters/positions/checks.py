"""The checks of positions, as far as no model is needed."""

from __future__ import annotations

from typing import Any

import rlhf_spec.positions as spec
from rlhf_conformance.chapters import _side_effects
from rlhf_conformance.chapters.packing.cases import PackCase, packs
from rlhf_conformance.chapters.positions.cases import HoledMaskCase, MaskCase, holed_masks, masks
from rlhf_conformance.judging.checks import Questions, check, declares, use
from rlhf_conformance.judging.questions import Call, Question, pack_position, part, row_column, selected
from rlhf_conformance.judging.subject import Subject

POSITIONS = ("position_ids",)


def call(subject: Subject, case: MaskCase | HoledMaskCase) -> Call:
    return Call("position_ids", (subject.tensor(case.masks),), about=case)


several_turns = declares("turns", "turns is not declared: rows have one turn")


@check("positions.holes", needs=POSITIONS, requires=(several_turns,), cases=lambda s: holed_masks())
def holes(subject: Subject, case: HoledMaskCase) -> Questions:
    yield from asks_tokens(subject, case)


@check("positions.cumsum", needs=POSITIONS, cases=lambda s: masks())
def cumsum(subject: Subject, case: MaskCase) -> Questions:
    yield from asks_tokens(subject, case)


def asks_tokens(subject: Subject, case: MaskCase | HoledMaskCase) -> Questions:
    truth = [spec.position_ids(mask) for mask in case.masks]
    attended = [[p for p, m in zip(*row, strict=True) if m] for row in zip(truth, case.masks, strict=True)]
    kept = subject.tensor(case.masks).cpu().bool()

    def tokens(answer: Any) -> list[Any]:
        return [row[mask] for row, mask in zip(answer.cpu(), kept, strict=True)]

    columns = [[column for column, m in enumerate(mask) if m] for mask in case.masks]
    yield Question(
        "positions of the tokens (pads left out)",
        call(subject, case),
        attended,
        reading=selected(tokens),
        place=lambda index: row_column((index[0], columns[index[0]][index[1]])),
    )


@check("positions.pads", needs=POSITIONS, cases=lambda s: masks())
def pads(subject: Subject, case: MaskCase) -> Questions:
    last = max(2, len(case.masks[0])) - 1

    def outside(answer: Any) -> Any:
        positions = answer.long()
        return (positions - positions.clamp(0, last)).abs()

    yield Question(
        f"how far each position, pads included, lies outside of 0 .. {last}, a table of positions for the row",
        call(subject, case),
        [[0.0] * len(mask) for mask in case.masks],
        reading=selected(outside),
    )


@check("positions.restart", needs=("pack_sequences",), cases=lambda s: packs())
def restart(subject: Subject, case: PackCase) -> Questions:
    total = sum(len(s) for s in case.sequences)
    yield Question(
        "position",
        Call("pack_sequences", ([subject.tensor(list(s)) for s in case.sequences],), about=case),
        spec.packed_position_ids([len(s) for s in case.sequences]),
        reading=part("position_ids", lambda positions: positions[0, :total]),
        place=pack_position,
    )


use(
    "positions.inputs-unwritten",
    _side_effects.inputs_unwritten(_side_effects.plainly(call), POSITIONS, lambda s: masks()),
)
use("positions.side-effects", _side_effects.side_effects(_side_effects.plainly(call), POSITIONS, lambda s: masks()))
