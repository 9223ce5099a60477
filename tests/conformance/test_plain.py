"""Dataclasses as plain data: what is written is read again, and what does not fit is named."""

from __future__ import annotations

import datetime
import json
from dataclasses import dataclass
from typing import Any

import pytest

from rlhf_conformance.plain import PlainError, from_plain, to_plain


@dataclass(frozen=True)
class Inner:
    x: float
    day: datetime.date | None = None


@dataclass(frozen=True)
class Outer:
    name: str
    rows: tuple[tuple[Inner, ...], ...]
    inner: Inner | None = None
    anything: Any = None
    named: dict[str, Inner] | None = None


OUTER = Outer(
    "a", ((Inner(1.0), Inner(2, datetime.date(2030, 1, 2))), ()), Inner(0.5), [1, {"b": None}], {"k": Inner(3)}
)
DATA = {"name": "a", "rows": [[{"x": 1.0}]]}


def test_what_is_written_is_read_again():
    assert from_plain(Outer, json.loads(json.dumps(to_plain(OUTER)))) == OUTER


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rows": [[{"x": 1.0}, {"x": "1"}]]}, r"Outer.rows\[0\]\[1\].x = 1: wanted float"),
        ({"rows": [[{}]]}, r"Outer.rows\[0\]\[0\]: x missing"),
        ({"inner": {"x": True}}, r"Outer.inner.x = True: wanted float"),
        ({"inner": {"x": 1, "day": "soon"}}, r"Outer.inner.day = 'soon': wanted a day"),
        ({"inner": 3}, r"Outer.inner = 3: wanted Inner"),
        ({"name": None}, r"Outer.name = None: wanted str"),
        ({"named": {"k": {"x": None}}}, r"Outer.named\['k'\].x = None: wanted float"),
        ({"color": 1}, r"Outer: unknown color"),
    ],
)
def test_what_does_not_fit_is_named(change, says):
    with pytest.raises(PlainError, match=says):
        from_plain(Outer, {**DATA, **change})
