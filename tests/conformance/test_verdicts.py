"""What a report makes of its verdicts: conformant, not conformant or incomplete; and which failures are accepted."""

from __future__ import annotations

import itertools

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
    KnownFailure,
    Report,
    Result,
    with_known_failures,
)
from rlhf_conformance.suite import UsageError, read_known_failures

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
    from rlhf_conformance.checks import checks
    from rlhf_conformance.judge import Judge
    from rlhf_conformance.runner import _judged, _Trial

    def verdict(examples: int, comparisons: int, outcome: BaseException | None = None) -> Result:
        trial = _Trial(checks()[MUST], None, 1, judge=Judge(comparisons=comparisons), examples=examples)
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
    from rlhf_conformance.checks import checks
    from rlhf_conformance.runner import PROFILES

    for check in checks().values():
        assert 1 <= PROFILES[profile].floor_of(check) <= PROFILES[profile].examples_of(check)


# --- known failures -----------------------------------------------------------------------------------------------

KNOWN = KnownFailure(MUST, "clips after the mean", "https://example.org/issues/1")


@pytest.mark.parametrize("verdict", VERDICTS)
def test_what_an_accepted_failure_makes_of_a_verdict(verdict):
    changed = {FAIL: KNOWN_FAILURE, ERROR: KNOWN_FAILURE, PASS: UNEXPECTED_PASS}
    assert with_known_failures(Result(MUST, "MUST", verdict), (KNOWN,)).verdict == changed.get(verdict, verdict)


@pytest.mark.parametrize("verdict", VERDICTS)
def test_an_accepted_failure_concerns_its_own_clause_only(verdict):
    other = Result(SHOULD, "SHOULD", verdict)
    assert with_known_failures(other, (KNOWN,)) is other


def test_the_reason_of_a_known_failure_keeps_both_stories():
    result = with_known_failures(Result(MUST, "MUST", FAIL, reason="expected 1, got 2"), (KNOWN,))
    assert "clips after the mean" in result.reason
    assert "expected 1, got 2" in result.reason


def test_a_known_failure_that_passes_says_what_to_do():
    result = with_known_failures(Result(MUST, "MUST", PASS), (KNOWN,))
    assert result.reason == "accepted as a known failure (clips after the mean), but it passes: remove the row"


def test_a_report_of_known_failures_only_is_not_green():
    assert status(with_known_failures(Result(MUST, "MUST", FAIL), (KNOWN,))) == INCOMPLETE


def test_the_rows_of_a_file_of_known_failures(tmp_path):
    path = tmp_path / "known.toml"
    path.write_text(f'[[known-failure]]\nclause = "{MUST}"\nreason = "r"\n\n[[known-failure]]\nclause = "{SHOULD}"\n')
    with pytest.raises(UsageError, match="reason"):
        read_known_failures(path)
    path.write_text(f'[[known-failure]]\nclause = "{MUST}"\nreason = "r"\nissue = "https://example.org/1"\n')
    assert read_known_failures(path) == (KnownFailure(MUST, "r", "https://example.org/1"),)


@pytest.mark.parametrize(
    "text, says",
    [
        ("not toml", "known-failure"),
        ('[[known-failure]]\nclause = "policy-loss.clipp"\nreason = "r"\n', "policy-loss.clip"),
        ('[[known-failure]]\nclause = "policy-loss.clip"\nreason = "r"\nwhy = "x"\n', "why"),
        ('[known-failure]\nclause = "policy-loss.clip"\nreason = "r"\n', "[[known-failure]]"),
        ('[[known-failures]]\nclause = "policy-loss.clip"\nreason = "r"\n', "known-failures"),
        (
            '[[known-failure]]\nclause = "policy-loss.clip"\nreason = "r"\n' * 2,
            "policy-loss.clip",
        ),
    ],
    ids=["not TOML", "no such clause", "unknown key", "one table", "misspelt table", "twice"],
)
def test_a_bad_file_of_known_failures_is_refused_with_its_name(text, says, tmp_path):
    path = tmp_path / "known.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as error:
        read_known_failures(path)
    assert str(path) in str(error.value)
    assert says in str(error.value)


def test_a_file_of_known_failures_in_another_encoding_is_refused(tmp_path):
    path = tmp_path / "known.toml"
    path.write_bytes("# schön\n".encode("latin-1"))
    with pytest.raises(UsageError, match=str(path)):
        read_known_failures(path)


def test_known_failures_through_the_command(command, hostile, tmp_path):
    """One clause that fails as accepted, one that passes although it is accepted, one that passes."""
    (tmp_path / "known.toml").write_text(
        '[[known-failure]]\nclause = "log-probs.definition"\nreason = "contiguous logits only"\nissue = "#7"\n'
        '[[known-failure]]\nclause = "positions.cumsum"\nreason = "was off by one"\n'
    )
    check = ("check", hostile("answers.py:Raises"), "--profile", "smoke", "-n", "1", "--known-failures", "known.toml")
    accepted = command(*check, "--only", "log-probs.definition", "--only", "policy-loss.ratio")
    assert accepted.status == CONFORMANT
    assert "known failure: log-probs.definition: accepted: contiguous logits only." in accepted.said
    surprising = command(*check, "--only", "log-probs.definition", "--only", "positions.cumsum")
    assert surprising.status == FAILED
    assert "UNEXPECTED-PASS positions.cumsum" in surprising.said
    assert "accepted as a known failure (was off by one), but it passes: remove the row" in surprising.said


def test_strict_through_the_command(command, hostile):
    only = ("--only", "positions.cumsum", "--only", "log-probs.side-effects")
    done = command("check", hostile("answers.py:SeedsTorch"), "--profile", "smoke", "-n", "1", "--strict", *only)
    assert done.status == FAILED
    assert "FAIL log-probs.side-effects (SHOULD)" in done.said
    assert "--strict" in done.stdout[done.stdout.index("repeat with") :], "repeated without it the clause is green"
