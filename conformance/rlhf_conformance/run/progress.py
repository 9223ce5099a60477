"""How far a run has come, and how long it may still take."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Standing:
    """A run that is under way.

    done, total     clauses
    running         the clauses that are being tried
    left            seconds until all have been tried, as it seems; None as long as nothing speaks for any number
    budget_left     seconds until the budget of the run is used up; None: it has none
    """

    done: int
    total: int
    running: tuple[str, ...] = ()
    left: float | None = None
    budget_left: float | None = None


def seconds_left(
    cases: Mapping[str, int],
    tried: Mapping[str, int],
    done: Iterable[str],
    seconds: float,
    workers: int,
    limit: float,
) -> float | None:
    """How long the other clauses will take if a case takes as long as it did so far, and no clause more than `limit`.

    cases       how many are tried of each clause that the adapter provides
    tried       how many have been, of clauses that are done and of those that run
    seconds     since the first clause was begun, with `workers` processes
    """
    known = sum(tried.values())
    if not known or seconds <= 0:
        return None
    each, finished = seconds * workers / known, set(done)
    open_ = (count - tried.get(slug, 0) for slug, count in cases.items() if slug not in finished)
    return sum(min(max(0, count) * each, limit) for count in open_) / workers


def in_words(seconds: float) -> str:
    """A time that is known roughly: "40 s", "3 min", "1 h 20 min"."""
    if seconds < 100:
        return f"{10 * max(1, round(seconds / 10))} s" if seconds >= 5 else "a few seconds"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
