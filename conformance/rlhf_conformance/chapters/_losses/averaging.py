"""The means over a mask as an honest trainer may take them, for twins."""

from __future__ import annotations

from typing import Any


def averaged(losses: Any, mask: Any, options: Any) -> Any:
    """The aggregation asked for; an empty row is not counted."""
    losses = losses.where(mask.bool(), 0.0)
    if options.aggregation == "token-sum":
        return losses.sum()
    if options.aggregation == "constant-length":
        rows = options.global_count or mask.bool().any(1).sum().clamp(min=1)
        return losses.sum(1).sum() / options.constant_length / rows
    if options.aggregation == "token-mean":
        return losses.sum() / (options.global_count or mask.bool().sum().clamp(min=1))
    lengths = mask.bool().sum(1)
    rows = losses.sum(1) / lengths.clamp(min=1)
    return rows.sum() / (options.global_count or (lengths > 0).sum().clamp(min=1))
