"""Inputs of the two losses: a rectangle of tokens under a mask.

Policy: `new`, `old`, `target` are log_probs, old_log_probs, advantages. Value: values, old_values, returns. All
numbers are exactly representable in the dtype under test, and no token lies so near a kink of the formula (the edge
of the clip, the place where two branches meet) that rounding could decide its gradient.
"""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import strategies as st

from rlhf_conformance import budgets
from rlhf_conformance._lazy import torch
from rlhf_conformance.adapter import Adapter, PolicyLossOptions, ValueLossOptions

Rows = tuple[tuple[float, ...], ...]
CLIP_EPS = (0.1, 0.2, 0.3)
DUAL_CLIP = (1.5, 3.0)


@dataclass(frozen=True)
class LossCase:
    """One call of a loss; every field (B, T)."""

    new: Rows
    old: Rows
    target: Rows
    mask: tuple[tuple[int, ...], ...]
    options: Any  # PolicyLossOptions | ValueLossOptions

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.mask), len(self.mask[0])

    @property
    def counts(self) -> list[int]:
        """Actions in each row."""
        return [sum(row) for row in self.mask]

    def rows(self, order: Sequence[int]) -> LossCase:
        """Only these rows, in this order."""
        picked = {name: tuple(getattr(self, name)[i] for i in order) for name in ("new", "old", "target", "mask")}
        return replace(self, **picked)

    def repeated(self, times: int) -> LossCase:
        """Every row repeated along its length."""
        longer = {name: tuple(row * times for row in getattr(self, name)) for name in ("new", "old", "target", "mask")}
        return replace(self, **longer)

    def with_options(self, **changes: Any) -> LossCase:
        return replace(self, options=replace(self.options, **changes))


@dataclass(frozen=True)
class LossShape:
    """What a strategy of loss cases is asked for."""

    zones: Sequence[str] = ("inside", "anywhere")
    dual: bool | None = False  # None: either
    advantage_signs: Sequence[int] = (-1, 1)
    unequal_eps: bool | None = False  # None: either, where the adapter knows two bounds
    clipped: bool = True  # value loss: with a clip
    aggregations: Sequence[str] | None = None
    empty_row: bool = False
    unequal_rows: bool = False
    min_rows: int = 1


Token = tuple[float, float, float]


def exactly(x: float, dtype: torch.dtype) -> float:
    """The number nearest to x that the dtype holds (ties to even), without making a tensor for it."""
    name = str(dtype).removeprefix("torch.")
    if name == "float64":
        return x
    if name == "float16":
        return float(struct.unpack("e", struct.pack("e", x))[0])
    bits = struct.unpack("I", struct.pack("f", x))[0]
    if name == "bfloat16":  # the upper half of a float32
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return float(struct.unpack("f", struct.pack("I", bits))[0])


@st.composite
def loss_cases(
    draw: Callable,
    adapter: Adapter,
    dtype: torch.dtype,
    kind: str,
    shape: LossShape = LossShape(),
) -> LossCase:
    """Up to 4 rows of up to 6 tokens, masks with holes, every row with an action (unless one is asked to be empty)."""
    options = draw(_OPTIONS[kind](adapter, shape))
    draw_token = _TOKENS[kind](dtype, options, shape)
    mask = draw(_masks(shape))
    tokens = [[draw(draw_token) if m else (0.0, 0.0, 0.0) for m in row] for row in mask]
    new, old, target = (tuple(tuple(t[i] for t in row) for row in tokens) for i in range(3))
    return LossCase(new, old, target, mask, options)


@st.composite
def _masks(draw: Callable, shape: LossShape) -> tuple[tuple[int, ...], ...]:
    least = 2 if shape.empty_row or shape.unequal_rows else shape.min_rows
    count, width = draw(st.integers(least, 4)), draw(st.integers(2 if shape.unequal_rows else 1, 6))
    rows = []
    for _ in range(count):
        if draw(st.booleans()):
            length = draw(st.integers(1, width))
            row = [1] * length + [0] * (width - length)
        else:
            row = draw(st.lists(st.integers(0, 1), min_size=width, max_size=width))
        if not any(row):
            row[draw(st.integers(0, width - 1))] = 1
        rows.append(row)
    if shape.unequal_rows and len({sum(row) for row in rows}) == 1:
        rows[0] = [1, *([0] * (width - 1))] if sum(rows[0]) > 1 else [1] * width
    if shape.empty_row:
        rows[draw(st.integers(0, count - 1))] = [0] * width
    return tuple(tuple(row) for row in rows)


def _aggregations(adapter: Adapter, shape: LossShape) -> st.SearchStrategy[str]:
    return st.sampled_from([a for a in shape.aggregations or adapter.aggregations if a in adapter.aggregations])


@st.composite
def _policy_options(draw: Callable, adapter: Adapter, shape: LossShape) -> PolicyLossOptions:
    low = draw(st.sampled_from(CLIP_EPS))
    high = low
    either = adapter.asymmetric_clip and draw(st.integers(0, 2)) > 0
    unequal = either if shape.unequal_eps is None else shape.unequal_eps
    if unequal:
        high = draw(st.sampled_from([eps for eps in CLIP_EPS if eps != low]))
    dual = draw(st.booleans()) if shape.dual is None and adapter.dual_clip else bool(shape.dual)
    return PolicyLossOptions(
        low, high, draw(st.sampled_from(DUAL_CLIP)) if dual else None, draw(_aggregations(adapter, shape))
    )


@st.composite
def _value_options(draw: Callable, adapter: Adapter, shape: LossShape) -> ValueLossOptions:
    eps = draw(st.sampled_from(CLIP_EPS)) if shape.clipped and adapter.value_clip else None
    return ValueLossOptions(eps, draw(_aggregations(adapter, shape)))


@st.composite
def _policy_token(draw: Callable, dtype: torch.dtype, options: PolicyLossOptions, shape: LossShape) -> Token:
    """(log_prob, old_log_prob, advantage) of a zone of the log-ratio (`_log_ratio`)."""
    zone = draw(st.sampled_from(list(shape.zones)))
    sign = draw(st.sampled_from(list(shape.advantage_signs)))
    usual = st.integers(1, 20).map(lambda k: 0.13 * k)
    rare = st.sampled_from((6.3, 17.0, 40.0) if zone == "overflow" else (0.0, 6.3, 17.0, 40.0))
    advantage = exactly(sign * draw(st.one_of(usual, usual, usual, rare)), dtype)
    log_ratio = draw(_log_ratio(zone, options))
    if zone == "far":  # where no bound holds the ratio: up for A < 0, down for A > 0
        log_ratio = math.copysign(min(log_ratio, 8.0 if dtype == torch.float16 else 18.0), -sign)
    base = draw(st.integers(1, 30)) * 0.11
    old = -base - max(0.0, log_ratio)
    step = 0.02 if zone != "overflow" else 0.0
    for attempt in range(40):
        new_old = exactly(old + log_ratio + attempt * step, dtype), exactly(old, dtype)
        if zone == "equal" or _far_from_kinks(*new_old, advantage, options, dtype):
            return (*new_old, advantage)
        if attempt == 0 and log_ratio < 0:
            step = -step
    raise AssertionError(f"no token away from the kinks near log-ratio {log_ratio} with {options}")


def _log_ratio(zone: str, options: PolicyLossOptions) -> st.SearchStrategy[float]:
    low, high = math.log(1 - options.clip_eps_low), math.log(1 + options.clip_eps_high)
    return {
        "inside": st.integers(-8, 8).map(lambda k: 0.1 * k * (high if k > 0 else -low)),
        "above": st.integers(1, 12).map(lambda k: high + 0.1 * k),
        "below": st.integers(1, 12).map(lambda k: low - 0.1 * k),
        "anywhere": st.integers(-20, 20).map(lambda k: 0.1 * k + 0.013),
        "between": _between(options),
        "far": st.integers(0, 31).map(lambda k: 2.5 + 0.5 * k),
        "equal": st.just(0.0),
        "overflow": st.integers(90, 400).map(float),
    }[zone]


def _between(options: PolicyLossOptions) -> st.SearchStrategy[float]:
    """Between the two bounds' distances from 1, on either side: where one bound holds and the other would not."""
    least, most = sorted((options.clip_eps_low, options.clip_eps_high))
    middle = (least + most) / 2
    return st.sampled_from((math.log(1 + middle), math.log(1 - middle)))


def _far_from_kinks(new: float, old: float, advantage: float, options: PolicyLossOptions, dtype: torch.dtype) -> bool:
    log_ratio = new - old
    if log_ratio > 50:
        return True
    ratio = math.exp(log_ratio)
    guard = max(1e-3, 4 * budgets.unit(dtype) * (2 * abs(log_ratio) + 4))
    kinks = [1 - options.clip_eps_low, 1 + options.clip_eps_high]
    if options.dual_clip is not None:
        kinks.append(options.dual_clip)
    return all(abs(ratio - kink) > guard * kink for kink in kinks)


@st.composite
def _value_token(draw: Callable, dtype: torch.dtype, options: ValueLossOptions, shape: LossShape) -> Token:
    """(value, old_value, return); zones: inside the band, outside it (anywhere means either)."""
    zone = draw(st.sampled_from(list(shape.zones)))
    old = exactly(draw(st.integers(-20, 20)) * 0.11, dtype)
    usual = st.integers(-20, 20).map(lambda k: 0.13 * k + 0.007)
    large = st.sampled_from((-50.3, -9.1, 12.7, 48.9)) if budgets.unit(dtype) == budgets.FLOAT32 else usual
    return_ = exactly(draw(st.one_of(usual, usual, usual, large)), dtype)
    eps = options.clip_eps or 0.2
    inside = st.integers(-8, 8).map(lambda k: 0.1 * k * eps)
    outside = st.integers(1, 12).flatmap(lambda k: st.sampled_from((eps + 0.1 * k, -eps - 0.1 * k)))
    move = draw({"inside": inside, "outside": outside}.get(zone, st.one_of(inside, outside)))
    for attempt in range(40):
        new = exactly(old + move + math.copysign(0.02 * attempt, move), dtype)
        if _value_far_from_kinks(new, old, return_, options, dtype):
            return new, old, return_
    raise AssertionError(f"no value away from the kinks near {old} + {move} with {options}")


def _value_far_from_kinks(
    new: float, old: float, return_: float, options: ValueLossOptions, dtype: torch.dtype
) -> bool:
    guard = max(1e-3, 16 * budgets.unit(dtype) * max(abs(new), abs(old), abs(return_), 0.1))
    if options.clip_eps is None:
        return abs(new - return_) > guard
    if abs(abs(new - old) - options.clip_eps) <= guard:
        return False
    if abs(new - old) < options.clip_eps:
        return abs(new - return_) > guard
    clipped = old + math.copysign(options.clip_eps, new - old)
    return abs(abs(new - return_) - abs(clipped - return_)) > guard


_OPTIONS: dict[str, Callable[..., Any]] = {"policy-loss": _policy_options, "value-loss": _value_options}
_TOKENS: dict[str, Callable[..., Any]] = {"policy-loss": _policy_token, "value-loss": _value_token}


@dataclass(frozen=True)
class DressedCase:
    """A case and the same case with other numbers under its mask, which has at least one hole."""

    case: LossCase
    dressed: LossCase


@st.composite
def under_mask(draw: Callable, cases: st.SearchStrategy[LossCase], filler: Sequence[float], dtype: Any) -> DressedCase:
    """Masked cells filled with draws from `filler`, in each of the three inputs."""
    case = draw(cases)
    if all(all(row) for row in case.mask):
        case = _with_masked_column(case)
    value = st.sampled_from([exactly(x, dtype) for x in filler])
    fields = {}
    for name in ("new", "old", "target"):
        rows = zip(getattr(case, name), case.mask, strict=True)
        fields[name] = tuple(tuple(x if m else draw(value) for x, m in zip(*row, strict=True)) for row in rows)
    return DressedCase(case, replace(case, **fields))


def _with_masked_column(case: LossCase) -> LossCase:
    return widened(case, 1)


def widened(case: LossCase, columns: int, *, left: bool = False) -> LossCase:
    """The case with masked columns of zeros added on one side."""

    def wider(row: tuple, zero: float) -> tuple:
        extra = (zero,) * columns
        return extra + row if left else row + extra

    fields = {name: tuple(wider(row, 0.0) for row in getattr(case, name)) for name in ("new", "old", "target")}
    return replace(case, mask=tuple(wider(row, 0) for row in case.mask), **fields)


@dataclass(frozen=True)
class WidenedCase:
    """A case, and how many masked columns are added on which side."""

    case: LossCase
    columns: int
    left: bool


@dataclass(frozen=True)
class SplitCase:
    """A case whose rows are split into micro-batches at `cuts`; `order` permutes the rows first."""

    case: LossCase
    cuts: tuple[int, ...] = field(default=())

    @property
    def parts(self) -> list[LossCase]:
        edges = [0, *self.cuts, len(self.case.mask)]
        return [self.case.rows(range(a, b)) for a, b in itertools.pairwise(edges)]


@st.composite
def split(draw: Callable, cases: st.SearchStrategy[LossCase]) -> SplitCase:
    """At least two micro-batches; the case has at least two rows."""
    case = draw(cases)
    count = len(case.mask)
    cuts = draw(st.lists(st.integers(1, count - 1), min_size=1, max_size=count - 1, unique=True))
    return SplitCase(case, tuple(sorted(cuts)))
