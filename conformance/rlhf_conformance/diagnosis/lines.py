"""Lines of a formula with numbers in them, and which of them are shown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_conformance.results import Step

MOST = 30
"""The most lines of a formula that are shown."""
AGREEING = 12
"""The most of them where the two agree, before the end."""


@dataclass(frozen=True)
class Line:
    """A line: what it is, what it should be, what it is with the adapter (None: it does not show it).

    allowed     how far the two may lie apart; texts must agree
    """

    label: str
    expected: float | str
    actual: float | str | None = None
    allowed: float = 0.0

    @property
    def parted(self) -> bool:
        if self.actual is None:
            return False
        if isinstance(self.expected, str) or isinstance(self.actual, str):
            return self.expected != self.actual
        if self.expected == self.actual or (self.expected != self.expected and self.actual != self.actual):
            return False
        return not abs(self.expected - self.actual) <= self.allowed


Block = Sequence[Line]
"""Lines that belong together: those of one token, of one row."""


def parted(blocks: Iterable[Block]) -> bool:
    return any(line.parted for block in blocks for line in block)


def arranged(blocks: Sequence[Block], end: Block = (), *, what: str = "tokens") -> tuple[Step, ...]:
    """The blocks in which the two part company first, then the others as far as there is room, then the `end`."""
    differing, agreeing = [b for b in blocks if parted([b])], [b for b in blocks if not parted([b])]
    shown: list[Line] = []
    left = 0
    for block, room in [*((b, MOST - len(end) - 1) for b in differing), *((b, AGREEING) for b in agreeing)]:
        if not shown or len(shown) + len(block) <= min(room, MOST - len(end) - 1):
            shown += block
        else:
            left += 1
    end = [*end, Line(f"{what} left out", str(left))] if left else list(end)
    return _steps([*shown[: MOST - len(end)], *end])


def _steps(lines: Sequence[Line]) -> tuple[Step, ...]:
    first = next((i for i, line in enumerate(lines) if line.parted), None)
    return tuple(Step(x.label, number(x.expected), number(x.actual), i == first) for i, x in enumerate(lines))


def number(value: Any) -> str:
    """A number short and exact enough; a text as it is, nothing for None."""
    if value is None or isinstance(value, str):
        return value or ""
    return f"{value:.7g}"


def cells(expected: Sequence[Any], actual: Sequence[Any] | None = None, most: int = 12) -> tuple[str, str | None]:
    """Two rows of cells as text, of long ones the part around the first difference."""
    start = 0
    if actual is not None and len(expected) > most:
        pairs = zip(expected, actual, strict=False)
        differing = next((i for i, (e, a) in enumerate(pairs) if e != a), min(len(expected), len(actual)))
        start = max(0, min(differing - 2, max(len(expected), len(actual)) - most))
    return _cells(expected, start, most), None if actual is None else _cells(actual, start, most)


def _cells(row: Sequence[Any], start: int, most: int) -> str:
    shown = " ".join(str(cell) for cell in row[start : start + most])
    return ("... " if start else "") + shown + (" ..." if start + most < len(row) else "")
