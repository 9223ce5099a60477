"""False alarms: every twin against every clause that could see it, with one seed after the other, until enough examples
were tried.

    python -m tests.proof twins [--examples 200000] [--dtype float32 ...] [--profile smoke] [--missing] [TWIN ...]

writes docs/proof/twins.json: for each dtype and twin the seeds, the examples, the alarms, and for each clause the
largest error as a share of its budget. Every twin is tried with one seed; from then on those that are quick, which are
about formulas. With names, or with --missing, only those rows are made anew; with --profile smoke on fewer cases, which
the page then says.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rlhf_conformance.results import NOT_PROVIDED, PASS
from rlhf_conformance.twins import twins

from .files import MEASURED, by_line
from .trying import attempt, each, touched

ROWS = MEASURED / "twins.json"
FIRST_SEED = 1000
QUICK = 10.0
"""Seconds of a seed."""
Row = dict[str, Any]


def measure(name: str, dtype: str, seed: int, profile: str) -> Row:
    """One twin with one seed."""
    started, kind = time.perf_counter(), twins()[name]
    adapter = kind()
    results = [attempt(adapter, slug, dtype=dtype, seed=seed, profile=profile).result for slug in touched(kind)]
    wrong = [r for r in results if r.verdict not in (PASS, NOT_PROVIDED)]
    said = {r.clause: f"{r.verdict}: {r.reason} {r.failure.case if r.failure else ''}" for r in wrong}
    return {
        "twin": name,
        "profile": profile,
        "seeds": [seed],
        "examples": sum(r.examples for r in results),
        "alarms": [f"seed {seed}: {clause}: {what}" for clause, what in said.items()],
        "margins": {r.clause: float(f"{r.margin:.3g}") for r in results if r.margin is not None},
        "seconds": round(time.perf_counter() - started, 1),
    }


def together(before: Row, new: Row) -> Row:
    """What is known of a twin after one more seed."""
    margins = {clause: max(m, before["margins"].get(clause, 0.0)) for clause, m in new["margins"].items()}
    return {
        "twin": new["twin"],
        "profile": before["profile"],
        "seeds": before["seeds"] + new["seeds"],
        "examples": before["examples"] + new["examples"],
        "alarms": before["alarms"] + new["alarms"],
        "margins": {**before["margins"], **margins},
        "seconds": max(before["seconds"], new["seconds"]),
    }


def run(
    names: Iterable[str], dtypes: Sequence[str], *, examples: int, workers: int, missing: bool, profile: str = "gate"
) -> int:
    """Measure, write, and say what is wrong; the exit status."""
    for dtype in dtypes:
        known = read().get(dtype, {})
        chosen = list(names) or [name for name in twins() if not (missing and name in known)]
        rows = {name: row for name, row in known.items() if name in twins()}
        turn = 0
        while chosen and (turn == 0 or sum(row["examples"] for row in rows.values()) < examples):
            for new in each(measure, [(name, dtype, FIRST_SEED + turn, profile) for name in chosen], workers):
                name = new["twin"]
                rows[name] = together(rows[name], new) if turn else new
                print(f"{dtype} {name}: {rows[name]['examples']} examples", *new["alarms"], flush=True)
                write({**read(), dtype: dict(sorted(rows.items()))})
            chosen, turn = [name for name in chosen if rows[name]["seconds"] < QUICK], turn + 1
    wrong = complaints(read(), dtypes, examples)
    print("\n".join(wrong) or "no twin failed")
    return 1 if wrong else 0


def complaints(found: Mapping[str, Mapping[str, Row]], dtypes: Sequence[str], examples: int) -> list[str]:
    """What makes the session red."""
    said = []
    for dtype in dtypes:
        rows = found.get(dtype, {})
        said += [f"{dtype}: {name} was not tried: run with --missing" for name in twins() if name not in rows]
        said += [f"{dtype}: {name}, {alarm}" for name, row in rows.items() for alarm in row["alarms"]]
        said += [f"{dtype}: {name} was asked nothing" for name, row in rows.items() if not row["examples"]]
        total = sum(row["examples"] for row in rows.values())
        said += [f"{dtype}: {total} examples, fewer than {examples}"] * (total < examples)
    return said


def margins(rows: Mapping[str, Row]) -> dict[str, float]:
    """For each clause the largest error of any twin as a share of what is allowed."""
    found: dict[str, float] = {}
    for row in rows.values():
        for clause, margin in row["margins"].items():
            found[clause] = max(margin, found.get(clause, 0.0))
    return dict(sorted(found.items()))


def read() -> dict[str, dict[str, Row]]:
    return json.loads(ROWS.read_text()) if ROWS.exists() else {}


def write(found: Mapping[str, Mapping[str, Row]]) -> None:
    parts = [f"{json.dumps(dtype)}: {by_line(rows)}" for dtype, rows in found.items()]
    ROWS.write_text("{\n" + ",\n".join(parts) + "\n}\n")
