"""Slips that have nothing to do with what a method computes: how a tensor that goes in or comes out may be spoiled.

Each is a function of a tensor, which keeps its shape; one that does not apply to a tensor returns it as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rlhf_conformance._lazy import torch

Spoil = Callable[[Any], Any]


@dataclass(frozen=True)
class Change:
    """A slip.

    says    what is done with a tensor, behind its name: "`labels` ..."
    spoil   tensor -> tensor of the same shape
    """

    says: str
    spoil: Spoil


def _shifted(x: Any, by: int, axis: int) -> Any:
    """Moved along an axis, with zeros behind."""
    if x.ndim <= axis:
        return x
    moved = x.roll(by, axis)
    index = torch.arange(x.shape[axis], device=x.device)
    fresh = (index < by) if by > 0 else (index >= x.shape[axis] + by)
    return moved.masked_fill(fresh.reshape([-1 if i == axis else 1 for i in range(x.ndim)]), 0)


def _along(axis: int, change: Spoil) -> Spoil:
    return lambda x: change(x) if x.ndim > axis else x


def _one_row_for_all(x: Any) -> Any:
    return x[:1].expand_as(x).clone() if x.ndim > 1 else x


def _mean_of_rows(x: Any) -> Any:
    return x.mean(1, keepdim=True).expand_as(x) if x.ndim == 2 else x


def _kept_in(dtype: str) -> Spoil:
    return lambda x: x.to(getattr(torch, dtype)).to(x.dtype)


ORDERS = (
    Change("rolled by one to the right, the last one wrapping round to the front", _along(1, lambda x: x.roll(1, 1))),
    Change("rolled by one to the left, the first one wrapping round to the end", _along(1, lambda x: x.roll(-1, 1))),
    Change("shifted by one to the right, with a zero in front", lambda x: _shifted(x, 1, 1)),
    Change("shifted by one to the left, with a zero behind", lambda x: _shifted(x, -1, 1)),
    Change("in reverse order along the row", _along(1, lambda x: x.flip(1))),
    Change("with the rows in reverse order", _along(1, lambda x: x.flip(0))),
    Change("with the rows rolled by one", _along(1, lambda x: x.roll(1, 0))),
    Change("with the first row in place of every row", _one_row_for_all),
)
"""Another order, of any tensor of rows."""

NUMBERS = (
    Change("negated", lambda x: -x),
    Change("doubled", lambda x: x * 2),
    Change("halved", lambda x: x / 2),
    Change("replaced by zeros", lambda x: x * 0),
    Change("replaced by its absolute value", lambda x: x.abs()),
    Change("squared", lambda x: x * x),
    Change("replaced by its exponential", lambda x: x.exp()),
    Change("held at 0 from below", lambda x: x.clamp(min=0)),
    Change("held at 0 from above", lambda x: x.clamp(max=0)),
    Change("held between -1 and 1", lambda x: x.clamp(-1, 1)),
    Change("rounded to bfloat16", _kept_in("bfloat16")),
    Change("rounded to float16", _kept_in("float16")),
)
"""Other numbers, of any tensor of floating-point numbers."""

MEANS = (
    Change("less its mean over the batch", lambda x: x - x.mean()),
    Change("with the mean of its row in place of each number", _mean_of_rows),
    Change("averaged over the rows", _along(1, lambda x: x.mean(0, keepdim=True).expand_as(x))),
)

GRADIENTS = (
    Change("detached from the graph", lambda x: x.detach()),
    Change("given a gradient of the wrong sign", lambda x: 2 * x.detach() - x),
    Change("given a gradient twice as large", lambda x: 2 * x - x.detach()),
    Change("given a gradient half as large", lambda x: (x + x.detach()) / 2),
)
"""The same numbers, with another gradient."""


def factor(c: float) -> Change:
    return Change(f"multiplied by {named(c)}", lambda x: x * c)


def offset(c: float) -> Change:
    return Change(f"{'raised' if c > 0 else 'lowered'} by {named(abs(c))}", lambda x: x + c)


def gradient_factor(c: float) -> Change:
    return Change(f"given a gradient {named(c)} times as large", lambda x: c * x + (1 - c) * x.detach())


_NAMED = {
    "log 2": math.log(2),
    "1 / log 2": 1 / math.log(2),
    "1 / log 10": 1 / math.log(10),
    "log 10": math.log(10),
    "pi": math.pi,
    "1/3": 1 / 3,
    "1 / sqrt 2": math.sqrt(0.5),
    "sqrt 2": math.sqrt(2),
}


def named(c: float) -> str:
    """A constant in words, where it is one that has a name."""
    close = [word for word, value in _NAMED.items() if f"{c:.5g}" == f"{value:.5g}"]
    return close[0] if close else f"{c:.5g}"


# --- masks: 1 on what counts ----------------------------------------------------------------------------------------


def _first(mask: Any) -> Any:
    return (mask != 0) & (mask.cumsum(-1) == 1)


def _last(mask: Any) -> Any:
    return (mask != 0) & (mask.flip(-1).cumsum(-1).flip(-1) == 1)


def _rows_with(mask: Any, kept: Callable[[Any], Any]) -> Any:
    counts = mask.sum(-1, keepdim=True)
    return mask * kept(counts).to(mask.dtype)


def _between(mask: Any) -> Any:
    from_first = mask.cumsum(-1) > 0
    to_last = mask.flip(-1).cumsum(-1).flip(-1) > 0
    return (from_first & to_last).to(mask.dtype)


def _dropped(mask: Any, where: Any) -> Any:
    return mask * (~where).to(mask.dtype)


def _without(mask: Any, left_out: Any, kept: Any, *, first: bool) -> Any:
    if len(mask) == 1:
        return mask
    return torch.cat([left_out * 0, kept] if first else [kept, left_out * 0])


def _joined(mask: Any, ends: Any, by: int) -> Any:
    return ((mask != 0) | (_shifted(ends.long(), by, 1) != 0)).to(mask.dtype)


MASKS = (
    Change("taken for all ones", lambda m: torch.ones_like(m)),
    Change("inverted", lambda m: (m == 0).to(m.dtype)),
    Change("without the first 1 of each row", lambda m: _dropped(m, _first(m))),
    Change("without the last 1 of each row", lambda m: _dropped(m, _last(m))),
    Change("with its holes filled", _between),
    Change("with only the first 1 of each row", lambda m: _first(m).to(m.dtype)),
    Change("with only the last 1 of each row", lambda m: _last(m).to(m.dtype)),
    Change("with one more 1 behind the last of each row", lambda m: _joined(m, _last(m), 1)),
    Change("with one more 1 before the first of each row", lambda m: _joined(m, _first(m), -1)),
    Change("without the rows of a single 1", lambda m: _rows_with(m, lambda n: n != 1)),
    Change("with its last column left out", lambda m: torch.cat([m[..., :-1], m[..., -1:] * 0], -1)),
    Change("with its first column left out", lambda m: torch.cat([m[..., :1] * 0, m[..., 1:]], -1)),
    Change("with its first row left out, where there are several", lambda m: _without(m, m[:1], m[1:], first=True)),
    Change("with its last row left out, where there are several", lambda m: _without(m, m[-1:], m[:-1], first=False)),
    Change("with the first row's 1s in every row", _one_row_for_all),
)  # fmt: skip

IDS = (
    Change("one larger than due", lambda x: x + 1),
    Change("one smaller than due", lambda x: x - 1),
    Change("one smaller than due, but not below 0", lambda x: (x - 1).clamp(min=0)),
    Change("replaced by zeros", lambda x: x * 0),
)
"""Of positions, labels and other whole numbers."""
