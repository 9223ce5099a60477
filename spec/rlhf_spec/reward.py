"""The reward model: one number for a whole sequence, read where the model has seen all of it.

A backbone with a linear head gives a score at each position, but only the score of the last real token has seen the
whole response. A prompt and a response in eight tokens, "The capital of France is" (5) and "Paris is beautiful" (3),
with the scores 0.1, 0.2, 0.3, 0.2, 0.4, 0.7, 0.5, 0.8, have the reward 0.8, however the row is padded.
"""

from __future__ import annotations

from collections.abc import Sequence


def last_attended(attention_mask: Sequence[int]) -> int:
    """The index of the last cell that is 1. Raises ValueError where none is: an empty sequence has no reward.

    >>> last_attended([0, 1, 1, 1, 0, 0])
    3
    """
    for index in reversed(range(len(attention_mask))):
        if attention_mask[index]:
            return index
    raise ValueError("no position is attended, so there is none to read a reward at")


def reward(scores: Sequence[float], attention_mask: Sequence[int]) -> float:
    """The score at the last attended position: ``(L,), (L,) -> ()``. Raises ValueError where the lengths differ.

    >>> scores = [0.1, 0.2, 0.3, 0.2, 0.4, 0.7, 0.5, 0.8]  # The capital of France is | Paris is beautiful
    >>> reward(scores, [1] * 8)
    0.8
    >>> reward([9.0, 9.0, *scores, 9.0], [0, 0, *[1] * 8, 0])  # padded on both sides
    0.8
    """
    if len(scores) != len(attention_mask):
        raise ValueError(f"there are {len(scores)} scores for an attention mask of {len(attention_mask)}")
    return scores[last_attended(attention_mask)]


def normalize(score: float, mean: float, std: float) -> float:
    """``(score - mean) / std``. Raises ValueError for a std that is not positive.

    >>> normalize(7.0, mean=1.0, std=2.0)  # not 7 - 1 / 2
    3.0
    """
    if not std > 0:
        raise ValueError(f"the std of the rewards must be positive, not {std}")
    return (score - mean) / std
