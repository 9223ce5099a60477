"""What the real trainers are found to do, in each documented mode: docs/proof/verdicts.json, with a date.

    PYTHONPATH=tests python -m proof.verdicts openrlhf [OPTION ...]

`nox -s trainers older` runs this in the trainer's environment. Its modes are judged side by side, with one worker each,
and their reports stand in reports/TRAINER/MODE. Red where a verdict is not the documented one. The counts of
docs/trainers.md are those of the file, and a test compares them. Options are those of `rlhf-conformance check`, as
`--only kl`; with them nothing is written.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from .files import DOCS, MEASURED, ROOT, by_line
from .trainers import asked, runs

FILE = MEASURED / "verdicts.json"
BESIDE = ("torch", "transformers", "peft", "hypothesis")
CONFORMANT = 0


def key(judged: str, mode: str) -> str:
    """A run, as the row of the file that holds it."""
    return f"{judged} -o {mode}" if mode else judged


def read() -> dict[str, Any]:
    return json.loads(FILE.read_text()) if FILE.exists() else {}


def reported(judged: str, mode: str) -> Path:
    """The folder of a run's report."""
    return ROOT / "reports" / judged / (mode or "default")


def command(judged: str, mode: str) -> list[str]:
    """How a run is judged: with what is documented of the mode, or of the default one where the mode has no file, and
    strictly, so that a new warning is a difference, too."""
    files = [DOCS / "known-failures" / f"{name}.toml" for name in (f"{judged}.{mode}", judged)]
    known = next((["--known-failures", str(file)] for file in files if file.exists()), [])
    chosen = [*(["-o", mode] if mode else []), *(f"--only={chapter}" for chapter in asked(judged, mode))]
    name = judged.partition("-")[0]
    options = ["--strict", "-n", "1", "--report", str(reported(judged, mode)), *chosen, *known]
    return [sys.executable, "-m", "rlhf_conformance", "check", name, *options]


def judge(judged: str, modes: Sequence[str], more: Sequence[str]) -> int:
    """Judge the modes, as many at once as there are cores, and print what each printed; the worst exit status."""

    def run(mode: str) -> subprocess.CompletedProcess[str]:
        line = [*command(judged, mode), *more]
        return subprocess.run(line, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)

    worst = CONFORMANT
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        for mode, done in zip(modes, pool.map(run, modes), strict=True):
            print(f"--- {key(judged, mode)}: exit status {done.returncode}\n{done.stdout}", flush=True)
            worst = max(worst, done.returncode, key=abs)
    return worst


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


def write(judged: str, modes: Sequence[str]) -> None:
    """The rows of a trainer, from the reports of its modes."""
    rows = read()
    for mode in modes:
        report = json.loads((reported(judged, mode) / "report.json").read_text())
        rows[key(judged, mode)] = found(report, importlib.metadata.version(report["subject"]["adapter"]))
    FILE.write_text(by_line({key(*run): rows[key(*run)] for run in runs() if key(*run) in rows}) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m proof.verdicts", description=__doc__)
    parser.add_argument("judged", help="a trainer, or an older one as openrlhf-0.9.10")
    parser.add_argument("more", nargs=argparse.REMAINDER, help="options of `rlhf-conformance check`")
    given = parser.parse_args()
    modes = [mode for name, mode in runs() if name == given.judged]
    status = judge(given.judged, modes, given.more)
    if status == CONFORMANT and not given.more:
        write(given.judged, modes)
    return status


if __name__ == "__main__":
    raise SystemExit(main())
