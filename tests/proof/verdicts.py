"""What the real trainers were found to do, in each documented mode: docs/proof/verdicts.json, with a date.

    PYTHONPATH=tests python -m proof.verdicts openrlhf

`nox -s trainers older` runs this in the trainer's environment as soon as all of its modes have been judged, on their
reports in reports/TRAINER/MODE. The counts of docs/trainers.md are those of this file, and a test compares them.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
from collections.abc import Mapping
from typing import Any

from .files import MEASURED, ROOT, by_line
from .trainers import runs

FILE = MEASURED / "verdicts.json"
BESIDE = ("torch", "transformers", "peft", "hypothesis")


def key(judged: str, mode: str) -> str:
    """A run, as the row of the file that holds it."""
    return f"{judged} -o {mode}" if mode else judged


def read() -> dict[str, Any]:
    return json.loads(FILE.read_text()) if FILE.exists() else {}


def found(report: Mapping[str, Any], version: str) -> dict[str, Any]:
    """The row of a report: the day, versions, and the clauses of each verdict."""
    verdicts: dict[str, list[str]] = {}
    for result in report["results"]:
        verdicts.setdefault(result["verdict"], []).append(result["clause"])
    name, environment = report["subject"]["adapter"], report["environment"]
    return {
        "date": datetime.date.today().isoformat(),
        "versions": {name: version} | {package: environment[package] for package in BESIDE},
        "verdicts": verdicts,
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m proof.verdicts", description=__doc__)
    parser.add_argument("judged", help="a trainer, or an older one as openrlhf-0.9.10")
    judged = parser.parse_args().judged
    rows = read()
    for mode in (mode for name, mode in runs() if name == judged):
        report = json.loads(ROOT.joinpath("reports", judged, mode or "default", "report.json").read_text())
        rows[key(judged, mode)] = found(report, importlib.metadata.version(report["subject"]["adapter"]))
    FILE.write_text(by_line({key(*run): rows[key(*run)] for run in runs() if key(*run) in rows}) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
