"""Comparisons: what was expected, what came, where, and whether the difference is within its budget.

A check calls the judge; the judge raises `ClauseFailure` at the first comparison that does not hold and remembers how
near the others came (`margin`, observed error over budget).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from rlhf_conformance._lazy import torch

Place = Callable[[tuple[int, ...]], str]


@dataclass(frozen=True)
class Mismatch:
    """One difference: the quantity, where it is, what it should be and what it is."""

    what: str
    place: str
    expected: str
    actual: str
    error: float | None = None
    budget: float | None = None
    count: str = ""
    note: str = ""


class ClauseFailure(AssertionError):
    """The adapter's answer breaks the clause."""

    def __init__(self, mismatch: Mismatch) -> None:
        where = f" at {mismatch.place}" if mismatch.place else ""
        super().__init__(f"{mismatch.what}{where}: expected {mismatch.expected}, got {mismatch.actual}")
        self.mismatch = mismatch


def sample_action(index: tuple[int, ...]) -> str:
    """(1, 2) -> "sample 1, action 2"."""
    return ", ".join(f"{name} {i}" for name, i in zip(("sample", "action"), index, strict=False))


def sample_position(index: tuple[int, ...]) -> str:
    return ", ".join(f"{name} {i}" for name, i in zip(("sample", "position", "entry"), index, strict=False))


def pack_position(index: tuple[int, ...]) -> str:
    return f"position {index[0]} of the pack" if index else ""


def row_column(index: tuple[int, ...]) -> str:
    return ", ".join(f"{name} {i}" for name, i in zip(("row", "column", "entry"), index, strict=False))


@dataclass(frozen=True)
class Comparison:
    """All numbers that were compared at once.

    indices     of each number; what `place` makes words of
    broken      the first difference that was too large, None where all held
    """

    what: str
    indices: tuple[tuple[int, ...], ...]
    actual: tuple[float, ...]
    expected: tuple[float, ...]
    allowed: tuple[float, ...]
    place: Place
    broken: Mismatch | None = None


@dataclass
class Judge:
    """Collects the margin of a check and raises on the first broken comparison.

    With a `record` every comparison is kept in it, and numbers that differ raise nothing: so that all of what a case
    shows can be seen at once.
    """

    margin: float | None = None
    comparisons: int = 0
    record: list[Comparison] | None = None

    def close(
        self,
        actual: Any,
        expected: Any,
        budget: Any,
        *,
        what: str,
        place: Place = row_column,
        note: str | Callable[[], str] = "",
    ) -> None:
        """Every number of `actual` within `budget` of `expected`. A note that takes work is a function.

        All three are numbers, tensors or (ragged) nested lists of them; a budget may be one number for all, or one
        number for each sample. NaN and infinity are only close to themselves.
        """
        got, want = _leaves(actual), _leaves(expected)
        if [i for i, _ in got] != [i for i, _ in want]:
            self.fail(what, expected=f"{len(want)} numbers", actual=f"{len(got)} numbers", note=_said(note))
        bad: list[Mismatch] = []
        self.comparisons += len(want)
        budgets = [_budget_at(budget, index) for index, _ in got]
        for (index, a), (_, e), allowed in zip(got, want, budgets, strict=True):
            if a == e or (math.isnan(a) and math.isnan(e)):
                error = 0.0
            else:
                error = abs(a - e)
            ratio = error / allowed if allowed > 0 else (0.0 if error == 0 else math.inf)
            if not ratio <= 1.0:
                bad.append(Mismatch(what, place(index), _show(e), _show(a), error, allowed))
            elif self.margin is None or ratio > self.margin:
                self.margin = ratio
        first = _with_count(replace(bad[0], note=_said(note)), len(bad), len(want)) if bad else None
        if self.record is not None:
            places, wanted = tuple(i for i, _ in want), tuple(x for _, x in want)
            came = tuple(x for _, x in got)
            self.record.append(Comparison(what, places, came, wanted, tuple(budgets), place, first))
        elif first is not None:
            raise ClauseFailure(first)

    def equal(self, actual: Any, expected: Any, *, what: str, place: Place = row_column, note: str = "") -> None:
        """Every number of `actual` exactly `expected`."""
        self.close(actual, expected, 0.0, what=what, place=place, note=note)

    def that(self, condition: bool, what: str, *, expected: str, actual: str, place: str = "", note: str = "") -> None:
        """A plain fact."""
        self.comparisons += 1
        if not condition:
            self.fail(what, expected=expected, actual=actual, place=place, note=note)

    def fail(self, what: str, *, expected: str, actual: str, place: str = "", note: str = "") -> None:
        raise ClauseFailure(Mismatch(what, place, expected, actual, note=note))


def _said(note: str | Callable[[], str]) -> str:
    return note if isinstance(note, str) else note()


def _with_count(mismatch: Mismatch, bad: int, total: int) -> Mismatch:
    return replace(mismatch, count=f"{bad} of {total} numbers differ") if total > 1 else mismatch


def _leaves(value: Any) -> list[tuple[tuple[int, ...], float]]:
    """(index, number) for every number of a nested list, a list of tensors, a tensor or a number."""
    found: list[tuple[tuple[int, ...], float]] = []
    _gather(value, (), found)
    return found


def _gather(value: Any, index: tuple[int, ...], found: list[tuple[tuple[int, ...], float]]) -> None:
    if isinstance(value, torch.Tensor):
        value = value.detach().double().tolist() if value.dtype != torch.bool else value.long().tolist()
    if isinstance(value, list | tuple):
        for i, item in enumerate(value):
            if type(item) is float:
                found.append(((*index, i), item))
            else:
                _gather(item, (*index, i), found)
    else:
        found.append((index, float(value)))


def _budget_at(budget: Any, index: tuple[int, ...]) -> float:
    for i in index:
        if not isinstance(budget, list | tuple):
            break
        budget = budget[i]
    return float(budget)


def _show(value: float) -> str:
    return f"{value:.7g}"
