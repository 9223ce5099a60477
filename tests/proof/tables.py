"""The tables in documents that are made from the specification and from the rows of methods and declarations.

python -m tests.proof pages

A table stands between `<!-- made: NAME -->` and `<!-- end -->`. Whoever adds a chapter makes them anew by that command.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import rlhf_spec.clauses
from rlhf_conformance.adapter import DECLARATIONS, METHODS
from rlhf_conformance.judging.checks import checks
from rlhf_conformance.methods import AtLeast, Declaration, OneOf, SomeOf

from .files import ROOT, table

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
BLOCK = re.compile(r"(?P<head><!-- made: (?P<name>[\w-]+) -->\n).*?(?P<end><!-- end -->)", re.DOTALL)
DOCUMENTS = ("README.md", "docs/writing-an-adapter.md")
SPECIFICATION = "spec/rlhf_spec"


def covered() -> str:
    """The chapters, and how many clauses each has of each level."""
    chapters = rlhf_spec.clauses.chapters()
    count = len(chapters)
    number = NUMBERS[count] if count < len(NUMBERS) else str(count)
    said = (
        f"{len(rlhf_spec.clauses.clauses())} clauses in {number} chapters. Each has a name that does not change, "
        "a sentence, a formula, the reason, and the bugs of\npublic trainers that it would have stopped.\n\n"
    )
    levels = rlhf_spec.clauses.LEVELS
    rows = []
    for chapter in chapters:
        found = [clause.level for clause in chapter.clauses]
        link = f"[{chapter.slug}]({SPECIFICATION}/{Path(chapter.file).name})"  # wherever it is installed
        rows.append((link, str(len(found)), *(str(found.count(level)) for level in levels), chapter.about))
    return said + table(("chapter", "clauses", *levels, "about"), rows)


def declared() -> str:
    """What an adapter may declare."""
    rows = [(f"`{row.name}`", f"`{_code(row.default)}`", _values(row), row.says) for row in DECLARATIONS.values()]
    return table(("name", "default", "values", "meaning"), rows)


def _values(row: Declaration) -> str:
    if row.wanted is None:
        return "`True`, `False`"
    if isinstance(row.wanted, AtLeast):
        return f"a number, at least {row.wanted.least:g}{', or `None`' if row.wanted.or_none else ''}"
    choices = ", ".join(f"`{_code(choice)}`" for choice in row.wanted.choices)
    assert isinstance(row.wanted, OneOf | SomeOf)
    return choices or "any names"


def _code(value: object) -> str:
    """As people write it in Python: with double quotes."""
    return repr(value).replace("'", '"')


def methods() -> str:
    """What an adapter may have, and how many clauses that makes it able to be asked."""
    needs = [check.needs for check in checks().values()]
    rows = []
    for name, row in METHODS.items():
        if not row.optional:
            sentence = (row.stub.__doc__ or "").strip().split(". ")[0].split(": ")[0].replace("\n", " ")
            said = re.sub(r"\s+", " ", sentence).rstrip(".")
            rows.append((f"`{name}({', '.join(row.arguments)})`", said, str(sum(name in names for names in needs))))
    return table(("method", "what it does", "clauses that need it"), rows)


TABLES: Mapping[str, Callable[[], str]] = {"covered": covered, "declarations": declared, "methods": methods}


def made(text: str) -> str:
    """A document with its tables made anew."""
    return BLOCK.sub(lambda block: f"{block['head']}{TABLES[block['name']]()}\n{block['end']}", text)


def write() -> None:
    for name in DOCUMENTS:
        path = ROOT / name
        path.write_text(made(path.read_text(encoding="utf-8")), encoding="utf-8")
