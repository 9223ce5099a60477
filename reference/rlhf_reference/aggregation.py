"""From one loss for each token to one number.

Two aggregations are in use, and they differ whenever responses differ in length: under the token mean a long
response weighs more, under the sequence mean every response weighs the same, so its tokens weigh less (discussed as
the length bias of GRPO in Liu et al. 2025, "Understanding R1-Zero-Like Training").
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Aggregation = Literal["token-mean", "sequence-mean"]


def aggregate(
    values: Tensor, mask: Tensor, aggregation: Aggregation, *, global_count: float | Tensor | None = None
) -> Tensor:
    """Masked mean over tokens, or mean over sequences of each one's masked mean.

    values        (B, T) floating, one row for each sequence; what lies outside the mask is not read, be it NaN
    mask          (B, T), nonzero where a token counts (bool, integer or float)
    aggregation   "token-mean": sum / number of tokens; "sequence-mean": mean over the rows that have a token
    global_count  the denominator of the whole step, tokens or sequences, over all micro-batches and ranks: with it
                  the results of micro-batches add up to that of the batch, which a mean of their means does not
    returns       scalar; 0 with a graph if nothing counts; an empty row is not counted as a sequence

    A pack is one row, so its sequence mean would be a token mean: take it apart first.
    """
    chosen = mask.bool()
    values = values.where(chosen, 0.0)  # selected, not multiplied: NaN * 0 is NaN
    if aggregation == "token-mean":
        total, count = values.sum(), chosen.sum()
    elif aggregation == "sequence-mean":
        lengths = chosen.sum(-1)
        total, count = (values.sum(-1) / lengths.clamp(min=1)).sum(), (lengths > 0).sum()
    else:
        raise ValueError(f"unknown aggregation {aggregation!r}")
    count = torch.as_tensor(count if global_count is None else global_count, device=values.device)
    return total / count.where(count > 0, 1)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """The token mean, for metrics: detached."""
    return aggregate(values.detach(), mask, "token-mean")
