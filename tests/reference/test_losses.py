"""Policy and value loss, and their aggregation: against the spec, by finite differences, and at the edges."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import rlhf_reference as ref
from rlhf_spec import aggregation as spec_aggregation
from rlhf_spec import policy_loss as spec_policy
from rlhf_spec import value_loss as spec_value

AGGREGATIONS = ("token-mean", "sequence-mean")
ALL = (*AGGREGATIONS, "constant-length", "token-sum")
LENGTH = {"constant_length": 7}
Table = list[list[float]]

numbers = st.floats(-3.0, 3.0).map(lambda x: round(x, 2))


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    """Three tables of numbers and a mask, all (B, T); rows of the mask may be empty."""
    rows, columns = draw(st.integers(1, 3)), draw(st.integers(1, 4))

    def table(cells: st.SearchStrategy) -> list[list[Any]]:
        row = st.lists(cells, min_size=columns, max_size=columns)
        return draw(st.lists(row, min_size=rows, max_size=rows))

    return {"tables": [table(numbers) for _ in range(3)], "mask": table(st.integers(0, 1))}


def float64(tables: list[Table]) -> list[torch.Tensor]:
    return [torch.tensor(table, dtype=torch.float64) for table in tables]


def value_and_gradient(
    loss: Callable[..., Any], tables: list[Table], mask: Table, **options: Any
) -> tuple[float, Table]:
    first, second, third = float64(tables)
    result = loss(first.requires_grad_(), second, third, torch.tensor(mask), **options)
    result = result.loss if isinstance(result, ref.PolicyLossOutput) else result
    result.backward()
    assert first.grad is not None
    return result.item(), first.grad.tolist()


def approximately(tables: Table) -> list[Any]:
    return [pytest.approx(row, abs=1e-12) for row in tables]


@given(cases(), st.sampled_from(ALL), st.sampled_from([None, 5.0]))
def test_aggregate_is_that_of_the_spec(case: dict[str, Any], aggregation: str, count: float | None) -> None:
    (values,) = float64(case["tables"][:1])
    actual = ref.aggregate(values, torch.tensor(case["mask"]), aggregation, global_count=count, **LENGTH)
    expected = spec_aggregation.aggregate(case["tables"][0], case["mask"], aggregation, global_count=count, **LENGTH)
    assert actual.item() == pytest.approx(expected, abs=1e-12)


@given(cases(), st.sampled_from(AGGREGATIONS), st.sampled_from([None, 1.5, 3.0]), st.sampled_from([None, 7.0]))
def test_policy_loss_and_its_gradient_are_those_of_the_spec(
    case: dict[str, Any], aggregation: str, dual_clip: float | None, count: float | None
) -> None:
    bands = {"clip_eps_low": 0.2, "clip_eps_high": 0.3, "dual_clip": dual_clip, "aggregation": aggregation}
    loss, gradient = value_and_gradient(ref.PolicyLoss(**bands), **case, global_count=count)
    arguments = (*case["tables"], case["mask"])
    assert loss == pytest.approx(spec_policy.policy_loss(*arguments, **bands, global_count=count), abs=1e-12)
    assert gradient == approximately(spec_policy.policy_loss_gradient(*arguments, **bands, global_count=count))


# Bands that no difference of the drawn numbers, and no mean of a few, hits: on an edge either gradient would be right.
@given(
    cases(),
    st.sampled_from(spec_policy.SURROGATES),
    st.sampled_from(spec_policy.CISPO_BOUNDS),
    st.sampled_from(ALL),
    st.sampled_from([None, 7.0]),
)
def test_every_surrogate_and_its_gradient_are_those_of_the_spec(
    case: dict[str, Any], surrogate: str, bounds: str, aggregation: str, count: float | None
) -> None:
    options = {"clip_eps_low": 0.2137, "clip_eps_high": 0.3137, "aggregation": aggregation, "surrogate": surrogate}
    options |= {"cispo_bounds": bounds, **LENGTH}
    log_probs, old_log_probs, advantages = case["tables"]
    advantages = [[row[0]] * len(row) for row in advantages]  # those of a sequence are alike
    tables = [log_probs, old_log_probs, advantages]
    loss, gradient = value_and_gradient(ref.PolicyLoss(**options), tables, case["mask"], global_count=count)
    arguments = (*tables, case["mask"])
    assert loss == pytest.approx(spec_policy.policy_loss(*arguments, **options, global_count=count), abs=1e-12)
    assert gradient == approximately(spec_policy.policy_loss_gradient(*arguments, **options, global_count=count))


def test_the_clip_fraction_of_gspo_is_that_of_sequences_and_without_a_clip_it_is_0() -> None:
    log_ratio = torch.tensor([[1.0, -1.0], [1.0, 1.0]])
    fractions = {
        name: ref.PolicyLoss(surrogate=name)(
            log_ratio, 0 * log_ratio, 0 * log_ratio + 1, torch.ones(2, 2)
        ).clip_fraction
        for name in spec_policy.SURROGATES
    }
    assert {name: fraction.item() for name, fraction in fractions.items()} == {
        "ppo": 0.75,
        "gspo": 0.5,
        "cispo": 0.0,
        "reinforce": 0.0,
    }


@pytest.mark.parametrize("options", [{"surrogate": "trpo"}, {"surrogate": "cispo", "cispo_bounds": "lower"}])
def test_a_surrogate_that_there_is_not_is_refused(options: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="there is no surrogate"):
        ref.PolicyLoss(**options)


@pytest.mark.parametrize("length", [None, 0, -3])
def test_a_constant_length_that_is_none_is_refused(length: int | None) -> None:
    with pytest.raises(ValueError, match="positive number of tokens"):
        ref.aggregate(torch.ones(1, 1), torch.ones(1, 1), "constant-length", constant_length=length)


@given(cases())
def test_policy_metrics_are_those_of_the_spec(case: dict[str, Any]) -> None:
    output = ref.PolicyLoss(0.2, 0.3)(*float64(case["tables"]), torch.tensor(case["mask"]))
    log_probs, old_log_probs, advantages = case["tables"]
    fraction = spec_policy.clip_fraction(
        log_probs, old_log_probs, advantages, case["mask"], clip_eps_low=0.2, clip_eps_high=0.3
    )
    assert output.clip_fraction.item() == pytest.approx(fraction, abs=1e-12)
    assert output.approx_kl.item() == pytest.approx(
        spec_policy.approx_kl(log_probs, old_log_probs, case["mask"], "k1"), abs=1e-12
    )


# A band that no difference of the drawn numbers hits: on its edge any gradient between the two sides would be right.
@given(cases(), st.sampled_from(AGGREGATIONS), st.sampled_from([None, 0.4137]), st.sampled_from([None, 7.0]))
def test_value_loss_and_its_gradient_are_those_of_the_spec(
    case: dict[str, Any], aggregation: str, clip_eps: float | None, count: float | None
) -> None:
    options = {"clip_eps": clip_eps, "aggregation": aggregation}
    loss, gradient = value_and_gradient(ref.ValueLoss(**options), **case, global_count=count)
    arguments = (*case["tables"], case["mask"])
    assert loss == pytest.approx(spec_value.value_loss(*arguments, **options, global_count=count), abs=1e-12)
    assert gradient == approximately(spec_value.value_loss_gradient(*arguments, **options, global_count=count))


# r = 2 and 1/2 around a band of 0.2: A > 0 is clipped above, A < 0 below; 0.9 and 1.1 are inside.
RATIOS = torch.tensor([[2.0, 0.5, 1.1], [2.0, 0.5, 0.9]], dtype=torch.float64)
ADVANTAGES = torch.tensor([[1.0, 2.0, 3.0], [-1.0, -2.0, -3.0]], dtype=torch.float64)
MASK = torch.ones(2, 3)


def policy_gradient(log_ratio: torch.Tensor, advantages: torch.Tensor, **options: Any) -> torch.Tensor:
    log_probs = log_ratio.clone().requires_grad_()
    mask = torch.ones_like(log_ratio)
    ref.PolicyLoss(**options)(log_probs, torch.zeros_like(log_ratio), advantages, mask).loss.backward()
    assert log_probs.grad is not None
    return log_probs.grad


def test_gradient_is_zero_exactly_where_the_clip_binds() -> None:
    zero = policy_gradient(RATIOS.log(), ADVANTAGES) == 0
    assert zero.tolist() == [[True, False, False], [False, True, False]]


def test_dual_clip_takes_the_gradient_of_negative_advantages_alone() -> None:
    zero = policy_gradient(RATIOS.log(), ADVANTAGES, dual_clip=1.5) == 0
    assert zero.tolist() == [[True, False, False], [True, True, False]]


def test_policy_loss_gradient_by_finite_differences() -> None:
    loss = ref.PolicyLoss(0.2, 0.2, dual_clip=3.0, aggregation="sequence-mean")
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    torch.autograd.gradcheck(
        lambda x: loss(x, torch.zeros_like(x), ADVANTAGES, mask).loss, RATIOS.log().requires_grad_()
    )


def test_value_loss_gradient_by_finite_differences() -> None:
    values = torch.tensor([[0.3, 1.0, -1.0], [0.1, 2.0, 0.0]], dtype=torch.float64)
    old_values, returns = torch.zeros_like(values), torch.full_like(values, 0.7)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    torch.autograd.gradcheck(
        lambda x: ref.ValueLoss(0.2, "sequence-mean")(x, old_values, returns, mask), values.requires_grad_()
    )


def test_first_step_has_the_gradient_of_the_policy_gradient_theorem() -> None:
    log_probs = torch.randn(2, 3, dtype=torch.float64).requires_grad_()
    output = ref.PolicyLoss()(log_probs, log_probs, ADVANTAGES, MASK)
    output.loss.backward()
    torch.testing.assert_close(output.loss, -ADVANTAGES.mean())
    torch.testing.assert_close(log_probs.grad, -ADVANTAGES / 6)


@pytest.mark.parametrize("log_ratio", [88.8, 200.0, 1e4])
def test_an_overflowing_ratio_is_decided_by_the_clip(log_ratio: float) -> None:
    log_probs = torch.tensor([[log_ratio]], requires_grad=True)
    zero = torch.zeros(1, 1)
    output = ref.PolicyLoss(0.2, 0.3)(log_probs, zero, zero + 2.0, zero + 1)
    output.loss.backward()
    assert output.loss.item() == pytest.approx(-2.6)
    assert log_probs.grad is not None
    assert log_probs.grad.item() == 0.0


def test_an_overflowing_ratio_with_a_negative_advantage_is_decided_by_the_dual_clip() -> None:
    grad = policy_gradient(torch.tensor([[1e4]]), torch.tensor([[-2.0]]), dual_clip=3.0)
    assert grad.item() == 0.0


def test_an_overflowing_ratio_with_advantage_0_counts_nothing() -> None:
    assert policy_gradient(torch.tensor([[1e4]]), torch.tensor([[0.0]])).item() == 0.0


def test_a_large_ratio_that_does_not_bind_is_exact() -> None:
    log_probs = torch.tensor([[20.0]], dtype=torch.float64)
    loss = ref.PolicyLoss()(log_probs, log_probs * 0, log_probs * 0 - 1, torch.ones(1, 1)).loss
    assert loss.item() == pytest.approx(math.exp(20.0), rel=1e-14)


LOSSES = (
    ref.PolicyLoss(),
    ref.PolicyLoss(dual_clip=3.0, aggregation="sequence-mean"),
    ref.PolicyLoss(surrogate="gspo", aggregation="constant-length", constant_length=9),
    ref.PolicyLoss(surrogate="cispo"),
    ref.PolicyLoss(surrogate="reinforce", aggregation="token-sum"),
    ref.ValueLoss(),
    ref.ValueLoss(0.2, "sequence-mean"),
)


def scalar(loss: Any, *arguments: torch.Tensor, **options: Any) -> torch.Tensor:
    result = loss(*arguments, **options)
    return result.loss if isinstance(result, ref.PolicyLossOutput) else result


def tensors(rows: int = 3, columns: int = 4) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(rows, columns, generator=generator, dtype=torch.float64) for _ in range(3)]


UNEVEN = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]])
each_loss = pytest.mark.parametrize(
    "loss", LOSSES, ids=lambda loss: f"{getattr(loss, 'surrogate', 'value')}-{loss.aggregation}"
)


@each_loss
@pytest.mark.parametrize("garbage", [1e30, math.nan, math.inf, -math.inf])
def test_what_lies_under_the_mask_does_not_matter(loss: Any, garbage: float) -> None:
    clean = tensors()
    dirty = [x.masked_fill(UNEVEN == 0, garbage) for x in clean]
    results = []
    for first, *others in (clean, dirty):
        first.requires_grad_()
        result = scalar(loss, first, *others, UNEVEN)
        result.backward()
        results.append((result.item(), first.grad.tolist()))
    assert results[0] == results[1]


@each_loss
def test_an_empty_row_is_as_if_it_were_not_there(loss: Any) -> None:
    mask = UNEVEN.clone()
    mask[1] = 0
    there, others = [0, 1, 2], [0, 2]
    values = [scalar(loss, *(x[rows] for x in tensors()), mask[rows]).item() for rows in (there, others)]
    assert values[0] == pytest.approx(values[1], abs=1e-14)


@each_loss
def test_an_empty_batch_is_0_with_a_graph(loss: Any) -> None:
    first, second, third = tensors()
    result = scalar(loss, first.requires_grad_(), second, third, torch.zeros(3, 4))
    result.backward()
    assert result.item() == 0.0
    assert first.grad is not None
    assert first.grad.eq(0).all()


@each_loss
def test_micro_batches_add_up_with_the_global_count(loss: Any) -> None:
    count = UNEVEN.sum() if loss.aggregation == "token-mean" else torch.tensor(3)
    parts = [
        scalar(loss, *(x[rows] for x in tensors()), UNEVEN[rows], global_count=count)
        for rows in (slice(0, 1), slice(1, 3))
    ]
    torch.testing.assert_close(sum(parts), scalar(loss, *tensors(), UNEVEN))


@each_loss
@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.uint8, torch.float32, torch.bfloat16])
def test_any_dtype_of_mask_gives_the_same(loss: Any, dtype: torch.dtype) -> None:
    assert scalar(loss, *tensors(), UNEVEN.to(dtype)).item() == scalar(loss, *tensors(), UNEVEN).item()


@each_loss
def test_bfloat16_is_computed_in_float32(loss: Any) -> None:
    half = [x.bfloat16() for x in tensors()]
    assert torch.equal(scalar(loss, *half, UNEVEN), scalar(loss, *(x.float() for x in half), UNEVEN))


@each_loss
def test_arguments_that_would_be_broadcast_are_refused(loss: Any) -> None:
    first, second, third = tensors()
    with pytest.raises(ValueError, match="shape"):
        loss(first, second, third[:, :1], UNEVEN)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_aggregate_does_not_read_under_the_mask(aggregation: Any) -> None:
    values = torch.tensor([[2.0, math.nan], [math.inf, 4.0]])
    assert ref.aggregate(values, torch.tensor([[1, 0], [0, 1]]), aggregation).item() == 3.0


def test_the_aggregations_differ_on_unequal_lengths() -> None:
    values, mask = torch.tensor([[1.0, 1.0, 1.0], [5.0, 0.0, 0.0]]), torch.tensor([[1, 1, 1], [1, 0, 0]])
    assert ref.aggregate(values, mask, "token-mean").item() == 2.0
    assert ref.aggregate(values, mask, "sequence-mean").item() == 3.0


def test_an_unknown_aggregation_is_refused() -> None:
    with pytest.raises(ValueError, match="median"):
        ref.aggregate(torch.ones(1, 1), torch.ones(1, 1), "median")


@pytest.mark.parametrize("options", [{"clip_eps_low": -0.1}, {"clip_eps_high": -0.1}, {"dual_clip": 1.0}])
def test_bands_that_make_no_sense_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must"):
        ref.PolicyLoss(**options)


def test_a_value_may_be_held_where_it_is_and_tokens_weigh_the_same_unless_said() -> None:
    """A clip of 0: the value does not move at all. Rows of different lengths tell the token mean from the other."""
    values, old, returns = float64([[[1.0, 5.0], [3.0, 3.0]], [[0.5, 4.0], [1.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]]])
    mask = torch.tensor([[1, 1], [1, 0]])
    squares = torch.maximum(values.square(), old.square())
    assert ref.ValueLoss(0.0)(values, old, returns, mask).item() == pytest.approx(squares[mask > 0].mean().item() / 2)


@pytest.mark.parametrize("low, high", [(0.0, 0.2), (0.2, 0.0), (1.0, 0.2), (1.5, 0.2)])
def test_a_band_may_be_empty_on_one_side_or_reach_below_0(low: float, high: float) -> None:
    log_ratio, advantages = [[-3.0, 3.0, 0.1, -0.1]] * 2, [[1.0, 1.0, 1.0, 1.0], [-1.0, -1.0, -1.0, -1.0]]
    new, old, gain = float64([log_ratio, [[0.0] * 4] * 2, advantages])
    ratio = new.exp()
    wanted = -torch.minimum(ratio * gain, ratio.clamp(1 - low, 1 + high) * gain).mean()
    loss = ref.PolicyLoss(low, high)(new, old, gain, torch.ones(2, 4)).loss
    assert loss.item() == pytest.approx(wanted.item())
