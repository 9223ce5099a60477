"""False alarms: every twin against every clause that could see it, for many seeds, until enough examples were tried.

    python -m tests.proof twins [--examples 200000] [--dtype float32 ...]

writes docs/proof/twins.json: for each dtype the examples, the alarms, and for each clause the largest error of any
twin as a share of its budget.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from rlhf_conformance.results import NOT_PROVIDED, PASS
from rlhf_conformance.twins import twins

from .files import MEASURED
from .trying import attempt, each, touched

NUMBERS = MEASURED / "twins.json"


def measure(name: str, dtype: str, seed: int) -> dict[str, Any]:
    """One twin through the gate with one seed."""
    kind = twins()[name]
    adapter = kind()
    results = [attempt(adapter, slug, dtype=dtype, seed=seed).result for slug in touched(kind)]
    wrong = [r for r in results if r.verdict not in (PASS, NOT_PROVIDED)]
    return {
        "twin": name,
        "seed": seed,
        "dtype": dtype,
        "examples": sum(r.examples for r in results),
        "alarms": {r.clause: f"{r.verdict}: {r.reason} {r.failure.case if r.failure else ''}" for r in wrong},
        "margins": {r.clause: r.margin for r in results if r.margin is not None},
    }


def run(dtypes: Sequence[str], *, examples: int, workers: int, first_seed: int = 1000) -> int:
    """Rounds of all twins, each round with the next seed, until `examples` were tried in every dtype."""
    numbers = {}
    for dtype in dtypes:
        tried, rounds, alarms, margins = 0, 0, [], {}
        while tried < examples:
            tasks = [(name, dtype, first_seed + rounds) for name in twins()]
            for done in each(measure, tasks, workers):
                tried += done["examples"]
                alarms += [f"{done['twin']}, seed {done['seed']}: {c}: {said}" for c, said in done["alarms"].items()]
                for clause, margin in done["margins"].items():
                    margins[clause] = max(margin, margins.get(clause, 0.0))
                print(f"{dtype} {tried} examples, {len(alarms)} alarms; {done['twin']}", *done["alarms"], flush=True)
            rounds += 1
        numbers[dtype] = {
            "examples": tried,
            "twins": len(twins()),
            "rounds": rounds,
            "alarms": sorted(alarms),
            "margins": {clause: float(f"{margins[clause]:.3g}") for clause in sorted(margins)},
        }
        known = json.loads(NUMBERS.read_text()) if NUMBERS.exists() else {}
        NUMBERS.write_text(json.dumps({**known, dtype: numbers[dtype]}, indent=1) + "\n")
        largest = max(margins.values(), default=math.nan)
        print(f"{dtype}: {tried} examples in {rounds} rounds, {len(alarms)} alarms, largest margin {largest:.2f}")
    wrong = [alarm for dtype in dtypes for alarm in numbers[dtype]["alarms"]]
    print("\n".join(wrong) or "no twin failed")
    return 1 if wrong else 0
