"""A failing batch as it lies before the trainer: cells, what should be read of them, and what was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import rlhf_spec.positions
import rlhf_spec.sequences
from rlhf_conformance.cases.sequences import GeneratedCase, MaskCase, PackCase
from rlhf_conformance.diagnosis import Evidence
from rlhf_conformance.diagnosis.answers import Answer, Seen
from rlhf_conformance.diagnosis.answers import Cell as Place
from rlhf_conformance.judge import ClauseFailure
from rlhf_conformance.results import Cell, Picture
from rlhf_conformance.subject import AdapterError, WiringError

WIDEST = 40
"""Columns that are shown; a mask of hundreds tells nothing more."""


def of_batch(seen: Seen, where: Callable[[Seen, Answer], Place | None]) -> Picture:
    """The rows as they were handed over, with the positions that answers are due at and those they were read at."""
    due = {seen.cell(a.sample, a.position) for a in seen.answers}
    read: set[Place] = set()
    unknown = 0
    for answer in seen.answers:
        cell = where(seen, answer) if answer.differs else seen.cell(answer.sample, answer.position)
        unknown += cell is None
        read |= {cell} if cell is not None and seen.holds(cell) else set()
    rows = _rows(seen, due, read)
    word = seen.quantity.word
    caption = f"layout {seen.case.how.layout!r}; outlined: where each {word} is due, marked: where it was read"
    if unknown:
        caption += f" ({unknown} of {len(seen.answers)} come from no known place)"
    return Picture(caption, rows, _labels(seen, len(rows)), _remarks(seen, len(rows)))


def of_question(seen: Seen) -> Picture:
    """The same for a batch that no answers came for: where they are due."""
    due = {seen.cell(i, p) for i, s in enumerate(seen.case.samples) for p in seen.quantity.due(s)}
    rows = _rows(seen, due, set())
    caption = f"layout {seen.case.how.layout!r}; outlined: where each {seen.quantity.word} is due"
    return Picture(caption, rows, _labels(seen, len(rows)), _spans(seen, len(rows)))


def _rows(seen: Seen, due: set[Place], read: set[Place]) -> tuple[tuple[Cell, ...], ...]:
    places = [[(r, c) for c in range(seen.width)] for r in range(len(seen.ids))]
    flat = [tuple(_cell(seen, place, place in due, place in read) for place in row) for row in places]
    return _cut(flat[0], seen.batch.input_ids.shape[1]) if seen.packed else tuple(flat)


def _cell(seen: Seen, place: Place, expected: bool, read: bool) -> Cell:
    token = int(seen.ids[place[0]][place[1]])
    owner = seen.owners.get(place)
    if owner is None:
        return Cell(str(token), "pad", expected, read)
    sample, position = owner
    kind = "prompt" if position < len(seen.case.samples[sample].prompt) else "response"
    if kind == "response" and token == seen.case.probe.eos_token_id:
        kind = "eos"
    return Cell(str(token), kind, expected, read)


def _cut(row: tuple[Cell, ...], width: int) -> tuple[tuple[Cell, ...], ...]:
    return tuple(row[i : i + width] for i in range(0, len(row), width))


def _labels(seen: Seen, count: int) -> tuple[str, ...]:
    if not seen.packed:
        return tuple(f"sample {i}" for i in range(count))
    return ("pack",) if count == 1 else tuple(f"shard {i}" for i in range(count))


def _remarks(seen: Seen, count: int) -> tuple[str, ...]:
    """Of a pack, which columns hold which sample; of a padded row, whether its answers differ."""
    if seen.packed:
        return _spans(seen, count)
    wrong = [sum(a.differs for a in seen.answers if a.sample == i) for i in range(count)]
    right = [sum(a.sample == i for a in seen.answers) for i in range(count)]
    return tuple(f"{w} of {n} differ" if w else "right" for w, n in zip(wrong, right, strict=True))


def _spans(seen: Seen, count: int) -> tuple[str, ...]:
    if not seen.packed:
        return ("",) * count
    ends = [(s, s + len(x) - 1) for s, x in zip(seen.batch.starts, seen.case.samples, strict=True)]
    return (", ".join(f"sample {i}: {a} to {b}" for i, (a, b) in enumerate(ends)), *[""] * (count - 1))


# --- cases without a model -----------------------------------------------------------------------------------------


def of_case(evidence: Evidence) -> Picture | None:
    """Generated rows, masks, or sequences to pack, with what the adapter made of them."""
    case = evidence.smallest.case
    try:
        if isinstance(case, GeneratedCase):
            return _generated(evidence, case)
        if isinstance(case, MaskCase):
            return _masks(evidence, case)
        return _sequences(evidence, case) if isinstance(case, PackCase) else None
    except (AdapterError, WiringError, ClauseFailure):
        return None


def _generated(evidence: Evidence, case: GeneratedCase) -> Picture | None:
    from rlhf_conformance.checks.sequences import ask

    answer = ask(evidence.subject, case)
    attention = answer.attention_mask is not None and (answer.action_mask is None or "attention" in _broken(evidence))
    mask = answer.attention_mask if attention else answer.action_mask
    if mask is None:
        return None
    marked = mask.cpu().bool().tolist()
    rows, remarks = [], []
    for index in range(len(case.samples)):
        response = case.rows[index][case.prompt_length :]
        if attention:
            wanted = rlhf_spec.sequences.attention_mask(case.prompt_masks[index], response, case.stop_token_ids)
        else:
            wanted = [0] * case.prompt_length + rlhf_spec.sequences.action_mask(response, case.stop_token_ids)
            marked[index] = [False] * case.prompt_length + marked[index]
        cells = _generated_row(case, index)
        row = [replace(cell, expected=bool(w), read=m) for cell, w, m in zip(cells, wanted, marked[index], strict=True)]
        rows.append(tuple(row))
        off = sum(cell.expected != cell.read for cell in row)
        remarks.append(f"{off} cells differ" if off else "right")
    word = "attended" if attention else "actions"
    ids = f"stop ids {list(case.stop_token_ids)}, pad id {case.pad_token_id}"
    caption = f"{ids}; outlined: {word} as they should be, marked: as the adapter has them"
    return Picture(caption, tuple(rows), tuple(f"row {i}" for i in range(len(rows))), tuple(remarks))


def _broken(evidence: Evidence) -> str:
    broken = evidence.smallest.broken
    return broken[0].what if broken else evidence.smallest.ended


def _generated_row(case: GeneratedCase, index: int) -> list[Cell]:
    sample, ids = case.samples[index], case.rows[index]
    start = case.prompt_length - len(sample.prompt)
    cells = []
    for column, token in enumerate(ids):
        if not start <= column < start + len(sample):
            kind = "pad"
        elif column < case.prompt_length:
            kind = "prompt"
        else:
            kind = "eos" if token in case.stop_token_ids else "response"
        cells.append(Cell(str(token), kind))
    return cells


def _masks(evidence: Evidence, case: MaskCase) -> Picture:
    """Positions as the adapter counts them; those that are wrong are outlined."""
    answer = evidence.subject.position_ids(evidence.subject.tensor(case.masks)).cpu().tolist()
    rows, remarks = [], []
    for mask, came in zip(case.masks, answer, strict=True):
        right = rlhf_spec.positions.position_ids(mask)
        row = [
            Cell(str(position), "prompt" if attended else "pad", bool(attended), not attended or position == due)
            for position, attended, due in zip(came, mask, right, strict=True)
        ]
        off = sum(cell.expected and not cell.read for cell in row)
        rows.append(tuple(replace(cell, read=cell.read and cell.expected) for cell in row[:WIDEST]))
        remarks.append((f"{off} differ" if off else "right") + (f", {len(row)} columns" if len(row) > WIDEST else ""))
    labels = tuple(f"row {i}" for i in range(len(rows)))
    caption = "positions as the adapter counts them; outlined: tokens, marked: those whose position is right"
    return Picture(caption, tuple(rows), labels, tuple(remarks))


def _sequences(evidence: Evidence, case: PackCase) -> Picture:
    """The pack that should come out, and the one that did."""
    answer = evidence.subject.pack_sequences([evidence.subject.tensor(list(s)) for s in case.sequences])
    part: Any = answer.labels if "label" in _broken(evidence) else answer.input_ids
    if "position" in _broken(evidence):
        part = answer.position_ids
    right = [Cell(str(token), "prompt") for sequence in case.sequences for token in sequence]
    rows = [tuple(right)]
    labels = ["sequences"]
    if part is not None:
        rows.append(tuple(Cell(str(number), "action") for number in part[0].tolist()))
        labels.append(_broken(evidence)[:20] or "pack")
    ends, at = [], 0
    for i, sequence in enumerate(case.sequences):
        ends.append(f"sequence {i}: {at} to {at + len(sequence) - 1}")
        at += len(sequence)
    return Picture("the sequences, and what the adapter packed of them", tuple(rows), tuple(labels), (", ".join(ends),))
