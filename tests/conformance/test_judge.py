"""The judge: what is close, what is not, and the place that it names."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from rlhf_conformance.judging.judge import ClauseFailure, Judge, SeveralFailures
from rlhf_conformance.judging.questions import (
    Fact,
    Question,
    known,
    pack_position,
    row_column,
    sample_action,
    sample_position,
)

finite = st.floats(-1e6, 1e6)
not_finite = st.sampled_from((math.nan, math.inf, -math.inf))


def close(judge, actual, expected, budget=0.0, *, what="number", **options) -> None:
    """What the judge makes of numbers that came, and of what was asked for."""
    judge.compare(Question(what, (), expected, budget, **options), actual, expected)


def refused(actual, expected, budget=0.0, **options) -> ClauseFailure:
    with pytest.raises(ClauseFailure) as error:
        close(Judge(), actual, expected, budget, **options)
    return error.value


@given(finite, finite, st.floats(0, 10))
def test_close_means_within_the_budget(actual, expected, budget):
    if abs(actual - expected) <= budget:
        close(Judge(), actual, expected, budget, what="number")
    else:
        refused(actual, expected, budget)


@given(not_finite, finite, st.sampled_from((0.0, 1.0, 1e30, math.inf)))
def test_what_is_not_finite_is_never_close_to_a_number(actual, expected, budget):
    refused(actual, expected, budget)
    refused(expected, actual, budget)


@given(not_finite, not_finite)
def test_nan_and_infinity_are_only_close_to_themselves(actual, expected):
    if repr(actual) == repr(expected):
        close(Judge(), actual, expected, 0.0, what="number")
    else:
        refused(actual, expected, math.inf)


@given(finite)
def test_without_a_budget_only_the_same_number_will_do(x):
    close(Judge(), x, x, what="number")
    refused(math.nextafter(x, math.inf), x)


@pytest.mark.parametrize("actual", [[1.0, 2.0, 3.0], [1.0], [[1.0, 2.0]], [[1.0], [2.0]], 1.0, []])
def test_another_number_of_numbers_is_a_failure(actual):
    refused(actual, [1.0, 2.0], math.inf)


def test_no_numbers_are_no_comparison():
    judge = Judge()
    close(judge, [], [], what="nothing")
    assert judge.numbers == 0


def test_tensors_lists_of_tensors_and_lists_are_the_same_numbers():
    judge = Judge()
    close(judge, torch.tensor([[1, 2], [3, 4]]), [[1.0, 2.0], [3.0, 4.0]], what="grid")
    close(judge, [torch.tensor([1.0]), torch.tensor([2.0, 3.0])], [[1], [2, 3]], what="ragged")
    close(judge, torch.tensor([True, False]), [1, 0], what="mask")
    close(judge, torch.tensor([0.5], dtype=torch.bfloat16, requires_grad=True), [0.5], what="half")
    assert judge.numbers == 4 + 3 + 2 + 1


@pytest.mark.parametrize(
    "place, wanted",
    [(sample_action, "sample 1, action 2"), (sample_position, "sample 1, position 2"), (row_column, "row 1, column 2")],
)
def test_the_place_of_the_first_difference_is_named(place, wanted):
    expected = [[0.0] * 3, [0.0] * 4]
    actual = [[0.0] * 3, [0.0, 0.0, 5.0, 7.0]]
    mismatch = refused(actual, expected, 1e-3, place=place, hint=lambda actual: "why").mismatch
    assert mismatch.place == wanted
    assert (mismatch.expected, mismatch.actual) == ("0", "5")
    assert (mismatch.error, mismatch.budget) == (5.0, 1e-3)
    assert mismatch.count == "2 of 7 numbers differ"
    assert mismatch.note == "why"


@pytest.mark.parametrize(
    "place, index, wanted",
    [
        (sample_action, (3,), "sample 3"),
        (pack_position, (3,), "position 3 of the pack"),
        (pack_position, (), ""),
        (sample_position, (0, 1, 2), "sample 0, position 1, entry 2"),
        (row_column, (0, 1, 2), "row 0, column 1, entry 2"),
        (row_column, (), ""),
    ],
)
def test_a_place_says_as_much_as_its_index(place, index, wanted):
    assert place(index) == wanted


def test_the_first_of_several_differences_is_the_one_that_is_told():
    mismatch = refused([0.0, 1.0, 9.0], [0.0, 0.0, 0.0], 0.5).mismatch
    assert (mismatch.place, mismatch.actual, mismatch.error, mismatch.budget) == ("row 1", "1", 1.0, 0.5)
    assert mismatch.count == "2 of 3 numbers differ"


def test_one_number_is_not_counted():
    assert refused(1.5, 0.0).mismatch.count == ""
    assert refused([1.5, 0.0], [0.0, 0.0]).mismatch.count == "1 of 2 numbers differ"


def test_a_hint_is_made_of_the_numbers_of_a_failure_only():
    made = []
    close(Judge(), 1.0, 1.0, 0.0, hint=lambda actual: made.append("too early") or "never")
    assert made == []
    assert refused([1.0], [0.0], hint=lambda actual: f"asked about {actual}").mismatch.note == "asked about [1.0]"


def test_another_number_of_numbers_is_said_in_numbers():
    mismatch = refused([1.0], [1.0, 2.0], what="loss").mismatch
    assert (mismatch.what, mismatch.expected, mismatch.actual) == ("loss", "2 numbers", "1 numbers")


def test_an_exact_comparison_names_its_place_and_its_note():
    with pytest.raises(ClauseFailure) as error:
        close(Judge(), [[1.0]], [[2.0]], what="token", place=sample_action, hint=lambda actual: "why")
    assert (error.value.mismatch.place, error.value.mismatch.note) == ("sample 0, action 0", "why")


def test_without_a_note_there_is_none():
    said = []
    for broken in (
        lambda judge: close(judge, [1.0], [2.0], 0.0, what="number"),
        lambda judge: close(judge, [1.0], [2.0], what="number"),
        lambda judge: judge.state(Fact(False, "number", expected="one", actual="none")),
    ):
        with pytest.raises(ClauseFailure) as error:
            broken(Judge())
        said.append((error.value.mismatch.what, error.value.mismatch.place, error.value.mismatch.note))
    assert said == [("number", "row 0", "")] * 2 + [("number", "", "")]


def test_a_budget_that_was_met_exactly_is_a_margin_of_one():
    judge = Judge()
    close(judge, [1.0, 0.5], [0.0, 0.0], 1.0, what="number")
    assert judge.margin == 1.0


def test_without_a_budget_the_margin_of_the_same_number_is_none_of_it():
    judge = Judge()
    close(judge, 1.0, 1.0, what="number")
    assert judge.margin == 0.0


def test_numbers_are_shown_with_seven_digits():
    mismatch = refused([1.23456789], [2.0]).mismatch
    assert (mismatch.expected, mismatch.actual) == ("2", "1.234568")


def test_a_nan_behind_a_larger_difference_is_still_counted():
    assert refused([0.0, 9.0, math.nan], [0.0, 0.0, 0.0], 1.0).mismatch.count == "2 of 3 numbers differ"


def test_the_message_says_what_where_expected_and_actual():
    error = refused([1.5], [2.5], 0.1, what="log-prob")
    assert str(error) == "log-prob at row 0: expected 2.5, got 1.5"


def test_a_budget_for_each_sample_is_each_samples_own():
    close(Judge(), [[1.0, 1.0], [5.0]], [[0.0, 0.0], [0.0]], [1.0, 5.0], what="number")
    assert refused([[1.0, 1.0], [5.0]], [[0.0, 0.0], [0.0]], [1.0, 4.0]).mismatch.place == "row 1, column 0"


def test_a_budget_for_each_number_is_each_numbers_own():
    assert refused([[1.0, 2.0]], [[0.0, 0.0]], [[1.0, 1.0]]).mismatch.place == "row 0, column 1"


@given(st.lists(st.tuples(finite, st.floats(0.01, 10), st.floats(0, 1)), min_size=1, max_size=5))
def test_the_margin_is_the_largest_error_over_its_budget(rows):
    judge = Judge()
    ratios = []
    for expected, budget, share in rows:
        actual = expected + share * budget
        ratio = abs(actual - expected) / budget
        assume(ratio <= 1)
        ratios.append(ratio)
        close(judge, actual, expected, budget, what="number")
    assert judge.margin == max(ratios)


def test_a_fact_that_does_not_hold_is_a_failure():
    judge = Judge()
    judge.state(Fact(True, "graph", expected="one", actual="none"))
    with pytest.raises(ClauseFailure, match="graph: expected one, got none"):
        judge.state(Fact(False, "graph", expected="one", actual="none"))
    assert judge.numbers == 0


def test_a_fact_that_does_not_hold_names_its_place():
    with pytest.raises(ClauseFailure) as error:
        Judge().state(Fact(False, "graph", expected="one", actual="none", place="sample 2"))
    assert error.value.mismatch.place == "sample 2"
    assert str(error.value) == "graph at sample 2: expected one, got none"


def test_a_judge_with_a_record_keeps_every_comparison_and_goes_on():
    judge = Judge(record=[])
    close(
        judge,
        [[1.0, 2.5], [3.0]],
        [[1.0, 2.0], [3.0]],
        [0.1, 0.2],
        what="first",
        place=sample_action,
        hint=lambda actual: "why",
    )
    close(judge, torch.tensor([4]), [4], what="second")
    first, second = judge.record
    assert (first.what, second.what) == ("first", "second")
    assert first.indices == ((0, 0), (0, 1), (1, 0))
    assert first.actual == (1.0, 2.5, 3.0)
    assert first.expected == (1.0, 2.0, 3.0)
    assert first.allowed == (0.1, 0.1, 0.2)
    assert (first.place((0, 1)), second.place((0,))) == ("sample 0, action 1", "row 0")
    assert (first.broken.place, first.broken.note, first.broken.count) == (
        "sample 0, action 1",
        "why",
        "1 of 3 numbers differ",
    )
    assert second.broken is None
    assert judge.numbers == 4


def test_a_judge_with_a_record_still_stops_at_a_plain_fact():
    judge = Judge(record=[])
    with pytest.raises(ClauseFailure):
        judge.state(Fact(False, "shape", expected="()", actual="(1,)"))
    assert judge.record == []


# --- a case with several questions -----------------------------------------------------------------------------------


def asked(*items, record=None):
    """What a judge makes of a check that yields these, and the replies that the check got."""
    replies = []

    def function(subject, case):
        for item in items:
            reply = yield item
            replies.append(reply)

    judge = Judge(record=record)
    try:
        return judge.try_case(SimpleNamespace(function=function), None, None), replies
    except SeveralFailures as failures:
        return failures.found, replies


def number(what: str, came: float, expected: float = 1.0, **options) -> Question:
    return Question(what, (), expected, reading=known(came), **options)


def test_all_that_is_wrong_with_a_case_is_found():
    found, replies = asked(
        number("first", 2.0),
        Fact(False, "graph", expected="one", actual="none"),
        number("right", 1.0),
        number("last", 3.0),
    )
    assert [failure.mismatch.what for failure in found] == ["first", "graph", "last"]
    assert replies == [2.0, None, 1.0, 3.0]


def test_a_case_says_how_many_numbers_it_compared():
    assert asked(number("one", 1.0), Question("two", (), [1.0, 2.0], reading=known([1.0, 2.0])))[0] == 3


def test_facts_are_no_numbers():
    assert asked(Fact(True, "graph", expected="one", actual="one"), Question("none", (), [], reading=known([])))[0] == 0


def test_a_quantity_may_be_told_apart_by_less_than_its_words():
    found, _ = asked(number("loss of row 1", 2.0, quantity="loss"))
    assert (found[0].quantity, found[0].mismatch.what) == ("loss", "loss of row 1")


def test_a_check_that_stumbles_over_what_is_wrong_hides_nothing():
    def function(subject, case):
        yield number("first", 2.0)
        raise IndexError

    with pytest.raises(SeveralFailures) as error:
        Judge().try_case(SimpleNamespace(function=function), None, None)
    assert [failure.quantity for failure in error.value.found] == ["first"]


def test_a_check_that_stumbles_over_nothing_is_an_error_of_the_suite():
    def function(subject, case):
        yield number("first", 1.0)
        raise IndexError

    with pytest.raises(IndexError):
        Judge().try_case(SimpleNamespace(function=function), None, None)
