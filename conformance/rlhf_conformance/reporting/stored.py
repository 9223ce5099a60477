"""`report.json`: written whole, read back only if it is whole and as it was written."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import rlhf_spec.clauses
from rlhf_conformance.files import FileError, misfit, read_json
from rlhf_conformance.plain import PlainError
from rlhf_conformance.results import VERDICTS, Report, Result

SCHEMA = "rlhf-conformance/report/2"
FILE_NAME = "report.json"
SCHEMA_FILE = "report.schema.json"
Scripts = Mapping[str, str]
"""For clauses whose failure has one: a script that shows it without the suite."""


class ReportError(ValueError):
    """A file is not a whole report."""


def to_json(report: Report) -> dict[str, Any]:
    """The report as plain data: `docs/report.md` describes every field, `report.schema.json` holds their types.

    JSON has no NaN and no infinity: where an error or a margin is one, it is null.
    """
    data = _finite(_plain(report))
    footer = {"results": len(report.results), "complete": True, "sha256": checksum(data)}
    return {**data, "footer": footer}


def text(report: Report, scripts: Scripts) -> str:
    """The file."""
    return json.dumps(to_json(report), indent=1, allow_nan=False) + "\n"


def checksum(data: dict[str, Any]) -> str:
    """SHA-256 of a report without its footer, as JSON with sorted keys, no spaces, and nothing but ASCII."""
    rest = {key: value for key, value in data.items() if key != "footer"}
    canonical = json.dumps(rest, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(report: Report) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "subject": report.subject,
        "environment": report.environment,
        "run": report.run,
        "results": [
            {**result.to_json(), "sentence": rlhf_spec.clauses.clause(result.clause).sentence}
            for result in report.results
        ],
        "summary": {
            "verdict": report.verdict,
            "exit_status": report.exit_status,
            "counts": {verdict: report.count(verdict) for verdict in VERDICTS},
        },
    }


def read(path: Path) -> Report:
    """A report that was written by `write`. Raises ReportError where it is cut short, doubled or changed by hand."""
    data = _loaded(path)
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise ReportError(
            f"{path} is not a report of schema {SCHEMA}; one of another version is written anew by "
            "`rlhf-conformance check ADAPTER --report DIR`"
        )
    try:
        return _checked(data, path)
    except ReportError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, rlhf_spec.clauses.UnknownClause) as error:
        said = _misfit(data) or (str(error) if isinstance(error, PlainError) else repr(error))
        raise ReportError(f"{path} was changed by hand or written by another version: {said}") from error


def _loaded(path: Path) -> Any:
    try:
        return read_json(path)
    except FileError as error:
        raise ReportError(str(error)) from error


def _checked(data: dict[str, Any], path: Path) -> Report:
    rows = data["results"]
    footer = data.get("footer") or {}
    if (footer.get("results"), footer.get("complete")) != (len(rows), True):
        raise ReportError(f"{path} was cut short: {len(rows)} results, footer {data.get('footer')}")
    slugs = [row["clause"] for row in rows]
    if len(set(slugs)) != len(slugs):
        raise ReportError(f"{path} holds a clause twice")
    results = tuple(Result.from_json({k: v for k, v in row.items() if k != "sentence"}) for row in rows)
    unknown = {result.verdict for result in results} - set(VERDICTS)
    if unknown:
        raise ReportError(f"{path} holds unknown verdicts: {', '.join(sorted(map(str, unknown)))}")
    report = Report(results, data["subject"], data["environment"], data["run"], data["run"]["strict"])
    again = to_json(report)
    if again["summary"] != data["summary"]:
        raise ReportError(f"{path} has a summary that does not follow from its results")
    if footer.get("sha256") != checksum(data):
        raise ReportError(f"{path} was changed after it was written: its checksum is that of other contents")
    said = _misfit(data)
    if said:
        raise ReportError(f"{path} does not fit {SCHEMA_FILE}: {said}")
    if not _follows(_comparable(data), _comparable(again)):
        raise ReportError(f"{path} was changed by hand: its parts do not follow from each other")
    return report


def _misfit(data: dict[str, Any]) -> str:
    """The place at which a report fits the schema of this version least, and why; empty: it fits."""
    return misfit(data, SCHEMA_FILE)


def _follows(read: Any, again: Any) -> bool:
    """Whether all that was read is there when it is written again; an earlier version had fewer fields."""
    if isinstance(read, dict) and isinstance(again, dict):
        return set(read) <= set(again) and all(_follows(value, again[key]) for key, value in read.items())
    if isinstance(read, list) and isinstance(again, list):
        return len(read) == len(again) and all(map(_follows, read, again))
    return bool(read == again)


def _comparable(data: dict[str, Any]) -> dict[str, Any]:
    """Without the sentences of clauses, which another version may put in other words, and what follows from them."""
    rows = [{key: value for key, value in row.items() if key != "sentence"} for row in data["results"]]
    footer = {key: value for key, value in data["footer"].items() if key != "sha256"}
    return {**data, "results": rows, "footer": footer}
