"""The policy loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from rlhf_conformance.chapters._losses.interface import Losses
from rlhf_conformance.judging.storing import stored
from rlhf_conformance.judging.wiring import Metric, Record, Scalar
from rlhf_conformance.methods import OneOf, method

if TYPE_CHECKING:
    from torch import Tensor


@stored
@dataclass(frozen=True)
class PolicyLossOptions:
    """What the policy loss is asked to do.

    `dual_clip` is None or the constant c > 1 (only drawn if declared, and never None where it is declared "always").
    `global_count` is None, or the denominator over the whole step, of which this call sees one micro-batch: the number
    of action tokens for "token-mean", the number of sequences for "sequence-mean" (only drawn if declared).
    """

    clip_eps_low: float = 0.2
    clip_eps_high: float = 0.2
    dual_clip: float | None = None
    aggregation: str = "token-mean"
    global_count: float | None = None


@dataclass(frozen=True)
class PolicyLossResult:
    """A policy loss with the metrics that the trainer logs; a metric left at None is not judged."""

    loss: Tensor
    clip_fraction: Tensor | float | None = None
    approx_kl: Tensor | float | None = None


class PolicyLoss(Losses):
    """The clipped PPO loss."""

    asymmetric_clip: Annotated[bool, "True if clip_eps_low and clip_eps_high may differ"] = True
    dual_clip: Annotated[
        bool | str,
        OneOf((False, True, "always")),
        'True if the policy loss may have a dual clip, "always" if it cannot do without one',
    ] = False
    kl_metric: Annotated[str, OneOf(("k1", "k2", "k3")), 'estimator of `approx_kl`: "k1", "k2" or "k3"'] = "k1"

    @method(
        Record(
            PolicyLossResult,
            {"loss": Scalar("the loss"), "clip_fraction": Metric(), "approx_kl": Metric()},
            required=("loss",),
            bare="loss",
        ),
        leaf="log_probs",
        formula="rlhf_spec.policy_loss.policy_loss",
        returns="the loss, a tensor with one number",
    )
    def policy_loss(
        self,
        log_probs: Tensor,
        old_log_probs: Tensor,
        advantages: Tensor,
        action_mask: Tensor,
        options: PolicyLossOptions,
    ) -> Tensor | PolicyLossResult:
        """The clipped PPO loss, to be minimised. All tensors (B, T); `action_mask` 1 on actions. -> a scalar"""
        raise NotImplementedError
