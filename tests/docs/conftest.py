"""The documents as text: their blocks and tables."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FENCE = re.compile(r"^```(?P<language>\w*)\n(?P<body>.*?)^```$", re.M | re.S)


@pytest.fixture(scope="session")
def text() -> Callable[[str], str]:
    """The text of a document, by its path from the project's root."""
    return lambda name: (ROOT / name).read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def blocks(text) -> Callable[..., list[str]]:
    """The fenced blocks of a document, in order: all, or those of one language."""

    def find(name: str, language: str | None = None) -> list[str]:
        found = FENCE.finditer(text(name))
        return [block["body"] for block in found if language in (None, block["language"])]

    return find


@pytest.fixture(scope="session")
def table(text) -> Callable[[str, str], list[list[str]]]:
    """The rows, without the head, of the table whose head begins with the column `first`."""

    def find(name: str, first: str) -> list[list[str]]:
        lines = text(name).splitlines()
        start = next(i for i, line in enumerate(lines) if line.startswith(f"| {first} |"))
        rows = []
        for line in lines[start + 2 :]:
            if not line.startswith("|"):
                break
            rows.append([cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
        return rows

    return find


@pytest.fixture(scope="session", autouse=True)
def examples() -> Path:
    """The folder of the examples, which import each other as files side by side."""
    folder = ROOT / "examples"
    sys.path.insert(0, str(folder))
    return folder
