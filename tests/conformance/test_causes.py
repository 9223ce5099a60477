"""Failures by cause: what is said to have one cause, what is not, and that it is said first, and short, everywhere."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest
from rich.console import Console

import rlhf_spec.clauses
from rlhf_conformance.reporting import github, markdown, overview, page, terminal
from rlhf_conformance.reporting.causes import causes
from rlhf_conformance.results import Call, Diagnosis, Exchange, Failure, Result
from samples import passed, sample_report

SHIFT = Diagnosis("place", "shift", "sample 0: you returned another: shifted by +1 everywhere", cause="shifted by +1")
LATE = Diagnosis("fault", "labels-unshifted", "agrees with `labels-unshifted`: late", cause="late", bug="off-by-one")
MEAN = Diagnosis("fault", "mean-of-means", "agrees with `mean-of-means`: means of rows", cause="means of rows", bug="m")
VALUE_MEAN = replace(MEAN, name="value-mean-of-means")
SLUGS = [c.slug for c in rlhf_spec.clauses.clauses() if c.slug.startswith(("actor.", "packing."))]
LOSSES = [c.slug for c in rlhf_spec.clauses.clauses() if c.slug.startswith("policy-loss.")]


def failed(clause: str, *diagnoses: Diagnosis, method: str = "action_log_probs", **more: object) -> Result:
    exchange = Exchange((Call(method, {}, "judged"),))
    failure = Failure(
        "log-prob", "sample 0, action 0", "-1.25", "-3.5", 2.25, 1e-4, case="x" * 3000, stored={"type": "C"}
    )
    failure = replace(failure, diagnoses=diagnoses, exchange=exchange, **more)
    return Result(clause, "MUST", "fail", failure.sentence, failure=failure)


def raised(clause: str, reason: str) -> Result:
    return Result(clause, "MUST", "error", reason, failure=Failure(reason, "", "", ""))


# --- what has one cause ---------------------------------------------------------------------------------------------


def found(*results: Result) -> list[tuple[str, ...]]:
    """The clauses of each cause."""
    return [cause.slugs for cause in causes(sample_report(*results)).found]


def test_failures_that_share_a_name_have_one_cause_though_it_is_not_their_first():
    one, two, three = failed(SLUGS[0], SHIFT, LATE), failed(SLUGS[1], LATE), failed(SLUGS[2], SHIFT, LATE)
    assert found(one, two, three) == [tuple(SLUGS[:3])]


def test_failures_of_two_names_have_two_causes():
    assert found(failed(SLUGS[0], SHIFT), failed(LOSSES[0], MEAN), failed(SLUGS[1], SHIFT)) == [
        (SLUGS[0], SLUGS[1]),
        (LOSSES[0],),
    ]


def test_a_shift_of_another_length_is_another_cause():
    other = replace(SHIFT, cause="shifted by -1")
    assert len(found(failed(SLUGS[0], SHIFT), failed(SLUGS[1], other))) == 2


def test_the_same_words_about_other_places_are_one_cause():
    other = replace(SHIFT, sentence="sample 3, action 1: you returned another: shifted by +1 in packs only")
    assert len(found(failed(SLUGS[0], SHIFT), failed(SLUGS[1], other))) == 1


def test_what_answers_alike_counts_as_a_name():
    many = replace(LATE, name="other", alike=("labels-unshifted",))
    assert len(found(failed(SLUGS[0], many), failed(SLUGS[1], LATE))) == 1


def test_faults_of_one_known_bug_in_two_methods_are_one_cause():
    one, two = failed(LOSSES[0], MEAN, method="policy_loss"), failed("value-loss.half", VALUE_MEAN, method="value_loss")
    (cause,) = causes(sample_report(one, two)).found
    assert cause.methods == ("policy_loss", "value_loss")


def test_faults_of_one_known_bug_in_one_method_are_two_causes():
    assert len(found(failed(LOSSES[0], MEAN), failed(LOSSES[1], VALUE_MEAN))) == 2


def test_a_failure_without_a_name_is_explained_by_nothing():
    result = causes(sample_report(failed(SLUGS[0], SHIFT), failed(SLUGS[1], SHIFT), failed(SLUGS[2])))
    assert result.sentence == "1 cause explains 2 of 3 failures; the cause of 1 more is not known"
    assert [r.clause for r in result.unexplained] == [SLUGS[2]]


@pytest.mark.parametrize("kind", ["device", "scope"])
def test_where_something_is_off_is_no_cause(kind):
    place = Diagnosis(kind, kind, "on the CPU the same call is right, and in 3 cases of 12")
    assert not found(failed(SLUGS[0], place), failed(SLUGS[1], place))


def test_a_failure_of_each_method_comes_first_where_nothing_is_explained():
    rows = [failed(slug) for slug in SLUGS[:9]] + [failed(slug, method="policy_loss") for slug in LOSSES[:2]]
    assert [r.clause for r in causes(sample_report(*rows)).nameless][:3] == [SLUGS[0], LOSSES[0], SLUGS[1]]


def test_diagnoses_of_an_earlier_version_without_a_cause_are_not_thrown_together():
    old = [Diagnosis("place", "shift", f"sample {i}: shifted") for i in range(2)]
    assert len(found(*(failed(slug, row) for slug, row in zip(SLUGS, old, strict=False)))) == 2


def test_a_failure_that_two_causes_explain_says_so():
    report = sample_report(
        *(failed(slug, SHIFT) for slug in SLUGS[:3]), failed(LOSSES[0], MEAN), failed(LOSSES[1], MEAN, SHIFT)
    )
    doubtful = [cause.doubtful for cause in causes(report).found]
    assert doubtful == [(LOSSES[1],), ()]


def test_an_error_at_one_line_is_one_cause_whatever_led_there():
    one = raised(SLUGS[0], "action_log_probs raised ValueError: 5 is not 3 (trainer.py:12 in slice)")
    two = raised(SLUGS[1], "action_entropy raised ValueError: 8 is not 4 (trainer.py:12 in slice)")
    other = raised(SLUGS[2], "action_entropy raised ValueError: 8 is not 4 (trainer.py:13 in slice)")
    assert found(one, two, other) == [(SLUGS[0], SLUGS[1]), (SLUGS[2],)]


def test_a_known_failure_is_no_failure():
    known = Result(SLUGS[0], "MUST", "known-failure", "accepted")
    assert causes(sample_report(known, passed(SLUGS[1]))).sentence == ""


# --- how it is shown ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_slips():
    """27 failures: 15 of one slip, 12 of another one, each with a long case."""
    slices = [failed(slug, SHIFT, LATE) for slug in SLUGS[:15]]
    means = [failed(slug, MEAN, method="policy_loss") for slug in LOSSES[:12]]
    return sample_report(*slices, *means)


def shown(report, **options: bool) -> list[str]:
    """What stands below the table."""
    console = Console(file=io.StringIO(), width=160)
    terminal.show_report(console, report, **options)
    return console.file.getvalue().rpartition("┘\n")[2].splitlines()


def test_two_slips_take_one_screen(two_slips):
    lines = shown(two_slips)
    assert overview.height(lines) <= 60
    assert lines[1] == "2 causes explain 27 failures"


@pytest.mark.parametrize("said", ["shifted by +1", "`mean-of-means`: means of rows"])
def test_both_causes_are_named_everywhere(said, two_slips):
    summary, html = markdown.summary(two_slips, {}), page.text(two_slips, {})
    bare = said.partition(": ")[0].strip("`")
    assert said in "\n".join(shown(two_slips))
    assert said in summary
    assert bare in html[: html.index("What did not hold")]
    assert sum(said in text for text in github.told(two_slips)) == 1


@pytest.mark.parametrize("slug", [*SLUGS[:15], *LOSSES[:12]])
def test_every_failing_clause_is_listed(slug, two_slips):
    html = page.text(two_slips, {})
    for text in ("\n".join(shown(two_slips)), markdown.summary(two_slips, {}), html[: html.index("What did not hold")]):
        assert re.search(rf"{re.escape(slug)}\b", text)


def test_the_comment_is_short(two_slips):
    assert len(markdown.summary(two_slips, {}).encode()) < 4000


def test_the_comment_is_short_and_names_every_clause_where_no_cause_is_known():
    text = markdown.summary(sample_report(*(failed(slug) for slug in [*SLUGS[:30], *LOSSES[:15]])), {})
    assert len(text.encode()) < 4000
    assert all(f"`{slug}`" in text for slug in [*SLUGS[:30], *LOSSES[:15]])


@pytest.fixture(scope="module")
def seventy_failures():
    """Twenty causes, long ones, of 26 clauses, and 49 clauses of which none is known: all of them with a place."""
    place = Diagnosis("scope", "scope", f"of 25 cases tried, 25 fail: {'each number differs ' * 12}")
    causes_of = [replace(SHIFT, name=f"n{i}", cause=f"shifted by {i}, {'which is too far ' * 20}") for i in range(20)]
    every = [c.slug for c in rlhf_spec.clauses.clauses()][:75]
    explained = [failed(slug, causes_of[i % 20]) for i, slug in enumerate(every[:26])]
    return sample_report(*explained, *(failed(slug, place) for slug in every[26:]))


def test_many_failures_take_one_screen_and_a_short_comment_too(seventy_failures):
    text, lines = markdown.summary(seventy_failures, {}), shown(seventy_failures)
    assert overview.height(lines) <= 90
    assert len(text.encode()) < 5000
    for result in seventy_failures.results:
        assert f"`{result.clause}`" in text
        assert re.search(rf"{re.escape(result.clause)}\b", "\n".join(lines))


def test_there_is_one_annotation_for_a_cause(two_slips):
    assert len(github.told(two_slips)) == 2


def test_no_more_annotations_than_github_shows_and_none_is_lost():
    report = sample_report(*(failed(slug) for slug in SLUGS[:15]))
    said = github.told(report)
    assert len(said) == github.MOST
    assert all(any(slug in text for text in said) for slug in SLUGS[:15])


def test_verbose_shows_every_failure_in_full(two_slips):
    lines = shown(two_slips, verbose=True)
    assert sum(line.startswith("FAIL ") for line in lines) == 27


def test_the_page_has_every_failure_and_opens_one_of_each_cause(two_slips):
    html = page.text(two_slips, {})
    cards = re.findall(r'<article class="card failure.*?<details( open)?>.*?id="([^"]+)"', html, re.S)
    assert [slug for opened, slug in cards if opened] == [SLUGS[0], LOSSES[0]]
    assert {slug for _, slug in cards} == {*SLUGS[:15], *LOSSES[:12]}


def test_one_failure_is_shown_in_full():
    lines = shown(sample_report(failed(SLUGS[0], SHIFT), passed(SLUGS[1])))
    assert lines[1].startswith(f"FAIL {SLUGS[0]}")
