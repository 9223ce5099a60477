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
from functools import lru_cache
from typing import Any

from hypothesis import strategies as st

from rlhf_conformance import budgets
from rlhf_conformance._lazy import torch
from rlhf_conformance.adapter import Adapter, PolicyLossOptions, ValueLossOptions
from rlhf_conformance.cases.picks import Picks, outward, picked

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
    single_row: bool = False
    square: bool = False  # in one case of four, since only a square lets a wrong axis pass


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


Builder = Callable[[Picks], LossCase]
ROWS, WIDTH = 4, 6
TOKEN_PICKS = 6
MASK_PICKS = 3 + WIDTH
ROW_PICKS = MASK_PICKS + WIDTH * TOKEN_PICKS
HEAD_PICKS = 16
CASE_PICKS = HEAD_PICKS + ROWS * ROW_PICKS
"""How many choices are read, at most: for a token, for a row's mask, for a row, for what rows share, for a case."""


def loss_builder(adapter: Adapter, dtype: torch.dtype, kind: str, shape: LossShape) -> Builder:
    """What makes a case from CASE_PICKS choices: up to 4 rows of up to 6 tokens, masks with holes, every row with an
    action (unless one is asked to be empty)."""

    def build(picks: Picks) -> LossCase:
        head = picks.part(HEAD_PICKS)
        options = _OPTIONS[kind](head, adapter, shape)
        width = 2 + head.below(WIDTH - 1) if shape.unequal_rows else 1 + head.below(WIDTH)
        least = 2 if shape.empty_row or shape.unequal_rows else shape.min_rows
        empty = head.below(ROWS)
        slots = [picks.part(ROW_PICKS) for _ in range(ROWS)]
        rows = slots[:1] if shape.single_row else [slots[i] for i in head.some(ROWS, least)]
        if shape.square and head.chance(1, 4):
            width = len(rows)
        mask = _masks([_mask(row.part(MASK_PICKS), width) for row in rows], shape, empty)
        tokens = [
            [_TOKENS[kind](row.part(TOKEN_PICKS), dtype, options, shape) if m else (0.0, 0.0, 0.0) for m in marks]
            for row, marks in zip(rows, mask, strict=True)
        ]
        new, old, target = (tuple(tuple(t[i] for t in row) for row in tokens) for i in range(3))
        return LossCase(new, old, target, mask, options)

    return build


def loss_cases(build: Builder) -> st.SearchStrategy[LossCase]:
    return picked(CASE_PICKS, build)


def _mask(picks: Picks, width: int) -> list[int]:
    """At least one action: from the left without a hole in one half of the cases, anywhere in the other."""
    anywhere, length, one = picks.chance(1, 2), 1 + picks.below(width), picks.below(width)
    if not anywhere:
        return [1] * length + [0] * (width - length)
    cells = [picks.below(2) for _ in range(width)]
    return cells if any(cells) else [int(i == one) for i in range(width)]


def _masks(rows: list[list[int]], shape: LossShape, empty: int) -> tuple[tuple[int, ...], ...]:
    """The rows, with what the shape asks of them together."""
    width = len(rows[0])
    if shape.unequal_rows and len({sum(row) for row in rows}) == 1:
        rows[0] = [1, *([0] * (width - 1))] if sum(rows[0]) > 1 else [1] * width
    if shape.empty_row:
        rows[empty % len(rows)] = [0] * width
    return tuple(tuple(row) for row in rows)


def _aggregation(picks: Picks, adapter: Adapter, shape: LossShape) -> str:
    return picks.of([a for a in shape.aggregations or adapter.aggregations if a in adapter.aggregations])


def _policy_options(picks: Picks, adapter: Adapter, shape: LossShape) -> PolicyLossOptions:
    low, either, other = picks.of(CLIP_EPS), picks.chance(2, 3), picks.below(len(CLIP_EPS) - 1)
    unequal = either and adapter.asymmetric_clip if shape.unequal_eps is None else shape.unequal_eps
    high = [eps for eps in CLIP_EPS if eps != low][other] if unequal else low
    has_dual, bound = picks.chance(1, 2), picks.of(DUAL_CLIP)
    dual = has_dual and adapter.dual_clip if shape.dual is None else shape.dual
    return PolicyLossOptions(low, high, bound if dual else None, _aggregation(picks, adapter, shape))


def _value_options(picks: Picks, adapter: Adapter, shape: LossShape) -> ValueLossOptions:
    eps = picks.of(CLIP_EPS)
    return ValueLossOptions(eps if shape.clipped and adapter.value_clip else None, _aggregation(picks, adapter, shape))


def _policy_token(picks: Picks, dtype: torch.dtype, options: PolicyLossOptions, shape: LossShape) -> Token:
    """(log_prob, old_log_prob, advantage) of a zone of the log-ratio (`_log_ratios`)."""
    zone, sign, base = picks.of(shape.zones), picks.of(shape.advantage_signs), 0.11 * (1 + picks.below(30))
    rare = picks.chance(1, 4)
    advantages = (RARE_ADVANTAGES if zone == "overflow" else (0.0, *RARE_ADVANTAGES)) if rare else USUAL_ADVANTAGES
    advantage = exactly(sign * picks.of(advantages), dtype)
    log_ratio = picks.of(_log_ratios(zone, options))
    if zone == "far":  # where no bound holds the ratio: up for A < 0, down for A > 0
        log_ratio = math.copysign(min(log_ratio, 8.0 if dtype == torch.float16 else 18.0), -sign)
    old = -base - max(0.0, log_ratio)
    step = 0.02 if zone != "overflow" else 0.0
    for attempt in range(40):
        new_old = exactly(old + log_ratio + attempt * step, dtype), exactly(old, dtype)
        if zone == "equal" or _far_from_kinks(*new_old, advantage, options, dtype):
            return (*new_old, advantage)
        if attempt == 0 and log_ratio < 0:
            step = -step
    raise AssertionError(f"no token away from the kinks near log-ratio {log_ratio} with {options}")


USUAL_ADVANTAGES = tuple(0.13 * k for k in range(1, 21))
RARE_ADVANTAGES = (6.3, 17.0, 40.0)


@lru_cache(1024)
def _log_ratios(zone: str, options: PolicyLossOptions) -> tuple[float, ...]:
    """What the log-ratio may be in a zone, the simplest first."""
    low, high = math.log(1 - options.clip_eps_low), math.log(1 + options.clip_eps_high)
    # Between the two bounds' distances from 1, on either side: where one bound holds and the other would not.
    between = (options.clip_eps_low + options.clip_eps_high) / 2
    zones: dict[str, tuple[float, ...]] = {
        "inside": tuple(0.1 * k * (high if k > 0 else -low) for k in outward(8)),
        "above": tuple(high + 0.1 * k for k in range(1, 13)),
        "below": tuple(low - 0.1 * k for k in range(1, 13)),
        "anywhere": tuple(0.1 * k + 0.013 for k in outward(20)),
        "between": (math.log(1 + between), math.log(1 - between)),
        "far": tuple(2.5 + 0.5 * k for k in range(32)),
        "equal": (0.0,),
        "overflow": tuple(float(90 + 2 * k) for k in range(156)),
    }
    return zones[zone]


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


def _value_token(picks: Picks, dtype: torch.dtype, options: ValueLossOptions, shape: LossShape) -> Token:
    """(value, old_value, return); zones: inside the band, outside it (anywhere means either)."""
    zone, either = picks.of(shape.zones), picks.of(("inside", "outside"))
    zone = either if zone == "anywhere" else zone
    old = exactly(0.11 * picks.of(outward(20)), dtype)
    rare = picks.chance(1, 4) and budgets.unit(dtype) == budgets.FLOAT32
    return_ = exactly(picks.of(RARE_RETURNS if rare else USUAL_RETURNS), dtype)
    move = picks.of(_moves(zone, options.clip_eps or 0.2))
    for attempt in range(40):
        new = exactly(old + move + math.copysign(0.02 * attempt, move), dtype)
        if _value_far_from_kinks(new, old, return_, options, dtype):
            return new, old, return_
    raise AssertionError(f"no value away from the kinks near {old} + {move} with {options}")


USUAL_RETURNS = tuple(0.13 * k + 0.007 for k in outward(20))
RARE_RETURNS = (-50.3, -9.1, 12.7, 48.9)


@lru_cache(1024)
def _moves(zone: str, eps: float) -> tuple[float, ...]:
    """How far the value has moved since it was old, the simplest first."""
    if zone == "inside":
        return tuple(0.1 * k * eps for k in outward(8))
    return tuple(sign * (eps + 0.1 * k) for k in range(1, 13) for sign in (1, -1))


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

    def with_options(self, **changes: Any) -> DressedCase:
        return DressedCase(self.case.with_options(**changes), self.dressed.with_options(**changes))


def under_mask(build: Builder, filler: Sequence[float], dtype: Any) -> st.SearchStrategy[DressedCase]:
    """Masked cells filled from `filler`, in each of the three inputs."""
    values = [exactly(x, dtype) for x in filler]

    def dress(picks: Picks) -> DressedCase:
        case = build(picks.part(CASE_PICKS))
        if all(all(row) for row in case.mask):
            case = widened(case, 1)
        fields: dict[str, Any] = {}
        for name in ("new", "old", "target"):
            rows = zip(getattr(case, name), case.mask, strict=True)
            fields[name] = tuple(tuple(x if m else picks.of(values) for x, m in zip(*row, strict=True)) for row in rows)
        return DressedCase(case, replace(case, **fields))

    return picked(CASE_PICKS + 3 * ROWS * (WIDTH + 1), dress)


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


def split(build: Builder) -> st.SearchStrategy[SplitCase]:
    """At least two micro-batches; the case has at least two rows."""

    def cut(picks: Picks) -> SplitCase:
        case = build(picks.part(CASE_PICKS))
        cuts = [i for i in range(1, len(case.mask)) if picks.chance(1, 2)]
        return SplitCase(case, tuple(cuts) or (1 + picks.below(len(case.mask) - 1),))

    return picked(CASE_PICKS + ROWS, cut)
