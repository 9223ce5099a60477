"""The evidence of a failure: its smallest case with every comparison on record, and others drawn anew."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from hypothesis import Phase

from rlhf_conformance._lazy import torch
from rlhf_conformance.diagnosis.work import Work
from rlhf_conformance.judging.checks import Check
from rlhf_conformance.judging.isolation import AdapterError
from rlhf_conformance.judging.judge import ClauseFailure, Comparison, Judge
from rlhf_conformance.judging.picks import Picked
from rlhf_conformance.judging.questions import Answered, Call, NotReturned
from rlhf_conformance.judging.subject import Subject
from rlhf_conformance.judging.trying import searching
from rlhf_conformance.judging.wiring import WiringError

MORE_CASES, FEWEST_CASES = 12, 4
"""How many cases are drawn anew: for cheap checks, and at least for expensive ones."""

SEED = 20_240_607
"""Of random numbers that an adapter may draw: none that anybody would seed with."""


class Parted(BaseException):
    """Enough was seen of an adapter. Not an Exception, which a check may get over."""


@dataclass(frozen=True)
class Observed:
    """A case with all of its comparisons.

    ended   what ended the check before its last comparison: the message of a plain fact that does not hold, of wrong
            wiring or of an adapter that raised; empty where nothing did
    calls   all calls that were made, in order, and the `answers` of those that were answered
    """

    case: Any
    comparisons: tuple[Comparison, ...]
    ended: str = ""
    calls: tuple[Call, ...] = ()
    answers: tuple[Answered, ...] = ()

    @property
    def broken(self) -> tuple[Comparison, ...]:
        return tuple(c for c in self.comparisons if c.broken is not None)

    @property
    def failed(self) -> bool:
        return bool(self.broken or self.ended)


def within(a: float, b: float, apart: float) -> bool:
    """Whether two numbers are no further apart than that; NaN is equal to itself."""
    return a == b or (math.isnan(a) and math.isnan(b)) or abs(a - b) <= apart


def observe(check: Check, subject: Subject, case: Any, heard: Callable[[Comparison], None] | None = None) -> Observed:
    """Try a case with every comparison on record, until `heard`, which is told of each, raises Parted. Raises
    NotReturned where no comparison could be made."""
    judge = Judge(record=[], heard=heard)
    ended = ""
    subject.forget_models()  # no case inherits what another one has done to a model
    try:
        with torch.random.fork_rng(devices=[] if subject.device == "cpu" else [subject.device]):
            # So that two adapters who draw random numbers draw the same. On a CPU its own generator is asked alone: to
            # ask those of all devices takes a tenth of a search's time.
            (torch.default_generator if subject.device == "cpu" else torch).manual_seed(SEED)
            judge.try_case(check, subject, case)
    except KeyboardInterrupt:
        raise
    except Parted:
        pass
    except (ClauseFailure, AdapterError, WiringError) as error:
        ended = str(error)
    except NotReturned:
        if not judge.record:
            raise
    assert judge.record is not None
    return Observed(case, tuple(judge.record), ended, tuple(judge.calls), tuple(judge.answers.values()))


def _always(_: Observed) -> bool:
    return True


@dataclass
class Evidence:
    """What is known about the failure of a clause.

    smallest    the failing case that the report shows
    work        what it may cost: what is not looked at for that is let go
    remembered  what one look has found and another one needs as well
    holds       what is true of the cases that count, the smallest among them, and `where` the same in words
    alone       neighboring clauses do not count where the adapter fails them as well, which may have another cause
    """

    check: Check
    subject: Subject
    smallest: Observed
    seed: int = 0
    work: Work = field(default_factory=Work)
    remembered: dict[str, Any] = field(default_factory=dict)
    holds: Callable[[Observed], bool] = _always
    where: str = ""
    alone: bool = False
    _observed: dict[tuple[str, str], Observed] = field(default_factory=dict)
    _tried: dict[int, tuple[list[Any], list[Observed | None]]] = field(default_factory=dict)

    @property
    def slug(self) -> str:
        return self.check.slug

    @property
    def spent(self) -> bool:
        return self.work.spent

    def observe(self, check: Check, case: Any) -> Observed:
        """Try a case on the adapter, once, and count its calls."""
        key = check.slug, repr(case)
        if key not in self._observed:
            self._observed[key] = observe(check, self.subject, case)
            self.work.spend(calls=max(1, len(self._observed[key].calls)))
        return self._observed[key]

    def counts(self, check: Check, seen: Observed) -> bool:
        """Whether a case, of this clause or of a neighboring one, can speak for or against anybody."""
        return self.holds(seen) and not (self.alone and seen.failed and check is not self.check)

    def has_seen(self, check: Check, case: Any) -> bool:
        return (check.slug, repr(case)) in self._observed

    @cached_property
    def more(self) -> tuple[Observed, ...]:
        """Other cases of the clause, larger than the smallest, on which the adapter may fail or not."""
        seen = self.tried(max(FEWEST_CASES, 2 * MORE_CASES // max(2, self.check.effort)), self.seed)
        return tuple(o for o in seen if self.holds(o))

    def tried(self, count: int, seed: int) -> tuple[Observed, ...]:
        """So many cases drawn with a seed, each of which is tried once, whoever wants to see it."""
        cases, found = self._tried.setdefault(seed, (drawn(self.check, self.subject, MORE_CASES, seed), []))
        for case in cases[len(found) : count]:
            if self.spent:
                break
            try:
                found.append(self.observe(self.check, case))
            except NotReturned:  # a case for which the trainer does not make what is judged
                found.append(None)
        return tuple(seen for seen in found[:count] if seen is not None)


def drawn(check: Check, subject: Subject, count: int, seed: int) -> list[Any]:
    """Cases of a check, none of which is tried."""
    drawing = check.cases(subject)
    if isinstance(drawing, Picked):
        return [drawing.case(data) for data in itertools.islice(drawing.drawn(seed), count)]
    cases: list[Any] = []
    searching(drawing, cases.append, [Phase.generate], seed, count)()
    return cases
