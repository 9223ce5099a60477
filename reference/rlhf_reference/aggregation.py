"""From one loss for each token to one number.

Two means are in use, and they differ whenever responses differ in length: under the token mean a long response weighs
more, under the sequence mean every response weighs the same, so its tokens weigh less (discussed as the length bias of
GRPO in Liu et al. 2025, "Understanding R1-Zero-Like Training"). Dividing by one constant length, as is done there, or
by nothing, gives every token of every batch the same weight.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Aggregation = Literal["token-mean", "sequence-mean", "constant-length", "token-sum"]


def aggregate(
    values: Tensor,
    mask: Tensor,
    aggregation: Aggregation,
    *,
    global_count: float | Tensor | None = None,
    constant_length: float | None = None,
) -> Tensor:
    """Masked mean over tokens, mean over sequences of each one's masked mean, or a sum over a constant.

    values           (B, T) floating, one row for each sequence; what lies outside the mask is not read, be it NaN
    mask             (B, T), nonzero where a token counts (bool, integer or float)
    aggregation      "token-mean": sum / number of tokens; "sequence-mean": mean over the rows that have a token;
                     "constant-length": sum / (number of those rows * constant_length); "token-sum": the sum
    global_count     the denominator of the whole step, tokens or sequences, over all micro-batches and ranks: with it
                     the results of micro-batches add up to that of the batch, which a mean of their means does not
    constant_length  in tokens, that of the longest response that may be
    returns          scalar; 0 with a graph if nothing counts; an empty row is not counted as a sequence
    raises           ValueError for another aggregation, and for a constant length that is missing or not positive

    A pack is one row, so its sequence mean would be a token mean: take it apart first.
    """
    chosen = mask.bool()
    values = values.where(chosen, 0.0)  # selected, not multiplied: NaN * 0 is NaN
    if aggregation == "token-mean":
        total, count = values.sum(), chosen.sum()
    elif aggregation == "sequence-mean":
        lengths = chosen.sum(-1)
        total, count = (values.sum(-1) / lengths.clamp(min=1)).sum(), (lengths > 0).sum()
    elif aggregation == "constant-length":
        if constant_length is None or not constant_length > 0:
            raise ValueError(f"constant_length is {constant_length}; it must be a positive number of tokens")
        total, count = values.sum() / constant_length, chosen.any(-1).sum()
    elif aggregation == "token-sum":
        return values.sum()
    else:
        raise ValueError(f"unknown aggregation {aggregation!r}")
    count = torch.as_tensor(count if global_count is None else global_count, device=values.device)
    return total / count.where(count > 0, 1)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """The token mean, for metrics: detached."""
    return aggregate(values.detach(), mask, "token-mean")
