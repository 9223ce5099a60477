"""From tokens to advantages: the numbers of the learner's page are those of the formulas."""

from __future__ import annotations

import doctest
import re

import rlhf_spec.clauses

PAGE = "spec/rlhf_spec/from_tokens_to_advantages.md"


def rounded(rows, digits=4):
    """Numbers as the page shows them; a zero has no sign."""
    return [[round(x, digits) + 0.0 for x in row] for row in rows]


def test_every_number_is_what_the_formulas_give(blocks):
    source = "\n".join(blocks(PAGE, "python"))
    test = doctest.DocTestParser().get_doctest(source, {"rounded": rounded}, PAGE, PAGE, 0)
    assert len(test.examples) > 15
    assert doctest.DocTestRunner().run(test).failed == 0


def test_each_step_is_a_chapter(text):
    steps = re.findall(r"^## .*: `([a-z-]+)`$", text(PAGE), re.M)
    assert steps == ["kl", "token-rewards", "advantages", "whitening", "group-advantages"]
    assert [c.slug for c in rlhf_spec.clauses.chapters() if c.slug in steps] == steps


def test_it_is_one_page(text):
    assert len(text(PAGE).split()) < 1000
