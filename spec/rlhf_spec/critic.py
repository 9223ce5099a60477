"""The critic: what the rest of the sequence is expected to be worth, before each action.

The value of an action is that of the state before it, read at the position that predicts it: ``V[P-1 : L-1]``. For
"The capital of France is" (5 tokens) and "Paris is beautiful" (3) with the scores 0.1, 0.2, 0.3, 0.2, 0.4, 0.7, 0.5,
0.8, the three actions have the values 0.4, 0.7, 0.5: "Paris" is worth what was expected after "is". The last three
scores, 0.7, 0.5, 0.8, are values of the states after the actions, one token late.
"""

from __future__ import annotations

from collections.abc import Sequence

from rlhf_spec.actor import action_positions


def action_values(scores: Sequence[float], prompt_length: int) -> list[float]:
    """The value of each action of one unpadded sequence, ``V[P-1 : L-1]``: ``(L,) -> (T,)``.

    Raises ValueError for a prompt that is empty or longer than the sequence. The last score is never used: no action
    follows it. Source: the baseline of Schulman et al. 2016, arXiv:1506.02438, is a function of the state in which the
    action is taken.

    >>> scores = [0.1, 0.2, 0.3, 0.2, 0.4, 0.7, 0.5, 0.8]  # The capital of France is | Paris is beautiful
    >>> action_values(scores, prompt_length=5)
    [0.4, 0.7, 0.5]
    >>> scores[-3:]  # one token late
    [0.7, 0.5, 0.8]
    """
    return [scores[position] for position in action_positions(prompt_length, len(scores) - prompt_length)]
