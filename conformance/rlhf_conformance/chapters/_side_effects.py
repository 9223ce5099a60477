"""The two clauses that every chapter has: inputs are not written, and nothing else is disturbed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rlhf_conformance.judging.checks import Cases, Questions, Requirement, Template
from rlhf_conformance.judging.questions import ANSWER, Against, Call, Fact, Question, Reading
from rlhf_conformance.judging.subject import Subject
from rlhf_conformance.oracle import budgets

Calls = Callable[[Subject, Any], Sequence[tuple[Call, Reading]]]
"""(subject, case) -> the calls that are made, each with how its numbers are read."""


def inputs_unwritten(
    calls: Calls, needs: Sequence[str], cases: Cases, *requires: Requirement, effort: int = 1
) -> Template:
    def check(subject: Subject, case: Any) -> Questions:
        written: list[str] = []
        for call, _ in calls(subject, case):
            written += (yield call).record.written
        yield Fact(
            not written,
            f"inputs of {needs[-1]} after the call",
            expected="as they were before",
            actual="written: " + ", ".join(written),
        )

    return Template(check, tuple(needs), cases, requires, effort)


def side_effects(calls: Calls, needs: Sequence[str], cases: Cases, *requires: Requirement, effort: int = 1) -> Template:
    def check(subject: Subject, case: Any) -> Questions:
        disturbed: list[str] = []
        first, again = calls(subject, case), calls(subject, case)
        for call, _ in first:
            disturbed += (yield call).record.disturbed
        yield Fact(
            not disturbed,
            f"global state after {needs[-1]}",
            expected="as it was before",
            actual="changed: " + ", ".join(disturbed),
        )
        for (call, reading), (before, _) in zip(again, first, strict=True):
            answered = yield before
            largest = max((abs(x) for x in flat(reading.numbers(subject, [answered]))), default=0.0)
            yield Question(
                f"answer of {call.method} to the same question asked again",
                call,
                Against((before,), reading),
                budgets.repeated(largest, subject.dtype),
                reading=reading,
            )

    return Template(check, tuple(needs), cases, requires, effort)


def plainly(call: Callable[[Subject, Any], Call], reading: Reading = ANSWER) -> Calls:
    """One call, whose numbers are read in one way."""
    return lambda subject, case: [(call(subject, case), reading)]


def flat(answer: Any) -> list[float]:
    """All numbers of an answer that are not NaN."""
    if hasattr(answer, "tolist"):
        answer = answer.tolist()
    if isinstance(answer, list | tuple):
        return [x for item in answer for x in flat(item)]
    value = float(answer)
    return [value] if value == value else []
