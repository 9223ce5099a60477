"""GitHub Actions: the summary of the step, and an annotation for each failure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from rlhf_conformance.reporting import markdown, parts
from rlhf_conformance.reporting.causes import Cause, causes
from rlhf_conformance.results import Report, Result

Row = tuple[Result, tuple[str, ...], "Cause | None"]
"""The failure that is shown, all clauses that it is shown for, and their cause."""
MOST = 10
"""GitHub shows so many annotations of one level of a step, and drops the others."""


def summarize(report: Report, environ: Mapping[str, str]) -> str:
    """Add the summary of the step. A sentence where its file cannot be written; else empty."""
    path = environ.get("GITHUB_STEP_SUMMARY")
    if not path:
        return ""
    try:
        with Path(path).open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(markdown.summary(report, {}) + "\n")
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        return (
            f"the run is {report.verdict}, but its summary cannot be written to {path}: {why}; let GITHUB_STEP_SUMMARY "
            "name a file in a folder that can be written, or unset it"
        )
    return ""


def annotate(report: Report, environ: Mapping[str, str], say: Callable[[str], None] = print) -> None:
    """Say a workflow command for each failure."""
    if environ.get("GITHUB_ACTIONS") == "true":
        for text in told(report):
            say(text)


def told(report: Report) -> list[str]:
    """One annotation for each cause, then one for each of the others; where they are too many, the last names the
    rest."""
    rows: list[Row] = [(cause.clearest, cause.slugs, cause) for cause in causes(report).found]
    with_cause = {slug for _, slugs, _ in rows for slug in slugs}
    rest = parts.shown(report.results)
    rows += [(result, (result.clause, *others), None) for result, others in rest if result.clause not in with_cause]
    said = [_annotation(*row, report) for row in rows[:MOST]]
    if len(rows) > MOST:
        left = [slug for _, slugs, _ in rows[MOST - 1 :] for slug in slugs]
        text = f"{len(left)} more did not hold: {', '.join(left)}. All of it is in the summary and in the report."
        said[MOST - 1] = f"::error title={_property(parts.subject_name(report))}::{_data(text)}"
    return said


def _annotation(result: Result, slugs: tuple[str, ...], cause: Cause | None, report: Report) -> str:
    """A workflow command: an error, or a warning where the run stays green."""
    hit = [report.result(slug) for slug in slugs]
    level = "warning" if all(parts.effect(r, report) == parts.WARNING for r in hit) else "error"
    title = f"{result.verdict} {result.clause} ({parts.subject_name(report)})"
    said = [result.reason]
    if cause is not None and len(slugs) > 1:
        title = f"1 cause, {len(slugs)} clauses ({parts.subject_name(report)})"
        said = [cause.title, f"{result.clause}: {result.reason}"]
    if result.failure is not None:
        said += [diagnosis.sentence for diagnosis in result.failure.diagnoses]
    others = [slug for slug in slugs if slug != result.clause]
    if others:
        said.append(f"The same for {len(others)} more: {', '.join(others)}")
    if report.command(result):
        said.append(report.command(result))
    return f"::{level} title={_property(title)}::{_data(chr(10).join(said))}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
