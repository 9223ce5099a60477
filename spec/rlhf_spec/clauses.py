"""The clauses of the specification, read from the chapters' Markdown files, which are their one source.

A chapter is a title, an introduction, and its clauses; a clause is a slug, a level, one sentence that can be tested,
a formula, a reason, and the known bugs that it would have stopped. The form is fixed and the parser is strict: whatever
does not fit is a :class:`SpecError` that names the file and the line.

A Markdown file beside this module whose first paragraph is an order, ``**Order:** 80``, is a chapter: chapters are read
in that order. So is the file of a plug-in's chapter, which lies in the folder that the plug-in names.
"""

from __future__ import annotations

import difflib
import functools
import importlib.metadata
import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

PLUG_INS = "rlhf_conformance.chapters"
"""The entry-point group in which a package names the folders of chapters of its own."""
LEVELS = ("MUST", "SHOULD", "CONVENTION")
FIELDS = ("Level", "Formula", "Why", "Would have stopped")

_NAME = r"[a-z0-9]+(?:-[a-z0-9]+)*"
_SLUG = re.compile(rf"{_NAME}\.{_NAME}")
_FIELD = re.compile(r"\*\*(?P<name>[^*]+):\*\*(?: (?P<text>.*))?")
_ORDER = re.compile(r"^\*\*Order:\*\* ([0-9]+)$", re.MULTILINE)
_ABOUT = re.compile(r"\*\*About:\*\* (.+)")
_FORMULA = re.compile(r"`[^`]+`")
_BUG = re.compile(rf"`(?P<id>{_NAME})` \((?P<evidence>[^()]+)\)")
_BUGS = re.compile(rf"{_BUG.pattern}(?:; {_BUG.pattern.replace('?P<id>', '?:').replace('?P<evidence>', '?:')})*\.")


class SpecError(ValueError):
    """A chapter file does not have the form of a chapter; the message begins with ``file:line:``."""

    def __init__(self, file: str, line: int, problem: str) -> None:
        super().__init__(f"{file}:{line}: {problem}")
        self.file = file
        self.line = line
        self.problem = problem


class UnknownClause(KeyError):
    """No clause has this slug; the message names the nearest ones."""

    def __init__(self, slug: str, near_misses: tuple[str, ...]) -> None:
        super().__init__(slug)
        self.slug = slug
        self.near_misses = near_misses

    def __str__(self) -> str:
        hint = f" Did you mean {' or '.join(self.near_misses)}?" if self.near_misses else ""
        return f"there is no clause {self.slug!r}.{hint}"


@dataclass(frozen=True)
class Clause:
    """One rule. ``bugs`` are the ids of known bugs that it would have stopped; ``evidence``, where each was seen."""

    slug: str
    chapter: str
    level: str
    sentence: str
    formula: str
    why: str
    bugs: tuple[str, ...]
    evidence: tuple[str, ...] = ()


@dataclass(frozen=True)
class Chapter:
    """One topic: its slug, its title, an introduction (paragraphs parted by an empty line) and its clauses in order.

    ``order`` says where it stands among the chapters, ``about`` what it is about, in a few words for tables, and
    ``file`` where it is read from.
    """

    slug: str
    title: str
    introduction: str
    clauses: tuple[Clause, ...]
    order: int = 0
    about: str = ""
    file: str = ""


@functools.cache
def chapters() -> tuple[Chapter, ...]:
    """All chapters in their order. Raises SpecError where a file does not have the form of a chapter."""
    found: dict[str, Chapter] = {}
    for path in _files():
        chapter = parse_chapter(path.read_text(encoding="utf-8"), path.stem.replace("_", "-"), path.name)
        if chapter.slug in found:
            raise SpecError(str(path), 1, f"there is another chapter {chapter.slug!r}, in {found[chapter.slug].file}")
        found[chapter.slug] = replace(chapter, file=str(path))
    return tuple(sorted(found.values(), key=lambda chapter: (chapter.order, chapter.slug)))


def _files() -> Iterator[Path]:
    """The files of the chapters: those beside this module, and the one in each folder of a plug-in."""
    for path in sorted(Path(__file__).parent.glob("*.md")):
        if _ORDER.search(path.read_text(encoding="utf-8")):
            yield path
    for value in plug_ins():
        spec = importlib.util.find_spec(value)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            yield Path(folder) / f"{Path(folder).name}.md"


def plug_ins() -> list[str]:
    """The full names of the packages that are the folders of plug-ins' chapters."""
    return sorted({point.value for point in importlib.metadata.entry_points(group=PLUG_INS)})


def clauses() -> tuple[Clause, ...]:
    """All clauses, in the order of the chapters and of the clauses in each."""
    return tuple(clause for chapter in chapters() for clause in chapter.clauses)


def clause(slug: str) -> Clause:
    """The clause with this slug. Raises UnknownClause, which names the near misses.

    >>> clause("policy-loss.clip").level
    'MUST'
    """
    known = {clause.slug: clause for clause in clauses()}
    if slug not in known:
        raise UnknownClause(slug, tuple(difflib.get_close_matches(slug, known, n=3, cutoff=0.8)))
    return known[slug]


def parse_chapter(text: str, slug: str, file: str) -> Chapter:
    """The chapter that ``text`` spells. ``file`` is only named in errors. Raises SpecError."""
    head, *sections = _sections(text, file)
    body = list(head.body)
    order = _ORDER.fullmatch(body[0].text) if body else None
    introduction = body[1:] if order else body
    about = _ABOUT.fullmatch(introduction[0].text) if introduction else None
    introduction = introduction[1:] if about else introduction
    if not introduction:
        raise SpecError(file, head.line, "the chapter has no introduction below its title")
    if not sections:
        raise SpecError(file, head.line, "the chapter has no clauses")
    found: dict[str, Clause] = {}
    for section in sections:
        clause = _clause(section, slug, file)
        if clause.slug in found:
            raise SpecError(file, section.line, f"duplicate slug {clause.slug!r}")
        found[clause.slug] = clause
    text = "\n\n".join(paragraph.text for paragraph in introduction)
    return Chapter(
        slug, head.title, text, tuple(found.values()), int(order[1]) if order else 0, about[1] if about else ""
    )


# The parts of a file: sections, each a heading and its paragraphs, each with the line that it starts on.


@dataclass(frozen=True)
class _Paragraph:
    line: int
    text: str


@dataclass
class _Section:
    line: int
    title: str
    body: list[_Paragraph] = field(default_factory=list)


def _sections(text: str, file: str) -> list[_Section]:
    """The section of the title (``# ``), then one for each clause (``## ``)."""
    sections: list[_Section] = []
    for paragraph in _paragraphs(text):
        marks, _, title = paragraph.text.partition(" ")
        is_heading = bool(marks) and set(marks) == {"#"}
        if is_heading and marks != ("##" if sections else "#"):
            raise SpecError(file, paragraph.line, f"unexpected heading {title!r}: one # title, then ## clauses")
        if is_heading:
            sections.append(_Section(paragraph.line, title.strip()))
        elif sections:
            sections[-1].body.append(paragraph)
        else:
            raise SpecError(file, paragraph.line, "the file does not begin with a # title")
    if not sections:
        raise SpecError(file, 1, "the file is empty")
    return sections


def _paragraphs(text: str) -> Iterator[_Paragraph]:
    """Runs of lines that are not empty, each joined into one line; a heading is a paragraph of its own."""
    start, lines = 0, list[str]()
    for number, line in enumerate([*text.splitlines(), ""], start=1):
        ends = not line.strip() or line.startswith("#")
        if ends and lines:
            yield _Paragraph(start, " ".join(lines))
            lines = []
        if line.startswith("#"):
            yield _Paragraph(number, line.strip())
        elif line.strip():
            start = start if lines else number
            lines.append(line.strip())


def _clause(section: _Section, chapter: str, file: str) -> Clause:
    slug = section.title
    if not _SLUG.fullmatch(slug):
        raise SpecError(file, section.line, f"{slug!r} is not a slug of the form chapter.name")
    if not slug.startswith(chapter + "."):
        raise SpecError(file, section.line, f"slug {slug!r} does not begin with its chapter's {chapter + '.'!r}")
    sentence, fields = _fields(section, file)
    level = fields["Level"]
    if level.text not in LEVELS:
        raise SpecError(file, level.line, f"{slug}: unknown level {level.text!r}, not one of {', '.join(LEVELS)}")
    formula = fields["Formula"]
    if not _FORMULA.fullmatch(formula.text):
        raise SpecError(file, formula.line, f"{slug}: the formula is not one piece of `code`")
    bugs, evidence = _known_bugs(fields["Would have stopped"], slug, file)
    return Clause(
        slug=slug,
        chapter=chapter,
        level=level.text,
        sentence=sentence.text,
        formula=formula.text.strip("`"),
        why=fields["Why"].text,
        bugs=bugs,
        evidence=evidence,
    )


def _fields(section: _Section, file: str) -> tuple[_Paragraph, dict[str, _Paragraph]]:
    """The sentence and the fields of a clause, which come in one order: Level, the sentence, then the others."""
    slug, expected = section.title, [FIELDS[0], None, *FIELDS[1:]]
    sentence, fields = None, dict[str, _Paragraph]()
    for position, name in enumerate(expected):
        wanted = "its sentence" if name is None else f"the field {name!r}"
        if position >= len(section.body):
            raise SpecError(file, section.line, f"{slug}: {wanted} is missing")
        paragraph = section.body[position]
        match = _FIELD.fullmatch(paragraph.text)
        if (match and match["name"]) != name:
            raise SpecError(file, paragraph.line, f"{slug}: {wanted} is missing before {paragraph.text[:40]!r}")
        if match is None:
            sentence = paragraph
        elif not match["text"]:
            raise SpecError(file, paragraph.line, f"{slug}: the field {name!r} is empty")
        else:
            fields[match["name"]] = _Paragraph(paragraph.line, match["text"])
    if len(section.body) > len(expected):
        extra = section.body[len(expected)]
        raise SpecError(file, extra.line, f"{slug}: unexpected text after its last field: {extra.text[:40]!r}")
    assert sentence is not None
    return sentence, fields


def _known_bugs(paragraph: _Paragraph, slug: str, file: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if paragraph.text == "none known":
        return (), ()
    if not _BUGS.fullmatch(paragraph.text):
        form = "`bug-id` (evidence); `bug-id` (evidence)."
        raise SpecError(file, paragraph.line, f"{slug}: known bugs are written {form!r} or 'none known'")
    found = [(match["id"], match["evidence"]) for match in _BUG.finditer(paragraph.text)]
    return tuple(bug for bug, _ in found), tuple(evidence for _, evidence in found)
