"""Dataclasses as plain data and back: what JSON can hold, read by the types of the fields.

`to_plain` and `from_plain` are each other's inverse for frozen dataclasses whose fields are numbers, strings, dates,
`Any`, tuples, dictionaries and other such dataclasses. This module imports no torch.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import operator
import types
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

Kind = TypeVar("Kind")
_UNIONS = (Union, types.UnionType)


class PlainError(ValueError):
    """Data does not fit a dataclass; the message names the field."""


def to_plain(value: Any) -> Any:
    """A value as JSON holds it: dataclasses as objects, tuples as lists, days as "2030-12-31"."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return value.isoformat() if isinstance(value, datetime.date) else value


def from_plain(kind: type[Kind], data: Any) -> Kind:
    """The dataclass that `to_plain` wrote. A field that is missing has its default.

    Raises PlainError, which names the field, where one is missing, unknown or of another type.
    """
    return _read(kind, data, kind.__name__)  # type: ignore[no-any-return]


def _read(hint: Any, data: Any, where: str) -> Any:
    origin, inner = get_origin(hint), get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _object(hint, data, where)
    if origin in _UNIONS and types.NoneType in inner:
        return None if data is None else _read(_other_than_none(inner), data, where)
    if origin is tuple and isinstance(data, list | tuple):
        parts = inner[:1] * len(data) if inner[1:] == (...,) else inner
        if len(parts) != len(data):
            raise PlainError(f"{where}: {len(data)} entries, wanted {len(parts)}")
        return tuple(_read(part, x, f"{where}[{i}]") for i, (part, x) in enumerate(zip(parts, data, strict=True)))
    if origin is dict and isinstance(data, dict):
        return {key: _read(inner[1], item, f"{where}[{key!r}]") for key, item in data.items()}
    if hint is datetime.date and isinstance(data, str):
        return _day(data, where)
    if not fits(data, hint):
        raise PlainError(f"{where} = {str(data)[:60]}: wanted {words(hint)}")
    return data


def _object(kind: Any, data: Any, where: str) -> Any:
    if not isinstance(data, dict):
        raise PlainError(f"{where} = {str(data)[:60]}: wanted {words(kind)}")
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init}
    unknown = [key for key in data if key not in fields]
    if unknown:
        raise PlainError(f"{where}: unknown {', '.join(map(str, unknown))}")
    missing = [name for name, f in fields.items() if name not in data and not _has_default(f)]
    if missing:
        raise PlainError(f"{where}: {', '.join(missing)} missing")
    return kind(**{name: _read(hints(kind)[name], item, f"{where}.{name}") for name, item in data.items()})


def _has_default(field: dataclasses.Field[Any]) -> bool:
    return not (field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING)


def _other_than_none(choices: tuple[Any, ...]) -> Any:
    """What an optional type is where it is not None: one type, or a union of several."""
    return functools.reduce(operator.or_, (choice for choice in choices if choice is not types.NoneType))


def _day(text: str, where: str) -> datetime.date:
    try:
        return datetime.date.fromisoformat(text)
    except ValueError as error:
        raise PlainError(f"{where} = {text!r}: wanted a day, as 2030-12-31") from error


@functools.cache
def hints(kind: type) -> dict[str, Any]:
    """The types of a dataclass's fields, by name."""
    return get_type_hints(kind)


def fits(value: Any, hint: Any) -> bool:
    """Whether a value read from JSON, its lists made tuples, is of a type."""
    if hint is Any:
        return True
    if hint is None:
        return value is None
    origin, inner = get_origin(hint), get_args(hint)
    if origin in _UNIONS:
        return any(fits(value, choice) for choice in inner)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if len(inner) == 2 and inner[1] is ...:
            return all(fits(item, inner[0]) for item in value)
        return len(value) == len(inner) and all(fits(item, part) for item, part in zip(value, inner, strict=True))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, origin or hint)


def words(hint: Any) -> str:
    """A type as an error names it."""
    if get_origin(hint) in _UNIONS and types.NoneType not in get_args(hint):
        return " or ".join(map(words, get_args(hint)))
    return str(hint) if get_origin(hint) else getattr(hint, "__name__", str(hint))
