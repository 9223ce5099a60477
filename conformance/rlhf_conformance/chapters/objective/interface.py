"""The objective of a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from rlhf_conformance.chapters._losses.interface import Losses
from rlhf_conformance.chapters.policy_loss.interface import PolicyLossOptions
from rlhf_conformance.judging.storing import stored
from rlhf_conformance.judging.wiring import Metric, Record, Scalar
from rlhf_conformance.methods import OneOf, SomeOf, method

if TYPE_CHECKING:
    from torch import Tensor

AS_POLICY = "as-policy"
MEANS = (AS_POLICY, "token-mean", "sequence-mean")
KL_CORRECTIONS = ("none", "ratio")


@stored
@dataclass(frozen=True)
class ObjectiveOptions(PolicyLossOptions):
    """What the objective is asked to be: the options of the policy loss, its first term, and those of the others.

    A coefficient of a term that is not declared is 0. `value_clip_eps` is None where values are not clipped.
    `estimator` is one of those that `kl_estimators` declares. The means of the terms, the clamps of the KL, its
    correction and its gradient are what is declared, not asked for. `global_count` is the denominator of every term.
    """

    value_coef: float = 0.0
    value_clip_eps: float | None = None
    value_aggregation: str = AS_POLICY
    kl_coef: float = 0.0
    estimator: str = "k3"
    log_ratio_clamp: float | None = None
    clamp: float | None = None
    kl_correction: str = "none"
    kl_gradient: str = "plain"
    kl_aggregation: str = AS_POLICY
    entropy_coef: float = 0.0
    entropy_aggregation: str = AS_POLICY

    def offered_by(self, adapter: Any) -> bool:
        """Whether an adapter declares what is asked for here."""
        coefs = {"value": self.value_coef, "kl": self.kl_coef, "entropy": self.entropy_coef}
        return (
            super().offered_by(adapter)
            and all(name in adapter.objective_terms for name, coef in coefs.items() if coef)
            and (not self.kl_coef or self.estimator in adapter.kl_estimators)
            and self.kl_correction == adapter.kl_correction
            and all(getattr(self, f"{name}_aggregation") == getattr(adapter, f"{name}_aggregation") for name in coefs)
        )


@dataclass(frozen=True)
class ObjectiveResult:
    """An objective with what the trainer logs of its terms, each before its coefficient and its sign; one that is left
    at None is not judged."""

    loss: Tensor
    policy_loss: Tensor | float | None = None
    value_loss: Tensor | float | None = None
    kl: Tensor | float | None = None
    entropy: Tensor | float | None = None


class Objective(Losses):
    """What a step minimises: the policy loss, and what stands beside it."""

    objective_terms: Annotated[
        Sequence[str],
        SomeOf(("value", "kl", "entropy")),
        'what may stand beside the policy loss: "value", "kl", "entropy"',
    ] = ("value", "kl", "entropy")
    value_aggregation: Annotated[
        str, OneOf(MEANS), 'the mean of the value loss in the objective: "as-policy", or one of the two by its name'
    ] = AS_POLICY
    kl_aggregation: Annotated[str, OneOf(MEANS), "the same of the KL"] = AS_POLICY
    entropy_aggregation: Annotated[str, OneOf(MEANS), "the same of the entropy"] = AS_POLICY
    objective_global_count: Annotated[
        bool, "False if a term of the objective is averaged within the micro-batch, whatever `global_count` is"
    ] = True
    kl_correction: Annotated[
        str,
        OneOf(KL_CORRECTIONS),
        'what the KL of each action is multiplied by in the objective: "none", or the "ratio" before its clip, which '
        'is that of the sequence where the surrogate is "gspo"',
    ] = "none"

    @method(
        Record(
            ObjectiveResult,
            {
                "loss": Scalar("the loss"),
                "policy_loss": Metric(),
                "value_loss": Metric(),
                "kl": Metric(),
                "entropy": Metric(),
            },
            required=("loss",),
            bare="loss",
        ),
        leaf="log_probs",
        formula="rlhf_spec.objective.objective",
        returns="the objective, a tensor with one number",
    )
    def objective(
        self,
        log_probs: Tensor,
        old_log_probs: Tensor,
        advantages: Tensor,
        entropies: Tensor,
        ref_log_probs: Tensor,
        values: Tensor,
        old_values: Tensor,
        returns: Tensor,
        action_mask: Tensor,
        options: ObjectiveOptions,
    ) -> Tensor | ObjectiveResult:
        """What a step minimises: the policy loss and, each times its coefficient, the value loss, the KL from the
        reference and, subtracted, the entropy. All tensors (B, T); `action_mask` 1 on actions; `log_probs`, `entropies`
        and `values` have a graph. -> a scalar"""
        raise NotImplementedError
