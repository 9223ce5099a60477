"""The checks of the corrected loss."""

from __future__ import annotations

import itertools
import math
from typing import Any

from rlhf_conformance.adapter import Adapter
from rlhf_conformance.chapters._losses import loss as losses
from rlhf_conformance.chapters._masked import exactly
from rlhf_conformance.chapters.corrected_loss.cases import LOG_PROBS, LOOSE, CorrectedLossCase, weighable
from rlhf_conformance.chapters.corrected_loss.loss import CORRECTED
from rlhf_conformance.chapters.off_policy_correction.cases import OffPolicyShape
from rlhf_conformance.chapters.off_policy_correction.checks import says_of_nan
from rlhf_conformance.chapters.policy_loss.checks import POLICY, has_dual_clip
from rlhf_conformance.judging.checks import Questions, Requirement, Template, check, declares, use
from rlhf_conformance.judging.picks import Picked, Picks
from rlhf_conformance.judging.subject import Subject

CLIPPED = ("ppo", "gspo")
FAR = -120.0
"""The log-prob that an action had, of which nothing is left; the engine's was twice that: whatever its weight is, it is
beyond every bound, and so is its ratio."""


def offers(what: str, **shape: Any) -> Requirement:
    """The usual surrogate can have a kind of weight of this shape."""

    def missing(adapter: Adapter) -> str | None:
        usual = adapter.surrogates[0]
        found = weighable(adapter, usual, OffPolicyShape(**shape))
        return None if found else f"no kind of weight that is declared shows {what} with the surrogate {usual!r}"

    return missing


has_weights = offers("itself")


def others(adapter: Adapter) -> list[str]:
    """The surrogates that can have weights."""
    return [name for name in adapter.surrogates if weighable(adapter, name)]


def has_others(adapter: Adapter) -> str | None:
    return None if len(others(adapter)) > 1 else "weights are declared for one surrogate: there is no other"


def clips(adapter: Adapter) -> str | None:
    return None if set(CLIPPED) & set(others(adapter)) else "no surrogate that clips can have weights"


def has_token_ratio(adapter: Adapter) -> str | None:
    usual = adapter.surrogates[0] != "gspo"
    return None if usual else "the usual surrogate is that of a sequence, in which every action has a part"


def weighs_ppo(adapter: Adapter) -> str | None:
    """The dual clip is PPO's."""
    return None if "ppo" in others(adapter) else "the surrogate 'ppo' has no weights, or is not declared"


def has_ppo(adapter: Adapter) -> str | None:
    return None if "ppo" in adapter.surrogates else "the surrogate 'ppo' is not declared"


SUMS = ("constant-length", "token-sum")
SOMETIMES: dict[str, Any] = {"uppers": (2000.0, 1.1, 1e4, 1.3), "lowers": (None, 0.8), "shown": True}
"""Bounds that some of the weights reach in half of the cases."""
DUAL: dict[str, Any] = {
    "surrogates": ("ppo",),
    "zones": ("above", "anywhere", "far"),
    "dual": True,
    "advantage_signs": (-1,),
}
"""Where the dual clip binds."""
has_bypass = declares("correction_bypass", "correction_bypass is not declared")


def of(*requires: Requirement, **shape: Any) -> Template:
    """The loss and its gradient, on cases of a shape."""
    return losses.value_of(CORRECTED, *requires, gradient=True, **shape)


# --- the weights ----------------------------------------------------------------------------------------------------

TOKEN: dict[str, Any] = {"levels": ("token",), "shown": True}
SEQUENCE: dict[str, Any] = {"levels": ("sequence",), "shown": True}

use("corrected-loss.token-weights", of(offers("that of a token", **TOKEN), **{**LOOSE, **TOKEN}))
use("corrected-loss.sequence-weights", of(offers("that of a sequence", **SEQUENCE), **{**LOOSE, **SEQUENCE}))
use("corrected-loss.truncated", of(offers("how it is truncated", modes=("truncate",)), modes=("truncate",)))
use("corrected-loss.rejected", of(offers("a band", modes=("mask",)), modes=("mask",), uppers=(1.1, 1.05, 1.3)))
use(
    "corrected-loss.gradient",
    losses.gradient_of(CORRECTED, offers("its own gradient", shown=True), zones=("inside",), **LOOSE),
)
use(
    "corrected-loss.after-the-clip",
    of(clips, zones=("above", "below"), unequal_eps=None, uppers=(3.0, 1.3, 1.1), surrogates=CLIPPED),
)
use("corrected-loss.dual-clip", of(weighs_ppo, has_dual_clip, **DUAL, **LOOSE))
use("corrected-loss.agreement", of(has_weights, equal=True, uppers=(2.0, 1.3), lowers=(None, 0.5)))


@check(
    "corrected-loss.without-weights",
    needs=CORRECTED.needs,
    requires=(has_weights,),
    cases=CORRECTED.cases(uppers=(2.0, 1.3), zones=("inside",)),
    effort=2,
)
def without_weights(subject: Subject, case: CorrectedLossCase) -> Questions:
    """With weights, and then without."""
    for asked, how in ((case, ""), (case.with_options(level=None), " without weights")):
        call = CORRECTED.call(subject, asked)
        yield CORRECTED.asks_value(subject, asked, call, what=f"loss{how}")
        yield from CORRECTED.asks_gradients(subject, asked, call, how=how)


use("corrected-loss.nan-of-the-engine", of(has_weights, says_of_nan, lost=True, unequal_rows=True))


def _means(**shape: Any) -> Any:
    """Cases of the usual surrogate with all means and sums."""
    return lambda s: CORRECTED.drawn(s, aggregations=CORRECTED.branches(s.adapter)["aggregations"], **shape)


use(
    "corrected-loss.rejected-tokens",
    CORRECTED.template(
        CORRECTED.asks_whole,
        _means(modes=("mask",), uppers=(1.1, 1.05, 1.3), unequal_rows=True),
        offers("a band", modes=("mask",)),
    ),
)


def beyond_every_bound(cases: Picked[CorrectedLossCase], dtype: Any) -> Picked[CorrectedLossCase]:
    """Single actions, or whole rows where the weight is that of a sequence, have become likely since they were all but
    impossible, and went worse than expected: their weight is 0 and their loss infinite."""

    def change(case: CorrectedLossCase, picks: Picks) -> CorrectedLossCase:
        at = picks.below(max(1, len(case.actions)))
        chosen = {case.actions[at]}
        if case.options.level == "sequence":
            chosen = {(i, j) for i, j in case.actions if i == case.actions[at][0]}

        def put(table: Any, number: float) -> Any:
            rows = enumerate(table)
            return tuple(tuple(number if (i, j) in chosen else x for j, x in enumerate(row)) for i, row in rows)

        return case.changed(
            old_log_probs=put(case.old_log_probs, exactly(FAR, dtype)),
            rollout_log_probs=put(case.rollout_log_probs, exactly(2 * FAR, dtype)),
            advantages=put(case.advantages, exactly(-1.3, dtype)),
        )

    return cases.with_more(1, change)


@check(
    "corrected-loss.rejected-overflow",
    needs=CORRECTED.needs,
    requires=(has_token_ratio, offers("a band", modes=("mask",))),
    cases=lambda s: beyond_every_bound(CORRECTED.drawn(s, modes=("mask",), dual=None), s.dtype),
)
def rejected_overflow(subject: Subject, case: CorrectedLossCase) -> Questions:
    yield from CORRECTED.asks_whole(subject, case)


def _cases_of(choose: Any, **shape: Any) -> Any:
    return lambda s: CORRECTED.drawn(s, surrogates=choose(s.adapter), **shape)


use(
    "corrected-loss.other-surrogates",
    CORRECTED.template(
        CORRECTED.asks_whole, _cases_of(others, zones=("inside", "above"), unequal_eps=None), has_others
    ),
)
use(
    "corrected-loss.other-sums",
    CORRECTED.template(
        CORRECTED.asks_whole,
        _cases_of(others, zones=("inside",), aggregations=SUMS, **SOMETIMES),
        has_weights,
        losses.aggregates(POLICY, *SUMS),
    ),
)
use(
    "corrected-loss.square",
    of(offers("that of a sequence", levels=("sequence",)), levels=("sequence",), square=True, min_rows=2),
)

# --- the bypass -----------------------------------------------------------------------------------------------------

use(
    "corrected-loss.bypass",
    CORRECTED.template(
        CORRECTED.asks_whole,
        _means(bypass=True, zones=("inside", "above", "below"), unequal_eps=None),
        has_bypass,
    ),
)


@check(
    "corrected-loss.bypass-old",
    needs=CORRECTED.needs,
    requires=(has_bypass,),
    cases=lambda s: CORRECTED.drawn(s, bypass=True, zones=("inside",)),
)
def bypass_old(subject: Subject, case: CorrectedLossCase) -> Questions:
    """With other old log-probs than those that it was asked with first."""
    yield from CORRECTED.asks_whole(subject, case)
    rows, numbers = case.action_mask, itertools.cycle(exactly(x - 0.05, subject.dtype) for x in LOG_PROBS[::-7])
    moved = case.changed(old_log_probs=tuple(tuple(next(numbers) if m else 0.0 for m in row) for row in rows))
    call = CORRECTED.call(subject, moved)
    yield CORRECTED.asks_value(subject, moved, call, what="loss with other old log-probs")
    yield from CORRECTED.asks_gradients(subject, moved, call, how=" with other old log-probs")


def _declared(adapter: Adapter) -> tuple[str, ...]:
    return tuple(adapter.surrogates)


use(
    "corrected-loss.bypass-other-surrogates",
    CORRECTED.template(
        CORRECTED.asks_whole,
        _cases_of(_declared, bypass=True, zones=("inside", "above", "below"), unequal_eps=None),
        has_bypass,
        losses.has_other_surrogates,
    ),
)
use("corrected-loss.bypass-dual-clip", of(has_bypass, has_ppo, has_dual_clip, bypass=True, **DUAL))


@check(
    "corrected-loss.bypass-off",
    needs=CORRECTED.needs,
    requires=(has_bypass,),
    cases=lambda s: CORRECTED.drawn(s, bypass=True, zones=("inside", "above", "below")),
    effort=2,
)
def bypass_off(subject: Subject, case: CorrectedLossCase) -> Questions:
    """With the bypass, and then without it and with the two tables exchanged: the ratio is the same."""
    without = case.changed(old_log_probs=case.rollout_log_probs, rollout_log_probs=case.old_log_probs)
    for asked, how in ((case, " with the bypass"), (without.with_options(bypass=False), " without the bypass")):
        call = CORRECTED.call(subject, asked)
        yield CORRECTED.asks_value(subject, asked, call, what=f"loss{how}")
        yield from CORRECTED.asks_gradients(subject, asked, call, how=how)


@check(
    "corrected-loss.bypass-old-nan",
    needs=CORRECTED.needs,
    requires=(has_bypass,),
    cases=lambda s: CORRECTED.drawn(s, bypass=True, zones=("inside",)),
)
def bypass_old_nan(subject: Subject, case: CorrectedLossCase) -> Questions:
    nothing = tuple(tuple(math.nan for _ in row) for row in case.old_log_probs)
    yield from CORRECTED.asks_whole(subject, case.changed(old_log_probs=nothing))


use("corrected-loss.bypass-micro-batches", losses.micro_batches(CORRECTED, has_bypass, bypass=True))
use("corrected-loss.bypass-mask", losses.mask(CORRECTED, has_bypass, bypass=True))
use("corrected-loss.bypass-empty-row", losses.empty_row(CORRECTED, has_bypass, bypass=True))

# --- means and the mask ---------------------------------------------------------------------------------------------

use("corrected-loss.micro-batches", losses.micro_batches(CORRECTED, has_weights))
use("corrected-loss.mask", losses.mask(CORRECTED, has_weights))
use("corrected-loss.nan-under-mask", losses.nan_under_mask(CORRECTED, has_weights))
use("corrected-loss.empty-row", losses.empty_row(CORRECTED, has_weights))
use("corrected-loss.empty-batch", losses.empty_batch(CORRECTED), has_weights)
use("corrected-loss.mask-dtype", losses.mask_dtype(CORRECTED), has_weights)

# --- the graph, and what changes nothing ----------------------------------------------------------------------------

use("corrected-loss.scalar", losses.scalar(CORRECTED), has_weights)
use("corrected-loss.padding-invariance", losses.padding_invariance(CORRECTED), has_weights)
use("corrected-loss.batch-order", losses.batch_order(CORRECTED), has_weights)
use("corrected-loss.inputs-unwritten", losses.inputs_unwritten(CORRECTED), has_weights)
use("corrected-loss.side-effects", losses.side_effects(CORRECTED), has_weights)
