"""Masks of generated rows, row by row, and their picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import rlhf_spec.sequences
from rlhf_conformance.adapter import METHODS
from rlhf_conformance.chapters.sequences.cases import GeneratedCase
from rlhf_conformance.diagnosis.evidence import Evidence
from rlhf_conformance.diagnosis.lines import Block, Line, arranged, cells
from rlhf_conformance.diagnosis.pictures import picture_of
from rlhf_conformance.diagnosis.steps import steps_of
from rlhf_conformance.judging.judge import Comparison
from rlhf_conformance.results import Cell, Picture, Step

PROCESS = "process_sequences"


@steps_of(PROCESS)
def generated_steps(evidence: Evidence, comparison: Comparison) -> tuple[Step, ...]:
    """The response of each row, where it ends, and what follows for the part that was compared."""
    assert comparison.question is not None
    answered, part = comparison.answers[-1], comparison.question.reading.field
    case: GeneratedCase = answered.about
    if len(answered.given[0]) != len(case.samples):
        return ()
    rows, known = range(len(case.samples)), len(answered.given) > len(METHODS[PROCESS].arguments) - 1
    return arranged([_generated_row(case, row, answered.value, part, known) for row in rows], what="rows")


def _generated_row(case: GeneratedCase, row: int, answer: Any, part: str, knows_lengths: bool) -> Block:
    tokens, prompt = case.rows[row], case.prompt_masks[row]
    response, length = tokens[case.prompt_length :], case.lengths[row]
    stop = rlhf_spec.sequences.first_stop(response[:length], case.stop_token_ids)
    ids = ", ".join(map(str, case.stop_token_ids))
    place = f"row {row}"
    lines = [
        Line(f"{place}: generated tokens", cells(response)[0]),
        Line(f"{place}: first of them in the stop ids ({ids})", "none: cut off" if stop is None else str(stop)),
    ]
    if knows_lengths:
        lines.insert(1, Line(f"{place}: how many were generated", str(length)))
    if part == "sequences":
        return [*lines, _row(f"{place}: tokens", tokens, answer.sequences, row)]
    if part == "action_mask":
        actions = rlhf_spec.sequences.action_mask(response, case.stop_token_ids, length)
        return [*lines, _row(f"{place}: action mask", actions, answer.action_mask, row)]
    attention = rlhf_spec.sequences.attention_mask(prompt, response, case.stop_token_ids, length)
    lines.append(Line(f"{place}: mask of the prompt", cells(prompt)[0]))
    return [*lines, _row(f"{place}: attention mask", attention, answer.attention_mask, row)]


def _row(label: str, expected: Sequence[int], part: Any, row: int) -> Line:
    actual = None if part is None else [_whole(x) for x in part[row].tolist()]
    return Line(label, *cells(expected, actual, most=16))


def _whole(x: Any) -> Any:
    """1.0 and True are 1."""
    return int(x) if x == x and x in (int(x),) else x


@picture_of(PROCESS)
def generated_picture(evidence: Evidence, comparison: Comparison | None) -> Picture | None:
    """The rows, with the cells that are actions or attended and those that the adapter has so."""
    answered = comparison.answers[-1] if comparison else evidence.smallest.answers[-1]
    case: GeneratedCase = answered.about
    answer, question = answered.value, comparison.question if comparison else None
    wants_attention = question is not None and question.reading.field == "attention_mask"
    attention = answer.attention_mask is not None and (answer.action_mask is None or wants_attention)
    mask = answer.attention_mask if attention else answer.action_mask
    if mask is None or len(mask) != len(case.samples):
        return None
    marked = mask.cpu().bool().tolist()
    rows, remarks = [], []
    for index in range(len(case.samples)):
        ended = case.responses[index], case.stop_token_ids, case.lengths[index]
        if attention:
            wanted = rlhf_spec.sequences.attention_mask(case.prompt_masks[index], *ended)
        else:
            wanted = [0] * case.prompt_length + rlhf_spec.sequences.action_mask(*ended)
            marked[index] = [False] * case.prompt_length + marked[index]
        drawn = _cells(case, index)
        row = [replace(cell, expected=bool(w), read=m) for cell, w, m in zip(drawn, wanted, marked[index], strict=True)]
        rows.append(tuple(row))
        off = sum(cell.expected != cell.read for cell in row)
        remarks.append(f"{off} cells differ" if off else "right")
    word = "attended" if attention else "actions"
    ids = f"stop ids {list(case.stop_token_ids)}, pad id {case.pad_token_id}"
    caption = f"{ids}; outlined: {word} as they should be, marked: as the adapter has them"
    return Picture(caption, tuple(rows), tuple(f"row {i}" for i in range(len(rows))), tuple(remarks))


def _cells(case: GeneratedCase, index: int) -> list[Cell]:
    sample, ids = case.samples[index], case.rows[index]
    start = case.prompt_length - len(sample.prompt)
    found = []
    for column, token in enumerate(ids):
        if not start <= column < start + len(sample):
            kind = "pad"
        elif column < case.prompt_length:
            kind = "prompt"
        else:
            kind = "eos" if token in case.stop_token_ids else "response"
        found.append(Cell(str(token), kind))
    return found
