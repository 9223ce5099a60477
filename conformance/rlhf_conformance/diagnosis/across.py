"""Failures without a name, held against the names that other failures of the same run have.

A slip shows in many clauses, and in some of them too little for a search through the library to say anything. What the
others are called is a handful of names: each of these is put in the place of the adapter once more, and given the case
on which the nameless failure is shown. If it returns the numbers that are on record there, the failure has its name.
The trainer is asked nothing: its answers are in the report.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rlhf_conformance._lazy import torch
from rlhf_conformance.adapter import DECLARATIONS, METHODS, Adapter
from rlhf_conformance.diagnosis.evidence import observe
from rlhf_conformance.diagnosis.nearest import Candidate, Impostors, candidates, concerns, near_each_other, quantity
from rlhf_conformance.judging import storing
from rlhf_conformance.judging.checks import checks
from rlhf_conformance.judging.judge import Comparison
from rlhf_conformance.judging.subject import Subject
from rlhf_conformance.oracle.probes import ProbeStore
from rlhf_conformance.results import FAIL, NAMED, Diagnosis, Failure, Report, Result

CHANCE = 1e-4
"""How likely numbers may agree with one of the names by accident: names that the trainer is called by elsewhere."""
MOST = 300
"""So many cases are tried at most."""


@dataclass
class _Search:
    """What is asked, and how often it may be."""

    impostors: Impostors
    dtype: torch.dtype
    left: int = MOST
    seen: dict[Any, tuple[Comparison, ...]] = field(default_factory=dict)


def named_across(report: Report) -> Report:
    """The report, in which failures have the names that other failures have and that explain them, too.

    On the CPU only. Whatever goes wrong here, the report is as good as it was.
    """
    nameless = [r for r in report.results if r.verdict == FAIL and r.failure is not None and not _names(r)]
    named = [r for r in report.results if r.verdict == FAIL and _names(r)]
    if not nameless or not named or report.environment.get("device") != "cpu":
        return report
    try:
        loads = any(checks()[result.clause].loads for result in nameless)
        with _alone(loads), TemporaryDirectory(prefix="rlhf-conformance-") as folder:
            found = _found(report, named, nameless, folder)
    except (Exception, KeyboardInterrupt):  # whoever does not wait for it has the report as it is
        return report
    return replace(report, results=tuple(found.get(r.clause, r) for r in report.results))


@contextlib.contextmanager
def _alone(loads: bool) -> Iterator[None]:
    """On one thread, and without a word of transformers where models are loaded; afterwards all is as it was."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with _quiet() if loads else contextlib.nullcontext():
            yield
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    from transformers.utils import logging

    verbosity, with_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if with_bar:
            logging.enable_progress_bar()


def _found(report: Report, named: list[Result], nameless: list[Result], folder: str) -> dict[str, Result]:
    dtype = report.environment["dtype"]
    stand_in = _stand_in(report)
    subject = Subject.make(stand_in, device="cpu", dtype=dtype, store=ProbeStore(Path(folder)))
    search = _Search(Impostors(subject), subject.dtype)
    known = _known(named, stand_in)
    found = {}
    for result in nameless:
        rows = tuple(_diagnosis(c, slug) for c, slug in known if _explains(search, c, result, len(known)))
        if rows:
            assert result.failure is not None
            failure = replace(result.failure, diagnoses=(*result.failure.diagnoses, *rows))
            found[result.clause] = replace(result, failure=failure)
    return found


def _names(result: Result) -> tuple[str, ...]:
    rows = result.failure.diagnoses if result.failure is not None else ()
    return tuple(row.name for row in rows if row.kind in NAMED)


def _stand_in(report: Report) -> Adapter:
    """What declares and lacks the same as the adapter that was checked."""
    given: dict[str, Any] = dict.fromkeys(report.subject.get("provides", ()), lambda self, *given: None)
    kind: Any = type("StandIn", (Adapter,), {name: f for name, f in given.items() if name in METHODS})
    adapter: Adapter = kind()
    for name, value in report.subject.get("declares", {}).items():
        if name in DECLARATIONS:
            setattr(adapter, name, DECLARATIONS[name].checked(value, "report"))
    return adapter


def _known(named: Iterable[Result], adapter: Adapter) -> list[tuple[Candidate, str]]:
    """The names that there are, each with a clause that has it; those that many have come first."""
    counts: dict[str, int] = {}
    found: dict[str, tuple[Candidate, str]] = {}
    for result in named:
        rows = {c.name: c for c in candidates(checks()[result.clause], adapter)}
        for name in _names(result):
            counts[name] = counts.get(name, 0) + 1
            if name in rows:
                found.setdefault(name, (rows[name], result.clause))
    return [found[name] for name in sorted(found, key=lambda name: -counts[name])]


def _diagnosis(candidate: Candidate, slug: str) -> Diagnosis:
    sentence = f"agrees with {candidate.label} on the failing case, as {slug} does on more: {candidate.says}"
    return Diagnosis(candidate.kind, candidate.name, sentence, cause=candidate.says, bug=candidate.bug)


# --- the same numbers -----------------------------------------------------------------------------------------------


def _explains(search: _Search, candidate: Candidate, result: Result, tried: int) -> bool:
    """Whether a candidate returns, on the case of a failure, what is on record there, and breaks what else is."""
    failure = result.failure
    if not concerns(candidate.adapter, checks()[result.clause]):
        return False
    if failure is None or failure.stored is None or failure.exchange is None or not failure.exchange.numbers:
        return False
    return _returns(search, candidate, result.clause, failure, tried) and all(
        _breaks(search, candidate, result.clause, other) for other in result.others
    )


def _answers(search: _Search, candidate: Candidate, slug: str, stored: Any) -> tuple[Comparison, ...]:
    """What is compared where the candidate is in the adapter's place; nothing where it cannot be asked."""
    key = (candidate.name, slug, str(stored))
    if key not in search.seen:
        check = checks()[slug]
        found: tuple[Comparison, ...] = ()
        if search.left > 0 and search.impostors.can_be_asked(candidate.adapter, check):
            search.left -= 1
            try:
                case = storing.from_json(stored)
                found = observe(check, search.impostors.of(candidate.adapter), case).comparisons
            except Exception:  # its errors are its own affair
                found = ()
        search.seen[key] = found
    return search.seen[key]


def _returns(search: _Search, candidate: Candidate, slug: str, failure: Failure, tried: int) -> bool:
    assert failure.exchange is not None
    rows = failure.exchange.numbers
    for comparison in _answers(search, candidate, slug, failure.stored):
        if comparison.broken is None or quantity(comparison.what) != quantity(failure.what):
            continue
        if len(comparison.actual) != failure.exchange.total:
            return False
        for row in rows:
            mine = comparison.actual[row.offset], comparison.expected[row.offset]
            theirs = float(row.actual), float(row.expected)
            if not near_each_other(theirs[0], mine[0], theirs[1], mine[1], float(row.allowed), search.dtype):
                return False
        return tried * _chance(failure) <= CHANCE
    return False


def _chance(failure: Failure) -> float:
    """How likely the numbers that differ are met by accident: each number counts once, a cell of a mask by half."""
    assert failure.exchange is not None
    shares: dict[Any, float] = {}
    for row in failure.exchange.numbers:
        actual, expected, allowed = float(row.actual), float(row.expected), float(row.allowed)
        off = abs(actual - expected)
        if off > allowed:
            exact = allowed == 0
            key = row.offset if exact else (round(actual, 5), round(expected, 5))
            shares[key] = 0.5 if exact or not math.isfinite(off) else min(1.0, 2 * allowed / off)
    return math.prod(shares.values()) if shares else 1.0


def _breaks(search: _Search, candidate: Candidate, slug: str, other: Failure) -> bool:
    """Whether it breaks another quantity of the clause, too, or the same on another backbone."""
    if other.stored is None:
        return False
    rows = _answers(search, candidate, slug, other.stored)
    return any(c.broken is not None and quantity(c.what) == quantity(other.what) for c in rows)
