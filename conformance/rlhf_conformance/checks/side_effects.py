"""The two clauses that every chapter has: inputs are not written, and nothing else is disturbed. One table, two
templates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rlhf_conformance import budgets
from rlhf_conformance.checks import Requirement, check
from rlhf_conformance.judge import Judge
from rlhf_conformance.subject import Subject

Ask = Callable[[Subject, Any], Any]
"""Asks the subject once and returns the numbers that it answered."""


def register(
    chapter: str,
    *,
    needs: Sequence[str],
    cases: Callable[[Subject], Any],
    ask: Ask,
    requires: Sequence[Requirement] = (),
    effort: int = 1,
) -> None:
    """Register `<chapter>.inputs-unwritten` and `<chapter>.side-effects`."""

    @check(f"{chapter}.inputs-unwritten", needs=needs, cases=cases, requires=requires, effort=effort)
    def inputs_unwritten(subject: Subject, case: Any, judge: Judge) -> None:
        ask(subject, case)
        written = subject.record.written
        judge.that(
            not written,
            f"inputs of {needs[-1]} after the call",
            expected="as they were before",
            actual="written: " + ", ".join(written),
            note="the caller still needs what it passed: work on a copy",
        )

    @check(f"{chapter}.side-effects", needs=needs, cases=cases, requires=requires, effort=effort)
    def side_effects(subject: Subject, case: Any, judge: Judge) -> None:
        first = ask(subject, case)
        disturbed = subject.record.disturbed
        judge.that(
            not disturbed,
            f"global state after {needs[-1]}",
            expected="as it was before",
            actual="changed: " + ", ".join(disturbed),
        )
        again = ask(subject, case)
        largest = max((abs(x) for x in _flat(first)), default=0.0)
        judge.close(
            again,
            first,
            8 * budgets.unit(subject.dtype) * max(1.0, largest),
            what=f"answer of {needs[-1]} to the same question asked again",
            note="the answer depends on more than its inputs (a random number, a cache, a changed mode)",
        )


def _flat(answer: Any) -> list[float]:
    if hasattr(answer, "tolist"):
        answer = answer.tolist()
    if isinstance(answer, list | tuple):
        return [x for item in answer for x in _flat(item)]
    value = float(answer)
    return [value] if value == value else []
