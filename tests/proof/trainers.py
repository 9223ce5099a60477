"""The real trainers that are judged: requirements/trainers.toml, which says what stands in a row."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import Any

from .files import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = ROOT / "requirements"
ROWS: dict[str, dict[str, Any]] = tomllib.loads((FOLDER / "trainers.toml").read_text())
NAMES = tuple(ROWS)


def pinned(name: str) -> dict[str, str]:
    """The version of each package in a trainer's environment, by its name in lower case."""
    found = re.findall(r"^([\w-]+)==([\w.]+)", (FOLDER / f"{name}.txt").read_text(), re.M)
    return {package.lower(): version for package, version in found}


def titled(name: str) -> str:
    """What is judged, as "OpenRLHF 0.11.2"."""
    return f"{ROWS[name]['title']} {pinned(name)[name]}"


def runs() -> Iterator[tuple[str, str]]:
    """What `nox -s trainers older` judges: a trainer, with its version if it is an older one, and a mode ("": none)."""
    for name, row in ROWS.items():
        yield from ((name, mode) for mode in ("", *row["modes"]))
        if "before" in row:
            yield f"{name}-{row['before']}", ""


def asked(judged: str, mode: str) -> tuple[str, ...]:
    """The chapters that a run is asked; empty: all."""
    return tuple(ROWS[judged]["modes"][mode]) if mode else ()
