"""Diagnosis: from a failing case to what is wrong, where, as far as the evidence goes.

A failing clause is tried once more with all of its comparisons on record, on its smallest failing case and on some
that are drawn anew. Four looks are taken at what that shows: where in the batch the returned numbers come from
(`provenance`), which known fault or undeclared convention answers alike (`nearest`), the formula with the numbers put
into it (`steps`), and the batch as a picture (`provenance` once more). Beside them what went to the adapter and came
back is kept (`exchange`), for a script that shows the failure without this package. Nothing is claimed where the
evidence allows for more than one reading.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, Verbosity, settings

from rlhf_conformance._lazy import torch
from rlhf_conformance.checks import Check, NotReturned, checks
from rlhf_conformance.judge import ClauseFailure, Comparison, Judge
from rlhf_conformance.results import ERROR, FAIL, Result
from rlhf_conformance.subject import AdapterError, Subject, WiringError

SECONDS = 4.0
"""What the diagnosis of one failure may take, about; it is asked for only where something failed."""
MORE_CASES, FEWEST_CASES = 12, 4
"""How many cases are drawn anew: for cheap checks, and at least for expensive ones."""

SEED = 20_240_607
"""Of random numbers that an adapter may draw: none that anybody would seed with."""


@dataclass(frozen=True)
class Observed:
    """A case with all of its comparisons.

    ended   what ended the check before its last comparison: the message of a plain fact that does not hold, of wrong
            wiring or of an adapter that raised; empty where nothing did
    """

    case: Any
    comparisons: tuple[Comparison, ...]
    ended: str = ""

    @property
    def broken(self) -> tuple[Comparison, ...]:
        return tuple(c for c in self.comparisons if c.broken is not None)

    @property
    def failed(self) -> bool:
        return bool(self.broken or self.ended)


def observe(check: Check, subject: Subject, case: Any) -> Observed:
    """Try a case with every comparison on record."""
    judge = Judge(record=[])
    ended = ""
    subject.forget_models()  # no case inherits what another one has done to a model
    try:
        with torch.random.fork_rng(devices=[] if subject.device == "cpu" else [subject.device]):
            torch.manual_seed(SEED)  # so that two adapters who draw random numbers draw the same
            check.function(subject, case, judge)
    except KeyboardInterrupt:
        raise
    except (ClauseFailure, AdapterError, WiringError) as error:
        ended = str(error)
    assert judge.record is not None
    return Observed(case, tuple(judge.record), ended)


@dataclass
class Evidence:
    """What is known about the failure of a clause.

    smallest    the failing case that the report shows
    until       of `time.monotonic()`: what has not been looked at by then is let go
    remembered  what one look has found and another one needs as well
    """

    check: Check
    subject: Subject
    smallest: Observed
    seed: int = 0
    until: float = field(default_factory=lambda: time.monotonic() + SECONDS)
    remembered: dict[str, Any] = field(default_factory=dict)

    @property
    def slug(self) -> str:
        return self.check.slug

    @property
    def late(self) -> bool:
        return time.monotonic() > self.until

    @cached_property
    def more(self) -> tuple[Observed, ...]:
        """Other cases of the clause, larger than the smallest, on which the adapter may fail or not."""
        found: list[Observed] = []
        count = max(FEWEST_CASES, 2 * MORE_CASES // max(2, self.check.effort))
        for case in drawn(self.check, self.subject, count, self.seed):
            if self.late:
                break
            with contextlib.suppress(NotReturned):  # a case for which the trainer does not make what is judged
                found.append(observe(self.check, self.subject, case))
        return tuple(found)


def drawn(check: Check, subject: Subject, count: int, seed: int) -> list[Any]:
    """Cases of a check, none of which is tried."""
    cases: list[Any] = []

    @hypothesis.seed(seed)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        verbosity=Verbosity.quiet,
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(check.cases(subject))
    def draw(case: Any) -> None:
        cases.append(case)

    draw()
    return cases


def diagnosed(result: Result, case: Any, subject: Subject, seed: int) -> Result:
    """The result of a failure with what can be said about it. Whatever goes wrong here, the failure itself stays."""
    failure = result.failure
    if result.verdict not in (FAIL, ERROR) or failure is None:
        return result
    from rlhf_conformance.diagnosis import exchange, legs, nearest, provenance, steps

    check, shown = checks()[result.clause], failure

    def heard(_: Any) -> Any:
        return exchange.exchange(check, subject, case, shown)

    if result.verdict == ERROR:
        return replace(result, failure=replace(failure, **_seen("exchange", heard, None, failure.note)))
    try:
        evidence = Evidence(check, subject, observe(check, subject, case), seed)
    except Exception as error:
        return replace(result, failure=replace(failure, note=_also(failure.note, error)))
    for part, look in (
        ("picture", provenance.picture),
        ("steps", steps.steps),
        ("diagnoses", lambda e: (*legs.diagnoses(e), *provenance.diagnoses(e), *nearest.diagnoses(e))),
        ("exchange", heard),
    ):
        failure = replace(failure, **_seen(part, look, evidence, failure.note))
    return replace(result, failure=failure)


def _seen(part: str, look: Callable[[Any], Any], evidence: Evidence | None, note: str) -> dict[str, Any]:
    try:
        return {part: look(evidence)}
    except Exception as error:
        return {"note": _also(note, error)}


def _also(note: str, error: Exception) -> str:
    said = f"the diagnosis itself failed, please report it: {type(error).__name__}: {error}"
    return f"{note}; {said}" if note else said
