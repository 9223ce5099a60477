"""What all renderings of a report show, each in its own way."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import rlhf_spec.clauses
from rlhf_conformance.results import (
    ERROR,
    FAIL,
    INCONCLUSIVE,
    KNOWN_FAILURE,
    LOST,
    NOT_CONFORMANT,
    NOT_FINISHED,
    NOT_PROVIDED,
    PASS,
    SKIP,
    UNEXPECTED_PASS,
    Report,
    Result,
)
from rlhf_conformance.run.plan import over_budget

RED, INCOMPLETE, WARNING = "red", "incomplete", "warning"


@dataclass(frozen=True)
class Chapter:
    """The results of one chapter."""

    slug: str
    title: str
    results: tuple[Result, ...]

    def count(self, verdict: str) -> int:
        return sum(result.verdict == verdict for result in self.results)

    @property
    def margin(self) -> float | None:
        """The largest of its passes; None where none compared within a budget."""
        return largest_margin(self.results)


def chapters(report: Report) -> list[Chapter]:
    """The chapters of which the report has results, in the order of the specification."""
    found = [
        Chapter(chapter.slug, chapter.title, tuple(r for r in report.results if r.chapter == chapter.slug))
        for chapter in rlhf_spec.clauses.chapters()
    ]
    return [chapter for chapter in found if chapter.results]


def largest_margin(results: Iterable[Result]) -> float | None:
    return max((r.margin for r in results if r.verdict == PASS and r.margin is not None), default=None)


def worst(result: Result) -> float | None:
    """Error over budget: of the difference that broke a clause, else the largest that was seen; None for no number."""
    if result.verdict == PASS or result.failure is None:
        return result.margin
    error, budget = result.failure.error, result.failure.budget
    return error / budget if error is not None and math.isfinite(error) and budget else None


def effect(result: Result, report: Report) -> str:
    """What a result does to the run: "red", "incomplete", "warning", or nothing."""
    if result.verdict in NOT_FINISHED:
        return INCOMPLETE
    if result.verdict not in NOT_CONFORMANT:
        return ""
    return RED if report.strict or result.level != "SHOULD" else WARNING


def shown(results: Iterable[Result]) -> list[tuple[Result, list[str]]]:
    """What has to be shown in full: every failure, and errors and losses once for each cause, with the other clauses
    that it hit."""
    found: dict[str, tuple[Result, list[str]]] = {}
    for result in results:
        if result.verdict not in (FAIL, ERROR, UNEXPECTED_PASS, LOST, INCONCLUSIVE):
            continue
        key = result.clause if result.verdict in (FAIL, UNEXPECTED_PASS) else f"{result.verdict}: {result.reason}"
        if key in found:
            found[key][1].append(result.clause)
        else:
            found[key] = (result, [])
    return list(found.values())


def counts(report: Report) -> str:
    """ "12 of 19 clauses passed, 2 accepted as known failures, 5 not provided, 112 not asked": what stands behind the
    verdict, and what does not."""
    asked, known = len(report.results), report.count(KNOWN_FAILURE)
    said = [f"{report.count(PASS)} of {asked} clauses passed"]
    said += [f"{known} accepted as {'known failures' if known > 1 else 'a known failure'}"] * bool(known)
    said += [f"{report.count(NOT_PROVIDED)} not provided"]
    said += [f"{left_out(report)} not asked"] * (left_out(report) > 0)
    return ", ".join(said)


def left_out(report: Report) -> int:
    """How many clauses of the specification were not asked."""
    asked = len(report.results)
    return int(report.run.get("clauses", asked)) - asked


def headline(report: Report) -> str:
    """The verdict, and what was asked, accepted and left out."""
    return f"{report.verdict}: {counts(report)}"


def ended(report: Report) -> list[str]:
    """A sentence where the run was ended before its end: what ended it, and how many clauses have no verdict."""
    by, count = report.run.get("ended_by", ""), report.count(LOST)
    if not by:
        return []
    why = over_budget(report.run["budget"]) if by == "budget" else f"the run was ended by {by}"
    return [f"{why}: {count} of {len(report.results)} clauses were not tried to the end"]


def tested_nothing(report: Report) -> bool:
    return all(r.verdict in (NOT_PROVIDED, SKIP) for r in report.results)


def subject_name(report: Report) -> str:
    """The adapter with its modes."""
    options = "".join(f" {key}={spelled(value)}" for key, value in report.subject.get("options", {}).items())
    return f"{report.subject.get('name')}{options}"


def spelled(value: object) -> str:
    """A value as it is typed behind -o."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def facts(report: Report) -> list[tuple[str, str]]:
    """What was checked and with what, as (name, value)."""
    env, run = report.environment, report.run
    device = env.get("device", "")
    if env.get("device_name"):
        device += f" ({env['device_name']})"
    seconds = f"{run['seconds']:.1f} s, imports {run['import_seconds']:.1f} s of it"
    rows = [
        ("adapter", report.subject.get("adapter", "")),
        ("options", ", ".join(f"{k}={spelled(v)}" for k, v in report.subject.get("options", {}).items()) or "none"),
        ("provides", ", ".join(report.subject.get("provides", ())) or "unknown"),
        ("device", device),
        ("dtype", env.get("dtype", "")),
        ("profile", f"{run['profile']}, seed {run['seed']}" + (", strict" if report.strict else "")),
        ("only", ", ".join(run["only"])),
        ("replayed", ", ".join(run["replayed"])),
        ("took", f"{seconds}, {run['workers'] or 1} process{'es' if run['workers'] > 1 else ''}"),
    ]
    packages = ("rlhf-conformance", "torch", "transformers", "peft", "hypothesis", "python")
    versions = ", ".join(f"{name} {env[name]}" for name in packages if env.get(name))
    settings = ", ".join(
        f"{name.replace('_', ' ')} {'on' if env[name] else 'off'}"
        for name in ("tf32", "deterministic_algorithms")
        if name in env
    )
    rows += [("versions", versions), ("platform", str(env.get("platform", ""))), ("settings", settings)]
    return [(name, str(value)) for name, value in rows if value]
