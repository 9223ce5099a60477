"""What failed, on one screen: the causes first, each with its clauses, then what has none, and what was not judged.

Every failing clause is listed. What there is no room for is in the report, and on the terminal with `--verbose`.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rlhf_conformance.reporting import parts
from rlhf_conformance.reporting.causes import Cause, causes
from rlhf_conformance.results import ERROR, FAIL, Report, Result

WIDTH = 120
WIDEST = 160
"""Columns of a line that is not wrapped, since it is to be copied, or is cut."""
LISTED = 3
IN_FULL = 5
"""So many causes, and so many failures that have none, are shown with more than their clauses."""


@dataclass(frozen=True)
class Block:
    """Something to say.

    lines   what has to be said
    more    what is said where there is room
    """

    lines: tuple[str, ...]
    more: tuple[str, ...] = ()


def overview(report: Report, rows: int) -> tuple[list[str], int]:
    """The lines, and how many of `rows` are left; below 0 where there is more that has to be said."""
    blocks = _blocks(report)
    left = rows - sum(height(block.lines) for block in blocks)
    lines: list[str] = []
    for block in blocks:
        lines += block.lines
        if block.more and height(block.more) <= left:
            lines += block.more
            left -= height(block.more)
    return lines, left


def height(lines: Iterable[str]) -> int:
    """How many rows of `WIDEST` columns the lines take."""
    return sum(max(1, -(-len(line) // WIDEST)) for text in lines for line in text.split("\n"))


def _blocks(report: Report) -> list[Block]:
    found = causes(report)
    blocks = [Block((found.sentence,))] if found.sentence else []
    numbered = list(enumerate(found.found, 1))
    blocks += [_of_cause(number, cause, report) for number, cause in numbered[:IN_FULL]]
    blocks += [_in_short(number, cause) for number, cause in numbered[IN_FULL:]]
    nameless = found.nameless
    if nameless:
        head = [Block(("", "no cause is known:"))] if found.found else [Block(("",))]
        blocks += [*head, *(_unexplained(result) for result in nameless[:IN_FULL])]
    if nameless[IN_FULL:]:
        slugs = [result.clause for result in nameless[IN_FULL:]]
        blocks.append(Block(tuple(wrapped(", ".join(slugs), f"   and {len(slugs)} more: "))))
    others = [(result, slugs) for result, slugs in parts.shown(report.results) if result.verdict not in (FAIL, ERROR)]
    blocks += [Block(("",))] * bool(others and blocks)
    return blocks + [_other(result, slugs) for result, slugs in others]


def _of_cause(number: int, cause: Cause, report: Report) -> Block:
    first, mark = cause.clearest, f"{number}. "
    lines = ["", *wrapped(cause.title, mark, most=4), *_clauses_of(cause)]
    more = []
    if first.verdict == FAIL and first.failure is not None:
        more += wrapped(f"{first.clause}: {first.failure.sentence}", "   for one      ", most=3)
        if cause.diagnosis is not None:
            more += wrapped(cause.diagnosis.sentence, "   diagnosis    ", most=4)
    if cause.also:
        more += wrapped(called(cause), "   also called  ", most=2)
    if report.command(first):
        more.append(f"   repeat with  {report.command(first)}")
    return Block(tuple(lines), tuple(more))


def _in_short(number: int, cause: Cause) -> Block:
    return Block((cut(f"{number}. {cause.title}"), *_clauses_of(cause)))


def _clauses_of(cause: Cause) -> list[str]:
    return wrapped(", ".join(listed(cause)), f"   {_clauses(len(cause.results)):<12} ")


def listed(cause: Cause) -> list[str]:
    """The clauses of a cause; a question mark behind those that another cause would explain as well."""
    return [f"{slug}?" if slug in cause.doubtful else slug for slug in cause.slugs]


def called(cause: Cause) -> str:
    """What else the failures of a cause are called, with how many are."""
    rest = len(cause.also) - LISTED
    said = [f"`{name}` in {count}" for name, count in cause.also[:LISTED]]
    return ", ".join(said) + (f", {rest} more names" if rest > 0 else "")


def _clauses(count: int) -> str:
    return f"{count} clause" if count == 1 else f"{count} clauses"


def _unexplained(result: Result) -> Block:
    failure = result.failure
    said = f"{result.clause}: {result.sentence}"
    more = [] if failure is None else [row.sentence for row in failure.diagnoses] + [failure.note] * bool(failure.note)
    return Block((cut(f"   {said}"),), tuple(cut(f"      {text}") for text in more))


def _other(result: Result, slugs: Sequence[str]) -> Block:
    """What is no failure, but has to be shown: a loss, for one."""
    lines = [cut(f"{result.verdict} {result.clause}: {result.reason}")]
    if slugs:
        lines += wrapped(", ".join(slugs), f"   the same for {len(slugs)} more: ")
    return Block(tuple(lines))


def wrapped(text: str, head: str, most: int = 0) -> list[str]:
    """Text behind a head, and below it where it is long; at most so many lines, if that is asked for."""
    lines = textwrap.wrap(
        " ".join(text.split()),
        WIDTH,
        initial_indent=head,
        subsequent_indent=" " * len(head),
        break_long_words=True,
        break_on_hyphens=False,
    ) or [head.rstrip()]
    return lines if not most or len(lines) <= most else [*lines[: most - 1], cut(f"{lines[most - 1]} …")]


def cut(line: str) -> str:
    """One line, as wide as there is room."""
    line = " ".join(line.split("\n"))
    return line if len(line) <= WIDEST else f"{line[: WIDEST - 1]}…"
