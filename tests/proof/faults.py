"""The kill matrix: every fault against every clause that could see it, and its own clause again for many seeds.

    python -m tests.proof faults [--seeds 20] [--missing] [FAULT ...]

writes docs/proof/faults.json, from which docs/faults.md is made. Red where a fault survives, or its own clause misses
it, in any seed, or where a clause catches nothing. With names, or with --missing, only those rows are made anew.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping
from typing import Any

import rlhf_spec.clauses
from rlhf_conformance.faults import faults

from .files import MEASURED, by_line
from .trying import attempt, each, excess, is_odd, is_red, size_of, touched

ROWS = MEASURED / "faults.json"
Row = dict[str, Any]


def measure(name: str, seeds: int) -> tuple[str, Row]:
    """One fault: who catches it, the smallest case of its own clause, and how soon that clause finds it by seed."""
    fault = faults()[name]
    adapter = fault.adapter()
    tries = [attempt(adapter, slug) for slug in touched(fault.adapter) if slug != fault.clause]
    small = attempt(adapter, fault.clause, shrinking=None)
    found = [attempt(adapter, fault.clause, seed=seed) for seed in range(seeds)]
    samples, tokens = size_of(small.case) if small.case is not None else (0, 0)
    excesses = [by for by in map(excess, found) if by is not None]
    return name, {
        "clause": fault.clause,
        "killed_by": sorted(t.result.clause for t in (small, *tries) if is_red(t)),
        "odd": sorted(f"{t.result.clause}: {t.result.verdict}" for t in tries if is_odd(t)),
        "case": small.result.failure.case if small.result.failure else "",
        "samples": samples,
        "tokens": tokens,
        "found_after": [t.found_after if is_red(t) else None for t in found],
        "seconds": round(statistics.median(t.result.seconds for t in found), 2),
        "excess": _short(min(excesses)) if excesses else None,
    }


def _short(value: float) -> float | None:
    return float(f"{value:.3g}") if math.isfinite(value) else None


def run(names: Iterable[str], *, seeds: int, workers: int, missing: bool) -> int:
    """Measure, write, and say what is wrong; the exit status."""
    known = read()
    chosen = list(names) or [name for name in faults() if not (missing and name in known)]
    unknown = set(chosen) - set(faults())
    if unknown:
        raise SystemExit(f"no such fault: {', '.join(sorted(unknown))}")
    rows = {name: row for name, row in known.items() if name in faults()}
    for i, (name, row) in enumerate(each(measure, [(name, seeds) for name in chosen], workers), 1):
        rows[name] = row
        missed = row["found_after"].count(None)
        print(
            f"{i}/{len(chosen)} {name}: {len(row['killed_by'])} clauses, missed by {missed} of {seeds} seeds",
            flush=True,
        )
        write(rows)
    wrong = complaints(rows)
    print("\n".join(wrong) or f"{len(rows)} faults, each caught by its own clause in each of {seeds} seeds")
    return 1 if wrong else 0


def complaints(rows: Mapping[str, Row]) -> list[str]:
    """What makes the session red."""
    without = [name for name in faults() if name not in rows]
    said = [f"{len(without)} faults have no row, {without[0]} first: run with --missing"] if without else []
    for name, row in rows.items():
        if not row["killed_by"]:
            said.append(f"{name} survives")
        elif row["clause"] not in row["killed_by"]:
            said.append(f"{name} is not caught by {row['clause']}, only by {', '.join(row['killed_by'])}")
        missed = [seed for seed, found in enumerate(row["found_after"]) if found is None]
        if missed:
            said.append(f"{name} is missed by {row['clause']} with the seeds {missed}")
        said += [f"{name}: {what}" for what in row["odd"]]
    killers = {slug for row in rows.values() for slug in row["killed_by"]}
    said += [f"{clause.slug} catches nothing" for clause in rlhf_spec.clauses.clauses() if clause.slug not in killers]
    return said


def read() -> dict[str, Row]:
    return json.loads(ROWS.read_text()) if ROWS.exists() else {}


def write(rows: Mapping[str, Row]) -> None:
    ROWS.write_text(by_line(dict(sorted(rows.items()))) + "\n")
