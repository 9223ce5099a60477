"""Files: written whole or not at all, and read only if they fit their schema."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

DEEPEST = 60
"""Objects and lists in each other; what this suite writes has about twenty."""


class FileError(ValueError):
    """A file cannot be read; the message names the file, the place, and what is wrong there."""


def write_whole(path: Path, text: str) -> None:
    """Write a file such that nobody ever finds half of it: beside its place first, then moved there. Raises OSError."""
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_file():  # a device, or a pipe to another program
        path.write_text(text, encoding="utf-8", errors="backslashreplace")
        return
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(text, encoding="utf-8", errors="backslashreplace")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """What a file of JSON holds. Raises FileError where it cannot be read, or is no JSON of this suite."""
    try:
        return from_text(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise FileError(f"{path} is not JSON as this command writes it: it is not UTF-8 text") from error


def from_text(text: str, name: str, hook: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """The same of a text, which `name` says where it stands."""
    try:
        data = json.loads(text, object_pairs_hook=hook or _without_doubles, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            raise FileError(f"{name} goes on behind its end, at line {error.lineno}: is it there twice?") from error
        raise FileError(f"{name} is not JSON, or not the whole of it: {error}") from error
    except RecursionError as error:
        raise FileError(f"{name} is not JSON as this command writes it: it is nested too deeply") from error
    except ValueError as error:  # a key twice, or a number that is none
        raise FileError(f"{name} is not JSON as this command writes it: {error}") from error
    if _too_deep(data):
        raise FileError(f"{name} is not JSON as this command writes it: it is nested too deeply")
    return data


def misfit(data: Any, schema: str) -> str:
    """The place at which data fits a schema of this package least, and why; empty: it fits."""
    import jsonschema
    from jsonschema.exceptions import best_match

    error = best_match(jsonschema.Draft202012Validator(_schema(schema)).iter_errors(data))
    if error is None:
        return ""
    place = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in error.absolute_path)
    return f"{place.lstrip('.') or 'the whole'}: {error.message[:300]}"


@cache
def _schema(name: str) -> Any:
    return json.loads(resources.files("rlhf_conformance").joinpath(name).read_text("utf-8"))


def _too_deep(data: Any) -> bool:
    level = [data]
    for _ in range(DEEPEST):
        level = [inner for item in level for inner in _inner(item)]
        if not level:
            return False
    return True


def _inner(item: Any) -> Iterable[Any]:
    return item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"an object has the key {key!r} twice")
        found[key] = value
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number in JSON")
