"""`rlhf-conformance explain NAME`: every name that a document or a report prints."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import rlhf_spec.clauses
from rlhf_conformance import cli, names
from rlhf_conformance.adapter import DECLARATIONS, METHODS
from rlhf_conformance.diagnosis.conventions import conventions
from rlhf_conformance.faults import faults
from rlhf_conformance.results import CONFORMANT_STATUS, USAGE_STATUS, VERDICTS
from rlhf_conformance.twins import twins
from rlhf_spec.decisions import decisions

ROOT = Path(__file__).resolve().parents[2]
BUGS = {bug for clause in rlhf_spec.clauses.clauses() for bug in clause.bugs}
TABLES = {
    "clause": [clause.slug for clause in rlhf_spec.clauses.clauses()],
    "chapter": [chapter.slug for chapter in rlhf_spec.clauses.chapters()],
    "decision": list(decisions()),
    "known bug": sorted(BUGS),
    "fault": list(faults()),
    "twin": list(twins()),
    "convention": [row.name for row in conventions()],
    "declaration": list(DECLARATIONS),
    "method": list(METHODS),
    "verdict": list(VERDICTS),
    "level": list(rlhf_spec.clauses.LEVELS),
}


@pytest.mark.parametrize("kind", TABLES)
def test_every_name_of_a_kind_is_explained(kind):
    assert [name for name in TABLES[kind] if name not in names.explained(name)] == []


def test_every_decision_that_the_specification_refers_to_is_explained():
    text = "".join(path.read_text("utf-8") for path in (ROOT / "spec/rlhf_spec").glob("*.md"))
    referred = set(re.findall(r"decision `([a-z0-9-]+)`", text))
    assert referred
    assert referred <= set(decisions())


def test_every_row_of_the_documents_about_faults_and_twins_is_explained():
    text = "".join((ROOT / "docs" / name).read_text("utf-8") for name in ("faults.md", "twins.md", "diagnosis.md"))
    printed = set(re.findall(r"^\| `([a-z0-9-]+)` \|", text, re.M))
    assert printed
    assert printed <= set(names.everything())


def test_a_name_that_means_two_things_is_explained_twice():
    said = names.explained("half-dropped")
    assert "half-dropped (known bug)" in said
    assert "half-dropped (fault)" in said


@pytest.mark.parametrize(
    "written", ["`half-dropped`", "fault:half-dropped", "spec/decisions.md#global-count", " reward "]
)
def test_a_name_is_taken_as_it_is_printed(written, capsys):
    assert cli.main(["explain", written]) == CONFORMANT_STATUS


def test_a_convention_of_several_words_is_explained(capsys):
    assert cli.main(["explain", "global_count", "=", "False"]) == CONFORMANT_STATUS
    assert "global_count = False (convention)" in capsys.readouterr().out


@pytest.mark.parametrize(
    "wrong, near",
    [("truncaton", "truncation"), ("half-droped", "half-dropped"), ("policy-loss.clib", "policy-loss.clip")],
)
def test_near_names_are_suggested(wrong, near, capsys):
    assert cli.main(["explain", wrong]) == USAGE_STATUS
    assert near in capsys.readouterr().err
