"""Which tokens can be drawn, and how often."""

from __future__ import annotations

from math import log
from pathlib import Path
from typing import Any

import pytest
import torch

import rlhf_reference as ref
from rlhf_reference.sampling import choose_tokens

PROBABILITIES = torch.tensor([0.1, 0.4, 0.2, 0.3])


def drawn(logits: torch.Tensor = PROBABILITIES.log(), count: int = 2000, **options: Any) -> dict[int, int]:
    """How often each token was drawn, the tokens in the order of their ids."""
    torch.manual_seed(0)
    tokens = choose_tokens(logits.expand(count, -1), do_sample=True, **options).tolist()
    return {token: tokens.count(token) for token in sorted(set(tokens))}


@pytest.mark.parametrize(
    ("options", "tokens"),
    [
        ({}, [0, 1, 2, 3]),
        ({"top_k": 1}, [1]),
        ({"top_k": 3}, [1, 2, 3]),
        ({"top_k": 9}, [0, 1, 2, 3]),
        ({"top_p": 0.3}, [1]),
        ({"top_p": 0.45}, [1, 3]),
        ({"top_p": 0.69}, [1, 3]),
        ({"top_p": 0.75}, [1, 2, 3]),
        ({"top_p": 0.95}, [0, 1, 2, 3]),
        ({"top_k": 2, "top_p": 0.55}, [1]),  # of the two best, the best one makes up 4/7
        ({"top_p": 0.45, "temperature": 0.25}, [1]),  # p is of the distribution that is drawn from
    ],
)
def test_only_the_best_tokens_are_drawn(options: dict[str, Any], tokens: list[int]) -> None:
    assert list(drawn(**options)) == tokens


def test_tokens_that_are_left_keep_their_proportions() -> None:
    counts = drawn(top_k=2, count=7000)
    assert counts[1] == pytest.approx(4000, abs=5 * (7000 * 4 / 7 * 3 / 7) ** 0.5)


def test_each_row_has_its_own_best_tokens() -> None:
    rows = torch.tensor([[9.0, 0.0, 0.0], [0.0, 0.0, 9.0]])
    assert choose_tokens(rows, do_sample=True, top_p=0.5).tolist() == [0, 2]


def test_without_sampling_the_most_probable_token_is_taken() -> None:
    assert choose_tokens(torch.tensor([[0.0, log(3.0), log(2.0)]]), do_sample=False).tolist() == [1]


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.5}])
def test_options_that_leave_nothing_to_draw_from_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="top_k >= 1"):
        choose_tokens(torch.zeros(1, 3), do_sample=True, **options)


@pytest.fixture
def hot(checkpoints: dict[str, Path]) -> ref.Actor:
    """An actor whose tokens are all about as probable."""
    return ref.Actor(checkpoints["llama"], temperature=100.0)


def first_tokens(actor: ref.Actor, **options: Any) -> set[int]:
    torch.manual_seed(0)
    prompts = torch.tensor([[5, 9]]).expand(500, -1)
    more = {"max_new_tokens": 1, "stop_token_ids": [], "pad_token_id": 0, "do_sample": True}
    return set(actor.generate(prompts, torch.ones_like(prompts), **more, **options)[:, -1].tolist())


def test_an_actor_samples_at_its_own_temperature_unless_told(hot: ref.Actor) -> None:
    assert len(first_tokens(hot)) == 48
    assert len(first_tokens(hot, temperature=0.01)) == 1


def test_an_actor_samples_from_the_best_tokens_where_told(hot: ref.Actor) -> None:
    best = hot(torch.tensor([[5, 9]])).logits[0, -1].topk(3).indices.tolist()
    assert first_tokens(hot, top_k=3) == set(best)
    assert first_tokens(hot, top_p=0.01) == {best[0]}


def test_a_generation_config_beside_the_weights_changes_nothing(hot: ref.Actor) -> None:
    hot.model.generation_config.update(top_k=1, top_p=0.1, temperature=0.01, do_sample=False)
    assert len(first_tokens(hot)) == 48
