"""Packing: several sequences in one row, so that no arithmetic is spent on padding.

A pack of sequences with ``N`` tokens in all is one row ``(1, N)`` without an attention mask; where a sequence begins
is told by the positions, which restart at 0. Each sequence must come out as if it had been alone. Its last token
predicts nothing here: the next token of the row belongs to another sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from rlhf_spec.positions import packed_position_ids

Cell = TypeVar("Cell")


def pack(sequences: Sequence[Sequence[int]]) -> tuple[list[int], list[int]]:
    """The tokens of all sequences in one row, and their positions: ``(N,), (N,)``.

    Raises ValueError where a sequence is empty.

    >>> pack([[5, 6, 7], [8, 9]])
    ([5, 6, 7, 8, 9], [0, 1, 2, 0, 1])
    """
    tokens: list[int] = []
    for sequence in sequences:
        tokens.extend(sequence)
    return tokens, packed_position_ids([len(sequence) for sequence in sequences])


def unpack(row: Sequence[Cell], lengths: Sequence[int]) -> list[list[Cell]]:
    """The cells of each sequence, from a row of the pack; the way back from :func:`pack`.

    A tail of cells after the last sequence (padding) is left out. Raises ValueError where the row is too short.

    >>> unpack([5, 6, 7, 8, 9, 0], lengths=[3, 2])
    [[5, 6, 7], [8, 9]]
    """
    if sum(lengths) > len(row):
        raise ValueError(f"a row of {len(row)} cannot hold sequences of {list(lengths)} tokens")
    pieces = []
    start = 0
    for length in lengths:
        pieces.append(list(row[start : start + length]))
        start += length
    return pieces


def next_token_labels(sequences: Sequence[Sequence[int]]) -> list[int | None]:
    """The token that each cell of the pack predicts, None at the last cell of each sequence: ``(N,)``.

    Raises ValueError where a sequence is empty.

    >>> next_token_labels([[5, 6, 7], [8, 9]])
    [6, 7, None, 9, None]
    """
    labels: list[int | None] = []
    for sequence in sequences:
        if not sequence:
            raise ValueError("a sequence of a pack has at least one token")
        labels.extend(sequence[1:])
        labels.append(None)
    return labels


def segment_numbers(lengths: Sequence[int], tail: int = 0) -> list[int]:
    """An attention mask that numbers the sequences of a pack from 1, with 0 on a tail of padding: ``(N + tail,)``.

    >>> segment_numbers([2, 3], tail=1)
    [1, 1, 2, 2, 2, 0]
    """
    return [number for number, length in enumerate(lengths, start=1) for _ in range(length)] + [0] * tail


def shard(row: Sequence[Cell], shards: int, fill: Cell) -> list[list[Cell]]:
    """The row cut into equal pieces, one for each rank of a sequence-parallel group: ``(N,) -> (S, ceil(N / S))``.

    Where ``N`` is not a multiple of ``S`` the last pieces are filled up with ``fill``. Labels are made before the cut,
    since the last token of a piece predicts the first of the next. Raises ValueError for less than one shard.

    >>> shard([6, 7, 8, 9, 5], shards=2, fill=0)
    [[6, 7, 8], [9, 5, 0]]
    """
    if shards < 1:
        raise ValueError(f"a row is cut into at least one shard, not {shards}")
    width = -(-len(row) // shards)
    filled = list(row) + [fill] * (width * shards - len(row))
    return [filled[index * width : (index + 1) * width] for index in range(shards)]
