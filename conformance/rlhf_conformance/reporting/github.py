"""GitHub Actions: the summary of the step, and an annotation for each failure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from rlhf_conformance.reporting import markdown, parts
from rlhf_conformance.results import Report, Result


def announce(report: Report, environ: Mapping[str, str], say: Callable[[str], None] = print) -> str:
    """Tell GitHub, where its variables say that it listens; what could not be written, as `summarize` says it."""
    unwritten = summarize(report, environ)
    annotate(report, environ, say)
    return unwritten


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
        for result, others in parts.shown(report.results):
            say(annotation(result, others, report))


def annotation(result: Result, others: list[str], report: Report) -> str:
    """A workflow command: an error, or a warning where the run stays green."""
    level = "warning" if parts.effect(result, report) == parts.WARNING else "error"
    title = f"{result.verdict} {result.clause} ({parts.subject_name(report)})"
    said = [result.reason]
    if result.failure is not None:
        said += [diagnosis.sentence for diagnosis in result.failure.diagnoses]
    if others:
        said.append(f"The same for {len(others)} more: {', '.join(others)}")
    if report.command(result):
        said.append(report.command(result))
    return f"::{level} title={_property(title)}::{_data(chr(10).join(said))}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
