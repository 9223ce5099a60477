"""Log-probs of a policy and of its reference, under a mask."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import rlhf_spec.kl as spec
from rlhf_conformance._lazy import torch
from rlhf_conformance.adapter import Adapter
from rlhf_conformance.chapters._credit.cases import MANY_ROWS, MASK_PICKS, ROWS, WIDTH, action_masks
from rlhf_conformance.chapters._masked import MaskedCase, Masks, Rows, exactly
from rlhf_conformance.chapters.kl.interface import KlOptions
from rlhf_conformance.judging.picks import Picked, Picks, outward
from rlhf_conformance.judging.storing import stored
from rlhf_conformance.judging.subject import Subject
from rlhf_conformance.oracle import budgets


@stored
@dataclass(frozen=True)
class KlCase(MaskedCase):
    """One call of the KL."""

    TABLES = ("log_probs", "ref_log_probs")

    log_probs: Rows
    ref_log_probs: Rows
    action_mask: Masks
    options: KlOptions

    def log_ratio(self, i: int, j: int) -> float:
        return self.log_probs[i][j] - self.ref_log_probs[i][j]


LOG_PROBS = tuple(-0.11 * k for k in range(1, 31))
USUAL = tuple(0.13 * k + 0.533 for k in outward(14))
ZONES = {"usual": USUAL, "small": tuple(0.003 * k for k in outward(8)), "equal": (0.0,)}
BEYOND = (5.0, -5.0, 12.0, -12.0, 25.0, -25.0, 45.0, -45.0)
"""Where trainers clamp, and beyond."""
OVERFLOWS = 97.0
"""The exponential of it is more than float32 can hold."""


@dataclass(frozen=True)
class KlShape:
    """What a strategy is asked for.

    zones       of the log-ratio: of a usual size, small, 0, or beyond clamps; only of the last are any held
    estimators  of these, as far as they are declared
    """

    zones: Sequence[str] = ("usual",)
    estimators: Sequence[str] = spec.ESTIMATORS
    min_rows: int = 1
    columns: int = 1
    empty_row: bool = False
    holes: bool = False


def clamps(adapter: Adapter, estimator: str) -> dict[str, float | None]:
    """Those that hold this estimator."""
    if estimator not in adapter.kl_clamped:
        return {"log_ratio_clamp": None, "clamp": None}
    return {"log_ratio_clamp": adapter.kl_log_ratio_clamp or None, "clamp": adapter.kl_clamp or None}


def offered(adapter: Adapter, among: Sequence[str]) -> list[str]:
    return [name for name in among if name in adapter.kl_estimators]


PICKS = 3
"""Choices of a token."""


def kl_cases(subject: Subject, **shape: Any) -> Picked[KlCase]:
    """Up to 4 rows, now and then more, of up to 6 cells: the masks have holes. Now and then all log-probs of one of the
    two models are 0."""
    wanted, adapter, dtype = KlShape(**shape), subject.adapter, subject.dtype

    def build(picks: Picks) -> KlCase:
        options = KlOptions(picks.of(offered(adapter, wanted.estimators)))
        least = max(wanted.min_rows, 2 if wanted.empty_row else 1)
        rows, many = least + picks.below(ROWS + 1 - least), picks.of(MANY_ROWS)
        rows = many if picks.chance(1, 10) else rows
        width, certain = max(wanted.columns, 1 + picks.below(WIDTH)), picks.chance(1, 8)
        masks = action_masks(
            picks.part(MASK_PICKS), rows=rows, width=width, empty_row=wanted.empty_row, holes=wanted.holes
        )

        def pair(is_action: int) -> tuple[float, float]:
            part = picks.part(PICKS)
            return _pair(part, wanted, adapter, options.estimator, dtype, certain) if is_action else (0.0, 0.0)

        pairs = [[pair(m) for m in row] for row in masks]
        log_probs, ref_log_probs = (tuple(tuple(x[k] for x in row) for row in pairs) for k in range(2))
        return KlCase(log_probs, ref_log_probs, masks, options)

    return Picked(7 + MASK_PICKS + PICKS * max(MANY_ROWS) * WIDTH, build)


def _pair(
    picks: Picks, wanted: KlShape, adapter: Adapter, estimator: str, dtype: torch.dtype, certain: bool
) -> tuple[float, float]:
    """(log-prob, reference's), neither above 0, and away from the kinks: where a clamp begins to bind, where |d|
    turns."""
    zone, base = picks.of(wanted.zones), 0.0 if certain else picks.of(LOG_PROBS)
    held = clamps(adapter, estimator)
    choices = _beyond(held, dtype) if zone == "beyond" else ZONES[zone]
    d = picks.of(choices)
    for attempt in range(60):
        step = d + math.copysign(0.02 * attempt, d)
        if zone != "beyond":  # nearer to 0, out of reach of a clamp; then further, where the dtype cannot hold it
            step = d / (1 + 0.2 * attempt) if attempt < 30 else d * (attempt - 28)
        high, low = exactly(base, dtype), exactly(base - abs(step), dtype)
        log_prob, ref = (high, low) if step > 0 else (low, high)
        if zone in ("equal", "small") or _is_clear(log_prob - ref, estimator, held, inside=zone != "beyond"):
            return log_prob, ref
    raise AssertionError(f"no log-ratio away from the kinks near {d}")


def held_pair(picks: Picks, estimator: str, adapter: Adapter, dtype: torch.dtype) -> tuple[float, float]:
    """(log-prob, reference's), neither above 0, around the clamps that are declared, or far apart where none is."""
    return _pair(picks, KlShape(zones=("beyond", "beyond", "usual")), adapter, estimator, dtype, certain=False)


def near_reference(picks: Picks, log_prob: float, estimator: str, adapter: Adapter, dtype: torch.dtype) -> float:
    """What a reference may give an action that the policy gives this log-prob, not above 0; away from the kinks, and
    where no clamp binds. Now and then they agree."""
    d, agrees = picks.of(USUAL), picks.chance(1, 8)
    held = clamps(adapter, estimator)
    if agrees and _is_clear(0.0, estimator, held, inside=True):
        return log_prob
    for attempt in range(60):
        step = d / (1 + 0.2 * attempt) if attempt < 30 else d * (attempt - 28)
        ref = exactly(log_prob - (step if log_prob - step <= 0 else abs(step)), dtype)
        if _is_clear(log_prob - ref, estimator, held, inside=True):
            return ref
    raise AssertionError(f"no log-ratio away from the kinks near {d}")


def _beyond(held: dict[str, float | None], dtype: torch.dtype) -> Sequence[float]:
    bounds = [x for x in held.values() if x]
    if not bounds:
        return BEYOND if str(dtype) != "torch.float16" else BEYOND[:2]
    reached = [x for bound in bounds for x in (bound, math.sqrt(2 * bound), math.log1p(bound))]
    overflow = [] if str(dtype) == "torch.float16" else [-OVERFLOWS]
    return [sign * f * x for x in reached for f in (0.6, 1.5, 2.2) for sign in (-1.0, 1.0)] + overflow * 3


def _is_clear(d: float, estimator: str, held: dict[str, float | None], *, inside: bool) -> bool:
    """Whether no rounding puts a log-ratio on the other side of a clamp, nor of 0 where |d| turns; `inside`: whether
    no clamp binds."""
    if d == 0 and estimator == "abs":
        return False
    estimate = abs(spec.token_kl(d, 0.0, estimator))
    for bound, size in ((held["log_ratio_clamp"], abs(d)), (held["clamp"], estimate)):
        guard = budgets.kl_guard(bound or 0.0)
        if bound and (size > bound - guard if inside else abs(size - bound) <= guard):
            return False
    return True


def vocabularies(subject: Subject, estimators: Sequence[str]) -> Picked[KlCase]:
    """Each row holds the log-probs of a whole vocabulary of two to five tokens, and no estimate is held by a clamp."""
    adapter, dtype = subject.adapter, subject.dtype

    def build(picks: Picks) -> KlCase:
        options = KlOptions(picks.of(offered(adapter, estimators)))
        rows, size = 1 + picks.below(3), 2 + picks.below(4)
        pairs = [
            _distributions(picks.part(2 * 5), size, clamps(adapter, options.estimator), options, dtype)
            for _ in range(rows)
        ]
        log_probs, ref_log_probs = (tuple(pair[k] for pair in pairs) for k in range(2))
        return KlCase(log_probs, ref_log_probs, ((1,) * size,) * rows, options)

    return Picked(3 + 3 * 10, build)


def _distributions(
    picks: Picks, size: int, held: dict[str, float | None], options: KlOptions, dtype: torch.dtype
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    logits = [0.23 * picks.of(outward(5)) for _ in range(size)]
    moved = [0.17 * picks.of(outward(4)) for _ in range(size)]
    moved[0] = moved[0] if len(set(moved)) > 1 else moved[0] + 0.31
    for attempt in range(12):
        ref = [z + x / 2**attempt for z, x in zip(logits, moved, strict=True)]
        own, other = (tuple(exactly(x, dtype) for x in _log_softmax(row)) for row in (logits, ref))
        if all(_is_clear(a - b, options.estimator, held, inside=True) for a, b in zip(own, other, strict=True)):
            return own, other
    raise AssertionError(f"no distributions away from the kinks near {logits} and {moved}")


def _log_softmax(logits: Sequence[float]) -> list[float]:
    total = math.log(math.fsum(map(math.exp, logits)))
    return [z - total for z in logits]
