"""Values as Python source, short, exact, and readable in a script of its own."""

from __future__ import annotations

import math
import struct
from typing import Any

NUMBER = "float"
"""The key under which JSON holds a number that is not finite."""


def literal(value: Any) -> str:
    """Plain data as source; numbers that are not finite as `float("nan")`."""
    if isinstance(value, dict) and set(value) == {NUMBER}:
        return f"float({literal(str(value[NUMBER]))})"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{literal(key)}: {literal(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(literal(item) for item in value) + "]"
    if isinstance(value, tuple):
        return "(" + ", ".join(literal(item) for item in value) + ("," if len(value) == 1 else "") + ")"
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    if isinstance(value, str):
        return '"' + "".join(map(_character, value)) + '"'
    return repr(value)


def _character(c: str) -> str:
    """A character of a string in quotes: what nobody sees, or what ends the string, is escaped."""
    return f"\\{c}" if c in '"\\' else c if c.isprintable() else repr(c)[1:-1]


def tensor(data: dict[str, Any], *, leaf: bool = False, indent: int = 8) -> str:
    """A stored tensor (`diagnosis.exchange`) as source."""
    numbers = _short(data["tensor"], data["dtype"])
    pad = " " * indent
    many = isinstance(numbers, list) and len(numbers) > 1 and isinstance(numbers[0], list)
    rows = "".join(f"\n{pad}        {literal(row)}," for row in numbers) if many else ""
    inner = f"\n{pad}    [{rows}\n{pad}    ],\n{pad}    " if many else f"{literal(numbers)}, "
    return f"torch.tensor({inner}dtype=torch.{data['dtype']}{', requires_grad=True' if leaf else ''})"


def source(value: Any) -> str:
    """A small tensor as source."""
    data = {"tensor": value.detach().cpu().tolist(), "dtype": str(value.dtype).removeprefix("torch.")}
    return tensor(data, indent=8)


def _short(value: Any, dtype: str) -> Any:
    """Numbers in as few digits as tell them from their neighbors in the dtype."""
    if isinstance(value, list):
        return [_short(item, dtype) for item in value]
    if dtype != "float32" or not isinstance(value, float):
        return value
    for digits in range(1, 10):
        short = float(f"{value:.{digits}g}")
        if struct.pack("f", short) == struct.pack("f", value):
            return short
    return value
