"""Packs, sequence by sequence, and their picture."""

from __future__ import annotations

from typing import Any

from rlhf_conformance.chapters.packing.cases import PackCase
from rlhf_conformance.chapters.packing.checks import labels_of, marked_labels
from rlhf_conformance.diagnosis.evidence import Evidence
from rlhf_conformance.diagnosis.lines import Block, Line, arranged, cells
from rlhf_conformance.diagnosis.pictures import picture_of
from rlhf_conformance.diagnosis.steps import steps_of
from rlhf_conformance.judging.judge import Comparison
from rlhf_conformance.results import Cell, Picture, Step

PACK = "pack_sequences"
WORDS = {"input_ids": "tokens", "position_ids": "positions", "labels": "labels"}


@steps_of(PACK)
def pack_steps(evidence: Evidence, comparison: Comparison) -> tuple[Step, ...]:
    """Each sequence's tokens in the pack, and the part that was compared."""
    assert comparison.question is not None
    answered, field = comparison.answers[-1], comparison.question.reading.field
    case: PackCase = answered.about
    labels = labels_of(case, evidence.subject.adapter.packed_labels)
    blocks: list[Block] = []
    start = 0
    for index, sequence in enumerate(case.sequences):
        end = start + len(sequence)
        truth: dict[str, list[int]] = {
            "input_ids": list(sequence),
            "position_ids": list(range(len(sequence))),
            "labels": labels[start:end],
        }
        parts = dict.fromkeys(("input_ids", field))
        blocks.append(
            [
                _part(f"sequence {index}: {WORDS[name]}", truth[name], _field(answered.value, name), start)
                for name in parts
            ]
        )
        start = end
    return arranged(blocks, what="sequences")


def _field(answer: Any, name: str) -> Any:
    return marked_labels(answer) if name == "labels" else getattr(answer, name)


def _part(label: str, expected: list[int], part: Any, start: int) -> Line:
    actual = None if part is None else part[0, start : start + len(expected)].tolist()
    return Line(label, *cells(expected, actual))


@picture_of(PACK)
def pack_picture(evidence: Evidence, comparison: Comparison | None) -> Picture:
    """The pack that should come out, and the one that did."""
    answered = comparison.answers[-1] if comparison else evidence.smallest.answers[-1]
    case: PackCase = answered.about
    question = comparison.question if comparison else None
    field = question.reading.field if question and question.reading.field else "input_ids"
    part: Any = _field(answered.value, field)
    rows = [tuple(Cell(str(token), "prompt") for sequence in case.sequences for token in sequence)]
    labels = ["sequences"]
    if part is not None:
        rows.append(tuple(Cell(str(number), "action") for number in part[0].tolist()))
        labels.append(WORDS[field])
    ends, at = [], 0
    for i, sequence in enumerate(case.sequences):
        ends.append(f"sequence {i}: {at} to {at + len(sequence) - 1}")
        at += len(sequence)
    return Picture("the sequences, and what the adapter packed of them", tuple(rows), tuple(labels), (", ".join(ends),))
