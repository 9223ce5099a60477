"""The parser takes the one form of a chapter, and names file and line of whatever else it meets."""

from __future__ import annotations

import pytest

from rlhf_spec.clauses import Clause, SpecError, UnknownClause, clause, parse_chapter

CHAPTER = """\
# Policy loss

What the chapter is about,
on two lines.

A second paragraph.

## policy-loss.clip

**Level:** MUST

The ratio is clipped.

**Formula:** `clip(r, lo, hi)`

**Why:** Because it
runs away.

**Would have stopped:** `one-bug` (TRL #1, #2; verl PR #3); `other-bug` (seen in small trainers).

## policy-loss.mask

**Level:** SHOULD

The mask counts.

**Formula:** `x * m`

**Why:** Because.

**Would have stopped:** none known
"""


def parse(text):
    return parse_chapter(text, "policy-loss", "policy_loss.md")


def test_a_chapter_is_its_title_its_introduction_and_its_clauses_in_order():
    chapter = parse(CHAPTER)
    assert (chapter.slug, chapter.title) == ("policy-loss", "Policy loss")
    assert chapter.introduction == "What the chapter is about, on two lines.\n\nA second paragraph."
    assert [clause.slug for clause in chapter.clauses] == ["policy-loss.clip", "policy-loss.mask"]


def test_a_clause_has_all_of_its_fields():
    assert parse(CHAPTER).clauses[0] == Clause(
        slug="policy-loss.clip",
        chapter="policy-loss",
        level="MUST",
        sentence="The ratio is clipped.",
        formula="clip(r, lo, hi)",
        why="Because it runs away.",
        bugs=("one-bug", "other-bug"),
        evidence=("TRL #1, #2; verl PR #3", "seen in small trainers"),
    )


def test_none_known_is_no_bug():
    assert parse(CHAPTER).clauses[1].bugs == ()


# What is replaced, by what, the line that is named, and a part of the message.
FAULTS = {
    "missing level": ("**Level:** MUST\n\n", "", 10, "the field 'Level' is missing"),
    "unknown level": ("**Level:** MUST", "**Level:** MAY", 10, "unknown level 'MAY', not one of MUST, SHOULD"),
    "duplicate slug": ("## policy-loss.mask", "## policy-loss.clip", 21, "duplicate slug 'policy-loss.clip'"),
    "wrong chapter": (
        "## policy-loss.mask",
        "## value-loss.mask",
        21,
        "does not begin with its chapter's 'policy-loss.'",
    ),
    "prefix only": ("## policy-loss.mask", "## policy-loss-x.mask", 21, "does not begin with its chapter's"),
    "not a slug": ("## policy-loss.mask", "## The mask", 21, "'The mask' is not a slug"),
    "upper case slug": ("## policy-loss.mask", "## policy-loss.Mask", 21, "is not a slug"),
    "missing sentence": ("The ratio is clipped.\n\n", "", 12, "its sentence is missing"),
    "two sentences": (
        "The mask counts.\n",
        "The mask counts.\n\nIt does.\n",
        27,
        "the field 'Formula' is missing before",
    ),
    "missing formula": ("**Formula:** `x * m`\n\n", "", 27, "the field 'Formula' is missing"),
    "formula not code": ("`x * m`", "x * m", 27, "the formula is not one piece of `code`"),
    "two formulas": ("`x * m`", "`x` or `m`", 27, "the formula is not one piece of `code`"),
    "missing why": ("**Why:** Because.\n\n", "", 29, "the field 'Why' is missing"),
    "empty why": ("**Why:** Because.", "**Why:**", 29, "the field 'Why' is empty"),
    "fields out of order": (
        "**Formula:** `x * m`\n\n**Why:** Because.",
        "**Why:** Because.\n\n**Formula:** `x * m`",
        27,
        "the field 'Formula' is missing before '**Why:** Because.'",
    ),
    "missing bugs": ("\n**Would have stopped:** none known\n", "", 21, "the field 'Would have stopped' is missing"),
    "bugs as prose": ("none known", "many bugs", 31, "known bugs are written"),
    "bug without evidence": ("none known", "`one-bug`.", 31, "known bugs are written"),
    "bugs without full stop": ("none known", "`one-bug` (TRL #1)", 31, "known bugs are written"),
    "malformed bug id": ("none known", "`One_Bug` (TRL #1).", 31, "known bugs are written"),
    "unknown field": ("**Why:** Because.", "**Whence:** There.", 29, "the field 'Why' is missing before '**Whence:**"),
    "text after the last field": ("none known\n", "none known\n\nAnd more.\n", 33, "unexpected text after its last"),
    "third level heading": ("## policy-loss.mask", "### policy-loss.mask", 21, "unexpected heading"),
    "second title": ("## policy-loss.mask", "# Mask", 21, "unexpected heading"),
    "no title": ("# Policy loss\n", "", 2, "does not begin with a # title"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_an_error_that_names_file_and_line(fault):
    old, new, line, message = FAULTS[fault]
    assert CHAPTER.count(old) == 1
    with pytest.raises(SpecError) as caught:
        parse(CHAPTER.replace(old, new))
    assert str(caught.value).startswith(f"policy_loss.md:{line}: ")
    assert message in str(caught.value)
    assert (caught.value.file, caught.value.line) == ("policy_loss.md", line)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "policy_loss.md:1: the file is empty"),
        ("# Title\n\n## policy-loss.clip\n", "policy_loss.md:1: the chapter has no introduction below its title"),
        ("# Title\n\nIntroduction.\n", "policy_loss.md:1: the chapter has no clauses"),
    ],
)
def test_a_chapter_that_lacks_a_part_is_an_error(text, message):
    with pytest.raises(SpecError) as caught:
        parse(text)
    assert str(caught.value) == message


def test_an_unknown_clause_names_its_near_misses():
    with pytest.raises(UnknownClause) as caught:
        clause("policy-loss.dual-clip-sing")
    assert caught.value.near_misses[0] == "policy-loss.dual-clip-sign"
    assert "there is no clause 'policy-loss.dual-clip-sing'. Did you mean policy-loss.dual-clip-sign" in str(
        caught.value
    )


def test_an_unknown_clause_without_near_miss_says_only_that():
    with pytest.raises(KeyError) as caught:
        clause("xyz")
    assert str(caught.value) == "there is no clause 'xyz'."
