"""A sequence that is all action has no state before its first one. What stands there in a pack is its neighbor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import rlhf_reference as ref

ROWS = (torch.tensor([5, 9, 7]), torch.tensor([8, 30, 1]))
WITHOUT_PROMPT = (2, 3)


@pytest.fixture(params=["Actor", "CriticModel"])
def model(request: pytest.FixtureRequest, checkpoints: dict[str, Path], with_head: Callable[..., Path]) -> Any:
    return getattr(ref, request.param)(checkpoints["llama"] if request.param == "Actor" else with_head("llama"))


def test_it_is_refused_where_a_pack_is_made() -> None:
    with pytest.raises(ValueError, match=r"3 actions do not fit 3 tokens.*prompt"):
        ref.pack_sequences(ROWS, WITHOUT_PROMPT)


@pytest.mark.parametrize("how", ["positions", "lengths", "a tail", "shards"])
def test_it_is_refused_in_a_pack(model: Any, how: str) -> None:
    pack = ref.pack_sequences(ROWS, pad_to_multiple=4 if how in ("a tail", "shards") else 1)
    ids, positions = pack.input_ids, pack.position_ids
    if how == "shards":
        shards = ref.shard(pack, 2)
        ids, positions = ref.unshard(shards.input_ids), ref.unshard(shards.position_ids)
    more = {"position_ids": positions} if how == "positions" else {"sequence_lengths": pack.lengths}
    with pytest.raises(ValueError, match=r"3 actions do not fit 3 tokens.*prompt"):
        model(ids, WITHOUT_PROMPT, **more)


def test_it_is_refused_in_rows_with_counts(model: Any) -> None:
    ids = torch.stack(ROWS)
    with pytest.raises(ValueError, match="do not fit"):
        model(ids, WITHOUT_PROMPT, torch.ones_like(ids))


def test_it_is_refused_where_no_row_has_a_prompt(model: Any) -> None:
    ids = torch.stack(ROWS)
    with pytest.raises(ValueError, match="state before"):
        model(ids, 3, torch.ones_like(ids))


def test_the_first_token_of_a_padded_row_gets_0(model: Any) -> None:
    """A number of columns cannot tell a row without a prompt from one whose prompt is within them."""
    ids, mask = torch.tensor([[6, 5, 9, 7], [0, 8, 30, 1]]), torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]])
    answers = model(ids, 3, mask)
    assert answers[1, 0] == 0
    torch.testing.assert_close(answers[1, 1:], model(ids[1:, 1:], 2, mask[1:, 1:])[0])
