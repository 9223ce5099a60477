"""Inputs of the corrected loss: those of the policy loss, and the log-probs of the engine that sampled."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from rlhf_conformance.adapter import Adapter
from rlhf_conformance.chapters._losses.cases import ROWS, WIDTH, LossShape, PolicyLossCase, loss_cases
from rlhf_conformance.chapters._masked import MaskedCase, Masks, Rows, exactly
from rlhf_conformance.chapters.corrected_loss.interface import CorrectedLossOptions
from rlhf_conformance.chapters.off_policy_correction.cases import (
    Kind,
    OffPolicyCase,
    OffPolicyShape,
    clamps,
    clear_bounds,
    kinds,
)
from rlhf_conformance.chapters.off_policy_correction.interface import OffPolicyOptions
from rlhf_conformance.chapters.policy_loss.interface import PolicyLossOptions
from rlhf_conformance.judging.picks import Picked, Picks, outward
from rlhf_conformance.judging.storing import stored
from rlhf_conformance.judging.subject import Subject

APART = tuple(0.07 * k + 0.033 for k in outward(6))
"""How far the two engines lie apart: the product of six weights is still small beside what float16 holds."""
LOG_PROBS = tuple(-0.11 * k for k in range(1, 31))
BINDING: dict[str, Any] = {"uppers": (1.1, 1.3, 2.0, 1.05), "lowers": (0.8, None, 0.9)}
"""Bounds that some of the weights reach."""
LOOSE: dict[str, Any] = {"uppers": (2000.0, 1e4), "lowers": (None,), "shown": True}
"""Bounds that no weight reaches."""


@stored
@dataclass(frozen=True)
class CorrectedLossCase(MaskedCase):
    """One call of the corrected loss."""

    TABLES = (*PolicyLossCase.TABLES, "rollout_log_probs")

    log_probs: Rows
    old_log_probs: Rows
    advantages: Rows
    rollout_log_probs: Rows
    action_mask: Masks
    options: CorrectedLossOptions

    @property
    def engines(self) -> OffPolicyCase:
        """The call for the weights that is part of it."""
        asked = self.options.weights or OffPolicyOptions()
        return OffPolicyCase(self.old_log_probs, self.rollout_log_probs, self.action_mask, asked)

    def policy(self, action_mask: Masks | None = None) -> PolicyLossCase:
        """The call of the policy loss that is part of it, of all actions or of those that are left."""
        own = {row.name: getattr(self.options, row.name) for row in fields(PolicyLossOptions)}
        old = self.rollout_log_probs if self.options.bypass else self.old_log_probs
        mask = self.action_mask if action_mask is None else action_mask
        return PolicyLossCase(self.log_probs, old, self.advantages, mask, PolicyLossOptions(**own))


def corrected_cases(
    subject: Subject,
    *,
    equal: bool = False,
    bypass: bool = False,
    levels: Sequence[str] = OffPolicyShape.levels,
    modes: Sequence[str] = OffPolicyShape.modes,
    uppers: Sequence[float] = BINDING["uppers"],
    lowers: Sequence[float | None] = BINDING["lowers"],
    shown: bool = False,
    lost: bool = False,
    **shape: Any,
) -> Picked[CorrectedLossCase]:
    """Cases of the policy loss, of whichever shape, and log-probs of the engine, which agree with the old ones where
    they are to be `equal`; no weight lies near a bound. For a `bypass` there are no weights. One log-prob of the engine
    is NaN where it is to be `lost`."""
    adapter, dtype = subject.adapter, subject.dtype
    wanted = OffPolicyShape(levels=levels, modes=modes, uppers=uppers, lowers=lowers, shown=shown)
    known = {name: weighable(adapter, name, wanted) for name in adapter.surrogates}

    def build(policy: Any, picks: Picks) -> CorrectedLossCase:
        number, upper, lower = picks.below(256), picks.below(len(uppers)), picks.below(len(lowers))
        slots = [[picks.part(2) for _ in range(WIDTH)] for _ in range(ROWS)]

        def other(i: int, j: int) -> float:
            """The log-prob of an action that the policy loss has no use for: the engine's, or for a bypass the old
            one."""
            own, before = slots[i % ROWS][j].again(), policy.old_log_probs[i][j]
            if not policy.action_mask[i][j]:
                return 0.0
            if bypass:
                return exactly(own.of(LOG_PROBS), dtype)
            d = 0.0 if equal else own.of(APART)
            return exactly(before - (d if before - d <= 0 else abs(d)), dtype)

        columns = range(policy.shape[1])
        drawn = tuple(tuple(other(i, j) for j in columns) for i in range(policy.shape[0]))
        old, rollout = (drawn, policy.old_log_probs) if bypass else (policy.old_log_probs, drawn)
        at = picks.below(max(1, len(policy.actions)))
        if lost:
            rollout = tuple(
                tuple(math.nan if (i, j) == policy.actions[at] else x for j, x in enumerate(row))
                for i, row in enumerate(rollout)
            )
        options = CorrectedLossOptions(**vars(policy.options), bypass=bypass, **declared(adapter))
        case = CorrectedLossCase(policy.log_probs, old, policy.advantages, rollout, policy.action_mask, options)
        if bypass:
            return case
        offered = known[policy.options.surrogate]
        return _weighted(case, offered[number * len(offered) >> 8], wanted, (upper, lower), adapter, dtype)

    surrogates = shape.pop("surrogates", None) or adapter.surrogates[:1]
    asked = tuple(name for name in surrogates if known.get(name) or (bypass and name in known))
    policies = loss_cases(adapter, dtype, "policy-loss", LossShape(surrogates=asked, **shape))
    return policies.with_more(4 + 2 * ROWS * WIDTH, build)


def weighable(adapter: Adapter, surrogate: str, wanted: OffPolicyShape | None = None) -> list[Kind]:
    """The kinds of weights of a shape that a surrogate can have. With GSPO they are those of whole sequences: how the
    ratio of a sequence reaches actions of different weights is not agreed, nor what it is made of where some of its
    actions are left out."""
    found = kinds(adapter, wanted)
    if surrogate != "gspo":
        return found
    alike = [
        k for k in found if k[0] == "sequence" and (k[1] == "truncate" or adapter.correction_kept != "token-weight")
    ]
    return [k for k in alike if k[1] == "truncate" or adapter.rejected_tokens == "counted"]


def declared(adapter: Adapter) -> dict[str, Any]:
    """What the formula is told of an adapter."""
    return {
        **clamps(adapter),
        "kept": adapter.correction_kept,
        "of_nan": adapter.correction_nan,
        "rejected": adapter.rejected_tokens,
    }


def _weighted(
    case: CorrectedLossCase, kind: Kind, wanted: OffPolicyShape, at: tuple[int, int], adapter: Adapter, dtype: Any
) -> CorrectedLossCase:
    """The case with weights of a kind, between bounds that no weight lies too near to."""
    level, mode, sequence_weight = kind
    case = case.with_options(level=level, mode=mode, sequence_weight=sequence_weight)
    upper, lower = clear_bounds(case.engines, [kind], wanted, *at, adapter, dtype)
    return case.with_options(upper=upper, lower=lower)
