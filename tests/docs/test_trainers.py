"""docs/trainers.md, docs/known-failures and docs/proof/verdicts.json say the same, and what they name exists.

Needs none of the trainers.
"""

from __future__ import annotations

import ast
import datetime
import io
import re
import tokenize
from pathlib import Path

import pytest

from proof.trainers import ROWS, pinned, runs
from proof.verdicts import key, read
from rlhf_conformance.run.known import read_known_failures
from rlhf_spec.clauses import clause, clauses

DOCUMENT = "docs/trainers.md"
FILES = Path(__file__).resolve().parents[2] / "docs" / "known-failures"
NAMES = {name: row["title"] for name, row in ROWS.items()}
COUNTED = ("pass", "known-failure", "not-provided")
MOST_LINES = 90
SLUG = re.compile(r"`([a-z-]+\.[a-z0-9-]+)`")

trainers = pytest.mark.parametrize("trainer", NAMES)
judged = pytest.mark.parametrize(("judged", "mode"), list(runs()))


@pytest.fixture(scope="module")
def known():
    """The rows of a trainer's file of known failures, by clause; reading them refuses a clause that does not exist."""
    return lambda trainer: {row.clause: row for row in read_known_failures(FILES / f"{trainer}.toml")}


@pytest.fixture(scope="module")
def failures(table):
    """The table of a trainer's failures, by clause: level, cause, in training, reported."""
    return lambda trainer: {row[0].strip("`"): row[1:] for row in table(DOCUMENT, f"{NAMES[trainer]} fails")}


@pytest.fixture(scope="module")
def sections(text):
    """The text of each section of the document, by the anchor of its heading."""
    parts = re.split(r"^#{2,3} (.+)$", text(DOCUMENT), flags=re.M)[1:]
    headings, bodies = parts[::2], parts[1::2]
    assert len(set(headings)) == len(headings)
    anchors = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
    return dict(zip(anchors, bodies, strict=True))


def explained(section: str) -> list[str]:
    """The slugs of the paragraph that begins with "Clauses:"."""
    paragraph = re.search(r"^Clauses:.*?(?=\n\n)", section, re.M | re.S)
    return SLUG.findall(paragraph[0]) if paragraph else []


@trainers
def test_the_known_failures_are_those_of_the_table(trainer, known, failures):
    assert set(known(trainer)) == set(failures(trainer))


@trainers
def test_each_failure_is_explained_where_its_cause_leads(trainer, failures, sections):
    for slug, (_, cause, *_) in failures(trainer).items():
        anchor = re.search(r"\(#([\w-]+)\)", cause)[1]
        assert slug in explained(sections[anchor]), f"{slug} is not explained under {anchor}"


@trainers
def test_each_explanation_is_of_a_failure(trainer, failures, text):
    chapter = text(DOCUMENT).split(f"\n## {NAMES[trainer]}\n")[1].split("\n## ")[0]
    parts = re.split(r"^### ", chapter, flags=re.M)
    assert sorted(slug for part in parts for slug in explained(part)) == sorted(failures(trainer))


@trainers
def test_the_levels_are_those_of_the_specification(trainer, failures):
    for slug, (level, *_) in failures(trainer).items():
        assert level == clause(slug).level, slug


@trainers
def test_the_issues_are_those_of_the_table(trainer, known, failures):
    """A row that points to an open report points to the one that the table names."""
    for slug, row in known(trainer).items():
        if row.issue:
            number = row.issue.rsplit("/", 1)[1]
            assert f"#{number}" in failures(trainer)[slug][3], slug


@trainers
def test_the_counts_are_those_that_were_found_in_each_mode(trainer, table):
    rows = {mode: list(map(int, counts)) for mode, *counts in table(DOCUMENT, f"mode of {NAMES[trainer]}")}
    found = {mode: read()[key(trainer, mode)]["verdicts"] for name, mode in runs() if name == trainer}
    assert rows == {
        f"`{mode}`" if mode else "(none)": [len(by.get(verdict, ())) for verdict in COUNTED]
        for mode, by in found.items()
    }


@judged
def test_every_clause_has_one_of_the_documented_verdicts_in_each_mode(judged, mode):
    by = read()[key(judged, mode)]["verdicts"]
    assert set(by) <= set(COUNTED)
    assert sorted(sum(by.values(), [])) == sorted(each.slug for each in clauses())


@judged
def test_what_fails_in_a_mode_is_what_its_file_of_known_failures_says(judged, mode, known):
    """Where the mode has none, that of the default mode holds, in which some may not be asked for."""
    by = read()[key(judged, mode)]["verdicts"]
    own = f"{judged}.{mode}" if mode else judged
    rows = known(own if (FILES / f"{own}.toml").exists() else judged)
    assert set(rows) - set(by["not-provided"]) == set(by["known-failure"])


@pytest.mark.parametrize("trainer", [name for name, row in ROWS.items() if "before" in row])
def test_what_was_mended_since_an_older_version_is_what_was_found(trainer, table):
    before = ROWS[trainer]["before"]
    was, now = (
        {slug: verdict for verdict, slugs in read()[key(judged, "")]["verdicts"].items() for slug in slugs}
        for judged in (f"{trainer}-{before}", trainer)
    )
    differing = {
        slug: [clause(slug).level, *(v.replace("known-failure", "fail") for v in (was[slug], now[slug]))]
        for slug in was
        if was[slug] != now[slug]
    }
    rows = {row[0].strip("`"): row[1:4] for row in table(DOCUMENT, f"{NAMES[trainer]} between two versions")}
    assert rows == differing


def test_each_file_of_known_failures_is_of_a_documented_mode():
    assert {file.stem for file in FILES.iterdir()} <= {f"{name}.{mode}" if mode else name for name, mode in runs()}


@judged
def test_the_verdicts_are_dated_and_of_the_versions_that_are_pinned(judged, mode):
    row = read()[key(judged, mode)]
    datetime.date.fromisoformat(row["date"])
    name, _, before = judged.partition("-")
    wanted = pinned(name) | ({name: before} if before else {})
    for package, version in row["versions"].items():
        assert version.partition("+")[0] == wanted.get(package, version), package


@trainers
def test_what_is_not_asked_is_of_the_specification(trainer, table):
    chapters = {each.slug.partition(".")[0] for each in clauses()}
    for names, _ in table(DOCUMENT, f"not asked of {NAMES[trainer]}"):
        for slug in re.findall(r"`([a-z.-]+)`", names):
            assert slug in chapters or clause(slug), slug


def test_every_clause_that_the_document_names_exists(text):
    chapters = {each.slug.partition(".")[0] for each in clauses()}
    for slug in SLUG.findall(text(DOCUMENT)):
        if slug.partition(".")[0] in chapters:
            assert clause(slug)


@trainers
def test_the_versions_are_those_of_the_requirements(trainer, text):
    """Of the trainer and of what is named beside it."""
    chapter = text(DOCUMENT).split(f"\n## {NAMES[trainer]}\n")[1]
    named = re.findall(r"(\w+) (\d+\.\d+\.\d+)", chapter.partition(". ")[0])
    assert named[0][0].lower() == trainer
    for name, version in named:
        assert pinned(trainer)[name.lower()] == version


@trainers
def test_an_adapter_is_short(trainer, text):
    """At most ninety lines of code, without blank lines, comments and docstrings."""
    assert len(code_lines(text(f"conformance/rlhf_conformance/adapters/{trainer}.py"))) <= MOST_LINES


def code_lines(source: str) -> set[int]:
    """Numbers of the lines that hold code."""
    idle = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    lines = {line for t in tokens if t.type not in idle for line in range(t.start[0], t.end[0] + 1)}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            lines -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return lines


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ('"""Two\nlines."""\n\nx = 1  # why\n', 1),
        ("# why\n\ndef f():\n    '''Says.'''\n    return 1\n", 2),
        ("x = (\n    1,\n\n    # why\n    2,\n)\n", 4),
        ('x = """a\nb"""\n', 2),
    ],
)
def test_lines_of_code_are_counted_as_meant(source, count):
    assert len(code_lines(source)) == count
