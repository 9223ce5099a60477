"""The two clauses that every chapter has: inputs are not written, and nothing else is disturbed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from rlhf_conformance._lazy import torch
from rlhf_conformance.adapter import METHODS
from rlhf_conformance.judging.checks import Cases, Questions, Requirement, Template
from rlhf_conformance.judging.isolation import RANDOM_NUMBERS
from rlhf_conformance.judging.questions import ANSWER, Against, Answered, Call, Fact, Place, Question, Reading
from rlhf_conformance.judging.subject import Subject
from rlhf_conformance.oracle import budgets
from rlhf_conformance.oracle.batch import HANDED

Calls = Callable[[Subject, Any], Sequence[tuple[Call, Reading]]]
"""(subject, case) -> the calls that are made, each with how its numbers are read."""


def inputs_unwritten(
    calls: Calls,
    needs: Sequence[str],
    cases: Cases,
    *requires: Requirement,
    effort: int = 1,
    also: Sequence[str] = (),
) -> Template:
    def check(subject: Subject, case: Any) -> Questions:
        for call, _ in calls(subject, case):
            answered = yield call
            yield Fact(
                not answered.record.written,
                f"inputs of {call.method} after the call",
                expected="as they were before",
                actual="written: " + ", ".join(answered.record.written),
            )
            yield Question(
                f"inputs of {call.method} after the call",
                call,
                [numbers for _, numbers in _tensors(METHODS[call.method].named(answered.given))],
                reading=Reading(_left),
                place=_place(answered),
            )

    return Template(check, tuple(needs), cases, requires, effort, also=tuple(also))


def side_effects(
    calls: Calls,
    needs: Sequence[str],
    cases: Cases,
    *requires: Requirement,
    effort: int = 1,
    also: Sequence[str] = (),
    between: Calls = lambda subject, case: (),
) -> Template:
    """What is asked `between` a question and the same question again may draw random numbers, as train mode does."""

    def check(subject: Subject, case: Any) -> Questions:
        disturbed: dict[str, list[str]] = {}
        first, again = calls(subject, case), calls(subject, case)
        for call, _ in first:
            disturbed.setdefault(call.method, []).extend((yield call).record.disturbed)
        for call, _ in between(subject, case):
            changed = (yield call).record.disturbed
            disturbed.setdefault(call.method, []).extend(what for what in changed if what not in RANDOM_NUMBERS)
        for method, changed in disturbed.items():
            yield Fact(
                not changed,
                f"global state after {method}",
                expected="as it was before",
                actual="changed: " + ", ".join(dict.fromkeys(changed)),
            )
        for (call, reading), (once, _) in zip(again, first, strict=True):
            answered = yield once
            largest = max((abs(x) for x in flat(reading.numbers(subject, [answered]))), default=0.0)
            yield Question(
                f"answer of {call.method} to the same question asked again",
                call,
                Against((once,), reading),
                budgets.repeated(largest, subject.dtype),
                reading=reading,
            )

    return Template(check, tuple(needs), cases, requires, effort, also=tuple(also))


def _left(subject: Subject, answers: Sequence[Answered]) -> Any:
    """All numbers that the last call left of its inputs."""
    answered = answers[-1]
    return [numbers for _, numbers in _tensors(METHODS[answered.method].named(answered.record.left))]


def _place(answered: Answered) -> Place:
    names = [name for name, _ in _tensors(METHODS[answered.method].named(answered.given))]
    return lambda index: f"{names[index[0]]}{list(index[1:]) or ''}" if index else ""


def _tensors(named: Mapping[str, Any]) -> list[tuple[str, torch.Tensor]]:
    """The tensors among some arguments, in lists and in batches as well, by names that say where."""
    found: list[tuple[str, torch.Tensor]] = []
    for name, value in named.items():
        if isinstance(value, torch.Tensor):
            found.append((name, value.detach()))
        elif isinstance(value, list):
            found += _tensors({f"{name}[{i}]": item for i, item in enumerate(value)})
        elif isinstance(value, HANDED):
            found += _tensors({f"{name}.{field.name}": getattr(value, field.name) for field in fields(value)})
    return found


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
