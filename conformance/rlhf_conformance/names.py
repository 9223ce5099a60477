"""What a name means that a document, a table or a report prints: for `rlhf-conformance explain NAME`.

A name may mean several things, a known bug and the fault that re-enacts it, for one. This module imports no torch.
"""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Callable, Iterable, Mapping
from functools import cache

import rlhf_spec.clauses
from rlhf_conformance.results import VERDICTS
from rlhf_spec.decisions import decisions


class UnknownName(LookupError):
    """Nothing has this name; the message names those that are near."""


def explained(name: str) -> str:
    """All that has this name, in words. Raises UnknownName."""
    wanted = _plain(name)
    found = [table[wanted] for table in (kind() for kind in _KINDS) if wanted in table]
    if not found:
        near = difflib.get_close_matches(wanted, dict.fromkeys(everything()), n=3, cutoff=0.6)
        hint = f" Did you mean {' or '.join(near)}?" if near else " `rlhf-conformance list` lists the clauses."
        said = f"there is no clause, chapter, decision, known bug, fault or convention {name!r}."
        raise UnknownName(said + hint)
    return "\n\n".join(text for text in found)


def everything() -> list[str]:
    """All names that can be explained."""
    return [name for kind in _KINDS for name in kind()]


def _plain(name: str) -> str:
    """A name without the quotes of a report, the address of a document or the prefix of a command."""
    return name.strip().strip("`").strip().rpartition("#")[2].removeprefix("fault:").removeprefix("twin:")


# --- of the specification -------------------------------------------------------------------------------------------


@cache
def _clauses() -> Mapping[str, str]:
    return {clause.slug: _clause(clause) for clause in rlhf_spec.clauses.clauses()}


def _clause(clause: rlhf_spec.clauses.Clause) -> str:
    lines = [f"{clause.slug} ({clause.level})", "", clause.sentence, "", f"formula:  {clause.formula}"]
    return "\n".join([*lines, f"why:      {clause.why}", f"stopped:  {', '.join(clause.bugs) or 'none known'}"])


@cache
def _chapters() -> Mapping[str, str]:
    return {
        chapter.slug: "\n\n".join([f"{chapter.slug} (chapter): {chapter.title}", chapter.introduction, _list(chapter)])
        for chapter in rlhf_spec.clauses.chapters()
    }


def _list(chapter: rlhf_spec.clauses.Chapter) -> str:
    return "\n".join(f"{clause.slug:<32} {clause.level:<11} {clause.sentence}" for clause in chapter.clauses)


@cache
def _decisions() -> Mapping[str, str]:
    return {name: f"{name} (decision)\n\n{text}" for name, text in decisions().items()}


@cache
def _bugs() -> Mapping[str, str]:
    """The known bugs: where each was seen, which clauses stop it, which faults re-enact it."""
    from rlhf_conformance.faults import faults

    seen: dict[str, dict[str, None]] = {}
    stopped: dict[str, list[str]] = {}
    for clause in rlhf_spec.clauses.clauses():
        for bug, evidence in zip(clause.bugs, clause.evidence, strict=True):
            seen.setdefault(bug, {})[evidence] = None
            stopped.setdefault(bug, []).append(clause.slug)
    found = {}
    for bug, places in seen.items():
        acted = [f"{fault.name}: {fault.lie}" for fault in faults().values() if fault.bug == bug]
        lines = [f"{bug} (known bug), seen in {'; '.join(places)}", "", f"stopped by:  {', '.join(stopped[bug])}"]
        found[bug] = "\n".join(lines + [f"fault:       {line}" for line in acted])
    return found


# --- of the suite ---------------------------------------------------------------------------------------------------


@cache
def _faults() -> Mapping[str, str]:
    from rlhf_conformance.faults import faults

    found = {}
    for fault in faults().values():
        lines = [f"{fault.name} (fault): {fault.lie}", "", f"caught by:  {fault.clause}"]
        lines += [f"known bug:  {fault.bug}"] * bool(fault.bug)
        found[fault.name] = "\n".join([*lines, f"try it:     rlhf-conformance check fault:{fault.name}"])
    return found


@cache
def _twins() -> Mapping[str, str]:
    from rlhf_conformance.twins import twins

    return {
        name: f"{name} (twin, which is honest and different): {' '.join((kind.__doc__ or '').split())}\n\n"
        f"try it:     rlhf-conformance check twin:{name}"
        for name, kind in twins().items()
    }


@cache
def _conventions() -> Mapping[str, str]:
    from rlhf_conformance.diagnosis.conventions import conventions

    said = "a trainer may follow it; an adapter whose trainer does has to declare it, see docs/writing-an-adapter.md"
    return {row.name: f"{row.name} (convention): {said}" for row in conventions()}


@cache
def _declarations() -> Mapping[str, str]:
    from rlhf_conformance.adapter import DECLARATIONS

    return {
        row.name: f"{row.name} (declaration of an adapter): {row.says}; {row.default!r} where nothing is declared"
        for row in DECLARATIONS.values()
    }


@cache
def _methods() -> Mapping[str, str]:
    from rlhf_conformance.adapter import METHODS

    return {
        name: f"{name}({', '.join(row.arguments)}) (method of an adapter)\n\n{_text(row.stub.__doc__)}".rstrip()
        for name, row in METHODS.items()
    }


def _text(doc: str | None) -> str:
    first, _, rest = (doc or "").partition("\n")
    return f"{first}\n{textwrap.dedent(rest)}".strip()


MEANINGS = {
    "pass": "enough cases were tried, in each of which numbers were compared, and all held",
    "fail": "the answer is not the right one",
    "error": "a method of the adapter raised, or returned something of the wrong kind or shape",
    "not-provided": "the adapter has no such method, or does not declare what the clause is about",
    "skip": "not tried, for the reason that is given",
    "known-failure": "it failed, as a row of the file of known failures says",
    "unexpected-pass": "it passed, although a row says that it fails: remove the row",
    "inconclusive": "too few valid cases: the clause was not put to the test",
    "lost": "the process died or hung while the clause was tried, or its judge was changed, or the run was ended "
    "before: by its budget, or by a signal",
}
LEVELS = {
    "MUST": "what no correct trainer breaks; a run in which it is broken is red",
    "SHOULD": "respected trainers do otherwise; broken it is a warning, and red with --strict",
    "CONVENTION": "trainers differ, and the adapter declares what its trainer does; what is declared has to hold",
}


def _verdicts() -> Mapping[str, str]:
    return {name: f"{name} (verdict): {MEANINGS[name]}" for name in VERDICTS}


def _levels() -> Mapping[str, str]:
    return {name: f"{name} (level of a clause): {text}" for name, text in LEVELS.items()}


_KINDS: Iterable[Callable[[], Mapping[str, str]]] = (
    *(_clauses, _chapters, _decisions, _bugs, _faults, _conventions, _declarations, _methods),
    *(_twins, _verdicts, _levels),
)
