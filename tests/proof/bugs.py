"""What is said of bugs that nobody planted with a diagnosis in mind: those of `fresh_bugs`, which were written by
somebody who had not read the fault library.

    python -m tests.proof bugs [--missing] [BUG ...]

writes docs/proof/bugs.json, from which docs/fresh-bugs.md is made: for each bug the first clause that fails, and all
that is said beside that failure. Whether it is true is judged by a reader (`judged`: "cause", "place", "nothing" or
"false", and `why`), and stays with a row for as long as what is said stays the same.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import rlhf_spec.clauses
from rlhf_conformance.diagnosis.looking import diagnosed

from .files import MEASURED, by_line, table
from .fresh_bugs import BUGS
from .trying import _subject, attempt_on, each, is_red

ROWS = MEASURED / "bugs.json"
Row = dict[str, Any]
CAUSE, PLACE, NOTHING, FALSE = "cause", "place", "nothing", "false"
TRUE = (CAUSE, PLACE)
TARGET = 0.8


def everyone() -> dict[str, Any]:
    """The bugs by name."""
    return {bug.name: bug for bug in BUGS}


def measure(name: str) -> tuple[str, Row]:
    """One bug at the first clause that it fails, of those in its chapters."""
    bug = everyone()[name]
    slugs = [clause.slug for clause in rlhf_spec.clauses.clauses() if clause.slug.startswith(bug.chapters)]
    for slug in slugs:
        subject = _subject(_as_written(bug.adapter()), "float32")
        tried = attempt_on(subject, slug)
        if not is_red(tried):
            continue
        started = time.process_time()
        result = diagnosed(tried.result, tried.case, subject, 0)
        failure = result.failure
        said = [f"{row.kind}: {row.sentence}" for row in failure.diagnoses] if failure else []
        return name, {
            "clause": slug,
            "failure": failure.sentence if failure else result.reason,
            "said": said + ([f"note: {failure.note}"] if failure and failure.note else []),
            "seconds": round(time.process_time() - started, 1),
        }
    return name, {"clause": None, "failure": "", "said": [], "seconds": 0.0}


def _as_written(adapter: Any) -> Any:
    """With the surrogates and aggregations that there were when the bugs were written."""
    adapter.surrogates, adapter.constant_length, adapter.token_sum = ("ppo",), False, False
    return adapter


def run(names: Iterable[str], *, workers: int, missing: bool) -> int:
    """Measure, write, and say how it stands; the exit status."""
    rows = {name: row for name, row in read().items() if name in everyone()}
    chosen = list(names) or [name for name in everyone() if not (missing and name in rows)]
    for i, (name, row) in enumerate(each(measure, [(name,) for name in chosen], workers), 1):
        before = rows.get(name, {})
        if all(before.get(key) == row[key] for key in ("clause", "failure", "said")):
            row |= {key: before[key] for key in ("judged", "why") if key in before}
        rows[name] = row
        write(rows)
        print(f"{i}/{len(chosen)} {name}: {row['clause']}: {len(row['said'])} sentences", flush=True)
    wrong = complaints(rows)
    print("\n".join(wrong) or summary(rows))
    return 1 if wrong else 0


def complaints(rows: Mapping[str, Row]) -> list[str]:
    """What makes the session red."""
    caught = {name: row for name, row in rows.items() if row["clause"]}
    said = [f"{name} has no row" for name in everyone() if name not in rows]
    said += [f"{name} was not read yet" for name, row in caught.items() if "judged" not in row]
    said += [
        f"{name}: what is said is false: {row['why']}" for name, row in caught.items() if row.get("judged") == FALSE
    ]
    share = sum(row.get("judged") in TRUE for row in caught.values()) / max(1, len(caught))
    if share < TARGET:
        said.append(f"{share:.0%} have a true cause or place, not {TARGET:.0%}")
    return said


def summary(rows: Mapping[str, Row]) -> str:
    caught = [row for row in rows.values() if row["clause"]]
    counts = Counter(row.get("judged", "not read") for row in caught)
    return f"{len(caught)} of {len(rows)} bugs are caught: " + ", ".join(f"{what} {n}" for what, n in counts.items())


def read() -> dict[str, Row]:
    return json.loads(ROWS.read_text()) if ROWS.exists() else {}


def write(rows: Mapping[str, Row]) -> None:
    ROWS.write_text(by_line({name: rows[name] for name in everyone() if name in rows}) + "\n")


INTRODUCTION = """\
These bugs were written by somebody who knew the interface and the specification, and had not read the library of
faults. What is said at the first clause that fails was then read beside the true cause: *cause* or *place* where it is
true and leads there, *nothing* where what is said does not lead there or nothing is said, *false* where a sentence is
not so. In a few rows the place is named by the failure itself: the row says how.

Made by `nox -s bugs`. The bugs are in `tests/proof/fresh_bugs.py`, the rows in
`docs/proof/bugs.json`."""


def page() -> str:
    """docs/fresh-bugs.md."""
    rows, bugs = read(), everyone()
    lines = [
        (
            f"`{name}`",
            bugs[name].cause,
            f"`{row['clause']}`" if row["clause"] else "not caught",
            "<br>".join(row["said"]),
            ": ".join(row[key] for key in ("judged", "why") if row.get(key)),
        )
        for name, row in rows.items()
        if name in bugs
    ]
    parts = [
        "# Fresh bugs",
        INTRODUCTION,
        summary(rows) + ".",
        table(("bug", "cause", "clause", "said", "read as"), lines),
    ]
    return "\n\n".join(parts) + "\n"
