"""Aggregation: how the losses of single tokens become one number. Both losses use it; it has no chapter of its own.

``token-mean`` gives every action of the batch the same weight, ``sequence-mean`` every sequence. On sequences of equal
length they agree. Two more are sums: ``constant-length`` divides the sum over a sequence by one length for all, that of
the longest response that may be (Dr. GRPO, Liu et al. 2025, arXiv:2503.20783), and ``token-sum`` divides by nothing. A
batch is split into micro-batches without changing the loss when each divides by the count of the whole batch, the
``global_count``; sums over tokens add up by themselves. What stands under the mask is never read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

Rows = Sequence[Sequence[float]]
Masks = Sequence[Sequence[int]]
Steps = list[tuple[str, float]]
"""The numbers on the way to a result, each with its name."""

MEANS = ("token-mean", "sequence-mean")
AGGREGATIONS = (*MEANS, "constant-length", "token-sum")


def token_mean(rows: Rows, masks: Masks, num_tokens: float | None = None) -> float:
    """The sum over the mask, divided by the number of actions of the batch: ``B rows of (T,) -> ()``.

    ``num_tokens`` stands in for that number, in tokens. A mask without a 1 gives 0.0. Raises ValueError for shapes that
    differ, for a mask not of 0 and 1, and for a ``num_tokens`` that is not positive.

    >>> token_mean([[1.0, 2.0, 3.0], [6.0, 99.0, 99.0]], [[1, 1, 1], [1, 0, 0]])  # 12 / 4
    3.0
    """
    check_shapes(masks, rows)
    total, tokens = 0.0, 0
    for row, mask in zip(rows, masks, strict=True):
        total += _masked_sum(row, mask)
        tokens += sum(mask)
    return total / _denominator(tokens, num_tokens) if tokens else 0.0


def sequence_mean(
    rows: Rows, masks: Masks, num_sequences: float | None = None, count_empty_rows: bool = False
) -> float:
    """The mean over sequences of each one's own token mean: ``B rows of (T,) -> ()``.

    A row without an action adds 0; whether it is counted is a convention. ``num_sequences`` stands in for the count of
    sequences. A mask without a 1 gives 0.0. Raises ValueError as ``token_mean`` does.

    >>> rows, masks = [[1.0, 2.0, 3.0], [6.0, 99.0, 99.0], [99.0, 99.0, 99.0]], [[1, 1, 1], [1, 0, 0], [0, 0, 0]]
    >>> sequence_mean(rows[:2], masks[:2])  # (2 + 6) / 2
    4.0
    >>> sequence_mean(rows, masks)
    4.0
    >>> round(sequence_mean(rows, masks, count_empty_rows=True), 4)  # (2 + 6 + 0) / 3
    2.6667
    """
    check_shapes(masks, rows)
    total, sequences = 0.0, 0
    for row, mask in zip(rows, masks, strict=True):
        if any(mask):
            total += _masked_sum(row, mask) / sum(mask)
        if any(mask) or count_empty_rows:
            sequences += 1
    return total / _denominator(sequences, num_sequences) if _any_action(masks) else 0.0


def aggregate(
    rows: Rows,
    masks: Masks,
    aggregation: str,
    *,
    global_count: float | None = None,
    count_empty_rows: bool = False,
    constant_length: float | None = None,
) -> float:
    """The mean or sum with this name. Raises ValueError for another name, for a ``constant-length`` without a positive
    ``constant_length``, and as ``token_mean`` does.

    ``global_count`` replaces the denominator: actions for ``token-mean``, sequences for ``sequence-mean`` and
    ``constant-length``. A ``token-sum`` has none.

    >>> halves = [([[1.0, 2.0, 3.0]], [[1, 1, 1]]), ([[6.0]], [[1]])]
    >>> sum(aggregate(rows, masks, "token-mean", global_count=4) for rows, masks in halves)  # as the batch above
    3.0
    >>> rows, masks = [[1.0, 2.0, 3.0], [6.0, 99.0, 99.0]], [[1, 1, 1], [1, 0, 0]]
    >>> aggregate(rows, masks, "token-sum")
    12.0
    >>> aggregate(rows, masks, "constant-length", constant_length=8)  # 12 / (2 * 8)
    0.75
    """
    _check_name(aggregation)
    if aggregation == "token-mean":
        return token_mean(rows, masks, global_count)
    if aggregation == "sequence-mean":
        return sequence_mean(rows, masks, global_count, count_empty_rows)
    summed = token_mean(rows, masks, 1.0)
    if aggregation == "token-sum" or not _any_action(masks):
        return summed
    return summed / (_sequences(masks, global_count, count_empty_rows) * _length(constant_length))


def weights(
    masks: Masks,
    aggregation: str,
    *,
    global_count: float | None = None,
    count_empty_rows: bool = False,
    constant_length: float | None = None,
) -> list[list[float]]:
    """What each token's loss counts for, the gradient of the aggregate with respect to it: ``B rows of (T,)``.

    One over the number of actions, or over the number of sequences and the actions of its own, or over the number of
    sequences and the constant length, or 1. Raises ValueError as ``aggregate`` does.

    >>> weights([[1, 1], [1, 0]], "sequence-mean")
    [[0.25, 0.25], [0.5, 0.0]]
    >>> weights([[1, 1, 1], [1, 0, 0]], "token-mean")
    [[0.25, 0.25, 0.25], [0.25, 0.0, 0.0]]
    >>> weights([[1, 1, 1], [1, 0, 0]], "constant-length", constant_length=4)
    [[0.125, 0.125, 0.125], [0.125, 0.0, 0.0]]
    """
    _check_name(aggregation)
    check_shapes(masks)
    if not _any_action(masks):
        return [[0.0] * len(mask) for mask in masks]
    if aggregation == "token-sum":
        return [[float(cell) for cell in mask] for mask in masks]
    if aggregation == "token-mean":
        tokens = _denominator(sum(sum(mask) for mask in masks), global_count)
        return [[1 / tokens if cell else 0.0 for cell in mask] for mask in masks]
    sequences = _sequences(masks, global_count, count_empty_rows)
    lengths = [_length(constant_length) if aggregation == "constant-length" else sum(mask) for mask in masks]
    return [
        [1 / (sequences * length) if cell else 0.0 for cell in mask]
        for mask, length in zip(masks, lengths, strict=True)
    ]


def scale(rows: Rows, token_weights: Rows) -> list[list[float]]:
    """Each cell times its weight.

    >>> scale([[8.0, 4.0]], [[0.25, 0.5]])
    [[2.0, 2.0]]
    """
    scaled = []
    for row, row_weights in zip(rows, token_weights, strict=True):
        scaled.append([weight * cell for cell, weight in zip(row, row_weights, strict=True)])
    return scaled


def map_actions(function: Callable[..., float], masks: Masks, *tables: Rows) -> list[list[float]]:
    """``function`` of the tables' cells at each action, 0.0 elsewhere. Cells that are not actions are never read.

    >>> map_actions(lambda value, return_: value - return_, [[1, 0]], [[5.0, 9.0]], [[2.0, 9.0]])
    [[3.0, 0.0]]
    """
    check_shapes(masks, *tables)
    rows = []
    for i, mask in enumerate(masks):
        rows.append([function(*(table[i][t] for table in tables)) if mask[t] else 0.0 for t in range(len(mask))])
    return rows


def check_shapes(masks: Masks, *tables: Rows) -> None:
    """Raises ValueError where a mask is not of 0 and 1, or a table has not one cell for each of the mask's."""
    for mask in masks:
        for cell in mask:
            if cell not in (0, 1):
                raise ValueError(f"an action mask holds 0 and 1, not {cell}")
    shape = [len(mask) for mask in masks]
    for table in tables:
        if [len(row) for row in table] != shape:
            raise ValueError(f"rows of {[len(row) for row in table]} cells do not fit masks of {shape}")


def _masked_sum(row: Sequence[float], mask: Sequence[int]) -> float:
    """Selects, never multiplies: a cell under the mask may hold NaN."""
    total = 0.0
    for cell, is_action in zip(row, mask, strict=True):
        if is_action:
            total += cell
    return total


def _any_action(masks: Masks) -> bool:
    return any(any(mask) for mask in masks)


def _denominator(count: float, global_count: float | None) -> float:
    denominator = count if global_count is None else global_count
    if not denominator > 0:
        raise ValueError(f"the count that a batch with actions is divided by must be positive, not {denominator}")
    return denominator


def _sequences(masks: Masks, global_count: float | None, count_empty_rows: bool) -> float:
    return _denominator(sum(1 for mask in masks if any(mask) or count_empty_rows), global_count)


def _length(constant_length: float | None) -> float:
    if constant_length is None or not constant_length > 0:
        raise ValueError(f"constant-length needs a positive length in tokens, not {constant_length}")
    return constant_length


def _check_name(aggregation: str) -> None:
    if aggregation not in AGGREGATIONS:
        raise ValueError(f"there is no aggregation {aggregation!r}; the aggregations are {', '.join(AGGREGATIONS)}")
