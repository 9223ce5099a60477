"""Where a failure that has no name shows, and where it does not: what differs, in which numbers, in which cases.

Each sentence is a fact about the cases that were tried, and is said of none but them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from rlhf_conformance.diagnosis.evidence import MORE_CASES, Evidence, Observed, within
from rlhf_conformance.judging.judge import Comparison
from rlhf_conformance.results import Diagnosis

DEAR = 4
"""Effort of a check above which no more cases are tried for this."""
FEWEST = 3
"""Cases that fail, and cases that do not, before it is said what parts them."""
FITTING = 2
"""Of more features that part them, none is said: that is a coincidence, or one thing in many words."""


def diagnoses(evidence: Evidence) -> tuple[Diagnosis, ...]:
    """What parts that which is wrong from that which is right; nothing where no line can be drawn."""
    again = evidence.tried(MORE_CASES, evidence.seed + 1) if evidence.check.effort <= DEAR else ()
    seen = [evidence.smallest, *evidence.more, *again]
    failing = [o for o in seen if o.failed]
    if len(failing) < 2 or not evidence.smallest.failed:
        return ()
    said = [*_quantities(failing), *_parameters(failing), *_numbers(failing), *_cases(seen)]
    compared = [c for o in failing for c in o.comparisons if c.question is not None]
    total = sum(len(c.actual) for c in compared)
    if not said and total > len(failing) and all(_off(c, i) for c in compared for i in range(len(c.actual))):
        said = ["every number that was compared in them differs"]
    if not said:
        return ()
    return (Diagnosis("scope", "scope", f"of {len(seen)} cases tried, {len(failing)} fail: {'; '.join(said)}"),)


# --- what differs ---------------------------------------------------------------------------------------------------


def _word(comparison: Comparison) -> str:
    question = comparison.question
    what = question.quantity if question is not None and question.quantity else comparison.what
    return re.sub(r"\d+", "#", what)


def _quantities(failing: list[Observed]) -> Iterator[str]:
    every = [c for o in failing for c in o.comparisons]
    wrong = list(dict.fromkeys(_word(c) for c in every if c.broken is not None))
    right = [w for w in dict.fromkeys(_word(c) for c in every) if w not in wrong]
    if wrong and right and not any(o.ended for o in failing) and len(wrong) <= FITTING:
        held = " or the ".join(right[:FITTING])
        yield f"what differs is the {' and the '.join(wrong)}, and not the {held}"


def _parameters(failing: list[Observed]) -> Iterator[str]:
    """Of which parameters the gradient differs, where it is judged for each by its worst entry."""
    every = [c for o in failing for c in o.comparisons if ", entry " in c.what]
    off = [c for c in every if c.broken is not None]
    broken = {_parameter(c) for c in off}
    held = {_parameter(c) for c in every} - broken
    zero = {_parameter(c) for c in off if not any(c.actual)} - {_parameter(c) for c in off if any(c.actual)}
    if broken and held:
        yield f"the gradient differs with respect to {_listed(broken)}, and is right with respect to {_listed(held)}"
    if zero:
        yield f"it is zero where it differs most, with respect to {_listed(zero)}"


def _parameter(comparison: Comparison) -> str:
    return comparison.what.split(" with respect to ")[-1].split(", entry")[0]


def _listed(names: set[str]) -> str:
    shown = sorted(names)[:3]
    return ", ".join(shown) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


# --- in which numbers -----------------------------------------------------------------------------------------------

Place = Callable[[Comparison, int], bool]


def _off(c: Comparison, i: int) -> bool:
    return not within(c.actual[i], c.expected[i], c.allowed[i])


def _last_of_row(c: Comparison, i: int) -> bool:
    index = c.indices[i]
    return i + 1 == len(c.indices) or c.indices[i + 1][:1] != index[:1] or len(index) != 2


def _mask_at(c: Comparison, i: int) -> float | None:
    about = c.answers[-1].about if c.answers else None
    mask, index = getattr(about, "action_mask", None), c.indices[i]
    try:
        return None if mask is None or len(index) != 2 else mask[index[0]][index[1]]
    except (IndexError, TypeError):
        return None


_PLACES: tuple[tuple[str, Place], ...] = (
    ("in the first of each row", lambda c, i: len(c.indices[i]) > 1 and c.indices[i][1] == 0),
    ("in the last of each row", lambda c, i: len(c.indices[i]) == 2 and _last_of_row(c, i)),
    ("behind the first of each row", lambda c, i: len(c.indices[i]) > 1 and c.indices[i][1] > 0),
    ("before the last of each row", lambda c, i: len(c.indices[i]) == 2 and not _last_of_row(c, i)),
    ("in row 0", lambda c, i: bool(c.indices[i]) and c.indices[i][0] == 0),
    ("in the last row", lambda c, i: bool(c.indices[i]) and c.indices[i][0] == c.indices[-1][0]),
    ("in rows behind row 0", lambda c, i: bool(c.indices[i]) and c.indices[i][0] > 0),
    ("under the mask", lambda c, i: _mask_at(c, i) == 0),
    ("at the actions", lambda c, i: _mask_at(c, i) == 1),
    ("where 0 is due", lambda c, i: c.expected[i] == 0),
    ("where something else than 0 is due", lambda c, i: c.expected[i] != 0),
    ("where a positive number is due", lambda c, i: c.expected[i] > 0),
    ("where a negative number is due", lambda c, i: c.expected[i] < 0),
)
_IMPLIED_BY = {
    "behind the first of each row": "in the last of each row",
    "before the last of each row": "in the first of each row",
    "in rows behind row 0": "in the last row",
}
"""What need not be said where this is."""
_CAME: tuple[tuple[str, Place], ...] = (
    ("0 came", lambda c, i: c.actual[i] == 0),
    ("NaN came", lambda c, i: math.isnan(c.actual[i])),
    ("an infinite number came", lambda c, i: math.isinf(c.actual[i])),
    ("what came has the other sign", lambda c, i: c.actual[i] * c.expected[i] < 0),
    ("what came has the right sign and is too small in size",
     lambda c, i: c.actual[i] * c.expected[i] > 0 and abs(c.actual[i]) < abs(c.expected[i])),
    ("what came has the right sign and is too large in size",
     lambda c, i: c.actual[i] * c.expected[i] > 0 and abs(c.actual[i]) > abs(c.expected[i])),
)  # fmt: skip


def _numbers(failing: list[Observed]) -> Iterator[str]:
    """Which numbers of the quantities that differ do, and which do not."""
    broken = [c for o in failing for c in o.broken]
    words = {_word(c) for c in broken}
    rows = [(c, i) for o in failing for c in o.comparisons if _word(c) in words for i in range(len(c.actual))]
    off = [row for row in rows if _off(*row)]
    if len(off) < FEWEST:
        return
    total = len(off)
    where = [
        text
        for text, place in _PLACES
        if all(place(*row) for row in off) and sum(place(*row) for row in rows) < len(rows)
    ]
    exactly = [t for t, place in _PLACES if t in where and sum(place(*row) for row in rows) == total]
    if exactly or where:
        chosen = [text for text in exactly or where if _IMPLIED_BY.get(text) not in where][:FITTING]
        place = " and ".join(chosen)
        yield f"the numbers {place} differ, all of them and no others" if exactly else f"all that differ are {place}"
    came = [text for text, place in _CAME if all(place(*row) for row in off)]
    if came:
        yield f"in each of the {total} numbers that differ {came[0]}"


# --- in which cases -------------------------------------------------------------------------------------------------


def _cases(seen: list[Observed]) -> Iterator[str]:
    """What the cases that fail have and the others have not."""
    failing, passing = [o for o in seen if o.failed], [o for o in seen if not o.failed]
    if min(len(failing), len(passing)) < FEWEST:
        return
    tables = [dict(_features(o.case)) for o in seen]
    names = list(dict.fromkeys(name for table in tables for name in table))
    found = [
        name for name in names if all(table.get(name, False) is o.failed for table, o in zip(tables, seen, strict=True))
    ]
    if 0 < len(found) <= FITTING:
        yield f"it fails in all {len(failing)} cases {' or '.join(found)}, and in none of the {len(passing)} others"


def _features(case: Any) -> Iterator[tuple[str, bool]]:
    """Words and whether they hold, of a case and of what it is made of."""
    if not is_dataclass(case) or isinstance(case, type):
        return
    for field in fields(case):
        name, value = field.name, getattr(case, field.name)
        if is_dataclass(value):
            yield from _features(value)
        elif name == "samples" and isinstance(value, tuple):
            yield from _of_samples(value)
        elif name.endswith("mask") and isinstance(value, tuple | list):
            yield from _of_mask(value)
        else:
            yield from _of_scalar(name, value)


def _of_scalar(name: str, value: Any) -> Iterator[tuple[str, bool]]:
    if value is None or isinstance(value, float | int):
        yield f"in which `{name}` is None", value is None
        yield f"in which `{name}` is not None", value is not None
    if isinstance(value, bool):
        yield f"in which `{name}` holds", value
        yield f"in which `{name}` does not hold", not value
    elif isinstance(value, float | int):
        for bound in (0, 1):
            yield f"in which `{name}` is above {bound}", value > bound
            yield f"in which `{name}` is below {bound}", value < bound
            yield f"in which `{name}` is {bound}", value == bound
            yield f"in which `{name}` is not {bound}", value != bound
    elif isinstance(value, str):
        yield f"in which `{name}` is {value!r}", True


def _of_mask(mask: Any) -> Iterator[tuple[str, bool]]:
    try:
        rows = [[int(x) for x in row] for row in mask]
    except (TypeError, ValueError):
        return
    counts = [sum(row) for row in rows]
    holes = any("101" in re.sub("0+", "0", "".join(map(str, row))) for row in rows)
    for text, holds in {
        "with holes in the mask": holes,
        "with a row of a single action": 1 in counts,
        "with a row without actions": 0 in counts,
        "with masked cells": any(count < len(row) for count, row in zip(counts, rows, strict=True)),
        "with rows that differ in their number of actions": len(set(counts)) > 1,
        "of several rows": len(rows) > 1,
        "of several columns": len(rows[0]) > 1 if rows else False,
    }.items():
        yield text, holds
        yield f"not {text}", not holds


def _of_samples(samples: Any) -> Iterator[tuple[str, bool]]:
    lengths = [len(s) for s in samples]
    responses = [len(getattr(s, "response", ())) for s in samples]
    for text, holds in {
        "of several samples": len(samples) > 1,
        "with samples that differ in length": len(set(lengths)) > 1,
        "with responses that differ in length": len(set(responses)) > 1,
        "with a response of a single token": 1 in responses,
    }.items():
        yield text, holds
        yield f"not {text}", not holds
