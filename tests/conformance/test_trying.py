"""How a failing case is looked for, made smaller and kept, whichever way a check draws its cases."""

from __future__ import annotations

import random
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import hypothesis
import numpy
import pytest
from hypothesis import strategies as st
from hypothesis.database import DirectoryBasedExampleDatabase
from hypothesis.errors import Flaky

from rlhf_conformance.judging.checks import checks
from rlhf_conformance.judging.isolation import surroundings_kept
from rlhf_conformance.judging.judge import ClauseFailure
from rlhf_conformance.judging.picks import Picked
from rlhf_conformance.judging.questions import Fact
from rlhf_conformance.judging.trying import PROFILES, _explore, _Trial

BYTES = Picked(4, lambda picks: tuple(picks.below(256) for _ in range(4)))
ANY = st.tuples(*[st.integers(0, 255)] * 4)
KINDS = pytest.mark.parametrize("cases", [BYTES, ANY], ids=["read off bytes", "of any strategy"])


def explored(
    cases: Any,
    *,
    holds=lambda case: case[2] < 200,
    database=None,
    profile="gate",
    shrinking=1.0,
    effort: int = 1,
    seed: int = 0,
):
    """The outcome of a check of `holds`, and the cases that it was asked about."""
    seen: list[Any] = []

    def function(subject, case):
        seen.append(case)
        yield Fact(holds(case), "the third", expected="less than 200", actual=str(case[2]))

    made = replace(checks()["policy-loss.clip"], function=function, cases=lambda subject: cases, effort=effort)
    trial = _Trial(made, SimpleNamespace(poison=None, late=lambda error: None), shrinking)  # type: ignore[arg-type]
    return _explore(trial, PROFILES[profile], seed, database), seen, trial


@KINDS
def test_a_failing_case_is_made_as_small_as_can_be(cases):
    outcome, seen, trial = explored(cases)
    assert isinstance(outcome, ClauseFailure)
    assert outcome.case == (0, 0, 200, 0)
    assert trial.found_after is not None
    assert seen[0] == (0, 0, 0, 0)


@KINDS
def test_without_time_for_it_the_case_stays_as_it_was_found(cases):
    outcome, seen, trial = explored(cases, shrinking=0.0)
    assert outcome.case == seen[trial.found_after - 1]
    assert outcome.case != (0, 0, 200, 0)


@KINDS
def test_what_holds_is_tried_as_often_as_the_profile_says(cases):
    outcome, seen, trial = explored(cases, holds=lambda case: True)
    assert outcome is None
    assert trial.examples == len(seen) == PROFILES["gate"].examples
    assert cases is ANY or len(set(seen)) == len(seen)


@KINDS
def test_what_failed_is_kept_and_tried_first(cases, tmp_path):
    database = DirectoryBasedExampleDatabase(tmp_path)
    first, seen, _ = explored(cases, database=database)
    assert seen[0] == (0, 0, 0, 0)
    again, seen, trial = explored(cases, database=database)
    assert seen[0] == again.case == first.case == (0, 0, 200, 0)
    assert trial.found_after == 1


@KINDS
def test_what_was_mended_is_forgotten(cases, tmp_path):
    database = DirectoryBasedExampleDatabase(tmp_path)
    explored(cases, database=database)
    outcome, seen, trial = explored(cases, database=database, holds=lambda case: True)
    assert outcome is None
    assert seen[0] == (0, 0, 200, 0)
    assert trial.examples > PROFILES["gate"].examples // 2


@pytest.mark.parametrize("seed", range(10))
def test_a_failure_is_found_beside_what_is_kept_of_another(seed, tmp_path):
    """Few cases, and many left over from making the first failure smaller."""
    cases = Picked(15, lambda picks: tuple(picks.below(256) for _ in range(15)))
    options = {"database": DirectoryBasedExampleDatabase(tmp_path), "profile": "full", "effort": 120, "seed": seed}
    explored(cases, holds=lambda case: case[0] < 150 and sum(case) <= 1500, **options)
    outcome, _, trial = explored(cases, holds=lambda case: case[3] < 100, **options)
    assert isinstance(outcome, ClauseFailure) == bool(trial.failures)
    assert outcome is None or outcome.case[3] == 100


@KINDS
@pytest.mark.parametrize("times", [1, 2, 3])
def test_what_fails_once_and_then_passes_is_flaky(cases, times):
    failures = iter([False] * times)
    outcome, _, trial = explored(cases, holds=lambda case: case[2] < 200 or next(failures, True))
    assert isinstance(outcome, Flaky)
    assert trial.failures


@KINDS
def test_an_error_of_the_suite_is_returned(cases):
    outcome, _, _ = explored(cases, holds=lambda case: case[9])
    assert isinstance(outcome, IndexError)


@KINDS
@pytest.mark.filterwarnings("ignore:Using `assume` outside")
def test_a_check_may_reject_a_case(cases):
    def holds(case):
        hypothesis.assume(case[0] % 2)
        return True

    outcome, seen, trial = explored(cases, holds=holds)
    assert outcome is None
    assert 0 < trial.examples < len(seen)


@KINDS
def test_random_numbers_are_the_same_in_each_run_and_for_each_case(cases):
    numbers: list[Any] = []

    def holds(case):
        numbers.append((random.random(), numpy.random.rand()))
        return True

    explored(cases, holds=holds)
    assert len(set(numbers)) == 1


def test_random_numbers_of_the_user_go_on_as_if_nothing_had_been_tried():
    random.seed(1)
    numpy.random.seed(1)
    wanted = [(random.random(), numpy.random.rand()) for _ in range(2)]
    random.seed(1)
    numpy.random.seed(1)
    seen = [(random.random(), numpy.random.rand())]
    with surroundings_kept():
        explored(BYTES)
    assert [*seen, (random.random(), numpy.random.rand())] == wanted
