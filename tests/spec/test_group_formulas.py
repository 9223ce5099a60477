"""Whitening and advantages of groups: what is true of them by other arguments than the formulas' own."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from rlhf_spec.group_advantages import group_advantages, row_advantages
from rlhf_spec.whitening import EPS_PLACES, denominator, mean_and_variance, whiten

numbers = st.floats(-5, 5).map(lambda x: round(x, 3))
places = st.sampled_from(EPS_PLACES)
ddofs = st.sampled_from([0, 1])
close = pytest.approx


@st.composite
def tables(draw, least=2):
    """Values under a mask with at least so many actions, which are not all alike."""
    width = draw(st.integers(1, 5))
    rows = draw(st.lists(st.lists(numbers, min_size=width, max_size=width), min_size=1, max_size=4))
    mask = [[draw(st.integers(0, 1)) for _ in row] for row in rows]
    kept = of_actions(rows, mask)
    assume(len(kept) >= least and max(kept) - min(kept) > 0.1)
    return rows, mask


def of_actions(rows, mask):
    return [x for row, ms in zip(rows, mask, strict=True) for x, m in zip(row, ms, strict=True) if m]


# Whitening


@given(tables(), ddofs)
def test_what_was_whitened_has_mean_0_and_variance_1(table, ddof):
    rows, mask = table
    mean, variance = mean_and_variance(of_actions(whiten(rows, mask, ddof=ddof, eps=0.0), mask), ddof)
    assert (mean, variance) == (close(0, abs=1e-9), close(1))


@given(tables(), places, st.sampled_from([0.25, -3.0]), numbers)
def test_an_eps_of_0_leaves_neither_shift_nor_scale(table, place, factor, offset):
    rows, mask = table
    other = [[factor * x + offset for x in row] for row in rows]
    one, two = (of_actions(whiten(r, mask, eps=0.0, eps_place=place), mask) for r in (rows, other))
    assert two == [close(math.copysign(1.0, factor) * x, abs=1e-6) for x in one]


@given(tables(), places, st.floats(1e-8, 1.0), ddofs)
def test_the_mean_that_is_kept_is_that_of_the_actions(table, place, eps, ddof):
    rows, mask = table
    options = {"eps": eps, "eps_place": place, "ddof": ddof}
    mean, _ = mean_and_variance(of_actions(rows, mask))
    kept = of_actions(whiten(rows, mask, shift_mean=False, **options), mask)
    assert mean_and_variance(kept)[0] == close(mean, abs=1e-9)
    assert kept == [close(x + mean) for x in of_actions(whiten(rows, mask, **options), mask)]


@given(tables(), st.sampled_from([math.nan, math.inf, 1e308]))
def test_what_stands_under_the_mask_is_never_read(table, garbage):
    rows, mask = table
    spoiled = [[x if m else garbage for x, m in zip(row, ms, strict=True)] for row, ms in zip(rows, mask, strict=True)]
    assert whiten(spoiled, mask) == whiten(rows, mask)


@given(st.floats(0, 10), st.floats(0, 1))
def test_the_places_of_eps_are_in_one_order(variance, eps):
    floor, added, beside = (denominator(variance, eps, place) for place in ("floor", "variance", "std"))
    assert floor <= added
    assert beside >= math.sqrt(variance)
    assert added <= math.sqrt(variance) + math.sqrt(eps) + 1e-12


@pytest.mark.parametrize("options", [{"ddof": 2}, {"eps": -1.0}, {"eps": math.nan}, {"eps_place": "mean"}])
def test_what_there_is_not_is_refused(options):
    with pytest.raises(ValueError, match=r"divides by n|negative|none of the places"):
        whiten([[1.0, 2.0]], [[1, 1]], **options)


def test_the_numbers_that_the_prose_tells():
    """Of the introduction, and of the decision `epsilon-of-whitening`."""
    assert mean_and_variance([1.0, 3.0, 8.0]) == (4.0, 13.0)
    assert mean_and_variance([1.0, 3.0, 8.0, 99.0])[0] == 27.75
    small = [1e-6 / denominator(1e-12, 1e-8, place) for place in ("variance", "std", "floor")]
    assert [round(x, 2) for x in small] == [0.01, 0.99, 0.01]


# Groups


@st.composite
def groups(draw, least=2):
    """Scores with ids, in any order, each group of at least so many and not all alike."""
    found = []
    for group in range(draw(st.integers(1, 3))):
        scores = draw(st.lists(numbers, min_size=least, max_size=5))
        assume(max(scores) - min(scores) > 0.1)
        found += [(score, group) for score in scores]
    scores, ids = zip(*draw(st.permutations(found)), strict=True)
    return list(scores), list(ids)


def by_group(values, ids):
    return [[v for v, g in zip(values, ids, strict=True) if g == group] for group in sorted(set(ids))]


@given(groups(), st.sampled_from(["group-std", "batch-std", "none"]))
def test_the_advantages_of_a_group_add_up_to_0(batch, scale):
    for own in by_group(row_advantages(*batch, scale=scale), batch[1]):
        assert math.fsum(own) == close(0, abs=1e-9)


@given(groups(), ddofs)
def test_scaled_by_its_own_deviation_a_group_has_variance_1(batch, ddof):
    for own in by_group(row_advantages(*batch, ddof=ddof, eps=0.0), batch[1]):
        assert mean_and_variance(own, ddof)[1] == close(1)


@given(groups())
def test_an_advantage_is_bounded_by_the_size_of_the_group(batch):
    for own in by_group(row_advantages(*batch), batch[1]):
        assert max(map(abs, own)) <= (len(own) - 1) / math.sqrt(len(own)) + 1e-9


@given(groups())
def test_leaving_one_out_is_a_factor(batch):
    scores, ids = batch
    out, mean = (row_advantages(scores, ids, baseline=b, scale="none") for b in ("leave-one-out", "mean"))
    sizes = [ids.count(group) for group in ids]
    assert out == [close(n / (n - 1) * a, abs=1e-9) for a, n in zip(mean, sizes, strict=True)]


@given(groups(), st.integers(2, 20), st.sampled_from(["group-std", "none"]))
def test_a_large_eps_shrinks_and_the_sign_stays(batch, eps, scale):
    small, large = (row_advantages(*batch, scale=scale, eps=e) for e in (1e-6, float(eps)))
    assert all(abs(b) <= abs(a) and a * b >= 0 for a, b in zip(small, large, strict=True))


@given(groups(), st.data())
def test_the_actions_of_a_row_have_its_advantage(batch, data):
    scores, ids = batch
    mask = [[data.draw(st.integers(0, 1)) for _ in range(4)] for _ in scores]
    rows = row_advantages(scores, ids)
    assert group_advantages(scores, ids, mask) == [[a * m for m in ms] for a, ms in zip(rows, mask, strict=True)]


def test_a_group_of_one_takes_its_rule():
    assert row_advantages([4.0, 1.0, 2.0], [0, 1, 1], scale="none", of_one="score") == [4.0, -0.5, 0.5]
    assert row_advantages([4.0], [0], eps=1.0, of_one="score") == [2.0]


@pytest.mark.parametrize("options", [{"baseline": "median"}, {"scale": "std"}, {"of_one": "nan"}])
def test_a_rule_that_there_is_not_is_refused(options):
    with pytest.raises(ValueError, match=r"baseline|scale|group of one"):
        row_advantages([1.0, 2.0], [0, 0], **options)
