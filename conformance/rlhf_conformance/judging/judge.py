"""Comparisons: what was expected, what came, where, and whether the difference is within its budget.

The judge asks all that a check wants to know about a case, so that a quantity that is wrong hides no other one, and
raises `SeveralFailures` at the end. It remembers how near the others came (`margin`, observed error over budget).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rlhf_conformance._lazy import torch
from rlhf_conformance.judging.isolation import AdapterError
from rlhf_conformance.judging.questions import (
    Against,
    Answered,
    Attempt,
    Call,
    Fact,
    NotReturned,
    Place,
    Question,
    Refused,
    Shaped,
)
from rlhf_conformance.judging.subject import Subject
from rlhf_conformance.judging.wiring import WiringError
from rlhf_conformance.results import Mismatch


class ClauseFailure(AssertionError):
    """The adapter's answer breaks the clause.

    quantity    what is wrong, as far as one wrong quantity is told apart from another one
    """

    def __init__(self, mismatch: Mismatch, quantity: str = "") -> None:
        super().__init__(mismatch.sentence)
        self.mismatch = mismatch
        self.quantity = quantity or mismatch.what


class SeveralFailures(Exception):
    """What is wrong with the answers to one case, in the order in which it was found."""

    def __init__(self, found: Sequence[ClauseFailure | AdapterError | WiringError]) -> None:
        super().__init__(str(found[0]))
        self.found = tuple(found)


@dataclass(frozen=True)
class Comparison:
    """All numbers that were compared at once.

    indices     of each number; what `place` makes words of
    broken      the first difference that was too large, None where all held
    question    what was asked; `answers` to its calls, `against` those that gave the expected numbers
    """

    what: str
    indices: tuple[tuple[int, ...], ...]
    actual: tuple[float, ...]
    expected: tuple[float, ...]
    allowed: tuple[float, ...]
    place: Place
    broken: Mismatch | None = None
    question: Question | None = None
    answers: tuple[Answered, ...] = ()
    against: tuple[Answered, ...] = ()


@dataclass
class Judge:
    """Asks what a check wants to know, and compares.

    With a `record` every comparison is kept in it, and numbers that differ raise nothing: so that all of what a case
    shows can be seen at once. `heard` is told of each, and ends the case by whatever it raises.

    margin      the largest observed error over its budget so far
    numbers     how many were compared: where none is, nothing is known, whatever facts hold
    calls       those of the case at hand, in the order in which they were made; `answers` to those that were answered
    """

    margin: float | None = None
    numbers: int = 0
    record: list[Comparison] | None = None
    heard: Callable[[Comparison], None] | None = None
    answers: dict[Call, Answered] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)

    def try_case(self, check: Any, subject: Subject, case: Any) -> int:
        """Ask all questions of a check about a case; how many numbers were compared.

        Raises SeveralFailures, and NotReturned where nothing is wrong with what came, but a part did not come.
        """
        self.answers, self.calls, before = {}, [], self.numbers
        broken: list[ClauseFailure | AdapterError | WiringError] = []
        lacking: list[NotReturned] = []
        questions = check.function(subject, case)
        try:
            with contextlib.closing(questions), contextlib.suppress(StopIteration):
                reply = None
                while True:
                    reply = self._judged(questions.send(reply), subject, broken, lacking)
        except (ClauseFailure, AdapterError, WiringError) as error:
            if self.record is not None:
                raise
            broken.append(error)
        except Exception:
            if not broken and not lacking:  # else the check went on with an answer that was wrong, or not there
                raise
        if broken:
            raise SeveralFailures(broken)
        if lacking:
            raise lacking[0]
        return self.numbers - before

    def _judged(self, item: Any, subject: Subject, broken: list[Any], lacking: list[NotReturned]) -> Any:
        """What came of an item; what is wrong with it is added to `broken`, a part that did not come to `lacking`."""
        try:
            return self._deal_with(item, subject)
        except NotReturned as error:
            lacking.append(error)
            return None
        except ClauseFailure as failure:
            if self.record is not None or isinstance(item, Shaped):  # there is nothing to go on with
                raise
            broken.append(failure)
            return self._asked(item, subject) if isinstance(item, Question) else None

    def _asked(self, question: Question, subject: Subject) -> Any:
        """The numbers that came, which are remembered."""
        return question.reading.numbers(subject, [self.answer(subject, call) for call in question.asked])

    def _deal_with(self, item: Any, subject: Subject) -> Any:
        """Ask a call, ask and judge a question, judge a fact; the answer, the numbers, or nothing."""
        if isinstance(item, Call):
            return self.answer(subject, item)
        if isinstance(item, Fact):
            return self.state(item)
        if isinstance(item, Attempt):
            return self._attempted(subject, item)
        if isinstance(item, Refused):
            return self._refused(subject, item)
        return self._shaped(subject, item) if isinstance(item, Shaped) else self.ask(subject, item)

    def state(self, fact: Fact) -> None:
        """A plain fact."""
        if not fact.holds:
            raise ClauseFailure(Mismatch(fact.what, fact.place, fact.expected, fact.actual))

    def _refused(self, subject: Subject, item: Refused) -> None:
        try:
            self.answer(subject, item.call)
        except AdapterError:
            return
        raise ClauseFailure(Mismatch(item.what, "", "an error", item.actual))

    def _attempted(self, subject: Subject, item: Attempt) -> Answered | None:
        try:
            return self.answer(subject, item.call)
        except WiringError:
            return None
        except AdapterError as error:
            if error.poisons:
                raise
            return None

    def _shaped(self, subject: Subject, item: Shaped) -> Answered:
        try:
            return self.answer(subject, item.call)
        except WiringError as error:
            raise ClauseFailure(Mismatch(item.what, "", item.expected, str(error))) from None

    def answer(self, subject: Subject, call: Call) -> Answered:
        """The answer to a call, which is made once."""
        if call not in self.answers:
            self.calls.append(call)
            self.answers[call] = subject.answer(call)
        return self.answers[call]

    def ask(self, subject: Subject, question: Question) -> Any:
        """Ask, compare, and return the numbers that came."""
        answers = [self.answer(subject, call) for call in question.asked]
        actual = self._asked(question, subject)
        expected, against = question.expected, list[Answered]()
        if isinstance(expected, Against):
            against = [self.answer(subject, call) for call in expected.calls]
            expected = expected.reading.numbers(subject, against)
        self.compare(question, actual, expected, tuple(answers), tuple(against))
        return actual

    def compare(
        self,
        question: Question,
        actual: Any,
        expected: Any,
        answers: tuple[Answered, ...] = (),
        against: tuple[Answered, ...] = (),
    ) -> None:
        """Every number within its allowance. NaN and infinity are only close to themselves."""
        what, place = question.what, question.place
        got, want = _leaves(actual), _leaves(expected)
        self.numbers += len(want)
        if [i for i, _ in got] != [i for i, _ in want]:
            mismatch = Mismatch(what, "", f"{len(want)} numbers", f"{len(got)} numbers")
            raise ClauseFailure(mismatch, question.quantity)
        bad: list[Mismatch] = []
        budgets = [_budget_at(question.allowed, index) for index, _ in got]
        for (index, a), (_, e), allowed in zip(got, want, budgets, strict=True):
            if a == e or (math.isnan(a) and math.isnan(e)):
                error = 0.0
            else:
                error = abs(a - e)
            ratio = error / allowed if allowed > 0 else (0.0 if error == 0 else math.inf)
            if not ratio <= 1.0:
                bad.append(Mismatch(what, place(index), _show(e), _show(a), error, allowed))
            elif self.margin is None or ratio > self.margin:
                self.margin = ratio
        first = None
        if bad:
            hint = question.hint(actual) if question.hint is not None else ""
            first = _with_count(replace(bad[0], note=hint), len(bad), len(want))
        if self.record is not None:
            places, wanted = tuple(i for i, _ in want), tuple(x for _, x in want)
            came = tuple(x for _, x in got)
            row = Comparison(what, places, came, wanted, tuple(budgets), place, first, question, answers, against)
            self.record.append(row)
            if self.heard is not None:
                self.heard(row)
        elif first is not None:
            raise ClauseFailure(first, question.quantity)


def _with_count(mismatch: Mismatch, bad: int, total: int) -> Mismatch:
    return replace(mismatch, count=f"{bad} of {total} numbers differ") if total > 1 else mismatch


def _leaves(value: Any) -> list[tuple[tuple[int, ...], float]]:
    """(index, number) for every number of a nested list, a list of tensors, a tensor or a number."""
    found: list[tuple[tuple[int, ...], float]] = []
    _gather(value, (), found)
    return found


def _gather(value: Any, index: tuple[int, ...], found: list[tuple[tuple[int, ...], float]]) -> None:
    if isinstance(value, torch.Tensor):
        value = value.detach().double().tolist() if value.dtype != torch.bool else value.long().tolist()
    if isinstance(value, list | tuple):
        for i, item in enumerate(value):
            if type(item) is float:
                found.append(((*index, i), item))
            else:
                _gather(item, (*index, i), found)
    else:
        found.append((index, float(value)))


def _budget_at(budget: Any, index: tuple[int, ...]) -> float:
    for i in index:
        if not isinstance(budget, list | tuple):
            break
        budget = budget[i]
    return float(budget)


def _show(value: float) -> str:
    return f"{value:.7g}"
