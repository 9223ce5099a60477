"""Whitening and advantages of groups: the reference against the spec, and at the edges."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import rlhf_reference as ref
from rlhf_spec import group_advantages as spec_groups
from rlhf_spec import whitening as spec_whitening

numbers = st.floats(-3.0, 3.0).map(lambda x: round(x, 2))


@st.composite
def batches(draw: st.DrawFn) -> dict[str, Any]:
    """Values with a mask, scores with ids; rows of the mask may be empty, groups of any size."""
    rows, columns = draw(st.integers(1, 6)), draw(st.integers(1, 4))

    def row(cells: st.SearchStrategy, count: int) -> list[Any]:
        return draw(st.lists(cells, min_size=count, max_size=count))

    table = {"values": [row(numbers, columns) for _ in range(rows)]}
    mask = [row(st.integers(0, 1), columns) for _ in range(rows)]
    return {**table, "mask": mask, "scores": row(numbers, rows), "ids": row(st.integers(0, 2), rows)}


@given(batches(), st.booleans(), st.sampled_from([0, 1]), st.sampled_from(["variance", "std", "floor"]))
def test_whitening_is_that_of_the_spec(batch, shift_mean, ddof, place):
    options: dict[str, Any] = {"shift_mean": shift_mean, "ddof": ddof, "eps": 1e-3, "eps_place": place}
    values, mask = torch.tensor(batch["values"], dtype=torch.float64), torch.tensor(batch["mask"])
    found = ref.whiten(values, mask, **options)
    wanted = torch.tensor(spec_whitening.whiten(batch["values"], batch["mask"], **options), dtype=torch.float64)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    spoiled = values.masked_fill(mask == 0, torch.nan)
    assert torch.equal(ref.whiten(spoiled, mask, **options), found)


KINDS = [*itertools.product(["mean"], ["group-std", "batch-std", "none"]), ("leave-one-out", "none")]


@given(batches(), st.sampled_from(KINDS), st.sampled_from([0, 1]), st.sampled_from(["zero", "score"]))
def test_advantages_of_groups_are_those_of_the_spec(batch, kind, ddof, of_one):
    options: dict[str, Any] = {"baseline": kind[0], "scale": kind[1], "ddof": ddof, "eps": 1e-3, "of_one": of_one}
    found = ref.group_relative_advantages(
        torch.tensor(batch["scores"], dtype=torch.float64), torch.tensor(batch["ids"]), **options
    )
    wanted = spec_groups.row_advantages(batch["scores"], batch["ids"], **options)
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), rtol=1e-9, atol=1e-9)


def test_equal_scores_give_0_whatever_their_mean_rounds_to():
    scores = torch.full((16,), 0.97)
    assert not ref.group_relative_advantages(scores, torch.zeros(16, dtype=torch.long), eps=1e-9).any()


@pytest.mark.parametrize(("eps", "least", "most"), [(1e-9, 0.95, 0.97), (1e-6, 0.1, 0.13), (1e-4, 0.001, 0.0013)])
def test_equal_scores_in_float32_are_noise_over_eps(eps, least, most):
    """The numbers of the decision `equal-scores`."""
    scores = torch.full((16,), 0.97)
    noise = (scores - scores.mean()) / (scores.std() + eps)
    assert least < float(noise.abs().min()) <= float(noise.abs().max()) < most


def test_the_numbers_of_the_introduction():
    """Four answers that score 1, 0, 0 and 1: by GRPO, Dr. GRPO and RLOO."""
    scores, ids = torch.tensor([1.0, 0.0, 0.0, 1.0]), torch.zeros(4, dtype=torch.long)

    def found(**options: Any) -> list[float]:
        return [round(a, 3) for a in ref.group_relative_advantages(scores, ids, **options).tolist()]

    assert round(float(scores.std()), 3) == 0.577
    assert found() == [0.866, -0.866, -0.866, 0.866]
    assert found(scale="none") == [0.5, -0.5, -0.5, 0.5]
    assert found(baseline="leave-one-out", scale="none")[0] == 0.667


def test_nothing_has_a_graph():
    scores, ids = torch.randn(4, requires_grad=True), torch.tensor([1, 0, 1, 0])
    assert not ref.group_relative_advantages(scores, ids).requires_grad
    assert not ref.whiten(scores[None], torch.ones(1, 4)).requires_grad


@pytest.mark.parametrize("shape", [(2, 3), (3,)])
def test_shapes_that_differ_are_refused(shape):
    with pytest.raises(ValueError, match="differ in shape"):
        ref.whiten(torch.zeros(2, 2), torch.ones(shape))
    with pytest.raises(ValueError, match=r"two times \(B,\)"):
        ref.group_relative_advantages(torch.zeros(2), torch.zeros(shape, dtype=torch.long))


def test_a_rule_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="median"):
        ref.group_relative_advantages(torch.zeros(2), torch.zeros(2, dtype=torch.long), baseline="median")
    with pytest.raises(ValueError, match="place of eps"):
        ref.whiten(torch.zeros(1, 2), torch.ones(1, 2), eps_place="mean")
