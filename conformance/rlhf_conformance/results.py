"""Verdicts and results: what a run says about each clause. Plain data, no torch."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from typing import Any

from rlhf_conformance.plain import from_plain, to_plain

PASS = "pass"
FAIL = "fail"
ERROR = "error"
NOT_PROVIDED = "not-provided"
SKIP = "skip"
KNOWN_FAILURE = "known-failure"
UNEXPECTED_PASS = "unexpected-pass"
INCONCLUSIVE = "inconclusive"
LOST = "lost"

VERDICTS = (PASS, FAIL, ERROR, NOT_PROVIDED, SKIP, KNOWN_FAILURE, UNEXPECTED_PASS, INCONCLUSIVE, LOST)
NOT_CONFORMANT = (FAIL, ERROR, UNEXPECTED_PASS)
NOT_FINISHED = (INCONCLUSIVE, LOST)

CONFORMANT_STATUS, FAILED_STATUS, USAGE_STATUS, INCOMPLETE_STATUS, BROKEN_STATUS = 0, 1, 2, 3, 4
"""Exit statuses: the last is that of the suite's own failures, which say nothing about the adapter."""


_NUMBER = re.compile(r"0x[0-9a-fA-F]+|(?<![A-Za-z_0-9.])[-+]?\d+(?:\.\d*)?(?:e[-+]?\d+)?")


def without_numbers(text: str) -> str:
    """A message in words that stay the same from case to case: numbers in it become "#"."""
    return _NUMBER.sub("#", text)


NAMED = ("fault", "convention")
"""Kinds of diagnoses whose name alone says what is wrong."""


@dataclass(frozen=True)
class Diagnosis:
    """What is wrong, where the evidence leaves no doubt.

    kind        "place": the returned numbers are others of the batch; "fault", "convention": the answers are those of
                a known bug or of an undeclared convention; "numbers": they are the right ones, transformed; "input":
                they are right for something else than was given; "scope": where the failure shows, and where it does
                not; "device": which of CPU and device under test is off
    name        of the fault or convention; of a place in a word ("shift", "swap", "pad", "neighbor", ...)
    sentence    for the maintainer: what came, what should have, and how far that holds
    cause       what is wrong in words that hold wherever it shows, without a place or a count of this clause; empty in
                reports of an earlier version, and where it names no cause
    alike       names of faults and conventions that answer alike here, and have no diagnosis of their own
    bug         the known bug that a fault re-enacts, empty where it is none
    """

    kind: str
    name: str
    sentence: str
    cause: str = ""
    alike: tuple[str, ...] = ()
    bug: str = ""


@dataclass(frozen=True)
class Step:
    """One line of a formula with the failing case put into it.

    expected, actual    numbers as text; `actual` is empty where the adapter does not show it
    parted              the first line at which the two differ
    """

    label: str
    expected: str
    actual: str = ""
    parted: bool = False


@dataclass(frozen=True)
class Cell:
    """One cell of a picture: a token, what it is ("pad", "prompt", "response", "eos", "action", "off"), and whether an
    answer should be read here, or was."""

    text: str
    kind: str
    expected: bool = False
    read: bool = False


@dataclass(frozen=True)
class Picture:
    """The batch of a failure as it lies before the trainer: rows of cells, each with a label and a remark."""

    caption: str
    rows: tuple[tuple[Cell, ...], ...]
    labels: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Call:
    """A call of the adapter: the method, and its arguments by name as plain data (`diagnosis.exchange`).

    role    "judged": numbers of its answer are judged; "expected": they are what is expected; "prepared": it came
            before, and answered nothing; empty in reports of an earlier version
    """

    method: str
    arguments: dict[str, Any]
    role: str = ""


@dataclass(frozen=True)
class Number:
    """One number of the comparison that broke the clause.

    offset      which of the numbers that were compared it is, from 0
    expected, actual, allowed   as Python writes them in full: JSON has no NaN and no infinity
    """

    offset: int
    place: str
    expected: str
    actual: str
    allowed: str


@dataclass(frozen=True)
class Exchange:
    """What the adapter was given before the comparison that broke the clause, and what was compared.

    numbers     the first of them that differ, and the others as far as there is room; empty where a plain fact broke
                the clause
    total       how many were compared
    reading     how they are read off the answers, as source, and `of_formula` off what the formula gives
    wanted      what a candidate returns, in words; empty: what the method returns
    formula     the function of the specification that says what they should be, by its full name, and its `options`;
                empty: no single one does
    beside      what belongs to the comparison beside the calls, by name
    leaf        the argument that gradients are taken with respect to; empty: none, or the one of the method's row
    """

    calls: tuple[Call, ...]
    numbers: tuple[Number, ...] = ()
    total: int = 0
    reading: str = ""
    of_formula: str = ""
    wanted: str = ""
    formula: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    beside: dict[str, Any] = field(default_factory=dict)
    leaf: str = ""


@dataclass(frozen=True)
class Mismatch:
    """One difference: the quantity, where it is, what it should be and what it is."""

    what: str
    place: str
    expected: str
    actual: str
    error: float | None = None
    budget: float | None = None
    count: str = ""
    note: str = ""

    @property
    def is_error(self) -> bool:
        """Whether the adapter raised or answered something of the wrong kind, so that nothing was compared."""
        return not self.expected and not self.actual

    @property
    def sentence(self) -> str:
        """What is wrong, in a line."""
        where = f"{self.what} at {self.place}" if self.place else self.what
        return where if self.is_error else f"{where}: expected {self.expected}, got {self.actual}"


@dataclass(frozen=True)
class Failure(Mismatch):
    """What broke a clause, on which case.

    case        the smallest failing case, for reading; `stored` the same for `--replay`
    """

    case: str = ""
    stored: Any = None
    diagnoses: tuple[Diagnosis, ...] = ()
    steps: tuple[Step, ...] = ()
    picture: Picture | None = None
    exchange: Exchange | None = None


@dataclass(frozen=True)
class Result:
    """The verdict on one clause.

    reason      why it is not a pass, in a sentence; empty for passes
    examples    cases tried, `floor` the least number that makes a pass
    margin      the largest observed error over its budget, None where no number was compared
    seconds     wall time
    others      what else is wrong: of each other quantity, and of each other backbone, a failure
    """

    clause: str
    level: str
    verdict: str
    reason: str = ""
    examples: int = 0
    floor: int = 0
    margin: float | None = None
    seconds: float = 0.0
    failure: Failure | None = None
    others: tuple[Failure, ...] = ()

    @property
    def sentence(self) -> str:
        """What is wrong, in a line."""
        return self.failure.sentence if self.failure is not None else self.reason

    @property
    def chapter(self) -> str:
        return self.clause.split(".")[0]

    def to_json(self) -> dict[str, Any]:
        return {**to_plain(self), "chapter": self.chapter}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Result:
        """Raises PlainError, which names the field."""
        return from_plain(cls, {key: value for key, value in data.items() if key != "chapter"})


@dataclass(frozen=True)
class Report:
    """All that a run found, and what it ran with.

    environment     versions, device, dtype and settings that move numbers
    run             profile, seed, workers, seconds, the command without --only, where the report is written, ...
    subject         the adapter: its name, options, what it provides and declares
    """

    results: tuple[Result, ...]
    subject: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)
    strict: bool = False

    def count(self, verdict: str) -> int:
        return sum(result.verdict == verdict for result in self.results)

    @property
    def broken(self) -> tuple[Result, ...]:
        """Results that make the adapter not conformant: of SHOULD clauses only if strict."""
        return tuple(r for r in self.results if r.verdict in NOT_CONFORMANT and (self.strict or r.level != "SHOULD"))

    @property
    def warnings(self) -> tuple[Result, ...]:
        """Broken SHOULD clauses of a run that is not strict."""
        return tuple(r for r in self.results if r.verdict in NOT_CONFORMANT and r not in self.broken)

    @property
    def unfinished(self) -> tuple[Result, ...]:
        return tuple(r for r in self.results if r.verdict in NOT_FINISHED)

    @property
    def exit_status(self) -> int:
        """0 conformant, 1 not conformant, 3 incomplete: something that should have been judged was not."""
        if self.broken:
            return FAILED_STATUS
        if self.unfinished or not self.count(PASS):
            return INCOMPLETE_STATUS
        return CONFORMANT_STATUS

    @property
    def verdict(self) -> str:
        return {
            CONFORMANT_STATUS: "CONFORMANT",
            FAILED_STATUS: "NOT CONFORMANT",
            INCOMPLETE_STATUS: "INCOMPLETE",
        }[self.exit_status]

    def command(self, result: Result) -> str:
        """The command that tries a clause again: on its stored case, where a report of it is written.

        Empty where an adapter object was checked, for which there is no command.
        """
        start, path = self.run.get("command", ""), self.run.get("report", "")
        if not start:
            return ""
        stored = path and result.failure is not None and result.failure.stored is not None
        return f"{start} --only {result.clause}" + (f" --replay {shlex.quote(path)}" if stored else "")

    def result(self, clause: str) -> Result:
        """The result of one clause. Raises KeyError if it was not in the run."""
        for result in self.results:
            if result.clause == clause:
                return result
        raise KeyError(clause)
