"""The checks of packs, as far as no model is needed."""

from __future__ import annotations

from rlhf_conformance.chapters.packing.cases import PackCase, packs
from rlhf_conformance.judging.checks import Questions, check
from rlhf_conformance.judging.questions import Call, Question, pack_position, part
from rlhf_conformance.judging.subject import Subject

PACK = ("pack_sequences",)
IGNORE = -100


def call(subject: Subject, case: PackCase) -> Call:
    return Call("pack_sequences", ([subject.tensor(list(s)) for s in case.sequences],), about=case)


@check("packing.tokens", needs=PACK, cases=lambda s: packs())
def tokens(subject: Subject, case: PackCase) -> Questions:
    """A tail of padding may follow."""
    flat = [token for sequence in case.sequences for token in sequence]
    reading = part("input_ids", lambda ids: ids[0, : len(flat)])
    yield Question("token ids of the pack", call(subject, case), flat, reading=reading, place=pack_position)


@check("packing.boundary", needs=PACK, cases=lambda s: packs())
def boundary(subject: Subject, case: PackCase) -> Questions:
    asked, truth = call(subject, case), labels_of(case, subject.adapter.packed_labels)
    yield Question(
        f"labels ({subject.adapter.packed_labels})",
        asked,
        truth,
        reading=part("labels", lambda labels: labels[0, : len(truth)]),
        place=pack_position,
    )
    behind = (yield asked).value.labels.shape[1] - len(truth)
    yield Question(
        "labels of the padding behind the pack",
        asked,
        [IGNORE] * behind,
        reading=part("labels", lambda labels: labels[0, len(truth) :]),
    )


def labels_of(case: PackCase, kind: str) -> list[int]:
    """The labels of a pack, "shifted" or "unshifted", without what may lie behind it."""
    truth: list[int] = []
    for sequence in case.sequences:
        inner = list(sequence[1:])
        truth += [*inner, IGNORE] if kind == "shifted" else [IGNORE, *inner]
    return truth
