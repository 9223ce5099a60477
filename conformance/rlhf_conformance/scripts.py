"""A failure as a script that shows it without the suite."""

from __future__ import annotations

from rlhf_conformance.results import Report, Result


def script(result: Result, report: Report) -> str | None:
    """The script of a failure, None where there is none."""
    return None
