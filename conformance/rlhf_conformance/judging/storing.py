"""Cases as JSON: what a report stores of a failure, and `--replay` tries again.

A class whose values may be stored is marked where it is defined, with `@stored`; what is read is checked against the
types of its fields. This module imports no torch.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, TypeVar

from rlhf_conformance import chapters
from rlhf_conformance.literals import NUMBER
from rlhf_conformance.plain import fits, hints, words

Kind = TypeVar("Kind", bound=type)
TYPE = "type"

_KINDS: dict[str, type] = {}
_FORMER: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {}


class StoredCaseError(ValueError):
    """Not a case that this version has stored."""


def stored(kind: Kind) -> Kind:
    """Let values of a frozen dataclass be stored, under the name of the class."""
    if _KINDS.setdefault(kind.__name__, kind).__module__ != kind.__module__:
        raise ValueError(f"two kinds of stored values are called {kind.__name__}")
    _KINDS[kind.__name__] = kind
    return kind


def formerly(name: str, renewed: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Read what an earlier version stored under another name: `renewed` makes today's plain data of it."""
    _FORMER[name] = renewed


@cache
def kinds() -> Mapping[str, type]:
    """All classes whose values may be stored, by name."""
    collections.deque(chapters.modules("checks"), maxlen=0)  # which import the cases that they draw
    return dict(_KINDS)


def to_json(value: Any) -> Any:
    """A case as plain data. JSON has no NaN and no infinity: they are written as {"float": "nan"}."""
    if dataclasses.is_dataclass(value) and type(value).__name__ in kinds():
        fields = {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {TYPE: type(value).__name__, **fields}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {NUMBER: str(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a case holds a {type(value).__name__}, which has no place in JSON")


def backbone(case: Any) -> str:
    """The architecture of the probe that a case is about, which may be a part of it; empty where there is none."""
    for name in ("probe", "case"):
        inner = getattr(case, name, None)
        if inner is not None:
            return str(getattr(inner, "architecture", "")) or backbone(inner)
    return str(getattr(case, "architecture", ""))


def from_json(data: Any) -> Any:
    """The case that `to_json` wrote. Raises StoredCaseError."""
    if isinstance(data, list):
        return tuple(from_json(item) for item in data)
    if not isinstance(data, dict):
        return data
    if set(data) == {NUMBER}:
        return _number(data[NUMBER])
    name = str(data.get(TYPE))
    if name not in kinds() and name in _FORMER:  # in this order: the chapters say what they had before
        data = _renewed(name, data)
        name = data[TYPE]
    if name not in kinds():
        raise StoredCaseError(
            f"there is no kind of case {name!r}: was it stored by another version? Check again, which stores it anew"
        )
    return _made(kinds()[name], {key: from_json(item) for key, item in data.items() if key != TYPE})


def _renewed(name: str, data: dict[str, Any]) -> dict[str, Any]:
    try:
        return _FORMER[name](data)
    except (KeyError, TypeError, AttributeError) as error:
        raise StoredCaseError(f"not a {name} of an earlier version: {error!r}") from error


def _number(text: Any) -> float:
    try:
        return float(text)
    except (TypeError, ValueError, OverflowError) as error:
        raise StoredCaseError(f"{text!r} is no number") from error


def _made(kind: type, fields: dict[str, Any]) -> Any:
    """An object of the class, whose fields are of the types that it declares."""
    declared = hints(kind)
    for name, value in fields.items():
        if name in declared and not fits(value, declared[name]):
            raise StoredCaseError(f"{kind.__name__}.{name} = {str(value)[:60]}: wanted {words(declared[name])}")
    try:
        return kind(**fields)
    except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
        raise StoredCaseError(f"not a {kind.__name__} of this version: {error}") from error
