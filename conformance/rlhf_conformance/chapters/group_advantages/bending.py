"""Plain advantages of groups for the faults to bend: right as they stand, and a liar exchanges one step.

Which rows are of one group is a matrix `same` (B, B), so that a liar can exchange that as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rlhf_conformance._lazy import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    Of = Callable[[Tensor, Tensor], Tensor]


def members(group_ids: Tensor) -> Tensor:
    return group_ids[:, None] == group_ids[None]


def totals(x: Tensor, same: Tensor) -> Tensor:
    """Of each row the sum over its group."""
    return x[None].where(same, 0.0).sum(1)


def mean(x: Tensor, same: Tensor) -> Tensor:
    return totals(x, same) / same.sum(1)


def mean_of_others(x: Tensor, same: Tensor) -> Tensor:
    return (totals(x, same) - x) / (same.sum(1) - 1).clamp(min=1)


def deviation(x: Tensor, same: Tensor, ddof: int) -> Tensor:
    """Of each row that of its group; 1 where it is alone."""
    squares = (x[None] - mean(x, same)[:, None]).square().where(same, 0.0).sum(1)
    return (squares / (same.sum(1) - ddof).clamp(min=1)).sqrt().where(same.sum(1) > 1, 1.0)


def divide(adapter: Any, difference: Tensor, deviation: Tensor) -> Tensor:
    """A difference of 0 stays 0."""
    return (difference / (deviation + adapter.group_eps)).where(difference != 0, 0.0)


def advantages(
    adapter: Any,
    arguments: tuple[Any, ...],
    *,
    same: Tensor | None = None,
    mean: Of = mean,
    others: Of = mean_of_others,
    group_deviation: Callable[[Tensor, Tensor, int], Tensor] = deviation,
    batch_deviation: Callable[[Tensor, Tensor, int], Tensor] | None = None,
    divide: Callable[[Any, Tensor, Tensor], Tensor] = divide,
    graph: bool = False,
) -> Tensor:
    """The method's four arguments made advantages (B, T), with another step: mean(x, same) and others(x, same) are the
    baselines, the deviations (x, same, ddof) what is divided by; `graph` keeps the graph."""
    scores, group_ids, action_mask, options = arguments
    x, ddof = (scores if graph else scores.detach()).double(), adapter.group_std_ddof
    same = members(group_ids) if same is None else same
    difference = x - (mean if options.baseline == "mean" else others)(x, same)
    difference = difference.where(same.sum(1) > 1, x if adapter.group_of_one == "score" else 0.0)
    if options.scale == "group-std":
        difference = divide(adapter, difference, group_deviation(x, same, ddof))
    elif options.scale == "batch-std":
        of_all = batch_deviation or (lambda x, same, ddof: deviation(x, torch.ones_like(same), ddof))
        difference = divide(adapter, difference, of_all(x, same, ddof))
    return spread(difference.to(torch.promote_types(scores.dtype, torch.float32)), action_mask)


def spread(rows: Tensor, action_mask: Tensor) -> Tensor:
    """A number for each row, at its actions."""
    return rows[:, None].expand(action_mask.shape).where(action_mask.bool(), 0.0)
