"""The policy loss of actions that another engine sampled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from rlhf_conformance.chapters._losses.interface import Losses
from rlhf_conformance.chapters.off_policy_correction.interface import OffPolicyOptions
from rlhf_conformance.chapters.policy_loss.interface import PolicyLossOptions
from rlhf_conformance.judging.storing import stored
from rlhf_conformance.judging.wiring import Scalar
from rlhf_conformance.methods import OneOf, method

if TYPE_CHECKING:
    from torch import Tensor


@stored
@dataclass(frozen=True)
class CorrectedLossOptions(PolicyLossOptions):
    """What the corrected loss is asked to be: the options of the policy loss, and those of the weights.

    level       as in `OffPolicyOptions`, with `mode`, `upper`, `lower` and `sequence_weight`; None: no weights
    bypass      the ratio is taken to the engine's log-probs (only drawn if declared, and without weights)

    `log_clamp`, `log_clamped`, `kept`, `of_nan` and `rejected` are what is declared, not asked for.
    """

    level: str | None = None
    mode: str = "truncate"
    upper: float = 2.0
    lower: float | None = None
    sequence_weight: str = "product"
    bypass: bool = False
    log_clamp: float | None = None
    log_clamped: str = "exponent"
    kept: str = "weight"
    of_nan: str | None = None
    rejected: str = "counted"

    @property
    def weights(self) -> OffPolicyOptions | None:
        """What the weights are asked to be, as `off_policy_weights` is; None: there are none."""
        if self.level is None:
            return None
        return OffPolicyOptions(self.level, self.mode, self.upper, self.lower, self.sequence_weight)

    def offered_by(self, adapter: Any) -> bool:
        """Whether an adapter declares what is asked for here."""
        weights = self.weights
        return (
            super().offered_by(adapter)
            and (weights is None or weights.offered_by(adapter))
            and (adapter.correction_bypass or not self.bypass)
        )


class CorrectedLoss(Losses):
    """The policy loss with a correction for the engine that sampled. The kinds of weights are those that the chapter
    on them declares: `correction_levels` and what follows it."""

    rejected_tokens: Annotated[
        str,
        OneOf(("counted", "left-out")),
        'whether actions that a band rejects, whose weight is 0, stay in the denominator of the loss, "counted", or '
        'are no actions any more, "left-out"',
    ] = "counted"
    correction_bypass: Annotated[
        bool, "True if the loss can take its ratio to the engine's log-probs, in place of the old ones"
    ] = False

    @method(
        Scalar("the loss"),
        leaf="log_probs",
        formula="rlhf_spec.corrected_loss.corrected_loss",
        returns="the loss, a tensor with one number",
    )
    def corrected_loss(
        self,
        log_probs: Tensor,
        old_log_probs: Tensor,
        advantages: Tensor,
        rollout_log_probs: Tensor,
        action_mask: Tensor,
        options: CorrectedLossOptions,
    ) -> Tensor:
        """The policy loss, each action's times its weight; the weights are those of `off_policy_weights`, of the old
        log-probs and of those of the engine that sampled. All tensors (B, T); `action_mask` 1 on actions. -> a
        scalar"""
        raise NotImplementedError
