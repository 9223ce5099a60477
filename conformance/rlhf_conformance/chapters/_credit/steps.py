"""How a number for each action is shown: the formula with its numbers put in, action by action."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from rlhf_conformance.chapters._masked import MaskedCase
from rlhf_conformance.diagnosis.evidence import Evidence
from rlhf_conformance.diagnosis.lines import Block, Line, arranged, cells
from rlhf_conformance.judging.judge import Comparison
from rlhf_conformance.results import Step

Way = Callable[[Any, Any, int, int], list[tuple[str, float]]]
"""(adapter, case, row, column) -> the numbers on the way to that of an action, each with its name."""


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


def action_steps(way: Way, evidence: Evidence, comparison: Comparison) -> tuple[Step, ...]:
    """Of each action that was compared with the formula: the way to its number, and the number."""
    assert comparison.question is not None
    case: MaskedCase | None = comparison.answers[-1].about
    if case is None or comparison.question.formula is None:
        return ()
    blocks: list[Block] = []
    for (i, j), *numbers in answers_of(case, comparison):
        place = f"row {i}, column {j}"
        on_the_way = [Line(f"{place}: {label}", value) for label, value in way(evidence.subject.adapter, case, i, j)]
        blocks.append([*on_the_way, Line(f"{place}: {comparison.what}", *numbers)])
    return arranged(blocks, mask_lines(case), what="actions")
