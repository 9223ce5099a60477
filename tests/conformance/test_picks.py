"""Choices read off bytes: every one comes, the simplest comes from zeros, and parts do not disturb each other."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import find, given
from hypothesis import strategies as st

from rlhf_conformance.judging.picks import Picked, Picks, outward


@pytest.mark.parametrize("n", [1, 2, 3, 6, 10, 46, 255, 256])
def test_each_choice_has_its_share(n):
    picks = Picks(bytes(range(256)))
    counts = [0] * n
    for _ in range(256):
        counts[picks.below(n)] += 1
    assert set(counts) <= {256 // n, -(-256 // n)}


def test_the_simplest_is_the_first():
    picks = Picks(bytes(10))
    assert (picks.below(7), picks.of("abc"), picks.chance(1, 2), picks.chance(7, 8)) == (0, "a", False, False)
    assert picks.some(3, 1) == [0]


def test_after_the_end_there_is_only_the_simplest():
    picks = Picks(b"\xff")
    assert [picks.below(5) for _ in range(3)] == [4, 0, 0]


@pytest.mark.parametrize("k, n", [(1, 2), (1, 3), (1, 4), (2, 3), (5, 8)])
def test_a_chance_is_what_it_says(k, n):
    picks = Picks(bytes(range(256)))
    assert sum(picks.chance(k, n) for _ in range(256)) == pytest.approx(256 * k / n, abs=1)


@given(st.binary(min_size=8, max_size=8), st.integers(1, 8), st.integers(0, 8))
def test_places_are_taken_in_order_and_often_enough(data, n, least):
    taken = Picks(data).some(n, min(least, n))
    assert taken == sorted(set(taken))
    assert set(taken) <= set(range(n))
    assert len(taken) >= min(least, n)


def test_no_more_places_are_added_than_are_missing():
    assert Picks(bytes(3)).some(3, 0) == []
    assert Picks(bytes([0, 255, 0])).some(3, 1) == [1]
    assert Picks(bytes([0, 255, 0])).some(3, 2) == [0, 1]


def test_a_place_is_taken_in_five_cases_of_eight():
    assert sum(Picks(bytes([byte])).some(1, 0) == [0] for byte in range(256)) == 160


@given(st.binary(min_size=6, max_size=6), st.integers(0, 3))
def test_who_reads_less_of_a_part_leaves_the_next_alone(data, read):
    picks = Picks(data)
    first, second = picks.part(3), picks.part(3)
    for _ in range(read):
        first.below(256)
    assert [second.below(256) for _ in range(3)] == list(data[3:])


@given(st.data())
def test_a_case_has_just_as_many_choices_as_it_asked_for(data):
    assert len(data.draw(Picked(3, lambda picks: picks._data).strategy)) == 3


def test_the_first_case_is_the_simplest_and_the_others_are_known_by_their_seed():
    cases = Picked(40, lambda picks: picks)
    first, second = (list(itertools.islice(cases.drawn(seed), 100)) for seed in (0, 1))
    assert first[0] == second[0] == bytes(40)
    assert len({*first, *second}) == 199
    assert first == list(itertools.islice(cases.drawn(0), 100))
    assert first[1][:4].hex() == "2e044a86", "the same in every version of Python and of every library"


def test_more_choices_leave_those_of_the_case_alone():
    cases = Picked(2, lambda picks: picks.below(256)).map(lambda x: -x).with_more(1, lambda x, p: (x, p.below(256)))
    assert cases.count == 3
    assert cases.case(bytes([5, 6, 7])) == (-5, 7)


def test_either_kind_of_case_has_half():
    either = Picked(1, lambda picks: ("a", picks.below(256))) | Picked(3, lambda picks: ("b", picks.below(256)))
    assert either.count == 4
    assert either.case(bytes(4)) == ("a", 0)
    kinds = [either.case(bytes([byte, 9, 0, 0])) for byte in range(256)]
    assert kinds == [("a", 9)] * 128 + [("b", 9)] * 128


def test_outward():
    assert outward(2) == (0, 1, -1, 2, -2)


def test_a_case_shrinks_to_what_matters():
    rows = Picked(12, lambda picks: tuple(picks.below(10) for _ in range(12))).strategy
    assert find(rows, lambda row: row[7] >= 4) == (0,) * 7 + (4,) + (0,) * 4
