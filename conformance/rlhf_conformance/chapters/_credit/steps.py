"""What the steps of the chapters about credit share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rlhf_conformance.chapters._masked import MaskedCase
from rlhf_conformance.diagnosis.lines import Line, cells
from rlhf_conformance.judging.judge import Comparison


def answers_of(case: MaskedCase, comparison: Comparison) -> Iterator[tuple[Any, float, float, float]]:
    """(row and column, expected, actual, allowed) of each action whose number was compared."""
    actions = set(case.actions)
    rows = zip(comparison.indices, comparison.expected, comparison.actual, comparison.allowed, strict=True)
    return (row for row in rows if row[0] in actions)


def mask_lines(case: MaskedCase) -> list[Line]:
    """The mask, where there is something under it."""
    if all(all(row) for row in case.action_mask):
        return []
    return [Line("action mask, row by row", " | ".join(cells(row, most=8)[0] for row in case.action_mask))]
