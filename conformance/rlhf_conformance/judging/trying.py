"""Running one check: cases are drawn, a failing one is made smaller, and this decides what the outcome means."""

from __future__ import annotations

import functools
import itertools
import math
import random
import sys
import time
import traceback
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any
from unittest import SkipTest

import hypothesis
from hypothesis import HealthCheck, Phase, Verbosity, settings
from hypothesis import strategies as st
from hypothesis.database import ExampleDatabase, InMemoryExampleDatabase
from hypothesis.errors import Flaky, Unsatisfiable, UnsatisfiedAssumption

import rlhf_spec.clauses
from rlhf_conformance.judging import storing
from rlhf_conformance.judging.checks import Check, checks
from rlhf_conformance.judging.isolation import AdapterError, surroundings_kept
from rlhf_conformance.judging.judge import ClauseFailure, Judge, SeveralFailures
from rlhf_conformance.judging.picks import Picked
from rlhf_conformance.judging.questions import NotReturned
from rlhf_conformance.judging.subject import Subject
from rlhf_conformance.judging.wiring import WiringError
from rlhf_conformance.results import (
    ERROR,
    FAIL,
    INCONCLUSIVE,
    LOST,
    NOT_PROVIDED,
    PASS,
    Failure,
    Result,
    without_numbers,
)


@dataclass(frozen=True)
class Profile:
    """How much is tried.

    examples        cases of a cheap check; a check's effort divides it
    fraction        the least share of them that must have been valid for a pass
    deterministic   the same cases in every run with the same seed
    time_limit      seconds for a clause, after which its process is given up
    shrinking       seconds for making a failing case smaller; afterwards the smallest so far stands; 0: not at all
    smaller         cases of a cheap check that are tried for that; a check's effort divides it, too. This is what ends
                    it, on a busy machine as on an idle one; the seconds do where an adapter is slow
    """

    name: str
    examples: int
    deterministic: bool
    time_limit: float
    shrinking: float
    smaller: int
    fraction: float = 0.5

    def examples_of(self, check: Check) -> int:
        return 1 if check.single else max(1, self.examples // check.effort)

    def floor_of(self, check: Check) -> int:
        return 1 if check.single else max(1, int(self.fraction * self.examples_of(check)))


PROFILES = {
    "smoke": Profile("smoke", 3, deterministic=True, time_limit=60, shrinking=5, smaller=80),
    "gate": Profile("gate", 60, deterministic=True, time_limit=120, shrinking=15, smaller=240),
    "full": Profile("full", 600, deterministic=False, time_limit=600, shrinking=60, smaller=2000),
}


class OutOfBudget(BaseException):
    """There is no time for another case. Not an Exception, of which Hypothesis would look for a smaller one."""


class SmallEnough(OutOfBudget):
    """The failing case is made no smaller. Hypothesis, left to itself, would go on to propose hundreds of cases."""


Broken = ClauseFailure | AdapterError | WiringError
Kind = tuple[str, str]
"""What failures of a clause are told apart by: the quantity without its numbers, and the backbone."""
MOST = 20
"""So many different failures of one clause are told."""


@dataclass
class _Trial:
    """The running of one check, as far as it has come.

    examples    cases that held; `empty` those in which no number was compared, which are evidence of nothing
    kinds       the failures that were found, one of each kind, in the order in which they were found
    given       the kinds of those that showed on cases which were given, and are looked for no more; `shown`, on each
    wanted      the kind that is being made smaller, and the only one for which an attempt raises; None before the first
    tried       the failures of that kind, by their cases; `left`, how many more cases may be tried for a smaller one
    until       when no further case is begun, of `time.monotonic()`; `count` is told how many there were
    """

    check: Check
    subject: Subject
    shrinking: float
    smaller: int = 10_000
    judge: Judge = field(default_factory=Judge)
    examples: int = 0
    empty: int = 0
    kinds: dict[Kind, Broken] = field(default_factory=dict)
    given: set[Kind] = field(default_factory=set)
    shown: list[tuple[Failure, ...]] = field(default_factory=list)
    wanted: Kind | None = None
    tried: dict[Any, BaseException] = field(default_factory=dict)
    settled: bool = False
    gave_up: float | None = None
    left: int = 0
    found_after: int | None = None
    found: Callable[[BaseException], None] = lambda error: None
    until: float = math.inf
    begun: int = 0
    count: Callable[[int], None] = lambda begun: None

    def attempt(self, case: Any) -> None:
        """One case. Raises SmallEnough after enough of shrinking."""
        if not self.settled and self.gave_up is not None:
            self.left -= 1
            if self.left < 0 or time.monotonic() > self.gave_up:
                raise SmallEnough
        errors = self._errors(case)
        new = {kind: error for kind, error in errors.items() if kind not in self.given}
        if new and self.wanted is None:
            self.wanted = next(iter(new))
        for kind, error in new.items():
            if kind == self.wanted:
                if not self.settled:
                    self._keep(error, case)
            elif kind not in self.kinds or _size(case) < _size(self.kinds[kind].case):  # type: ignore[union-attr]
                self._remember(kind, error)
        if self.wanted in new and not self.settled:
            raise new[self.wanted]

    def attempt_given(self, case: Any) -> None:
        """A case on which the clause is known to fail, or which was stored: it is made no smaller."""
        errors = self._errors(case)
        self.given.update(errors)
        self.shown.append(tuple(_failure(error) for error in errors.values()))
        for kind, error in errors.items():
            self.kinds.setdefault(kind, error)

    def _errors(self, case: Any) -> dict[Kind, Broken]:
        """What is wrong on a case, one of each kind; nothing where it holds. Raises OutOfBudget before it."""
        if time.monotonic() > self.until:
            raise OutOfBudget
        self.count(self.begun)
        self.begun += 1
        _seed_other_generators()
        try:
            numbers = self.judge.try_case(self.check, self.subject, case)
        except SeveralFailures as several:
            found: tuple[Broken, ...] = several.found
        except NotReturned:
            raise
        except Exception as error:
            late = self.subject.late(error)
            if late is None:
                raise
            found = (late,)
        else:
            self.examples += numbers > 0
            self.empty += numbers == 0
            return {}
        errors: dict[Kind, Broken] = {}
        for wrong in found:
            wrong.case = case  # type: ignore[union-attr]
            errors.setdefault(_kind_of(wrong, case), wrong)
        return errors

    def _remember(self, kind: Kind, error: Broken) -> None:
        if kind in self.kinds or len(self.kinds) < MOST:
            self.kinds[kind] = error

    def _keep(self, error: Broken, case: Any) -> None:
        self.tried[repr(case)] = error
        if self.gave_up is None:
            self.found(error)
            self.gave_up, self.found_after = time.monotonic() + self.shrinking, self.examples + self.empty + 1
            self.left = self.smaller
        if self.subject.poison is not None:
            self.gave_up = 0.0


def _kind_of(error: Broken, case: Any) -> Kind:
    said = error.quantity if isinstance(error, ClauseFailure) else f"{type(error).__name__}: {error}"
    return without_numbers(said), storing.backbone(case)


def _size(case: Any) -> Any:
    """By which the smaller of two cases of one check is known."""
    return getattr(case, "size", (0, 0)), len(repr(case))


ALL = 10_000
"""More cases than a database holds: of those that are kept, none is left out."""


def seed_of(slug: str, seed: int) -> int:
    """The seed of one clause's cases: different clauses see different cases, the same in every process."""
    return zlib.crc32(f"{slug}:{seed}".encode())


@dataclass(frozen=True)
class Tried:
    """A clause that was tried: the result, and for those who measure the suite, how it came about.

    found_after     the cases that it took to find the failure, that one included; None where there is none
    case            the smallest failing case; None where there is none
    shown           what is wrong on each of the cases that were to be tried first
    """

    result: Result
    found_after: int | None = None
    case: Any = None
    shown: tuple[tuple[Failure, ...], ...] = ()


Found = Callable[[Result], None]
"""Told of a failure as soon as there is one, before anything else is tried on an adapter that may not survive it."""


def try_clause(
    slug: str,
    subject: Subject,
    profile: Profile,
    seed: int,
    database: Any = None,
    *,
    found: Found | None = None,
    replayed: Any = None,
    first: Sequence[Any] = (),
    to_the_end: bool = True,
    count: Callable[[int], None] | None = None,
    until: float = math.inf,
    over: str = "",
) -> Tried:
    """Try one clause on the subject. Whatever the adapter does short of ending the process becomes a verdict.

    replayed    a case to try in place of all that could be drawn
    first       cases to try before those that are drawn: what is wrong on one of them is looked for no more
    to_the_end  after a failure, too, the other cases are tried, for what else is wrong
    count       told before each case how many there were
    until       when no further case is begun, of `time.monotonic()`, and `over`: why
    """
    clause, check = rlhf_spec.clauses.clause(slug), checks()[slug]
    floor = profile.floor_of(check) if replayed is None else 1
    blank = Result(clause.slug, clause.level, PASS, floor=floor)
    reason = check.not_provided(subject.adapter)
    if reason:
        return Tried(replace(blank, verdict=NOT_PROVIDED, reason=reason, floor=0))
    if subject.poison is not None:
        reason = f"CUDA cannot be used in this process any more: {subject.poison}. Named, not passed as an object, an "
        reason += "adapter is tried in processes that are replaced"
        return Tried(replace(blank, verdict=LOST, reason=reason))
    started = time.perf_counter()
    subject.forget_models()
    trial = _Trial(check, subject, profile.shrinking, profile.smaller // check.effort, until=until)
    trial.count = count or trial.count

    def seen() -> Result:
        seconds = round(time.perf_counter() - started, 3)
        return replace(blank, examples=trial.examples, margin=trial.judge.margin, seconds=seconds)

    if found is not None:
        trial.found = lambda error: found(_judged(seen(), trial, error))
    with surroundings_kept():
        outcome = _tried(trial, [*first, *([replayed] * (replayed is not None))])
        if outcome is None and replayed is None:
            enough = time.monotonic() + profile.time_limit / 2 if to_the_end else 0.0
            outcome = _explore(trial, profile, seed_of(slug, seed), database, enough)
    if isinstance(outcome, OutOfBudget):
        outcome = next(reversed(trial.tried.values()), None)
        if outcome is None and not trial.kinds:
            said = f"{over} while this clause was tried, after {trial.begun} cases"
            return Tried(replace(seen(), verdict=LOST, reason=said))
    if outcome is None and trial.kinds:
        outcome = next(iter(trial.kinds.values()))
    case = getattr(outcome, "case", None)
    return Tried(_judged(seen(), trial, outcome), trial.found_after, case, tuple(trial.shown))


def _tried(trial: _Trial, cases: Sequence[Any]) -> BaseException | None:
    """Try cases that are given; what goes wrong with the suite itself, or None."""
    for case in cases:
        outcome = _outcome(functools.partial(trial.attempt_given, case))
        if outcome is not None:
            return outcome
    return None


def _explore(
    trial: _Trial, profile: Profile, seed: int, database: Any, until: float = math.inf
) -> BaseException | None:
    """Look for a failing case; the exception of the smallest one, or None. What else is wrong is looked for afterwards,
    as far as there are cases left and time (`until`, of `time.monotonic()`)."""
    cases, wanted = trial.check.cases(trial.subject), profile.examples_of(trial.check)
    skipped = int(wanted == 1 and not trial.check.single)
    shrinking = [Phase.shrink] * (trial.shrinking > 0)
    if not isinstance(cases, Picked):
        phases = [Phase.generate, *[Phase.reuse] * (database is not None), *shrinking]
        drawn = itertools.count()

        def attempt(case: Any) -> None:
            if next(drawn) >= skipped:
                trial.attempt(case)

        return _smallest(trial, searching(cases, attempt, phases, seed, wanted + skipped, database))
    kept = InMemoryExampleDatabase() if database is None else database
    search = searching(cases.strategy, trial.attempt, [Phase.reuse, *shrinking], seed, ALL, kept)
    first = None if database is None else _smallest(trial, search, nothing=SkipTest)
    for data in itertools.islice(cases.drawn(seed), skipped, skipped + wanted):
        trial.settled = first is not None
        if trial.settled and (time.monotonic() > until or trial.subject.poison is not None):
            break
        error = _outcome(functools.partial(_attempt, trial, cases, data), nothing=UnsatisfiedAssumption)
        if isinstance(error, OutOfBudget):
            return first or error
        if error is not None and first is None:
            # Which puts it where the search begins.
            _outcome(functools.partial(search.hypothesis.fuzz_one_input, data))
            flaky = Flaky("the case that failed passed when it was tried again")
            first = _smallest(trial, search, nothing=SkipTest) or flaky
        if isinstance(first, Flaky):
            break
    return first


def _smallest(trial: _Trial, search: Callable[[], Any], nothing: type[BaseException] | tuple[()] = ()) -> Any:
    """What a search ends with: the exception of the smallest failing case, which is the last that was kept where no
    smaller one was looked for any more; None where there is none."""
    outcome = _outcome(search, nothing)
    return next(reversed(trial.tried.values())) if isinstance(outcome, SmallEnough) else outcome


def _attempt(trial: _Trial, cases: Picked[Any], data: bytes) -> None:
    trial.attempt(cases.case(data))


def searching(
    strategy: st.SearchStrategy[Any],
    attempt: Callable[[Any], None],
    phases: list[Phase],
    seed: int,
    examples: int,
    database: ExampleDatabase | None = None,
) -> Any:
    """What lets Hypothesis attempt the cases of a strategy, and raises the exception of the smallest one that fails."""

    @settings(
        max_examples=examples,
        deadline=None,
        database=database,
        phases=phases,
        derandomize=False,
        report_multiple_bugs=False,
        print_blob=False,
        verbosity=Verbosity.quiet,
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.seed(seed)  # below the settings, since it takes the database away
    @hypothesis.given(strategy)
    def search(case: Any) -> None:
        attempt(case)

    return search


def _seed_other_generators() -> None:
    """Those of Python and numpy, as Hypothesis does it: whoever draws from them draws the same in every run. That of
    torch is what a clause is about."""
    random.seed(0)
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(0)


def _outcome(attempt: Callable[[], Any], nothing: type[BaseException] | tuple[()] = ()) -> BaseException | None:
    """What an attempt raises, or None; also None for `nothing`, by which Hypothesis says that there is no such case."""
    try:
        attempt()
    except nothing:
        return None
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return error
    return None


def _judged(result: Result, trial: _Trial, outcome: BaseException | None) -> Result:
    if outcome is None:
        if result.examples < result.floor or not trial.judge.numbers:
            said = f"only {result.examples} valid cases of at least {result.floor}"
            said += f" ({trial.empty} more, in which no number was compared)" if trial.empty else ""
            return replace(result, verdict=INCONCLUSIVE, reason=f"{said}: the clause was not put to the test")
        return result
    result = replace(result, others=tuple(_failure(error) for error in trial.kinds.values() if error is not outcome))
    if isinstance(outcome, ClauseFailure):
        return replace(result, verdict=FAIL, reason=str(outcome), failure=_failure(outcome))
    if isinstance(outcome, NotReturned):
        return replace(result, verdict=NOT_PROVIDED, reason=str(outcome), floor=0)
    if isinstance(outcome, WiringError | AdapterError):
        behind = _behind(outcome)
        reason = f"{outcome}; {behind}" if behind else str(outcome)
        return replace(result, verdict=ERROR, reason=reason, failure=_failure(outcome))
    if isinstance(outcome, Unsatisfiable):
        return replace(result, verdict=INCONCLUSIVE, reason="no case could be drawn for what the adapter declares")
    if isinstance(outcome, Flaky):
        first = next(iter(trial.tried.values()), outcome)
        reason = f"the same case failed once and passed once: the adapter is not deterministic. At first: {first}"
        once = _failure_of(first, reason) if first is not outcome else None
        return replace(result, verdict=ERROR, reason=reason, failure=once)
    said = "".join(traceback.format_exception(outcome)).strip()[-1500:]
    return replace(result, verdict=LOST, reason=f"the suite itself failed here, please report it: {said}")


def _failure(error: Broken) -> Failure:
    if isinstance(error, ClauseFailure):
        return Failure(**asdict(error.mismatch), **_case_of(error))
    return Failure(what=str(error), place="", expected="", actual="", note=_behind(error), **_case_of(error))


def _behind(error: Broken) -> str:
    """What stands behind the adapter's exception. It is told beside the failure, which known failures are told by."""
    return error.behind if isinstance(error, AdapterError) else ""


def _failure_of(first: BaseException, what: str) -> Failure:
    """The failure of a case that failed only once: `what`, with the place and the numbers of that once."""
    seen = asdict(first.mismatch) if isinstance(first, ClauseFailure) else {"place": "", "expected": "", "actual": ""}
    return Failure(**{**seen, "what": what}, **_case_of(first))


def _case_of(outcome: Any) -> dict[str, Any]:
    return {"case": repr(outcome.case), "stored": storing.to_json(outcome.case)}
