"""Plain whitening for the faults to bend: right as it stands, and a liar exchanges one step of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rlhf_conformance._lazy import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """In float32 or better, without a graph."""
    return x.detach().to(torch.promote_types(x.dtype, torch.float32))


def mean(x: Tensor, counted: Tensor) -> Tensor:
    return x.where(counted, 0.0).sum() / counted.sum().clamp(min=1)


def variance(centered: Tensor, counted: Tensor, ddof: int) -> Tensor:
    return centered.where(counted, 0.0).square().sum() / (counted.sum() - ddof).clamp(min=1)


def denominator(adapter: Any, variance: Tensor) -> Tensor:
    """As the adapter declares it."""
    eps, place = adapter.whitening_eps, adapter.whitening_eps_place
    if place == "std":
        return variance.sqrt() + eps
    return (variance + eps if place == "variance" else variance.clamp(min=eps)).sqrt()


def whiten(
    adapter: Any,
    arguments: tuple[Any, ...],
    *,
    counted: Tensor | None = None,
    mean: Callable[[Tensor, Tensor], Tensor] = mean,
    variance: Callable[[Tensor, Tensor, int], Tensor] = variance,
    denominator: Callable[[Any, Tensor], Tensor] = denominator,
    combine: Callable[[Tensor, Tensor, Tensor], Tensor] = lambda x, mean, divisor: (x - mean) / divisor,
    graph: bool = False,
) -> Tensor:
    """The method's three arguments whitened: with other cells counted in the statistics, with another mean(x, counted),
    variance(centered, counted, ddof) or denominator(adapter, variance), put together otherwise, or with its graph."""
    values, action_mask, options = arguments
    mask = action_mask.bool()
    counted = mask if counted is None else counted
    x = (values.to(wide(values).dtype) if graph else wide(values)).where(mask | counted, 0.0)
    middle = mean(x, counted)
    divisor = denominator(adapter, variance(x - middle, counted, adapter.whitening_ddof))
    result = combine(x, middle, divisor)
    return (result if options.shift_mean else result + middle).where(mask, 0.0)
