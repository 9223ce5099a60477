"""The JSON report: written by `--report DIR`, read back with its shape checked."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import rlhf_spec.clauses
from rlhf_conformance.results import VERDICTS, Report, Result

SCHEMA = "rlhf-conformance/report/2"
FILE_NAME = "report.json"


class ReportError(ValueError):
    """A file is not a whole report."""


def to_json(report: Report) -> dict[str, Any]:
    """The report as plain data: `docs/report.md` describes every field, `report.schema.json` holds their types.

    JSON has no NaN and no infinity: where an error or a margin is one, it is null.
    """
    return _finite(_plain(report))


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
        "footer": {"results": len(report.results), "complete": True},
    }


def write(report: Report, folder: Path) -> Path:
    """Write `report.json` into `folder`, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE_NAME
    path.write_text(json.dumps(to_json(report), indent=1, allow_nan=False) + "\n")
    return path


def read(path: Path) -> Report:
    """A report that was written by `write`. Raises ReportError where it is cut short, doubled or changed by hand."""
    try:
        data = json.loads(path.read_text())
    except OSError as error:
        raise ReportError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:  # not JSON, or not UTF-8
        raise ReportError(f"{path} is not JSON, or not the whole of it: {error}") from error
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise ReportError(f"{path} is not a report of schema {SCHEMA}")
    try:
        return _checked(data, path)
    except (KeyError, TypeError, AttributeError, rlhf_spec.clauses.UnknownClause) as error:
        raise ReportError(f"{path} was changed by hand or written by another version: {error!r}") from error


def _checked(data: dict[str, Any], path: Path) -> Report:
    rows = data["results"]
    if data.get("footer") != {"results": len(rows), "complete": True}:
        raise ReportError(f"{path} was cut short: {len(rows)} results, footer {data.get('footer')}")
    slugs = [row["clause"] for row in rows]
    if len(set(slugs)) != len(slugs):
        raise ReportError(f"{path} holds a clause twice")
    results = tuple(Result.from_json({k: v for k, v in row.items() if k != "sentence"}) for row in rows)
    unknown = {result.verdict for result in results} - set(VERDICTS)
    if unknown:
        raise ReportError(f"{path} holds unknown verdicts: {', '.join(sorted(map(str, unknown)))}")
    report = Report(results, data["subject"], data["environment"], data["run"], data["run"]["strict"])
    if to_json(report)["summary"] != data["summary"]:
        raise ReportError(f"{path} has a summary that does not follow from its results")
    if to_json(report) != data:
        raise ReportError(f"{path} was changed by hand: its parts do not follow from each other")
    return report
