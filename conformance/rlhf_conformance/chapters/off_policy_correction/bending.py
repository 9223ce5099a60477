"""Plain weights for the faults to bend: right as they stand for what the reference declares, and a liar exchanges one
step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rlhf_conformance._lazy import torch
from rlhf_conformance.chapters._tensors import chosen

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


def log_ratio(old: Tensor, rollout: Tensor, mask: Tensor) -> Tensor:
    """(B, T), 0 where there is no action, and where the engine gave no log-prob."""
    return (chosen(old, mask) - chosen(rollout, mask)).nan_to_num(0.0, torch.inf, -torch.inf)


def counts(mask: Tensor) -> Tensor:
    """(B, 1): the actions of each row."""
    return mask.bool().sum(1, keepdim=True).clamp(min=1)


def of_sequence(d: Tensor, mask: Tensor, options: Any) -> Tensor:
    """(B, 1): the sum of a row, or its mean."""
    total = d.double().sum(1, keepdim=True)
    return total / counts(mask) if options.sequence_weight == "geometric" else total


def held(adapter: Any, x: Tensor) -> Tensor:
    clamp = adapter.correction_log_clamp
    return x.clamp(-clamp, clamp) if clamp else x


def within(weight: Tensor, options: Any) -> Tensor:
    inside = weight <= options.upper
    return inside if options.lower is None else inside & (weight >= options.lower)


def bounded(weight: Tensor, options: Any) -> Tensor:
    if options.mode == "truncate":
        return weight.clamp(options.lower, options.upper)
    return weight.where(within(weight, options), 0.0)


def weights(
    adapter: Any,
    arguments: tuple[Any, ...],
    *,
    d: Callable[[Tensor, Tensor, Tensor], Tensor] = log_ratio,
    of_sequence: Callable[[Tensor, Tensor, Any], Tensor] = of_sequence,
    held: Callable[[Any, Tensor], Tensor] = held,
    weigh: Callable[[Tensor], Tensor] = lambda x: x.exp(),
    bounded: Callable[[Tensor, Any], Tensor] = bounded,
    graph: bool = False,
) -> Tensor:
    """The method's four arguments made weights (B, T), with another step: d(old, rollout, mask) is the log-ratio,
    of_sequence(d, mask, options) what is made of a row's, held(adapter, x) the clamp, weigh(x) the weight of it, and
    bounded(weight, options) what the bounds leave; `graph` keeps the graph."""
    old, rollout, mask, options = arguments
    x = d(*((old, rollout) if graph else (old.detach(), rollout.detach())), mask)
    if options.level == "sequence":
        x = of_sequence(x, mask, options)
    return spread(bounded(weigh(held(adapter, x)), options), mask)


def spread(weight: Tensor, mask: Tensor) -> Tensor:
    """At the actions, in float32 or better: of each cell, or of each row."""
    return chosen(weight.expand(mask.shape), mask)
