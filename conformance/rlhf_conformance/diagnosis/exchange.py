"""What went to the adapter before the comparison that broke a clause, and the numbers that were compared."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from rlhf_conformance._lazy import torch
from rlhf_conformance.adapter import METHODS
from rlhf_conformance.judging import storing
from rlhf_conformance.judging.checks import Check
from rlhf_conformance.judging.isolation import AdapterError
from rlhf_conformance.judging.judge import ClauseFailure, Comparison, Judge
from rlhf_conformance.judging.questions import Call as Asked
from rlhf_conformance.judging.subject import Subject
from rlhf_conformance.judging.wiring import WiringError
from rlhf_conformance.oracle.batch import HANDED
from rlhf_conformance.oracle.probes import Checkpoint
from rlhf_conformance.results import Call, Exchange, Failure, Number

NUMBERS = 256
"""The most numbers of a comparison that are kept."""
JUDGED, EXPECTED, PREPARED = "judged", "expected", "prepared"
_WITHHELD = ("path", "device", "starts")
"""Fields that say something of this machine, or nothing to a trainer."""


def exchange(check: Check, subject: Subject, case: Any, failure: Failure) -> Exchange:
    """Try the case once more, listening to what the adapter is given."""
    prepared: list[Call] = []

    def heard(method: str, given: tuple[Any, ...]) -> None:
        if METHODS[method].prepares:
            prepared.append(_call(method, given, {}, PREPARED))

    judge = Judge(record=[])
    subject.forget_models()  # so that loading them is heard
    subject.heard = heard
    try:
        with contextlib.suppress(ClauseFailure, AdapterError, WiringError):
            judge.try_case(check, subject, case)
    finally:
        subject.heard = None
    broken = next((c for c in judge.record or () if c.broken is not None and c.what == failure.what), None)
    if broken is None:
        asked = [call for call in judge.calls if not METHODS[call.method].prepares][-1:]
        return Exchange((*prepared, *(_asked(call, JUDGED) for call in asked)))
    return _exchange(prepared, judge.calls, broken)


def _exchange(prepared: list[Call], made: list[Asked], broken: Comparison) -> Exchange:
    question = broken.question
    assert question is not None
    roles = {a.call: EXPECTED for a in broken.against} | {a.call: JUDGED for a in broken.answers}
    calls = [_asked(call, roles[call]) for call in made if call in roles]
    numbers, total = _numbers(broken)
    formula = question.formula
    return Exchange(
        (*prepared, *calls),
        numbers,
        total,
        reading=question.reading.source,
        of_formula=question.reading.of_formulas,
        wanted=question.reading.wanted,
        formula=formula.function if formula is not None else "",
        options={name: storing.to_json(value) for name, value in (formula.options if formula else {}).items()},
        beside={name: storing.to_json(value) for name, value in question.beside.items()},
        leaf=question.reading.leaf,
    )


def _numbers(comparison: Comparison) -> tuple[tuple[Number, ...], int]:
    rows = list(zip(comparison.indices, comparison.expected, comparison.actual, comparison.allowed, strict=True))
    chosen = list(range(len(rows)))
    if len(rows) > NUMBERS:  # those that differ come first
        chosen = sorted(sorted(chosen, key=lambda i: _agrees(*rows[i][1:]))[:NUMBERS])
    return tuple(_number(i, comparison, *rows[i]) for i in chosen), len(rows)


def _agrees(expected: float, actual: float, allowed: float) -> bool:
    return expected == actual or abs(expected - actual) <= allowed


def _number(
    offset: int, comparison: Comparison, index: tuple[int, ...], expected: float, actual: float, allowed: float
) -> Number:
    place = comparison.place(index) or comparison.what
    return Number(offset, place, repr(expected), repr(actual), repr(allowed))


def _asked(call: Asked, role: str) -> Call:
    return _call(call.method, call.given, call.recipes(), role)


def _call(method: str, given: Iterable[Any], recipes: Mapping[str, str], role: str) -> Call:
    plain = {
        name: _plain(value, recipes.get(name)) for name, value in zip(METHODS[method].arguments, given, strict=False)
    }
    return Call(method, {name: value for name, value in plain.items() if value is not _NOT_DATA}, role)


_NOT_DATA = object()


def _plain(value: Any, recipe: str | None = None) -> Any:
    """An argument as plain data; a model or a folder is none. Of a tensor with a recipe, that in place of numbers."""
    if isinstance(value, torch.Tensor):
        kept = {"dtype": str(value.dtype).removeprefix("torch."), "shape": list(value.shape)}
        if recipe is not None:
            return {"made": recipe, **kept}
        return {"tensor": storing.to_json(value.detach().cpu().tolist()), **kept}
    if isinstance(value, (*HANDED, Checkpoint)):
        named = {f.name: _plain(getattr(value, f.name)) for f in fields(value) if f.name not in _WITHHELD}
        return {storing.TYPE: type(value).__name__, **named}
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str) or type(value).__name__ in storing.kinds():
        return storing.to_json(value)
    return _NOT_DATA
