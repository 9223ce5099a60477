"""Weights that correct for the engine that sampled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from rlhf_conformance.judging.storing import stored
from rlhf_conformance.judging.wiring import Either
from rlhf_conformance.judging.wiring import Tensor as Numbers
from rlhf_conformance.methods import AtLeast, OneOf, SomeOf, method

if TYPE_CHECKING:
    from torch import Tensor

LEVELS, MODES = ("token", "sequence"), ("truncate", "mask")
SEQUENCE_WEIGHTS = ("product", "geometric")


@stored
@dataclass(frozen=True)
class OffPolicyOptions:
    """What the weights are asked to be, of what is declared.

    level               one weight for each action, "token", or one for all actions of a row, "sequence"
    mode                "truncate": held at the bounds; "mask": 0 outside of them
    upper, lower        the bounds, which belong to the band; `lower` None: no bound from below
    sequence_weight     at the level "sequence" the "product" of the weights of the actions, or their "geometric" mean
    """

    level: str = "token"
    mode: str = "truncate"
    upper: float = 2.0
    lower: float | None = None
    sequence_weight: str = "product"

    def offered_by(self, adapter: OffPolicyCorrection) -> bool:
        """Whether an adapter declares what is asked for."""
        if self.level not in adapter.correction_levels or self.mode not in adapter.correction_modes:
            return False
        if self.level == "sequence" and self.mode not in adapter.sequence_correction_modes:
            return False
        if self.level == "sequence" and self.sequence_weight not in adapter.sequence_weights:
            return False
        return self.lower is None or has_lower(adapter, self.mode)


class OffPolicyCorrection:
    """Weights of actions that another engine sampled."""

    correction_levels: Annotated[Sequence[str], SomeOf(LEVELS), 'of "token", "sequence"'] = ("token",)
    correction_modes: Annotated[Sequence[str], SomeOf(MODES), 'of "truncate", "mask"'] = ("truncate",)
    sequence_correction_modes: Annotated[
        Sequence[str], SomeOf(MODES), "those of `correction_modes` that a sequence's weight can have"
    ] = MODES
    sequence_weights: Annotated[
        Sequence[str],
        SomeOf(SEQUENCE_WEIGHTS),
        'what the weight of a sequence may be of those of its actions, of "product", "geometric"',
    ] = ("product",)
    correction_lower: Annotated[
        str | None,
        OneOf((None, "mask", "both")),
        'the modes that know a lower bound: "mask", or "both"; None: none does',
    ] = "mask"
    correction_log_clamp: Annotated[
        float | None, AtLeast(0.0, or_none=True), "how far from 0 the exponent of a weight is held"
    ] = None
    correction_log_clamped: Annotated[
        str,
        OneOf(("exponent", "actions")),
        'what the clamp holds: the "exponent", which for a sequence is the sum or the mean, or the log-ratios of its '
        '"actions", before they are summed',
    ] = "exponent"
    correction_kept: Annotated[
        str,
        OneOf(("weight", "token-weight", "one")),
        'what the mode "mask" leaves of what lies within the band: its "weight"; the "token-weight", which is that of '
        'each action alone, also where a sequence is accepted as a whole; or "one"',
    ] = "weight"
    correction_nan: Annotated[
        str | None,
        OneOf((None, "one", "zero")),
        "what an action weighs whose log-prob the engine did not give (NaN): one, or zero, and then so does its whole "
        "sequence where that has the weight; None if nothing is promised",
    ] = None
    correction_masked: Annotated[
        str | None,
        OneOf((None, "zero", "one")),
        'what cells outside of the mask are promised: "zero" or "one"; None if nothing is promised',
    ] = None

    @method(
        Either(
            (
                Numbers(lambda given: tuple(given["action_mask"].shape), "a weight for each cell"),
                Numbers(lambda given: (len(given["action_mask"]), 1), "a weight for each row"),
                Numbers(lambda given: (len(given["action_mask"]),), "a weight for each row"),
            ),
            "a tensor with a weight for each cell (B, T), or for each row (B,) or (B, 1)",
        ),
        leaf="old_log_probs",
        formula="rlhf_spec.off_policy_correction.off_policy_weights",
        returns="the weights, a tensor shaped like action_mask, or (B,) or (B, 1)",
    )
    def off_policy_weights(
        self, old_log_probs: Tensor, rollout_log_probs: Tensor, action_mask: Tensor, options: OffPolicyOptions
    ) -> Tensor:
        """Weights for the loss, of the trainer's own log-probs at rollout time and those of the engine that sampled.
        All tensors (B, T); `action_mask` 1 on actions. -> (B, T), or a weight for each row, (B,) or (B, 1), of which
        the actions are judged"""
        raise NotImplementedError


def has_lower(adapter: OffPolicyCorrection, mode: str) -> bool:
    """Whether a mode knows a lower bound."""
    return adapter.correction_lower == "both" or adapter.correction_lower == mode
