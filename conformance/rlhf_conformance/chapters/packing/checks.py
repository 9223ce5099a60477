"""The checks of packs, as far as no model is needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import rlhf_spec.positions
from rlhf_conformance.adapter import Adapter
from rlhf_conformance.chapters.packing.cases import PackCase, packs, packs_with_empty
from rlhf_conformance.judging.checks import Questions, check
from rlhf_conformance.judging.questions import Answered, Attempt, Call, Question, Reading, pack_position, part
from rlhf_conformance.judging.subject import Subject

PACK = ("pack_sequences",)
IGNORE = -100


def call(subject: Subject, case: PackCase) -> Call:
    return Call("pack_sequences", ([subject.tensor(list(s)) for s in case.sequences],), about=case)


def marks_labels(adapter: Adapter) -> str | None:
    if adapter.packed_labels != "unmarked":
        return None
    return 'packed_labels = "unmarked": the pack does not say which of its labels are scored'


@check("packing.tokens", needs=PACK, cases=lambda s: packs())
def tokens(subject: Subject, case: PackCase) -> Questions:
    yield asks_tokens(call(subject, case), case)


def asks_tokens(asked: Call, case: PackCase) -> Question:
    """A tail of padding may follow."""
    flat = [token for sequence in case.sequences for token in sequence]
    reading = part("input_ids", lambda ids: ids[0, : len(flat)])
    return Question("token ids of the pack", asked, flat, reading=reading, place=pack_position)


@check("packing.boundary", needs=PACK, requires=(marks_labels,), cases=lambda s: packs(alone=2))
def boundary(subject: Subject, case: PackCase) -> Questions:
    asked = call(subject, case)
    yield from asks_labels(asked, (yield asked), case, subject.adapter.packed_labels)


def asks_labels(asked: Call, answered: Answered, case: PackCase, kind: str) -> Questions:
    """Of unshifted labels the first is left out: it belongs to no position, and no loss reads it."""
    truth = labels_of(case, kind)
    first, end = int(kind == "unshifted"), len(truth)
    yield Question(
        f"labels ({kind})",
        asked,
        truth[first:],
        reading=labels_within(slice(first, end)),
        place=lambda at: pack_position((at[0] + first,) if at else at),
    )
    behind = answered.value.input_ids.shape[1] - end
    if behind > 0:
        what = "labels of the padding behind the pack"
        yield Question(what, asked, [IGNORE] * behind, reading=labels_within(slice(end, None)))


def labels_within(columns: slice) -> Reading:
    """The labels of some columns, those that are masked as ignored ones."""
    whole = part("labels")

    def numbers(subject: Subject, answers: Sequence[Answered]) -> Any:
        whole.numbers(subject, answers)  # which says so where there are none
        return marked_labels(answers[-1].value)[0, columns]

    return replace(whole, numbers=numbers)


def marked_labels(answer: Any) -> Any:
    """(1, N) labels, -100 also where the mask beside them says that nothing is scored; None where there are none."""
    if answer.labels is None or answer.label_mask is None:
        return answer.labels
    return answer.labels.masked_fill(answer.label_mask == 0, IGNORE)


def labels_of(case: PackCase, kind: str) -> list[int]:
    """The labels of a pack, "shifted" or "unshifted", without what may lie behind it."""
    truth: list[int] = []
    for sequence in filter(None, case.sequences):
        inner = list(sequence[1:])
        truth += [*inner, IGNORE] if kind == "shifted" else [IGNORE, *inner]
    return truth


@check("packing.empty-sequence", needs=PACK, cases=lambda s: packs_with_empty())
def empty_sequence(subject: Subject, case: PackCase) -> Questions:
    """First without the empty sequence, which nobody may refuse."""
    rest = PackCase(tuple(filter(None, case.sequences)))
    yield asks_tokens(call(subject, rest), rest)
    asked = call(subject, case)
    answered = yield Attempt(asked)
    if answered is None:
        return
    yield asks_tokens(asked, rest)
    if answered.value.position_ids is not None:
        positions = rlhf_spec.positions.packed_position_ids([len(s) for s in rest.sequences])
        reading = part("position_ids", lambda row: row[0, : len(positions)])
        yield Question("positions of the pack", asked, positions, reading=reading, place=pack_position)
    if answered.value.labels is not None and marks_labels(subject.adapter) is None:
        yield from asks_labels(asked, answered, rest, subject.adapter.packed_labels)
