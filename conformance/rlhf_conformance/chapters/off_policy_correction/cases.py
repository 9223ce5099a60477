"""Log-probs of a trainer and of the engine that sampled, under a mask, and bounds that no weight lies too near to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import rlhf_spec.off_policy_correction as spec
from rlhf_conformance.adapter import Adapter
from rlhf_conformance.chapters._credit.cases import MANY_ROWS, MASK_PICKS, ROWS, WIDTH, action_masks
from rlhf_conformance.chapters._masked import MaskedCase, Masks, Rows, exactly
from rlhf_conformance.chapters.off_policy_correction.interface import OffPolicyOptions, has_lower
from rlhf_conformance.judging.picks import Picked, Picks, outward
from rlhf_conformance.judging.storing import stored
from rlhf_conformance.judging.subject import Subject
from rlhf_conformance.oracle import budgets


@stored
@dataclass(frozen=True)
class OffPolicyCase(MaskedCase):
    """One call: the trainer's log-probs at rollout time, the engine's, and what the weights are asked to be."""

    TABLES = ("old_log_probs", "rollout_log_probs")

    old_log_probs: Rows
    rollout_log_probs: Rows
    action_mask: Masks
    options: OffPolicyOptions

    def log_ratios(self, i: int) -> list[float]:
        """Those of the actions of a row; 0 where the engine gave no log-prob."""
        rows = zip(self.old_log_probs[i], self.rollout_log_probs[i], self.action_mask[i], strict=True)
        return [0.0 if math.isnan(rollout) else old - rollout for old, rollout, m in rows if m]


Kind = tuple[str, str, str]
"""Level, mode, and what the weight of a sequence is of those of its actions."""

LOG_PROBS = (*(-0.11 * k for k in range(1, 31)), 0.0, 0.0, 0.0)
"""Of either of the two; now and then one is certain."""
USUAL = tuple(0.13 * k + 0.033 for k in outward(8))
HUGE = (95.0, -95.0, 150.0, 400.0, -400.0, 2000.0, -2000.0)
"""The exponential of most of them is more than float32 can hold, also where they are spread over six actions."""
BEYOND = (11.0, -11.0, 13.0, 16.0, -24.0, 25.0)
"""Beyond where trainers hold an exponent, for those that hold none."""
REACH = {"float16": 9.0}
"""The largest exponent whose weight a dtype holds; of others it is that of float32."""
VAST = 30.0
"""An exponent above all of those that are usual, or at which trainers hold one."""


@dataclass(frozen=True)
class OffPolicyShape:
    """What a strategy is asked for.

    levels, modes, sequence_weights     of these, as far as they are declared
    zone        of one action in each row: "usual", "huge", "beyond" a clamp, or "lost", where the engine's is NaN
    equal       many a row has equal log-probs throughout, and so have single actions
    uppers, lowers      the bounds that are tried; the next ones, where a weight lies too near
    everything  the bounds are clear of the weights of every kind that is declared
    shown       only kinds whose weights are seen where no bound binds: others are 1, or those of each action alone
    square      as many rows as columns
    """

    levels: Sequence[str] = spec.LEVELS
    modes: Sequence[str] = spec.MODES
    sequence_weights: Sequence[str] = spec.SEQUENCE_WEIGHTS
    zone: str = "usual"
    equal: bool = False
    uppers: Sequence[float] = (2.0, 1.3, 3.0, 1.7, 1.1)
    lowers: Sequence[float | None] = (None, 0.5, 0.8, 0.25)
    everything: bool = False
    shown: bool = False
    square: bool = False
    min_rows: int = 1
    columns: int = 1
    empty_row: bool = False
    holes: bool = False


LOOSE: dict[str, Any] = {"uppers": (2000.0, 1e4), "lowers": (None,), "shown": True}
"""Bounds that no usual weight reaches."""


def kinds(adapter: Adapter, shape: OffPolicyShape | None = None) -> list[Kind]:
    """Those that are declared, of the shape that is asked for."""
    wanted = shape or OffPolicyShape()
    found: list[Kind] = []
    for level in wanted.levels:
        for mode in wanted.modes:
            weights = wanted.sequence_weights if level == "sequence" else spec.SEQUENCE_WEIGHTS
            for sequence_weight in weights:
                options = OffPolicyOptions(level, mode, sequence_weight=sequence_weight)
                shown = not wanted.shown or shows_weight(adapter, level, mode)
                if options.offered_by(adapter) and shown and (level == "sequence" or sequence_weight == "product"):
                    found.append((level, mode, sequence_weight))
    return found


def shows_weight(adapter: Adapter, level: str, mode: str) -> bool:
    """Whether a weight comes out as it was made, where it lies within its bounds."""
    kept = "weight" if mode == "truncate" else adapter.correction_kept
    return kept == "weight" or (level == "token" and kept == "token-weight")


def asked(options: OffPolicyOptions, kind: Kind) -> OffPolicyOptions:
    """Options with another kind."""
    level, mode, sequence_weight = kind
    return replace(options, level=level, mode=mode, sequence_weight=sequence_weight)


def clamps(adapter: Adapter) -> dict[str, Any]:
    return {"log_clamp": adapter.correction_log_clamp or None, "log_clamped": adapter.correction_log_clamped}


PICKS = 3
"""Choices of an action."""


def off_policy_cases(subject: Subject, **shape: Any) -> Picked[OffPolicyCase]:
    """Up to 4 rows, now and then more, of up to 6 cells: the masks have holes."""
    wanted, adapter, dtype = OffPolicyShape(**shape), subject.adapter, subject.dtype
    offered = kinds(adapter, wanted)

    def build(picks: Picks) -> OffPolicyCase:
        kind, upper, lower = picks.of(offered), picks.below(len(wanted.uppers)), picks.below(len(wanted.lowers))
        least = max(wanted.min_rows, 2 if wanted.empty_row or wanted.square else 1)
        rows, many = least + picks.below(ROWS + 1 - least), picks.of(MANY_ROWS)
        rows = many if picks.chance(1, 10) and not wanted.square else rows
        width = rows if wanted.square else max(wanted.columns, 1 + picks.below(WIDTH))
        masks = action_masks(
            picks.part(MASK_PICKS), rows=rows, width=width, empty_row=wanted.empty_row, holes=wanted.holes
        )
        tables = [_row(picks.part(3 + PICKS * WIDTH), mask, wanted, adapter, dtype) for mask in masks]
        old, rollout = (tuple(table[k] for table in tables) for k in range(2))
        case = OffPolicyCase(old, rollout, masks, asked(OffPolicyOptions(), kind))
        bounds = clear_bounds(case, offered if wanted.everything else [kind], wanted, upper, lower, adapter, dtype)
        return case.with_options(upper=bounds[0], lower=bounds[1])

    return Picked(7 + MASK_PICKS + (3 + PICKS * WIDTH) * max(MANY_ROWS), build)


def _row(
    picks: Picks, mask: Sequence[int], wanted: OffPolicyShape, adapter: Adapter, dtype: Any
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(log-probs, the engine's) of a row, none above 0; one action is of the zone that is asked for."""
    actions = [j for j, m in enumerate(mask) if m]
    alike = picks.chance(2, 5) and wanted.equal
    at, extreme = picks.below(max(1, len(actions))), picks.below(256)
    old, rollout = [0.0] * len(mask), [0.0] * len(mask)
    for n, j in enumerate(actions):
        part = picks.part(PICKS)
        base, d, same = part.of(LOG_PROBS), part.of(USUAL), part.chance(1, 3) and wanted.equal
        if n == at and wanted.zone in ("huge", "beyond"):
            choices = HUGE if wanted.zone == "huge" else _beyond(adapter, dtype)
            d = choices[extreme * len(choices) >> 8]
        d = 0.0 if alike or same else d
        high, low = exactly(base, dtype), exactly(base - abs(d), dtype)
        old[j], rollout[j] = (high, low) if d > 0 else (low, high)
        if n == at and wanted.zone == "lost":
            rollout[j] = math.nan
    return tuple(old), tuple(rollout)


def reach(dtype: Any) -> float:
    return REACH.get(str(dtype).removeprefix("torch."), 60.0)


def _beyond(adapter: Adapter, dtype: Any) -> Sequence[float]:
    """Log-ratios on both sides of the clamp that is declared, with weights that the dtype can hold."""
    clamp = adapter.correction_log_clamp or None
    if clamp is None or clamp > reach(dtype):
        return [d for d in BEYOND if d < reach(dtype)] + [0.8 * reach(dtype)] * (reach(dtype) < max(BEYOND))
    return [sign * by for by in (clamp + 4.0, 1.6 * clamp, 3.0 * clamp, 0.7 * clamp) for sign in (1.0, -1.0)]


def exponents(adapter: Adapter, log_ratios: Sequence[float], kind: Kind, dtype: Any) -> list[tuple[float, float]]:
    """For each action of a row what the exponential is taken of, and by how much that may be off: nothing where a clamp
    holds it, if that is beyond doubt."""
    level, _, sequence_weight = kind
    clamp, by_action = clamps(adapter)["log_clamp"], adapter.correction_log_clamped == "actions"
    found = spec.exponents(log_ratios, level, sequence_weight, **clamps(adapter))
    free = spec.exponents(log_ratios, level, sequence_weight)
    if level == "token":
        errors = [budgets.correction_exponent([d], False, dtype) for d in log_ratios]
    else:
        summed = spec.exponents(log_ratios, "token", log_clamp=clamp) if by_action else log_ratios
        errors = [budgets.correction_exponent(summed, sequence_weight == "geometric", dtype)] * len(found)
    if clamp and not (by_action and level == "sequence"):
        errors = [0.0 if abs(x) - error > clamp else error for x, error in zip(free, errors, strict=True)]
    return list(zip(found, errors, strict=True))


def clear_bounds(
    case: OffPolicyCase,
    of_kinds: Sequence[Kind],
    wanted: OffPolicyShape,
    upper: int,
    lower: int,
    adapter: Adapter,
    dtype: Any,
) -> tuple[float, float | None]:
    """The upper and the lower bound: those that were chosen, or the next that no weight lies too near to."""
    numbers = [
        pair
        for kind in of_kinds
        for i in range(case.shape[0])
        for pair in exponents(adapter, case.log_ratios(i), kind, dtype)
    ]

    def is_clear(bound: float) -> bool:
        """What is exactly 1 may be compared with 1."""
        place = math.log(bound)
        return all(x == place == error or abs(x - place) > budgets.correction_guard(error) for x, error in numbers)

    uppers = [*wanted.uppers[upper:], *wanted.uppers[:upper]]
    above = next((x for by in range(8) for x in (y * 1.09**by for y in uppers) if is_clear(x)), math.exp(VAST))
    lowers = [*wanted.lowers[lower:], *wanted.lowers[:lower]]
    if not all(has_lower(adapter, mode) for _, mode, _ in of_kinds):
        lowers = [None]
    return above, next((x for x in lowers if x is None or (x <= above and is_clear(x))), None)
