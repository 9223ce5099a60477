"""How a failing case is looked for, made smaller and kept, whichever way a check draws its cases."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import hypothesis
import numpy
import pytest
from hypothesis import strategies as st
from hypothesis.database import DirectoryBasedExampleDatabase
from hypothesis.errors import Flaky

from rlhf_conformance.judging import trying
from rlhf_conformance.judging.checks import checks
from rlhf_conformance.judging.isolation import surroundings_kept
from rlhf_conformance.judging.judge import ClauseFailure
from rlhf_conformance.judging.picks import Picked
from rlhf_conformance.judging.questions import Fact, Question, known
from rlhf_conformance.judging.trying import PROFILES, _explore, _Trial
from rlhf_conformance.oracle.probes import Probe
from rlhf_conformance.results import INCONCLUSIVE

BYTES = Picked(4, lambda picks: tuple(picks.below(256) for _ in range(4)))
ANY = st.tuples(*[st.integers(0, 255)] * 4)
KINDS = pytest.mark.parametrize("cases", [BYTES, ANY], ids=["read off bytes", "of any strategy"])


def explored(
    cases: Any,
    *,
    holds=lambda case: case[2] < 200,
    database=None,
    profile="gate",
    shrinking=10.0,
    smaller: int = 1000,
    effort: int = 1,
    seed: int = 0,
):
    """The outcome of a check of `holds`, and the cases that it was asked about."""
    seen: list[Any] = []

    def function(subject, case):
        seen.append(case)
        yield Fact(holds(case), "the third", expected="less than 200", actual="more")
        yield Question("a number", (), 1.0, reading=known(1.0))

    made = replace(checks()["policy-loss.clip"], function=function, cases=lambda subject: cases, effort=effort)
    trial = _Trial(made, SimpleNamespace(poison=None, late=lambda error: None), shrinking, smaller)  # type: ignore[arg-type]
    return _explore(trial, PROFILES[profile], seed, database), seen, trial


@KINDS
def test_a_failing_case_is_made_as_small_as_can_be(cases):
    outcome, seen, trial = explored(cases)
    assert isinstance(outcome, ClauseFailure)
    assert outcome.case == (0, 0, 200, 0)
    assert trial.found_after is not None
    assert seen[0] == (0, 0, 0, 0)


@KINDS
def test_a_smaller_case_is_looked_for_among_so_many_however_fast_they_are(cases):
    """What a busy machine shows is what an idle one does."""
    none, few, many = (explored(cases, smaller=count) for count in (0, 5, 1000))
    assert isinstance(none[0], ClauseFailure)
    assert len(none[1]) < len(few[1]) <= len(none[1]) + 10 < len(many[1])


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
    assert isinstance(outcome, ClauseFailure) == bool(trial.tried)
    assert outcome is None or outcome.case[3] == 100


@KINDS
@pytest.mark.parametrize("times", [1, 2, 3])
def test_what_fails_once_and_then_passes_is_flaky(cases, times):
    failures = iter([False] * times)
    outcome, _, trial = explored(cases, holds=lambda case: case[2] < 200 or next(failures, True))
    assert isinstance(outcome, Flaky)
    assert trial.tried


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


# --- several failures ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A case about a probe."""

    number: int
    probe: Probe


CASES = Picked(2, lambda picks: Case(picks.below(200), Probe(picks.of(("llama", "gpt2")))))


def tried(function, cases=CASES, **options):
    """What comes of a check with these questions."""
    made = replace(checks()["policy-loss.clip"], function=function, cases=lambda subject: cases)
    subject = SimpleNamespace(poison=None, late=lambda error: None, adapter=None, forget_models=lambda: None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trying, "checks", lambda: {"policy-loss.clip": made})
        patch.setattr(type(made), "not_provided", lambda self, adapter: None)
        patch.setattr(trying.storing, "to_json", lambda case: {"number": case.number})
        return trying.try_clause("policy-loss.clip", subject, PROFILES["gate"], 0, **options)  # type: ignore[arg-type]


def asks(what: str, holds: bool) -> Question:
    return Question(what, (), 1.0, reading=known(1.0 if holds else 2.0))


def number_and_sign(subject, case):
    yield asks("number", case.number < 50)
    yield asks("sign", case.number < 100)


def test_each_quantity_that_is_wrong_is_told_for_each_backbone():
    result = tried(number_and_sign).result
    found = [result.failure, *result.others]
    assert {(f.what, "gpt2" in f.case) for f in found} == set(itertools.product(("number", "sign"), (False, True)))
    assert len(found) == 4


def test_the_first_that_is_found_is_made_smaller_and_the_others_are_as_small_as_they_were_seen():
    result = tried(number_and_sign).result
    assert result.failure.stored == {"number": 50}
    assert all(other.stored["number"] >= (50 if other.what == "number" else 100) for other in result.others)


def test_what_is_wrong_on_the_first_backbone_hides_nothing_on_the_other():
    """The value on every case with a Llama, the sign on one in a hundred with a GPT-2."""

    def function(subject, case):
        yield asks("value", case.probe.architecture == "gpt2")
        yield asks("sign", case.probe.architecture == "llama" or case.number % 20)

    assert sorted(f.what for f in (lambda r: (r.failure, *r.others))(tried(function).result)) == ["sign", "value"]


def test_what_is_wrong_on_a_given_case_is_looked_for_no_more():
    llama = Case(180, Probe("llama"))
    found = tried(number_and_sign, first=[llama])
    assert [f.what for f in found.shown[0]] == ["number", "sign"]
    assert found.result.failure.stored["number"] == 50
    assert "gpt2" in found.result.failure.case
    assert {f.stored["number"] for f in found.result.others if "llama" in f.case} == {180}


def test_where_a_given_case_shows_all_there_is_it_is_the_failure():
    cases = Picked(1, lambda picks: Case(picks.below(200), Probe("llama")))
    found = tried(number_and_sign, cases, first=[Case(180, Probe("llama"))])
    assert found.result.failure.stored == {"number": 180}
    assert [f.what for f in found.result.others] == ["sign"]


@pytest.mark.parametrize("to_the_end", [False, True])
def test_a_run_that_needs_one_failure_stops_at_it(to_the_end):
    seen = []

    def function(subject, case):
        seen.append(case)
        yield asks("number", False)

    tried(function, Picked(1, lambda picks: Case(picks.below(200), Probe("llama"))), to_the_end=to_the_end)
    assert (len(seen) > PROFILES["gate"].examples) == to_the_end


def test_cases_in_which_no_number_is_compared_are_no_evidence():
    """Whatever facts hold in them."""

    def function(subject, case):
        yield Fact(True, "graph", expected="one", actual="one")
        yield Question("numbers", (), [1.0] * (case.number < 20), reading=known([1.0] * (case.number < 20)))

    result = tried(function).result
    assert result.verdict == INCONCLUSIVE
    assert "in which no number was compared" in result.reason
    assert 0 < result.examples < result.floor
