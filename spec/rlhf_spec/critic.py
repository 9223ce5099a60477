"""The critic: what the rest of the sequence is expected to be worth, before each action.

The value of an action is that of the state before it, read at the position that predicts it: ``V[P-1 : L-1]``. For
"The capital of France is" (5 tokens) and "Paris is beautiful" (3) with the scores 0.1, 0.2, 0.3, 0.2, 0.4, 0.7, 0.5,
0.8, the three actions have the values 0.4, 0.7, 0.5: "Paris" is worth what was expected after "is". The last three
scores, 0.7, 0.5, 0.8, are values of the states after the actions, one token late.

In a pack the same slice is made within each sequence. Cut out of the row with ``max(0, ...)``, the values of a sequence
without a prompt begin in the sequence before it; here that is an error.
"""

from __future__ import annotations

from collections.abc import Sequence

from rlhf_spec.actor import action_positions
from rlhf_spec.packing import unpack


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


def packed_action_values(
    scores: Sequence[float], lengths: Sequence[int], response_lengths: Sequence[int]
) -> list[list[float]]:
    """The values of the actions of each sequence of a pack: ``(N,) -> (T_1,), (T_2,), ...``.

    Raises ValueError where a sequence has no token before its first action: that has no state in this row, and the cell
    before it belongs to the neighbor. The example, behind a sequence "Hi there" of two tokens:

    >>> row = [0.6, 0.9, 0.1, 0.2, 0.3, 0.2, 0.4, 0.7, 0.5, 0.8]
    >>> packed_action_values(row, lengths=[2, 8], response_lengths=[1, 3])
    [[0.6], [0.4, 0.7, 0.5]]

    Were all of the second sequence action, this slip would give its first token the last score of the first, 0.9:

    >>> end, actions = 10, 8
    >>> row[max(0, end - actions - 1) : end - 1]
    [0.9, 0.1, 0.2, 0.3, 0.2, 0.4, 0.7, 0.5]
    >>> packed_action_values(row, lengths=[2, 8], response_lengths=[1, 8])
    Traceback (most recent call last):
    ...
    ValueError: a prompt has at least one token, not 0
    """
    pieces = zip(unpack(scores, lengths), lengths, response_lengths, strict=True)
    return [action_values(piece, length - count) for piece, length, count in pieces]
