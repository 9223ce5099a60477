"""Stored cases: written beside a report, read back by `--replay`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import rlhf_spec.clauses
from rlhf_conformance.files import FileError, misfit, read_json, write_whole
from rlhf_conformance.reporting import stored

SCHEMA = "rlhf-conformance/case/1"
SCHEMA_FILE = "case.schema.json"
Cases = dict[str, Any]
"""Stored cases by the slug of the clause that they break."""


class ReplayError(ValueError):
    """A file holds no case that could be tried again."""


def write_case(clause: str, case: Any, path: Path) -> None:
    write_whole(path, json.dumps({"schema": SCHEMA, "clause": clause, "case": case}, indent=1) + "\n")


def read_cases(path: Path) -> Cases:
    """The cases of a report's failures, or the one of a file beside it. Raises ReplayError."""
    try:
        data = read_json(path)
    except FileError as error:
        raise ReplayError(str(error)) from error
    if isinstance(data, dict) and data.get("schema") == SCHEMA:
        said = misfit(data, SCHEMA_FILE)
        if said:
            raise ReplayError(f"{path} does not fit {SCHEMA_FILE}: {said}")
        return {_clause(data["clause"], path): data["case"]}
    try:
        report = stored.read(path)
    except stored.ReportError as error:
        raise ReplayError(str(error)) from error
    cases = {r.clause: r.failure.stored for r in report.results if r.failure and r.failure.stored is not None}
    if not cases:
        raise ReplayError(f"{path} holds no failure that could be replayed")
    return cases


def check_cases(cases: Cases, path: Path) -> None:
    """Raises ReplayError where a case is none that this version can try."""
    from rlhf_conformance.judging import storing

    for clause, case in cases.items():
        try:
            storing.from_json(case)
        except (storing.StoredCaseError, ValueError, TypeError, OverflowError, RecursionError) as error:
            raise ReplayError(f"{path}: the case of {clause} cannot be tried: {error}") from error


def _clause(slug: Any, path: Path) -> str:
    try:
        return rlhf_spec.clauses.clause(slug).slug
    except (rlhf_spec.clauses.UnknownClause, AttributeError) as error:
        raise ReplayError(f"{path}: {error}") from error
