"""The policy loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from rlhf_conformance.chapters._losses.interface import Losses
from rlhf_conformance.judging.storing import stored
from rlhf_conformance.judging.wiring import Metric, Record, Scalar
from rlhf_conformance.methods import OneOf, SomeOf, method

if TYPE_CHECKING:
    from torch import Tensor


@stored
@dataclass(frozen=True)
class PolicyLossOptions:
    """What the policy loss is asked to do.

    `dual_clip` is None or the constant c > 1 (PPO's only; only drawn if declared, and then never None where it is
    declared "always").
    `global_count` is None, or the denominator over the whole step, of which this call sees one micro-batch: the number
    of action tokens for "token-mean", the number of sequences for "sequence-mean" and "constant-length" (only drawn if
    declared). `surrogate` and `aggregation` are among those that are declared; `cispo_bounds` is what is declared.
    `constant_length` is given with the aggregation "constant-length".
    """

    clip_eps_low: float = 0.2
    clip_eps_high: float = 0.2
    dual_clip: float | None = None
    aggregation: str = "token-mean"
    global_count: float | None = None
    surrogate: str = "ppo"
    cispo_bounds: str = "both"
    constant_length: int | None = None

    def offered_by(self, adapter: Any) -> bool:
        """Whether an adapter declares what is asked for here."""
        return (
            self.surrogate in adapter.surrogates
            and (self.surrogate != "cispo" or self.cispo_bounds == adapter.cispo_bounds)
            and self.aggregation in aggregations_of_policy(adapter)
        )


def aggregations_of_policy(adapter: Any) -> tuple[str, ...]:
    """The aggregations that the policy loss may be asked for, the usual ones first."""
    flags = {"constant-length": adapter.constant_length, "token-sum": adapter.token_sum}
    always = tuple(name for name, flag in flags.items() if flag == "always")
    return always or (*adapter.aggregations, *(name for name, flag in flags.items() if flag))


@dataclass(frozen=True)
class PolicyLossResult:
    """A policy loss with the metrics that the trainer logs; a metric left at None is not judged."""

    loss: Tensor
    clip_fraction: Tensor | float | None = None
    approx_kl: Tensor | float | None = None


class PolicyLoss(Losses):
    """The policy loss: PPO's, or another surrogate."""

    asymmetric_clip: Annotated[bool, "True if clip_eps_low and clip_eps_high may differ"] = True
    dual_clip: Annotated[
        bool | str,
        OneOf((False, True, "always")),
        'True if the policy loss may have a dual clip, "always" if it cannot do without one',
    ] = False
    surrogates: Annotated[
        Sequence[str],
        SomeOf(("ppo", "gspo", "cispo", "reinforce")),
        'what the policy loss can follow, the usual one first: "ppo", "gspo" (the ratio of a sequence), "cispo", '
        '"reinforce"',
    ] = ("ppo",)
    cispo_bounds: Annotated[
        str,
        OneOf(("both", "upper", "cap")),
        'where CISPO holds the ratio: "both", from 1 - clip_eps_low to 1 + clip_eps_high; "upper", below the latter; '
        '"cap", below clip_eps_high itself',
    ] = "both"
    constant_length: Annotated[
        bool | str,
        OneOf((False, True, "always")),
        "True if the policy loss may be the sum over the tokens, divided by the number of sequences times a constant "
        'length (Dr. GRPO); "always" if it is never another',
    ] = False
    token_sum: Annotated[
        bool | str,
        OneOf((False, True, "always")),
        'True if the policy loss may be the sum over the tokens, undivided; "always" if it is never another',
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
        """The policy loss, to be minimised: PPO's clipped one, or the surrogate asked for. All tensors (B, T);
        `action_mask` 1 on actions. -> a scalar"""
        raise NotImplementedError
