"""Inputs of the two losses: a rectangle of tokens under a mask.

All numbers are exactly representable in the dtype under test, and no token lies so near a kink of the formula (the edge
of the clip, the place where two branches meet) that rounding could decide its gradient.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, ClassVar

import rlhf_spec.policy_loss
from rlhf_conformance._lazy import torch
from rlhf_conformance.adapter import Adapter
from rlhf_conformance.chapters._masked import Case, DressedCase, MaskedCase, Masks, Rows, dressed, exactly
from rlhf_conformance.chapters.policy_loss.interface import PolicyLossOptions, aggregations_of_policy
from rlhf_conformance.chapters.value_loss.interface import ValueLossOptions
from rlhf_conformance.judging.picks import Picked, Picks, outward
from rlhf_conformance.judging.storing import formerly, stored
from rlhf_conformance.oracle import budgets
from rlhf_spec.aggregation import MEANS

CLIP_EPS = (0.1, 0.2, 0.3)
DUAL_CLIP = (1.5, 3.0, 1.05, 10.0)
EDGES_LOW = (0.0, 1.0, 1.5)
"""Nothing below is left; everything is, since no ratio is negative."""
EDGES_HIGH = (0.0, 4.0)
EDGES_OF_VALUES = (0.0, 3.0)
CAPS = (1.5, 3.0, 5.0)
"""What holds a ratio from above by itself."""
CONSTANT_LENGTHS = (12, 16, 21, 40)
"""Longer than any row."""


Token = tuple[float, float, float]


class LossCase(MaskedCase):
    """One call of a loss.

    TABLES  the names of the tables: what is new, what it was when it was old, and what it is to be measured by
    """

    TABLES: ClassVar[tuple[str, str, str]]

    @property
    def tables(self) -> tuple[Rows, Rows, Rows]:
        new, old, measure = (getattr(self, name) for name in self.TABLES)
        return new, old, measure

    def token(self, i: int, j: int) -> Token:
        """The three numbers of one token."""
        new, old, measure = self.tables
        return new[i][j], old[i][j], measure[i][j]


@stored
@dataclass(frozen=True)
class PolicyLossCase(LossCase):
    """One call of the policy loss."""

    TABLES = ("log_probs", "old_log_probs", "advantages")

    log_probs: Rows
    old_log_probs: Rows
    advantages: Rows
    action_mask: Masks
    options: PolicyLossOptions

    @cached_property
    def sequence_log_ratios(self) -> list[float]:
        """Of each row, the mean over its actions."""
        rows = zip(self.log_probs, self.old_log_probs, self.action_mask, strict=True)
        return [rlhf_spec.policy_loss.sequence_log_ratio(*row) for row in rows]

    def token(self, i: int, j: int) -> Token:
        """With GSPO every token has the log-ratio of its row."""
        if self.options.surrogate == "gspo":
            return self.sequence_log_ratios[i], 0.0, self.advantages[i][j]
        return super().token(i, j)


@stored
@dataclass(frozen=True)
class ValueLossCase(LossCase):
    """One call of the value loss."""

    TABLES = ("values", "old_values", "returns")

    values: Rows
    old_values: Rows
    returns: Rows
    action_mask: Masks
    options: ValueLossOptions


def _renewed(data: dict[str, Any]) -> dict[str, Any]:
    """What earlier versions stored: the tables were called new, old and target, whichever loss it was."""
    kind = PolicyLossCase if data["options"]["type"] == "PolicyLossOptions" else ValueLossCase
    tables = {name: data[former] for name, former in zip(kind.TABLES, ("new", "old", "target"), strict=True)}
    return {"type": kind.__name__, **tables, "action_mask": data["mask"], "options": data["options"]}


formerly("LossCase", _renewed)


@dataclass(frozen=True)
class LossShape:
    """What a strategy of loss cases is asked for."""

    zones: Sequence[str] = ("inside", "anywhere")
    dual: bool | None = False  # None: either
    advantage_signs: Sequence[int] = (-1, 1)
    unequal_eps: bool | None = False  # None: either, where the adapter knows two bounds
    clipped: bool = True  # value loss: with a clip
    aggregations: Sequence[str] | None = None  # None: the usual ones
    surrogates: Sequence[str] | None = None  # None: the usual one
    empty_row: bool = False
    unequal_rows: bool = False
    min_rows: int = 1
    single_row: bool = False
    square: bool = False  # in one case of four, since only a square lets a wrong axis pass
    edges: bool = False  # a bound of 0, or of more than anything that is usual


ROWS, WIDTH = 4, 6
MANY_ROWS = (9, 12)
"""Now and then: more than what small batches are cut into."""
TOKEN_PICKS = 6
MASK_PICKS = 3 + WIDTH
ROW_PICKS = MASK_PICKS + WIDTH * TOKEN_PICKS
HEAD_PICKS = 19
TAIL_PICKS = 5
SPECIAL_PICKS = 3
CASE_PICKS = HEAD_PICKS + ROWS * ROW_PICKS + TAIL_PICKS + SPECIAL_PICKS
"""How many choices are read, at most: for a token, for a row's mask, for a row, for what rows share, for what is
special about a case, for a loss that is not the usual one, for a case."""


def loss_cases(adapter: Adapter, dtype: torch.dtype, loss: str, shape: LossShape) -> Picked[LossCase]:
    """Cases of up to 4 rows of up to 6 tokens, masks with holes, every row with an action (unless one is asked to be
    empty). Now and then one of the three numbers is 0 in all tokens or in every other one, and now and then there are
    many rows."""

    token_of = _TOKENS[loss]

    def build(picks: Picks) -> LossCase:
        head = picks.part(HEAD_PICKS)
        slots = [picks.part(ROW_PICKS) for _ in range(ROWS)]
        zero, everywhere, many = _zeros(picks.part(2)), picks.chance(3, 4), picks.of(MANY_ROWS)
        has_many = picks.chance(1, 9)
        options = _OPTIONS[loss](head, adapter, shape, picks.part(SPECIAL_PICKS))
        width = 2 + head.below(WIDTH - 1) if shape.unequal_rows else 1 + head.below(WIDTH)
        least = 2 if shape.empty_row or shape.unequal_rows else shape.min_rows
        empty = head.below(ROWS)
        rows = slots[:1] if shape.single_row else [slots[i] for i in head.some(ROWS, least)]
        if shape.square and head.chance(1, 4):
            width = len(rows)
        action_mask = _masks([_mask(row.part(MASK_PICKS), width) for row in rows], shape, empty)
        tokens = [
            [
                token_of(row.part(TOKEN_PICKS), dtype, options, shape, zero if everywhere or (i + j) % 2 else None)
                if m
                else (0.0, 0.0, 0.0)
                for j, m in enumerate(marks)
            ]
            for i, (row, marks) in enumerate(zip(rows, action_mask, strict=True))
        ]
        if getattr(options, "surrogate", "") == "gspo":
            rows_of_tokens = zip(tokens, action_mask, strict=True)
            tokens = [_of_one_sequence(row, marks, options, dtype) for row, marks in rows_of_tokens]
        if has_many and not shape.single_row:
            action_mask, tokens = (action_mask * many)[:many], (tokens * many)[:many]
        kind = _KINDS[loss]
        tables = (tuple(tuple(t[i] for t in row) for row in tokens) for i in range(3))
        return kind(**dict(zip(kind.TABLES, tables, strict=True)), action_mask=action_mask, options=options)

    return Picked(CASE_PICKS, build)


def _zeros(picks: Picks) -> int | None:
    """Which of a token's three numbers is 0, in one half of the cases; the old one most often, which a clip needs."""
    some, which = picks.chance(1, 2), picks.of((0, 1, 1, 2))
    return which if some else None


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


def aggregations_of(loss: str, adapter: Adapter) -> Sequence[str]:
    """The aggregations that an adapter declares for a loss."""
    return aggregations_of_policy(adapter) if loss == "policy-loss" else adapter.aggregations


def _aggregation(picks: Picks, loss: str, adapter: Adapter, shape: LossShape) -> str:
    """One of those asked for; means, unless an adapter has none."""
    offered = aggregations_of(loss, adapter)
    usual = [name for name in offered if name in MEANS] or offered
    return picks.of([name for name in shape.aggregations or usual if name in offered])


def policy_options(picks: Picks, adapter: Adapter, shape: LossShape, special: Picks) -> PolicyLossOptions:
    surrogate = special.of([name for name in shape.surrogates or adapter.surrogates[:1] if name in adapter.surrogates])
    cap, constant_length = special.of(CAPS), special.of(CONSTANT_LENGTHS)
    low, either, other = picks.of(CLIP_EPS), picks.chance(2, 3), picks.below(len(CLIP_EPS) - 1)
    unequal = either and adapter.asymmetric_clip if shape.unequal_eps is None else shape.unequal_eps
    high = [eps for eps in CLIP_EPS if eps != low][other] if unequal else low
    edge, edge_low, edge_high = picks.below(3), picks.of(EDGES_LOW), picks.of(EDGES_HIGH)
    if shape.edges:
        low, high = (
            (edge_low, edge_low) if not unequal else ((low, edge_high), (edge_low, high), (edge_low, edge_high))[edge]
        )
    # Within the band trainers part: see the decision `dual-clip-within-the-band`.
    bounds = [c for c in DUAL_CLIP if c > 1 + high + 0.04] or [2 * (1 + high)]
    has_dual, bound = picks.chance(1, 2), picks.of(bounds)
    dual = has_dual and bool(adapter.dual_clip) if shape.dual is None else shape.dual
    if adapter.dual_clip == "always":
        dual = True
    if surrogate == "cispo" and adapter.cispo_bounds == "cap":
        low, high = (low if unequal else cap), cap
    aggregation = _aggregation(picks, "policy-loss", adapter, shape)
    return PolicyLossOptions(
        low,
        high,
        bound if dual and surrogate == "ppo" else None,
        aggregation,
        surrogate=surrogate,
        cispo_bounds=adapter.cispo_bounds,
        constant_length=constant_length if aggregation == "constant-length" else None,
    )


def _value_options(picks: Picks, adapter: Adapter, shape: LossShape, special: Picks) -> ValueLossOptions:
    eps, edge = picks.of(CLIP_EPS), picks.of(EDGES_OF_VALUES)
    eps = edge if shape.edges else eps
    aggregation = _aggregation(picks, "value-loss", adapter, shape)
    return ValueLossOptions(eps if shape.clipped and adapter.value_clip else None, aggregation)


def _policy_token(
    picks: Picks, dtype: torch.dtype, options: PolicyLossOptions, shape: LossShape, zero: int | None
) -> Token:
    """(log_prob, old_log_prob, advantage) of a zone of the log-ratio (`log_ratios_of`). Where the new or the old
    log-prob is to be 0, the greater of the two is."""
    zone, sign, base = picks.of(shape.zones), picks.of(shape.advantage_signs), 0.11 * (1 + picks.below(30))
    rare = picks.chance(1, 4)
    advantages = (RARE_ADVANTAGES if zone == "overflow" else (0.0, *RARE_ADVANTAGES)) if rare else USUAL_ADVANTAGES
    advantage = exactly(sign * picks.of(advantages), dtype) if zero != 2 or zone == "overflow" else 0.0
    base = 0.0 if zero in (0, 1) else base
    log_ratio = picks.of(log_ratios_of(zone, options))
    if zone == "far":  # where no bound holds the ratio: up for A < 0, down for A > 0
        farthest = 7.0 if dtype == torch.float16 or options.surrogate == "gspo" else 18.0
        log_ratio = math.copysign(min(log_ratio, farthest), -sign)
    old = -base - max(0.0, log_ratio)
    step = 0.02 if zone != "overflow" else 0.0
    for attempt in range(40):
        new_old = exactly(old + log_ratio + attempt * step, dtype), exactly(old, dtype)
        if zone == "equal" or _far_from_kinks(*new_old, advantage, options, dtype):
            return (*new_old, advantage)
        if attempt == 0 and log_ratio < 0:
            step = -step
    raise AssertionError(f"no token away from the kinks near log-ratio {log_ratio} with {options}")


def _of_one_sequence(
    tokens: list[Token], marks: Sequence[int], options: PolicyLossOptions, dtype: torch.dtype
) -> list[Token]:
    """The tokens with one advantage, that of the first action, and with log-ratios that differ from the first one's by
    up to 0.3 either way and have a mean that is away from the kinks."""
    places = [j for j, mark in enumerate(marks) if mark]
    if not places:
        return tokens
    new, old, advantage = tokens[places[0]]
    centre, count = new - old, len(places)
    apart = [0.1 * ((5 * k + 2) % 7 - 3) if centre else 0.0 for k in range(count)]
    apart = [x - math.fsum(apart) / count for x in apart]
    step = math.copysign(0.02, centre)
    for attempt in range(40):
        found = list(tokens)
        for j, x in zip(places, apart, strict=True):
            log_ratio = centre + attempt * step + x
            base = exactly(min(tokens[j][1], -0.11) - max(0.0, log_ratio), dtype) if centre else tokens[j][1]
            found[j] = (exactly(base + log_ratio, dtype), base, advantage) if centre else (base, base, advantage)
        mean = math.fsum(found[j][0] - found[j][1] for j in places) / count
        if not centre or _far_from_kinks(mean, 0.0, advantage, options, dtype):
            return found
    raise AssertionError(f"no sequence away from the kinks near log-ratio {centre} with {options}")


USUAL_ADVANTAGES = tuple(0.13 * k for k in range(1, 21))
RARE_ADVANTAGES = (6.3, 17.0, 40.0)


@lru_cache(1024)
def log_ratios_of(zone: str, options: PolicyLossOptions) -> tuple[float, ...]:
    """What the log-ratio may be in a zone, the simplest first."""
    lowest, highest = 1 - options.clip_eps_low, 1 + options.clip_eps_high
    if options.surrogate == "cispo" and options.cispo_bounds == "cap":
        lowest, highest = 0.0, options.clip_eps_high
    low, high = math.log(lowest) if lowest > 0 else -3.0, math.log(highest)
    # Between the two bounds' distances from 1, on either side: where one bound holds and the other would not.
    between = (options.clip_eps_low + options.clip_eps_high) / 2
    zones: dict[str, tuple[float, ...]] = {
        "inside": tuple(0.1 * k * (high if k > 0 else -low) for k in outward(8)),
        "above": tuple(high + 0.1 * k for k in range(1, 13)),
        "below": tuple(low - 0.1 * k for k in range(1, 13)),
        "anywhere": tuple(0.1 * k + 0.013 for k in outward(20)),
        "between": (math.log(1 + between), math.log(max(1 - between, 0.1))),
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
    guard = budgets.ratio_guard(log_ratio, dtype)
    kinks = [1 - options.clip_eps_low, 1 + options.clip_eps_high]
    if options.dual_clip is not None:
        kinks.append(options.dual_clip)
    return all(abs(ratio - kink) > guard * kink for kink in kinks)


def value_token(
    picks: Picks, dtype: torch.dtype, options: ValueLossOptions, shape: LossShape, zero: int | None
) -> Token:
    """(value, old_value, return); zones: inside the band, outside it (anywhere means either). A value that is to be 0
    is not where the return is too near to it."""
    zone, either = picks.of(shape.zones), picks.of(("inside", "outside"))
    zone = either if zone == "anywhere" else zone
    old = exactly(0.11 * picks.of(outward(20)), dtype) if zero != 1 else 0.0
    rare = picks.chance(1, 4) and budgets.is_fine(dtype)
    return_ = exactly(picks.of(RARE_RETURNS if rare else USUAL_RETURNS), dtype) if zero != 2 else 0.0
    move = picks.of(_moves(zone, 0.2 if options.clip_eps is None else options.clip_eps))
    for attempt in range(40):
        step = move + math.copysign(0.02 * attempt, move)
        new, old = (0.0, exactly(-step, dtype)) if zero == 0 and attempt < 20 else (exactly(old + step, dtype), old)
        if _value_far_from_kinks(new, old, return_, options, dtype):
            return new, old, return_
    raise AssertionError(f"no value away from the kinks near {old} + {move} with {options}")


USUAL_RETURNS = tuple(0.13 * k + 0.007 for k in outward(20))
RARE_RETURNS = (-50.3, -9.1, 12.7, 48.9)


@lru_cache(1024)
def _moves(zone: str, eps: float) -> tuple[float, ...]:
    """How far the value has moved since it was old, the simplest first."""
    if zone == "inside":
        return tuple(0.1 * k * min(eps, 2.0) for k in outward(8))
    return tuple(sign * (eps + 0.1 * k) for k in range(1, 13) for sign in (1, -1))


def _value_far_from_kinks(
    new: float, old: float, return_: float, options: ValueLossOptions, dtype: torch.dtype
) -> bool:
    guard = budgets.value_guard(new, old, return_, dtype)
    if options.clip_eps is None:
        return abs(new - return_) > guard
    if abs(abs(new - old) - options.clip_eps) <= guard:
        return False
    if abs(new - old) < options.clip_eps:
        return abs(new - return_) > guard
    clipped = old + math.copysign(options.clip_eps, new - old)
    return abs(abs(new - return_) - abs(clipped - return_)) > guard


_OPTIONS: dict[str, Callable[..., Any]] = {"policy-loss": policy_options, "value-loss": _value_options}
_KINDS: dict[str, Any] = {"policy-loss": PolicyLossCase, "value-loss": ValueLossCase}
_TOKENS: dict[str, Callable[..., Any]] = {"policy-loss": _policy_token, "value-loss": value_token}


def under_mask(
    cases: Picked[Any], filler: Sequence[float], dtype: Any, columns: int = 0, tables: int = 3
) -> Picked[DressedCase]:
    """Masked cells filled from `filler`, in each of the tables, and so many masked columns more; one more where there
    would be no such cell."""
    return dressed(cases, filler, dtype, columns, tables * ROWS * (WIDTH + max(1, columns)))


@stored
@dataclass(frozen=True)
class SplitCase:
    """A case whose rows are split into micro-batches at `cuts`; `order` permutes the rows first."""

    case: Case
    cuts: tuple[int, ...] = field(default=())

    @property
    def parts(self) -> list[Any]:
        edges = [0, *self.cuts, len(self.case.action_mask)]
        return [self.case.rows(range(a, b)) for a, b in itertools.pairwise(edges)]


def split(cases: Picked[Any]) -> Picked[SplitCase]:
    """At least two micro-batches; the cases have at least two rows."""

    def cut(case: Any, picks: Picks) -> SplitCase:
        cuts = [i for i in range(1, len(case.action_mask)) if picks.chance(1, 2)]
        return SplitCase(case, tuple(cuts) or (1 + picks.below(len(case.action_mask) - 1),))

    return cases.with_more(ROWS, cut)
