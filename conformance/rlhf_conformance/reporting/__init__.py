"""Reports as files: `report.json`, which is read back, and what is made of it for people and for other programs.

Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import rlhf_spec.clauses
from rlhf_conformance.escaping import printable
from rlhf_conformance.files import write_whole
from rlhf_conformance.reporting import replaying
from rlhf_conformance.reporting.stored import FILE_NAME, SCHEMA, ReportError, Scripts, read, to_json
from rlhf_conformance.results import Report, Result

Writer = Callable[[Report, Scripts], str]


def writers() -> dict[str, Writer]:
    """The files of a report, by name."""
    from rlhf_conformance.reporting import junit, markdown, page, stored

    return {
        FILE_NAME: stored.text,
        "report.html": page.text,
        "junit.xml": junit.text,
        "summary.md": markdown.summary,
    }


def placed(report: Report, folder: Path) -> Report:
    """The report as it will be in `folder`, so that its commands replay what is stored there."""
    return replace(report, run={**report.run, "report": str(folder / FILE_NAME)})


def write(report: Report, folder: Path) -> Path:
    """Write all files of the report into `folder`, which is made if need be; the path of `report.json`.

    Each failing case goes to `cases/CLAUSE.json`, and to `scripts/CLAUSE.py` as a script that needs no suite. Those of
    an earlier report in the same folder are taken away.
    """
    _clear(folder)
    scripts = _scripts(report)
    for result in report.results:
        if result.failure is not None and result.failure.stored is not None:
            replaying.write_case(result.clause, result.failure.stored, folder / "cases" / f"{result.clause}.json")
    for slug, script in scripts.items():
        _write(folder / "scripts" / f"{slug}.py", script)
    for name, writer in writers().items():
        _write(folder / name, writer(report, scripts))
    return folder / FILE_NAME


def _write(path: Path, text: str) -> None:
    write_whole(path, "".join(c if c in "\n\t" or c >= " " else printable(c) for c in text))


def _clear(folder: Path) -> None:
    for clause in rlhf_spec.clauses.clauses():
        (folder / "cases" / f"{clause.slug}.json").unlink(missing_ok=True)
        (folder / "scripts" / f"{clause.slug}.py").unlink(missing_ok=True)


def _scripts(report: Report) -> dict[str, str]:
    found = {result.clause: _script(result, report) for result in report.results if result.failure is not None}
    return {slug: script for slug, script in found.items() if script}


def _script(result: Result, report: Report) -> str | None:
    """Whatever goes wrong here, the report itself is written."""
    from rlhf_conformance.reporting import scripts

    try:
        return scripts.script(result, report)
    except Exception as error:
        return f"# This script could not be written, please report it: {type(error).__name__}: {error!r}\n"


__all__ = ["FILE_NAME", "SCHEMA", "ReportError", "Scripts", "placed", "read", "to_json", "write", "writers"]
