"""Running one check: cases are drawn, a failing one is made smaller, and this decides what the outcome means."""

from __future__ import annotations

import functools
import itertools
import random
import sys
import time
import traceback
import zlib
from collections.abc import Callable
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
from rlhf_conformance.judging.judge import ClauseFailure, Judge
from rlhf_conformance.judging.picks import Picked
from rlhf_conformance.judging.questions import NotReturned
from rlhf_conformance.judging.subject import Subject
from rlhf_conformance.judging.wiring import WiringError
from rlhf_conformance.results import ERROR, FAIL, INCONCLUSIVE, LOST, NOT_PROVIDED, PASS, Failure, Result


@dataclass(frozen=True)
class Profile:
    """How much is tried.

    examples        cases of a cheap check; a check's effort divides it
    fraction        the least share of them that must have been valid for a pass
    deterministic   the same cases in every run with the same seed
    time_limit      seconds for a clause, after which its process is given up
    shrinking       seconds for making a failing case smaller; afterwards the smallest so far stands; 0: not at all
    """

    name: str
    examples: int
    deterministic: bool
    time_limit: float
    shrinking: float
    fraction: float = 0.5

    def examples_of(self, check: Check) -> int:
        return 1 if check.single else max(1, self.examples // check.effort)

    def floor_of(self, check: Check) -> int:
        return 1 if check.single else max(1, int(self.fraction * self.examples_of(check)))


PROFILES = {
    "smoke": Profile("smoke", 3, deterministic=True, time_limit=60, shrinking=1),
    "gate": Profile("gate", 60, deterministic=True, time_limit=120, shrinking=5),
    "full": Profile("full", 600, deterministic=False, time_limit=600, shrinking=20),
}


@dataclass
class _Trial:
    """The running of one check, as far as it has come."""

    check: Check
    subject: Subject
    shrinking: float
    judge: Judge = field(default_factory=Judge)
    examples: int = 0
    failures: dict[Any, BaseException] = field(default_factory=dict)
    gave_up: float | None = None
    found_after: int | None = None
    found: Callable[[BaseException], None] = lambda error: None

    def attempt(self, case: Any) -> None:
        """One case. After some seconds of shrinking, only cases already known to fail fail again, so that it ends."""
        if self.gave_up is not None and time.monotonic() > self.gave_up:
            if repr(case) in self.failures:
                raise self.failures[repr(case)]
            return
        _seed_other_generators()
        try:
            self.judge.try_case(self.check, self.subject, case)
        except (ClauseFailure, AdapterError, WiringError) as error:
            self._keep(error, case)
            raise
        except RuntimeError as error:
            late = self.subject.late(error)
            if late is None:
                raise
            self._keep(late, case)
            raise late from error
        self.examples += 1

    def _keep(self, error: Any, case: Any) -> None:
        error.case = case
        self.failures[repr(case)] = error
        if self.gave_up is None:
            self.found(error)
            self.gave_up, self.found_after = time.monotonic() + self.shrinking, self.examples + 1
        if self.subject.poison is not None:
            self.gave_up = 0.0


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
    """

    result: Result
    found_after: int | None = None
    case: Any = None


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
) -> Tried:
    """Try one clause on the subject. Whatever the adapter does short of ending the process becomes a verdict.

    replayed    a case to try in place of all that could be drawn
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
    trial = _Trial(check, subject, profile.shrinking)

    def seen() -> Result:
        seconds = round(time.perf_counter() - started, 3)
        return replace(blank, examples=trial.examples, margin=trial.judge.margin, seconds=seconds)

    if found is not None:
        trial.found = lambda error: found(_judged(seen(), trial, error))
    with surroundings_kept():
        if replayed is None:
            outcome = _explore(trial, profile, seed_of(slug, seed), database)
        else:
            outcome = _outcome(lambda: trial.attempt(replayed))
    return Tried(_judged(seen(), trial, outcome), trial.found_after, getattr(outcome, "case", None))


def _explore(trial: _Trial, profile: Profile, seed: int, database: Any) -> BaseException | None:
    """Look for a failing case; the exception of the smallest one, or None."""
    cases, wanted = trial.check.cases(trial.subject), profile.examples_of(trial.check)
    skipped = int(wanted == 1 and not trial.check.single)
    shrinking = [Phase.shrink] * (trial.shrinking > 0)
    if not isinstance(cases, Picked):
        phases = [Phase.generate, *[Phase.reuse] * (database is not None), *shrinking]
        drawn = itertools.count()

        def attempt(case: Any) -> None:
            if next(drawn) >= skipped:
                trial.attempt(case)

        return _outcome(searching(cases, attempt, phases, seed, wanted + skipped, database))
    kept = InMemoryExampleDatabase() if database is None else database
    search = searching(cases.strategy, trial.attempt, [Phase.reuse, *shrinking], seed, ALL, kept)
    known = None if database is None else _outcome(search, nothing=SkipTest)
    if known is not None:
        return known
    for data in itertools.islice(cases.drawn(seed), skipped, skipped + wanted):
        error = _outcome(functools.partial(_attempt, trial, cases, data), nothing=UnsatisfiedAssumption)
        if error is not None:
            # Which puts it where the search begins.
            _outcome(functools.partial(search.hypothesis.fuzz_one_input, data))
            return _outcome(search, nothing=SkipTest) or Flaky("the case that failed passed when it was tried again")
    return None


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
        if result.examples < result.floor or not trial.judge.comparisons:
            reason = (
                f"only {result.examples} valid cases of at least {result.floor}: the clause was not put to the test"
            )
            return replace(result, verdict=INCONCLUSIVE, reason=reason)
        return result
    if isinstance(outcome, ClauseFailure):
        failure = Failure(**asdict(outcome.mismatch), **_case_of(outcome))
        return replace(result, verdict=FAIL, reason=str(outcome), failure=failure)
    if isinstance(outcome, NotReturned):
        return replace(result, verdict=NOT_PROVIDED, reason=str(outcome), floor=0)
    if isinstance(outcome, WiringError | AdapterError):
        failure = Failure(what=str(outcome), place="", expected="", actual="", **_case_of(outcome))
        return replace(result, verdict=ERROR, reason=str(outcome), failure=failure)
    if isinstance(outcome, Unsatisfiable):
        return replace(result, verdict=INCONCLUSIVE, reason="no case could be drawn for what the adapter declares")
    if isinstance(outcome, Flaky):
        first = next(iter(trial.failures.values()), outcome)
        reason = f"the same case failed once and passed once: the adapter is not deterministic. At first: {first}"
        once = _failure_of(first, reason) if first is not outcome else None
        return replace(result, verdict=ERROR, reason=reason, failure=once)
    said = "".join(traceback.format_exception(outcome)).strip()[-1500:]
    return replace(result, verdict=LOST, reason=f"the suite itself failed here, please report it: {said}")


def _failure_of(first: BaseException, what: str) -> Failure:
    """The failure of a case that failed only once: `what`, with the place and the numbers of that once."""
    seen = asdict(first.mismatch) if isinstance(first, ClauseFailure) else {"place": "", "expected": "", "actual": ""}
    return Failure(**{**seen, "what": what}, **_case_of(first))


def _case_of(outcome: Any) -> dict[str, Any]:
    return {"case": repr(outcome.case), "stored": storing.to_json(outcome.case)}
