"""Positions of padded rows, row by row, and their picture."""

from __future__ import annotations

from dataclasses import replace

import rlhf_spec.positions
from rlhf_conformance.chapters.positions.cases import MaskCase
from rlhf_conformance.diagnosis.evidence import Evidence
from rlhf_conformance.diagnosis.lines import Block, Line, arranged, cells
from rlhf_conformance.diagnosis.pictures import picture_of
from rlhf_conformance.diagnosis.steps import steps_of
from rlhf_conformance.judging.judge import Comparison
from rlhf_conformance.results import Cell, Picture, Step

WIDEST = 40
"""The most columns that are shown: a mask of hundreds tells nothing more."""


@steps_of("position_ids", facts=True)
def position_steps(evidence: Evidence, comparison: Comparison | None) -> tuple[Step, ...]:
    """Each row's positions, counted over its tokens; of pads only that a table of positions can be indexed."""
    answered = comparison.answers[-1] if comparison else evidence.smallest.answers[-1]
    case: MaskCase = answered.about
    rows = zip(case.masks, answered.value.tolist(), strict=True)
    look = _of_tokens if comparison else _of_pads
    return arranged([look(f"row {row}", mask, answer) for row, (mask, answer) in enumerate(rows)], what="rows")


def _of_pads(place: str, mask: list[int], answer: list[int]) -> Block:
    highest = max(2, len(mask)) - 1
    outside = [p for p in answer if not 0 <= p <= highest]
    wanted = f"within 0 and {highest}"
    actual = f"{outside[0]} among them" if outside else wanted
    return [Line(f"{place}: attention mask", cells(mask)[0]), Line(f"{place}: all positions", wanted, actual)]


def _of_tokens(place: str, mask: list[int], answer: list[int]) -> Block:
    truth = [p for p, m in zip(rlhf_spec.positions.position_ids(mask), mask, strict=True) if m]
    actual = [p for p, m in zip(answer, mask, strict=True) if m]
    return [
        Line(f"{place}: attention mask", cells(mask)[0]),
        Line(f"{place}: cumsum(mask) - 1 at its tokens", *cells(truth, actual)),
    ]


@picture_of("position_ids")
def position_picture(evidence: Evidence, comparison: Comparison | None) -> Picture:
    """Positions as the adapter counts them; those that are wrong are outlined."""
    answered = comparison.answers[-1] if comparison else evidence.smallest.answers[-1]
    case: MaskCase = answered.about
    rows, remarks = [], []
    for mask, actual in zip(case.masks, answered.value.cpu().tolist(), strict=True):
        right = rlhf_spec.positions.position_ids(mask)
        row = [
            Cell(str(position), "prompt" if attended else "pad", bool(attended), not attended or position == due)
            for position, attended, due in zip(actual, mask, right, strict=True)
        ]
        off = sum(cell.expected and not cell.read for cell in row)
        rows.append(tuple(replace(cell, read=cell.read and cell.expected) for cell in row[:WIDEST]))
        remarks.append((f"{off} differ" if off else "right") + (f", {len(row)} columns" if len(row) > WIDEST else ""))
    labels = tuple(f"row {i}" for i in range(len(rows)))
    caption = "positions as the adapter counts them; outlined: tokens, marked: those whose position is right"
    return Picture(caption, tuple(rows), labels, tuple(remarks))
