"""Positions: the number that tells the model where in its sequence a token stands.

The first real token has position 0, the next 1, whatever padding stands before it, and in a pack each sequence begins
again at 0. A model with rotary positions sees only differences and forgives a constant shift; one with learned
positions does not.
"""

from __future__ import annotations

from collections.abc import Sequence


def position_ids(attention_mask: Sequence[int], fill: int = 0) -> list[int]:
    """``cumsum(attention_mask) - 1`` where attended and ``fill`` on pads: ``(L,) -> (L,)``.

    Raises ValueError where ``fill`` is negative or the mask holds anything but 0 and 1.

    >>> position_ids([0, 0, 1, 1, 1, 0])
    [0, 0, 0, 1, 2, 0]
    >>> position_ids([0, 1, 1], fill=1)
    [1, 0, 1]
    """
    if fill < 0:
        raise ValueError(f"a position is not negative, so pads cannot have {fill}")
    positions = []
    attended = 0
    for cell in attention_mask:
        if cell not in (0, 1):
            raise ValueError(f"an attention mask holds 0 and 1, not {cell}")
        if cell:
            positions.append(attended)
            attended += 1
        else:
            positions.append(fill)
    return positions


def packed_position_ids(lengths: Sequence[int]) -> list[int]:
    """``0 .. n - 1`` for each sequence of a pack, one after the other: ``(S,) lengths -> (sum of lengths,)``.

    Raises ValueError for a length below 1.

    >>> packed_position_ids([3, 2])
    [0, 1, 2, 0, 1]
    """
    positions: list[int] = []
    for length in lengths:
        if length < 1:
            raise ValueError(f"a sequence of a pack has at least one token, not {length}")
        positions.extend(range(length))
    return positions
