"""The failures of a report by what explains them: those of one cause together, and those that nothing explains.

Each failure was looked into on its own evidence, and has the names that this evidence allows for: diagnoses, and what
answers alike. A cause is a name that several failures have; so nothing is said of a failure that its own evidence does
not bear out. Of all the ways in which names can be dealt out, the one with few causes is taken: the name that most
failures have comes first, then the one that most of the others have. An adapter that raised names its cause itself.

Names that differ are one cause where they re-enact one known bug in different methods. All of it follows from what is
stored in a report. Nothing here imports torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rlhf_conformance.results import ERROR, FAIL, NAMED, Diagnosis, Report, Result, without_numbers

NO_CAUSE = ("device", "scope")
"""Kinds of diagnoses that say where something is wrong, and not what."""
RAISED = "error"
_LINE = re.compile(r"\((?P<file>\S+):\d+ in (?P<function>[^()]*)\)$")


@dataclass(frozen=True)
class Name:
    """What tells one cause from another: a fault or a convention by its name, anything else by its words."""

    kind: str
    text: str


@dataclass(frozen=True)
class Cause:
    """What is wrong, and which failures it explains.

    names       of the cause; several where one known bug shows in several methods
    title       what is wrong, in words
    results     the failures, in the order of the report
    also        what else these are called by their own evidence, with how many of them are
    doubtful    slugs of those that another cause of the report would explain as well
    """

    names: tuple[Name, ...]
    title: str
    results: tuple[Result, ...]
    also: tuple[tuple[str, int], ...] = ()
    doubtful: tuple[str, ...] = ()

    @property
    def slugs(self) -> tuple[str, ...]:
        return tuple(result.clause for result in self.results)

    @property
    def methods(self) -> tuple[str, ...]:
        """Those whose answers are wrong, as far as they are on record."""
        return _methods(self.results)

    @property
    def clearest(self) -> Result:
        """The failure to be shown: the one with the smallest case."""
        return min(self.results, key=lambda result: (result.level != "MUST", len(_case(result))))

    @property
    def diagnosis(self) -> Diagnosis | None:
        """Of the clearest failure, what gives it this name; None where an error does."""
        return next((d for d in _diagnoses(self.clearest) if name_of(d) in self.names), None)


@dataclass(frozen=True)
class Causes:
    """All failures of a report: what has a cause, the causes of the most first, and what has none."""

    found: tuple[Cause, ...] = ()
    unexplained: tuple[Result, ...] = ()

    @property
    def clearest(self) -> tuple[str, ...]:
        """The clauses that are shown for their causes."""
        return tuple(cause.clearest.clause for cause in self.found)

    @property
    def nameless(self) -> tuple[Result, ...]:
        """Those that have no cause, one of each method that is judged before the others of it."""
        first: dict[tuple[str, ...], Result] = {}
        for result in self.unexplained:
            first.setdefault(_methods([result]), result)
        return (*first.values(), *(r for r in self.unexplained if r not in first.values()))

    @property
    def explained(self) -> int:
        return sum(len(cause.results) for cause in self.found)

    @property
    def sentence(self) -> str:
        """ "2 causes explain 25 of 27 failures; 2 have no name yet"; empty where nothing failed."""
        rest, total = len(self.unexplained), self.explained + len(self.unexplained)
        if not total:
            return ""
        if not self.found:
            return f"{_count(total, 'failure')}, of which no cause is known"
        verb = "explains" if len(self.found) == 1 else "explain"
        said = f"{_count(len(self.found), 'cause')} {verb} "
        if not rest:
            return said + _count(total, "failure")
        return f"{said}{self.explained} of {_count(total, 'failure')}; the cause of {rest} more is not known"


def causes(report: Report) -> Causes:
    """The failures of a report by their causes."""
    failed = [result for result in report.results if result.verdict in (FAIL, ERROR)]
    named = {result.clause: names(result) for result in failed}
    chosen = _merged(_chosen(failed, named), named)
    found = [_cause(group, results, named, chosen) for group, results in chosen]
    left = tuple(result for result in failed if not named[result.clause])
    return Causes(tuple(sorted(found, key=lambda cause: -len(cause.results))), left)


# --- names ----------------------------------------------------------------------------------------------------------


def names(result: Result) -> dict[Name, str]:
    """What a failure may be called by its own evidence, the likeliest first, with what that means in words."""
    if result.verdict == ERROR:
        return {Name(RAISED, _where(result.reason)): result.reason}
    found: dict[Name, str] = {}
    for row in _diagnoses(result):
        name = name_of(row)
        if name is not None:
            found.setdefault(name, _words(row))
    for row in _diagnoses(result):
        for other in row.alike:
            found.setdefault(Name(NAMED[0], other), f"`{other}`")
    return found


def name_of(row: Diagnosis) -> Name | None:
    """The name that a diagnosis gives; None where it names no cause. One of an earlier version stands for itself."""
    if row.kind in NO_CAUSE:
        return None
    if row.kind in NAMED:
        return Name(NAMED[0], row.name)
    return Name(row.kind, row.cause or row.sentence)


def _words(row: Diagnosis) -> str:
    if row.kind not in NAMED:
        return row.cause or row.sentence
    label = f"`{row.name}`" if row.kind == "fault" else f"the convention {row.name}"
    return f"{label}: {row.cause}" if row.cause else label


def _where(reason: str) -> str:
    """An error without what differs from case to case: the place in the source stays, the method that led there not."""
    place = _LINE.search(reason)
    if place is None:
        return without_numbers(reason)
    said = reason[: place.start()]
    return f"{without_numbers(said.partition(' raised ')[2] or said).strip()} {place[0]}"


# --- which of them explain all --------------------------------------------------------------------------------------

Group = tuple[tuple[Name, ...], list[Result]]


def _chosen(failed: Sequence[Result], named: dict[str, dict[Name, str]]) -> list[Group]:
    """The name that most failures have with those failures, then that of most of the others, as long as there are."""
    left = [result for result in failed if named[result.clause]]
    groups: list[Group] = []
    while left:
        having: dict[Name, list[Result]] = {}
        for result in left:
            for name in named[result.clause]:
                having.setdefault(name, []).append(result)
        best = max(having, key=lambda name: (len(having[name]), -_rank(name, having[name], named)))
        groups.append(((best,), having[best]))
        left = [result for result in left if result not in having[best]]
    return groups


def _rank(name: Name, results: Iterable[Result], named: dict[str, dict[Name, str]]) -> int:
    """How far down it stands among the names of its failures, in all."""
    return sum(list(named[result.clause]).index(name) for result in results)


def _merged(groups: list[Group], named: dict[str, dict[Name, str]]) -> list[Group]:
    """Those of one known bug in different methods together."""
    found: list[Group] = []
    for names_here, results in groups:
        bug = _bug(names_here[0], results)
        for index, (others, more) in enumerate(found):
            apart = not set(_methods(results)) & set(_methods(more))
            if bug and apart and bug == _bug(others[0], more):
                found[index] = ((*others, *names_here), [*more, *results])
                break
        else:
            found.append((names_here, results))
    return found


def _bug(name: Name, results: Iterable[Result]) -> str:
    rows = (row for result in results for row in _diagnoses(result) if name_of(row) == name)
    return next((row.bug for row in rows if row.bug), "")


def _cause(
    group: tuple[Name, ...], results: list[Result], named: dict[str, dict[Name, str]], chosen: list[Group]
) -> Cause:
    ordered = tuple(sorted(results, key=lambda result: list(named).index(result.clause)))
    others = {name for other, _ in chosen for name in other} - set(group)
    said: dict[str, int] = {}
    for result in ordered:
        for name in named[result.clause]:
            if name.kind == NAMED[0] and name not in group and name not in others:
                said[name.text] = said.get(name.text, 0) + 1
    also = tuple(sorted(said.items(), key=lambda item: -item[1]))
    doubtful = tuple(result.clause for result in ordered if others & set(named[result.clause]))
    return Cause(group, _title(group, ordered, named), ordered, also, doubtful)


def _title(group: tuple[Name, ...], results: Sequence[Result], named: dict[str, dict[Name, str]]) -> str:
    """The words of each name, as the first failure that is called so has them."""
    words = []
    for name in group:
        meant = [named[result.clause][name] for result in results if name in named[result.clause]]
        words.append(max(meant, key=lambda text: (text != f"`{name.text}`", -meant.index(text))))
    return "; ".join(words)


# --- what is stored -------------------------------------------------------------------------------------------------


def _diagnoses(result: Result) -> tuple[Diagnosis, ...]:
    return result.failure.diagnoses if result.failure is not None else ()


def _case(result: Result) -> str:
    return result.failure.case if result.failure is not None else ""


def _methods(results: Iterable[Result]) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for result in results:
        if result.failure is not None and result.failure.exchange is not None:
            calls = result.failure.exchange.calls
            found |= dict.fromkeys(call.method for call in calls if call.role == "judged")
    return tuple(found)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
