"""Aggregation and the two losses: what is true of them by other arguments than the formulas' own."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from rlhf_spec.aggregation import AGGREGATIONS, MEANS, aggregate, map_actions, sequence_mean, token_mean, weights
from rlhf_spec.policy_loss import (
    CISPO_BOUNDS,
    SURROGATES,
    approx_kl,
    clip,
    clip_fraction,
    policy_loss,
    policy_loss_gradient,
    ratio,
    sequence_log_ratio,
    token_policy_loss,
    token_policy_loss_gradient,
)
from rlhf_spec.value_loss import token_value_loss, token_value_loss_gradient, value_loss, value_loss_gradient

numbers = st.floats(-10, 10)
log_ratios = st.floats(-3, 3)
advantages = st.floats(-5, 5)
bounds = st.floats(0.01, 0.9)
dual_clips = st.none() | st.floats(1.5, 5)
means = st.sampled_from(MEANS)
aggregations = st.sampled_from(AGGREGATIONS)
LENGTH = {"constant_length": 7}


def masks(min_rows=1, max_rows=4):
    return st.integers(1, 5).flatmap(
        lambda width: st.lists(
            st.lists(st.integers(0, 1), min_size=width, max_size=width), min_size=min_rows, max_size=max_rows
        )
    )


@st.composite
def batches(draw, tables, cells=numbers, with_an_action=False):
    """A mask and tables shaped like it."""
    mask = draw(masks())
    assume(not with_an_action or any(any(row) for row in mask))
    return mask, *([[draw(cells) for _ in row] for row in mask] for _ in range(tables))


def spoil(table, mask, cell):
    """The table with another cell wherever the mask is 0."""
    return [[x if m else cell for x, m in zip(row, ms, strict=True)] for row, ms in zip(table, mask, strict=True)]


def slope(function, x, step=1e-6):
    return (function(x + step) - function(x - step)) / (2 * step)


# Aggregation


@given(st.integers(1, 4), st.integers(1, 5), st.data())
def test_the_two_means_agree_on_sequences_of_equal_length(rows, actions, data):
    mask = [data.draw(st.permutations([1] * actions + [0] * 2)) for _ in range(rows)]
    table = [[data.draw(numbers) for _ in row] for row in mask]
    assert sequence_mean(table, mask) == pytest.approx(token_mean(table, mask), rel=1e-12, abs=1e-12)


@given(batches(1), numbers, means)
def test_the_mean_of_a_constant_is_the_constant(batch, constant, aggregation):
    mask, table = batch
    expected = constant if any(map(any, mask)) else 0.0
    constants = [[constant] * len(row) for row in table]
    assert aggregate(constants, mask, aggregation) == pytest.approx(expected, rel=1e-12)


@given(batches(1), aggregations, st.none() | st.floats(0.5, 20), st.booleans())
def test_the_aggregate_is_the_weighted_sum(batch, aggregation, global_count, count_empty_rows):
    mask, table = batch
    options = {"global_count": global_count, "count_empty_rows": count_empty_rows, **LENGTH}
    token_weights = weights(mask, aggregation, **options)
    cells = zip(sum(table, []), sum(token_weights, []), strict=True)
    expected = math.fsum(cell * weight for cell, weight in cells)
    assert aggregate(table, mask, aggregation, **options) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(batches(1), aggregations, st.sampled_from([math.nan, math.inf, -math.inf, 1e308]))
def test_what_stands_under_the_mask_is_never_read(batch, aggregation, garbage):
    mask, table = batch
    spoilt = spoil(table, mask, garbage)
    assert aggregate(spoilt, mask, aggregation, **LENGTH) == aggregate(table, mask, aggregation, **LENGTH)


@given(batches(1), aggregations, st.data())
def test_micro_batches_with_the_global_count_add_up(batch, aggregation, data):
    mask, table = batch
    cut = data.draw(st.integers(0, len(mask)))
    count = sum(map(sum, mask)) if aggregation == "token-mean" else sum(map(any, mask))
    assume(count)
    pieces = [(table[:cut], mask[:cut]), (table[cut:], mask[cut:])]
    total = sum(aggregate(rows, ms, aggregation, global_count=count, **LENGTH) for rows, ms in pieces)
    assert total == pytest.approx(aggregate(table, mask, aggregation, **LENGTH), rel=1e-9, abs=1e-9)


@given(batches(1, with_an_action=True))
def test_counting_empty_rows_scales_by_their_share(batch):
    mask, table = batch
    share = sum(map(any, mask)) / len(mask)
    counted = sequence_mean(table, mask, count_empty_rows=True)
    assert counted == pytest.approx(sequence_mean(table, mask) * share, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("global_count", [None, 0, 3])
@pytest.mark.parametrize("mask", [[], [[]], [[0, 0], [0, 0]]])
def test_a_batch_without_actions_is_zero(aggregation, global_count, mask):
    table = [[math.nan] * len(row) for row in mask]
    assert aggregate(table, mask, aggregation, global_count=global_count) == 0.0
    assert weights(mask, aggregation, global_count=global_count) == [[0.0] * len(row) for row in mask]


@given(batches(1))
def test_the_sums_differ_from_the_means_by_counts_alone(batch):
    mask, table = batch
    tokens, rows = sum(map(sum, mask)), sum(map(any, mask))
    summed = aggregate(table, mask, "token-sum")
    assert summed == pytest.approx(token_mean(table, mask) * tokens, rel=1e-9, abs=1e-9)
    by_length = aggregate(table, mask, "constant-length", **LENGTH)
    assert by_length * rows * 7 == pytest.approx(summed, rel=1e-9, abs=1e-9)
    assert aggregate(table, mask, "constant-length", **LENGTH, count_empty_rows=True) * len(mask) * 7 == pytest.approx(
        summed, rel=1e-9, abs=1e-9
    )


def test_booleans_and_floats_are_masks_too():
    for mask in ([[True, False]], [[1.0, 0.0]]):
        assert token_mean([[3.0, 9.0]], mask) == 3.0


def test_aggregation_refuses_what_has_no_mean():
    with pytest.raises(ValueError, match="there is no aggregation 'mean'"):
        aggregate([[1.0]], [[1]], "mean")
    with pytest.raises(ValueError, match="there is no aggregation 'mean'"):
        weights([[1]], "mean")
    for length in (None, 0, -1):
        with pytest.raises(ValueError, match="needs a positive length in tokens"):
            aggregate([[1.0]], [[1]], "constant-length", constant_length=length)
    with pytest.raises(ValueError, match="do not fit masks"):
        token_mean([[1.0, 2.0]], [[1]])
    with pytest.raises(ValueError, match="do not fit masks"):
        map_actions(max, [[1], [1]], [[1.0]])
    with pytest.raises(ValueError, match=r"0 and 1, not 0\.5"):
        token_mean([[1.0]], [[0.5]])
    with pytest.raises(ValueError, match="must be positive, not 0"):
        token_mean([[1.0]], [[1]], num_tokens=0)


# Policy loss


@given(log_ratios, advantages, bounds, bounds)
def test_the_clipped_loss_is_never_below_the_plain_one(lp, advantage, low, high):
    assert token_policy_loss(lp, 0.0, advantage, low, high) >= -math.exp(lp) * advantage


@given(log_ratios, advantages, bounds, bounds, dual_clips)
def test_inside_the_band_the_loss_is_the_plain_one(lp, advantage, low, high, dual_clip):
    assume(1 - low < math.exp(lp) < 1 + high and (dual_clip is None or math.exp(lp) < dual_clip))
    assert token_policy_loss(lp, 0.0, advantage, low, high, dual_clip) == pytest.approx(-math.exp(lp) * advantage)


@given(log_ratios, st.floats(0.01, 5), bounds, bounds)
def test_each_bound_holds_its_own_side(lp, size, low, high):
    # By cases instead of by min and clip.
    r = math.exp(lp)
    assert token_policy_loss(lp, 0.0, size, low, high) == pytest.approx(-size * (r if r < 1 + high else 1 + high))
    assert token_policy_loss(lp, 0.0, -size, low, high) == pytest.approx(size * (r if r > 1 - low else 1 - low))


@given(log_ratios, advantages, bounds, bounds, st.floats(1.5, 5))
def test_the_dual_clip_bounds_bad_actions_and_leaves_good_ones(lp, advantage, low, high, dual_clip):
    plain = token_policy_loss(lp, 0.0, advantage, low, high)
    dual = token_policy_loss(lp, 0.0, advantage, low, high, dual_clip)
    assert dual == (plain if advantage >= 0 else min(plain, -dual_clip * advantage))


@given(log_ratios, st.floats(-2, 0), advantages, bounds, bounds, dual_clips)
def test_the_policy_gradient_is_that_of_finite_differences(lp, olp, advantage, low, high, dual_clip):
    corners = [1 - low, 1 + high, dual_clip or 1 + high]
    assume(all(abs(lp - math.log(corner)) > 1e-4 for corner in corners))
    lp = lp + olp
    expected = slope(lambda x: token_policy_loss(x, olp, advantage, low, high, dual_clip), lp)
    gradient = token_policy_loss_gradient(lp, olp, advantage, low, high, dual_clip)
    assert gradient == pytest.approx(expected, rel=1e-6, abs=1e-6)


@given(batches(3), means, dual_clips)
def test_the_gradient_of_the_policy_loss_is_that_of_finite_differences(batch, aggregation, dual_clip):
    mask, lp, olp, adv = batch
    lp, olp = ([[x / 10 for x in row] for row in table] for table in (lp, olp))
    options = {"clip_eps_low": 0.2, "clip_eps_high": 0.3, "dual_clip": dual_clip, "aggregation": aggregation}
    corners = [0.8, 1.3, dual_clip or 1.3]
    gradient = policy_loss_gradient(lp, olp, adv, mask, **options)
    for i, row in enumerate(lp):
        for t in range(len(row)):
            if any(abs(lp[i][t] - olp[i][t] - math.log(corner)) < 1e-4 for corner in corners):
                continue

            def at(x, i=i, t=t):
                moved = [[*cells] for cells in lp]
                moved[i][t] = x
                return policy_loss(moved, olp, adv, mask, **options)

            assert gradient[i][t] == pytest.approx(slope(at, lp[i][t]), rel=1e-5, abs=1e-6)


@given(batches(2, with_an_action=True), means)
def test_where_nothing_has_moved_the_loss_is_the_negative_mean_advantage(batch, aggregation):
    mask, lp, adv = batch
    options = {"clip_eps_low": 0.2, "clip_eps_high": 0.2, "aggregation": aggregation}
    assert policy_loss(lp, lp, adv, mask, **options) == pytest.approx(-aggregate(adv, mask, aggregation), abs=1e-12)
    expected = [
        [-a * w for a, w in zip(row, ws, strict=True)] for row, ws in zip(adv, weights(mask, aggregation), strict=True)
    ]
    assert policy_loss_gradient(lp, lp, adv, mask, **options) == expected


@given(batches(3), aggregations, st.sampled_from(SURROGATES))
def test_garbage_under_the_mask_matters_to_no_surrogate(batch, aggregation, surrogate):
    mask, one, two, three = batch
    spoilt = [spoil(table, mask, math.nan) for table in (one, two, three)]
    options = {"clip_eps_low": 0.2, "clip_eps_high": 0.2, "aggregation": aggregation, "surrogate": surrogate, **LENGTH}
    for function in (policy_loss, policy_loss_gradient):
        assert function(*spoilt, mask, **options) == function(one, two, three, mask, **options)


@given(batches(2, with_an_action=True), st.lists(advantages, min_size=4, max_size=4), aggregations)
def test_the_gradient_of_gspo_is_that_of_finite_differences(batch, of_rows, aggregation):
    mask, lp, olp = batch
    lp, olp = ([[x / 10 for x in row] for row in table] for table in (lp, olp))
    adv = [[of_rows[i]] * len(row) for i, row in enumerate(mask)]
    options = {"clip_eps_low": 0.2, "clip_eps_high": 0.3, "aggregation": aggregation, "surrogate": "gspo", **LENGTH}
    gradient = policy_loss_gradient(lp, olp, adv, mask, **options)
    for i, row in enumerate(lp):
        log_ratio = sequence_log_ratio(lp[i], olp[i], mask[i])
        if any(abs(log_ratio - math.log(corner)) < 1e-4 for corner in (0.8, 1.3)):
            continue
        for t in range(len(row)):

            def at(x, i=i, t=t):
                moved = [[*cells] for cells in lp]
                moved[i][t] = x
                return policy_loss(moved, olp, adv, mask, **options)

            assert gradient[i][t] == pytest.approx(slope(at, lp[i][t]), rel=1e-5, abs=1e-6)


@given(batches(3, with_an_action=True), aggregations)
def test_where_nothing_has_moved_all_surrogates_have_one_gradient(batch, aggregation):
    mask, lp, _, adv = batch
    adv = [[row[0]] * len(row) for row in adv]
    options = {"clip_eps_low": 0.2, "clip_eps_high": 0.2, "aggregation": aggregation, **LENGTH}
    first, *others = [policy_loss_gradient(lp, lp, adv, mask, surrogate=name, **options) for name in SURROGATES]
    assert all(other == first for other in others)


@given(log_ratios, st.floats(-3, 0), advantages, bounds, bounds)
def test_the_gradient_of_cispo_is_its_weight_whatever_the_ratio(log_ratio, lp, advantage, low, high):
    for cispo_bounds in CISPO_BOUNDS:
        options = {"clip_eps_low": low, "clip_eps_high": high, "surrogate": "cispo", "cispo_bounds": cispo_bounds}
        value = policy_loss([[lp]], [[lp - log_ratio]], [[advantage]], [[1]], **options)
        ((gradient,),) = policy_loss_gradient([[lp]], [[lp - log_ratio]], [[advantage]], [[1]], **options)
        assert value == pytest.approx(gradient * lp)
        assert abs(gradient) <= abs(advantage) * (high if cispo_bounds == "cap" else 1 + high) * (1 + 1e-12)


def test_a_surrogate_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="there is no surrogate 'trpo'"):
        policy_loss([[0.0]], [[0.0]], [[1.0]], [[1]], clip_eps_low=0.2, clip_eps_high=0.2, surrogate="trpo")
    with pytest.raises(ValueError, match="there are no bounds 'lower'"):
        policy_loss(
            [[0.0]],
            [[0.0]],
            [[1.0]],
            [[1]],
            clip_eps_low=0.2,
            clip_eps_high=0.2,
            surrogate="cispo",
            cispo_bounds="lower",
        )


@given(batches(3), means)
def test_garbage_under_the_mask_matters_to_no_loss_and_no_gradient(batch, aggregation):
    mask, one, two, three = batch
    spoilt = [spoil(table, mask, math.nan) for table in (one, two, three)]
    policy = {"clip_eps_low": 0.2, "clip_eps_high": 0.2, "aggregation": aggregation}
    value = {"clip_eps": 0.2, "aggregation": aggregation}
    for function, options in (
        (policy_loss, policy),
        (policy_loss_gradient, policy),
        (value_loss, value),
        (value_loss_gradient, value),
    ):
        assert function(*spoilt, mask, **options) == function(one, two, three, mask, **options)


@given(st.floats(88, 1e6), st.floats(0.01, 5), bounds, bounds)
def test_where_the_ratio_overflows_the_clip_decides(log_ratio, advantage, low, high):
    assert token_policy_loss(0.0, -log_ratio, advantage, low, high) == -(1 + high) * advantage
    assert token_policy_loss_gradient(0.0, -log_ratio, advantage, low, high) == 0.0
    assert token_policy_loss(0.0, -log_ratio, 0.0, low, high) == 0.0
    assert token_policy_loss_gradient(0.0, -log_ratio, 0.0, low, high) == 0.0
    assert token_policy_loss(0.0, -log_ratio, -advantage, low, high, 3.0) == 3.0 * advantage
    assert token_policy_loss_gradient(0.0, -log_ratio, -advantage, low, high, 3.0) == 0.0


def test_a_bad_action_whose_ratio_overflows_has_the_loss_that_the_formula_says():
    assert token_policy_loss(0.0, -1000.0, -1.0, 0.2, 0.2) == math.inf
    assert token_policy_loss(0.0, -100.0, -1.0, 0.2, 0.2) == math.exp(100)


@given(batches(3, with_an_action=True), bounds, bounds)
def test_the_clip_fraction_counts_the_actions_that_have_lost_their_gradient(batch, low, high):
    mask, lp, olp, adv = batch
    adv = [[round(a, 3) for a in row] for row in adv]  # of a tiny advantage -r A may underflow to 0
    gradient = policy_loss_gradient(lp, olp, adv, mask, clip_eps_low=low, clip_eps_high=high)
    lost = [
        g == 0
        for gs, ms, advs in zip(gradient, mask, adv, strict=True)
        for g, m, a in zip(gs, ms, advs, strict=True)
        if m and a != 0
    ]
    fraction = clip_fraction(lp, olp, adv, mask, clip_eps_low=low, clip_eps_high=high)
    assert fraction * sum(map(sum, mask)) == pytest.approx(sum(lost))


distributions = st.lists(st.floats(0.01, 1), min_size=4, max_size=4).map(lambda xs: [x / sum(xs) for x in xs])


@pytest.mark.parametrize("estimator", ["k1", "k3"])
@given(old=distributions, new=distributions)
def test_both_estimators_are_the_kl_of_old_from_new_on_average(estimator, old, new):
    kl = math.fsum(p * math.log(p / q) for p, q in zip(old, new, strict=True))
    tokens = [(p, approx_kl([[math.log(q)]], [[math.log(p)]], [[1]], estimator)) for p, q in zip(old, new, strict=True)]
    assert math.fsum(p * token_kl for p, token_kl in tokens) == pytest.approx(kl, abs=1e-12)


@given(old=distributions, new=distributions)
def test_the_ratio_is_one_on_average(old, new):
    tokens = zip(old, new, strict=True)
    assert math.fsum(p * ratio(math.log(q), math.log(p)) for p, q in tokens) == pytest.approx(1)


@given(st.floats(-800, 800))
def test_k3_is_never_negative(log_ratio):
    assert approx_kl([[log_ratio]], [[0.0]], [[1]], "k3") >= 0


def test_k3_is_exact_for_ratios_near_one():
    # x^2 / 2 to first order, which is lost when exp(x) - 1 is rounded first.
    assert approx_kl([[1e-7]], [[0.0]], [[1]], "k3") == pytest.approx(0.5e-14, rel=1e-6)


def test_metrics_of_a_batch_without_actions_are_zero():
    nan = [[math.nan]]
    assert clip_fraction(nan, nan, nan, [[0]], clip_eps_low=0.2, clip_eps_high=0.2) == 0.0
    assert approx_kl(nan, nan, [[0]]) == 0.0


def test_clip_holds_a_number_between_its_bounds():
    assert [clip(x, -1.0, 2.0) for x in (-math.inf, -1.0, 0.5, 2.0, math.inf)] == [-1.0, -1.0, 0.5, 2.0, 2.0]


def test_the_policy_loss_refuses_what_has_no_meaning():
    with pytest.raises(ValueError, match="bounds must not be negative"):
        token_policy_loss(0.0, 0.0, 1.0, -0.1, 0.2)
    with pytest.raises(ValueError, match="bounds must not be negative"):
        token_policy_loss_gradient(0.0, 0.0, 1.0, 0.2, math.nan)
    with pytest.raises(ValueError, match="dual clip must be above 1"):
        token_policy_loss(0.0, 0.0, 1.0, 0.2, 0.2, dual_clip=1.0)
    with pytest.raises(ValueError, match="there is no ratio"):
        token_policy_loss(math.nan, 0.0, 1.0, 0.2, 0.2)
    with pytest.raises(ValueError, match="there is no KL estimator 'k4'"):
        approx_kl([[0.0]], [[0.0]], [[1]], "k4")


# Value loss


@given(numbers, numbers, numbers, st.floats(0, 5))
def test_the_clipped_value_loss_is_never_below_the_plain_one(value, old, return_, clip_eps):
    assert token_value_loss(value, old, return_, clip_eps) >= token_value_loss(value, old, return_)


@given(numbers, numbers, numbers, st.floats(0, 5))
def test_the_value_loss_is_the_formula_as_it_is_usually_written(value, old, return_, clip_eps):
    clipped = old + clip(value - old, -clip_eps, clip_eps)
    expected = 0.5 * max((value - return_) ** 2, (clipped - return_) ** 2)
    assert token_value_loss(value, old, return_, clip_eps) == pytest.approx(expected, rel=1e-12, abs=1e-12)


@given(numbers, numbers, numbers)
def test_a_wide_clip_is_no_clip(value, old, return_):
    assert token_value_loss(value, old, return_, 1e3) == token_value_loss(value, old, return_)
    assert token_value_loss_gradient(value, old, return_, 1e3) == token_value_loss_gradient(value, old, return_)


def test_an_error_of_two_has_the_loss_two():
    assert token_value_loss(3.0, 3.0, 1.0, 0.5) == 2.0
    assert token_value_loss_gradient(3.0, 3.0, 1.0, 0.5) == 2.0


@given(numbers, numbers, numbers, st.none() | st.floats(0.01, 5))
def test_the_value_gradient_is_that_of_finite_differences(value, old, return_, clip_eps):
    if clip_eps is not None:
        clipped = clip(value, old - clip_eps, old + clip_eps)
        assume(abs(abs(value - old) - clip_eps) > 1e-4)
        assume(abs(value - old) < clip_eps or abs(abs(value - return_) - abs(clipped - return_)) > 1e-4)
    expected = slope(lambda x: token_value_loss(x, old, return_, clip_eps), value)
    assert token_value_loss_gradient(value, old, return_, clip_eps) == pytest.approx(expected, rel=1e-6, abs=1e-6)


@given(batches(3), means)
def test_the_gradient_of_the_value_loss_is_that_of_finite_differences(batch, aggregation):
    mask, values, old_values, returns = batch
    options = {"aggregation": aggregation}
    gradient = value_loss_gradient(values, old_values, returns, mask, **options)
    for i, row in enumerate(values):
        for t in range(len(row)):

            def at(x, i=i, t=t):
                moved = [[*cells] for cells in values]
                moved[i][t] = x
                return value_loss(moved, old_values, returns, mask, **options)

            assert gradient[i][t] == pytest.approx(slope(at, row[t]), rel=1e-5, abs=1e-6)


@given(batches(3), means, st.data())
def test_both_losses_of_micro_batches_add_up_and_do_not_depend_on_the_order(batch, aggregation, data):
    mask, one, two, three = batch
    count = sum(map(sum, mask)) if aggregation == "token-mean" else sum(map(any, mask))
    assume(count)
    order = data.draw(st.permutations(range(len(mask))))
    tables = (one, two, three, mask)
    rows = [[[table[i]] for table in tables] for i in order]
    for function, options in (
        (policy_loss, {"clip_eps_low": 0.2, "clip_eps_high": 0.2}),
        (value_loss, {"clip_eps": 0.5}),
    ):
        whole = function(*tables, **options, aggregation=aggregation)
        parts = [function(*row, **options, aggregation=aggregation, global_count=count) for row in rows]
        assert math.fsum(parts) == pytest.approx(whole, rel=1e-9, abs=1e-9)


def test_the_value_loss_refuses_a_negative_clip():
    with pytest.raises(ValueError, match="clip bound must not be negative"):
        token_value_loss(0.0, 0.0, 0.0, -0.1)
    with pytest.raises(ValueError, match="clip bound must not be negative"):
        token_value_loss_gradient(0.0, 0.0, 0.0, math.nan)
