"""Weights that correct for the engine: the reference against the spec, and at the edges."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import rlhf_reference as ref
from rlhf_spec import off_policy_correction as spec

numbers = st.floats(-4.0, 0.0).map(lambda x: round(x, 2))
KINDS = list(itertools.product(spec.LEVELS, spec.MODES, spec.SEQUENCE_WEIGHTS))


@st.composite
def batches(draw: st.DrawFn) -> dict[str, Any]:
    """Two tables of log-probs and a mask; a row may have no action, and the engine may have left one out."""
    rows, columns = draw(st.integers(1, 4)), draw(st.integers(1, 5))

    def table(cells: st.SearchStrategy) -> list[list[Any]]:
        return [draw(st.lists(cells, min_size=columns, max_size=columns)) for _ in range(rows)]

    rollout = table(numbers | st.just(math.nan))
    return {"old": table(numbers), "rollout": rollout, "mask": table(st.integers(0, 1))}


def tensors(batch: dict[str, Any]) -> tuple[torch.Tensor, ...]:
    old, rollout = (torch.tensor(batch[name], dtype=torch.float64) for name in ("old", "rollout"))
    return old, rollout, torch.tensor(batch["mask"])


@given(
    batches(),
    st.sampled_from(KINDS),
    st.sampled_from([(1.371, None), (2.113, 0.527), (0.777, 0.311), (31.7, None)]),
    st.sampled_from([None, 1.9, 20.0]),
    st.sampled_from(spec.CLAMPED),
    st.sampled_from(spec.KEPT),
    st.sampled_from(spec.NAN),
)
def test_the_weights_are_those_of_the_spec(batch, kind, bounds, clamp, clamped, kept, of_nan):
    level, mode, sequence_weight = kind
    options: dict[str, Any] = {"level": level, "mode": mode, "sequence_weight": sequence_weight, "kept": kept}
    options |= {"upper": bounds[0], "lower": bounds[1], "log_clamp": clamp, "log_clamped": clamped, "of_nan": of_nan}
    old, rollout, mask = tensors(batch)
    found = ref.off_policy_weights(old, rollout, mask, **options)
    wanted = spec.off_policy_weights(batch["old"], batch["rollout"], batch["mask"], **options)
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), rtol=1e-9, atol=1e-12)
    spoiled = [x.masked_fill(mask == 0, torch.nan) for x in (old, rollout)]
    assert torch.equal(ref.off_policy_weights(*spoiled, mask, **options), found)


def test_a_weight_has_no_graph_and_is_of_float32_at_least():
    old = torch.tensor([[-1.0]], dtype=torch.bfloat16, requires_grad=True)
    found = ref.off_policy_weights(old, old.detach(), torch.ones(1, 1))
    assert (found.requires_grad, found.dtype, found.item()) == (False, torch.float32, 1.0)


@pytest.mark.parametrize(("mode", "weight"), [("truncate", 3.0), ("mask", 0.0)])
@pytest.mark.parametrize("level", spec.LEVELS)
def test_a_weight_that_overflows_is_the_bound_or_nothing(level, mode, weight):
    given = torch.tensor([[-1.0]]), torch.tensor([[-2000.0]]), torch.ones(1, 1)
    assert ref.off_policy_weights(*given, level=level, mode=mode, upper=3.0).item() == weight


def test_a_row_without_actions_weighs_nothing():
    old, mask = torch.full((2, 2), -1.0), torch.tensor([[0, 0], [1, 0]])
    for sequence_weight in spec.SEQUENCE_WEIGHTS:
        found = ref.off_policy_weights(old, old, mask, level="sequence", sequence_weight=sequence_weight)
        assert found.tolist() == [[0.0, 0.0], [1.0, 0.0]]


@pytest.mark.parametrize("wrong", [{"level": "row"}, {"mode": "clip"}, {"sequence_weight": "mean"}])
def test_what_there_is_not_is_refused(wrong):
    with pytest.raises(ValueError, match="unknown"):
        ref.off_policy_weights(*(torch.ones(1, 1),) * 3, **wrong)
