"""What a report makes of its verdicts: conformant, not conformant or incomplete; and which failures are accepted."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import pytest

from rlhf_conformance.results import (
    ERROR,
    FAIL,
    INCONCLUSIVE,
    KNOWN_FAILURE,
    LOST,
    NOT_PROVIDED,
    PASS,
    SKIP,
    UNEXPECTED_PASS,
    VERDICTS,
    Failure,
    Report,
    Result,
)
from samples import SHIFTED_VALUES

MUST, SHOULD, CONVENTION = "policy-loss.clip", "policy-loss.overflow", "policy-loss.aggregation"
LEVELS = {MUST: "MUST", SHOULD: "SHOULD", CONVENTION: "CONVENTION"}
ANOTHER = Result("log-probs.definition", "MUST", PASS)
CONFORMANT, FAILED, INCOMPLETE = 0, 1, 3


def status(*results: Result, strict: bool = False) -> int:
    return Report(results, strict=strict).exit_status


# Exit status of a run with a pass and one other result: (not strict, strict).
BESIDE_A_PASS = {
    (PASS, "MUST"): (CONFORMANT, CONFORMANT),
    (PASS, "SHOULD"): (CONFORMANT, CONFORMANT),
    (PASS, "CONVENTION"): (CONFORMANT, CONFORMANT),
    (FAIL, "MUST"): (FAILED, FAILED),
    (FAIL, "SHOULD"): (CONFORMANT, FAILED),
    (FAIL, "CONVENTION"): (FAILED, FAILED),
    (ERROR, "MUST"): (FAILED, FAILED),
    (ERROR, "SHOULD"): (CONFORMANT, FAILED),
    (ERROR, "CONVENTION"): (FAILED, FAILED),
    (UNEXPECTED_PASS, "MUST"): (FAILED, FAILED),
    (UNEXPECTED_PASS, "SHOULD"): (CONFORMANT, FAILED),
    (UNEXPECTED_PASS, "CONVENTION"): (FAILED, FAILED),
    **dict.fromkeys(itertools.product((NOT_PROVIDED, SKIP, KNOWN_FAILURE), LEVELS.values()), (CONFORMANT, CONFORMANT)),
    **dict.fromkeys(itertools.product((INCONCLUSIVE, LOST), LEVELS.values()), (INCOMPLETE, INCOMPLETE)),
}


def test_the_table_has_every_verdict_at_every_level():
    assert set(BESIDE_A_PASS) == set(itertools.product(VERDICTS, LEVELS.values()))


@pytest.mark.parametrize("slug", LEVELS)
@pytest.mark.parametrize("verdict", VERDICTS)
@pytest.mark.parametrize("strict", [False, True])
def test_exit_status_of_one_result_beside_a_pass(verdict, slug, strict):
    level = LEVELS[slug]
    assert status(ANOTHER, Result(slug, level, verdict), strict=strict) == BESIDE_A_PASS[verdict, level][strict]


@pytest.mark.parametrize("verdict", [v for v in VERDICTS if v != PASS])
@pytest.mark.parametrize("strict", [False, True])
def test_without_a_pass_no_verdict_is_green(verdict, strict):
    results = [Result(slug, level, verdict) for slug, level in LEVELS.items()]
    assert status(*results, strict=strict) != CONFORMANT


def test_zero_checks_are_not_green():
    assert status() == INCOMPLETE


def test_a_broken_must_outweighs_a_lost_clause():
    assert status(ANOTHER, Result(MUST, "MUST", FAIL), Result(SHOULD, "SHOULD", LOST)) == FAILED


def test_a_lost_clause_outweighs_a_warning():
    assert status(ANOTHER, Result(SHOULD, "SHOULD", FAIL), Result(MUST, "MUST", LOST)) == INCOMPLETE


def test_a_broken_should_is_a_warning_unless_strict():
    broken = Result(SHOULD, "SHOULD", FAIL)
    assert Report((ANOTHER, broken)).warnings == (broken,)
    assert Report((ANOTHER, broken), strict=True).warnings == ()
    assert Report((ANOTHER, broken), strict=True).broken == (broken,)


@pytest.mark.parametrize(
    "results, verdict",
    [
        ((ANOTHER,), "CONFORMANT"),
        ((ANOTHER, Result(MUST, "MUST", ERROR)), "NOT CONFORMANT"),
        ((ANOTHER, Result(MUST, "MUST", INCONCLUSIVE)), "INCOMPLETE"),
        ((), "INCOMPLETE"),
    ],
)
def test_the_word_for_it(results, verdict):
    assert Report(results).verdict == verdict


def test_a_report_is_asked_for_a_clause_by_its_slug():
    report = Report((ANOTHER,))
    assert report.result("log-probs.definition") is ANOTHER
    with pytest.raises(KeyError):
        report.result(MUST)


# --- too few examples ---------------------------------------------------------------------------------------------


@pytest.fixture
def judged():
    """What the runner makes of a check that tried `examples` cases and compared `comparisons` numbers."""
    from rlhf_conformance.judging.checks import checks
    from rlhf_conformance.judging.judge import Judge
    from rlhf_conformance.judging.trying import _judged, _Trial

    def verdict(examples: int, comparisons: int, outcome: BaseException | None = None) -> Result:
        trial = _Trial(checks()[MUST], None, 1, judge=Judge(numbers=comparisons), examples=examples)
        return _judged(Result(MUST, "MUST", PASS, examples=examples, floor=30), trial, outcome)

    return verdict


def test_enough_examples_and_a_comparison_make_a_pass(judged):
    assert judged(30, 1).verdict == PASS


def test_too_few_examples_are_inconclusive(judged):
    result = judged(29, 29)
    assert result.verdict == INCONCLUSIVE
    assert "only 29 valid cases of at least 30" in result.reason


def test_examples_in_which_nothing_was_compared_are_inconclusive(judged):
    assert judged(30, 0).verdict == INCONCLUSIVE


def test_an_error_of_the_suite_itself_is_not_the_adapters(judged):
    result = judged(30, 30, ZeroDivisionError("in the check"))
    assert result.verdict == LOST
    assert "the suite itself failed" in result.reason
    assert "in the check" in result.reason


@pytest.mark.parametrize("profile", ["smoke", "gate", "full"])
def test_every_check_has_a_floor_of_at_least_one_example(profile):
    from rlhf_conformance.judging.checks import checks
    from rlhf_conformance.judging.trying import PROFILES

    for check in checks().values():
        assert 1 <= PROFILES[profile].floor_of(check) <= PROFILES[profile].examples_of(check)


# --- as data ------------------------------------------------------------------------------------------------------


def test_a_result_with_all_that_a_failure_may_hold_comes_back_from_json():
    assert SHIFTED_VALUES.failure.picture is not None
    assert SHIFTED_VALUES.failure.exchange is not None
    assert Result.from_json(json.loads(json.dumps(SHIFTED_VALUES.to_json()))) == SHIFTED_VALUES
    plain = replace(SHIFTED_VALUES, failure=replace(SHIFTED_VALUES.failure, picture=None, exchange=None))
    assert Result.from_json(json.loads(json.dumps(plain.to_json()))) == plain


STORED = Result(MUST, "MUST", FAIL, failure=Failure("loss", "", "1", "2", stored={"type": "LossCase"}))


@pytest.mark.parametrize(
    "result, run, replayed",
    [
        (STORED, {"command": "check a:A", "report": "my reports/report.json"}, "--replay 'my reports/report.json'"),
        (STORED, {"command": "check a:A"}, ""),
        (STORED, {"command": "check a:A", "report": ""}, ""),
        (replace(STORED, failure=replace(STORED.failure, stored=None)), {"command": "check a:A", "report": "r"}, ""),
        (replace(STORED, failure=None), {"command": "check a:A", "report": "r"}, ""),
    ],
    ids=["a stored case", "no report", "an empty path", "no stored case", "no failure"],
)
def test_the_command_that_repeats_a_clause(result, run, replayed):
    assert Report((result,), run=run).command(result) == f"check a:A --only {MUST} {replayed}".rstrip()


@pytest.mark.parametrize("run", [{}, {"command": "", "report": "r"}])
def test_an_adapter_that_is_an_object_has_no_command(run):
    assert Report((STORED,), run=run).command(STORED) == ""


# --- through the command -------------------------------------------------------------------------------------------


def test_strict_through_the_command(command, hostile):
    only = ("--only", "positions.cumsum", "--only", "log-probs.side-effects")
    done = command("check", hostile("answers.py:SeedsTorch"), "--profile", "smoke", "-n", "1", "--strict", *only)
    assert done.status == FAILED
    assert "FAIL log-probs.side-effects (SHOULD)" in done.said
    assert "--strict" in done.stdout[done.stdout.index("repeat with") :], "repeated without it the clause is green"
