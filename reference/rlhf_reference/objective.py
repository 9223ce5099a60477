"""What an optimizer step minimises: the policy loss, and what stands beside it.

`policy + value_coef * value + kl_coef * KL - entropy_coef * entropy`, as in Schulman et al. 2017, equation 9, and Shao
et al. 2024, equation 3. A term whose coefficient is 0 is not computed: 0 times infinity is NaN.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from rlhf_reference.aggregation import Aggregation, aggregate
from rlhf_reference.kl import token_kl
from rlhf_reference.policy_loss import PolicyLoss
from rlhf_reference.value_loss import ValueLoss

KlGradient = Literal["plain", "k2", "weighted"]
KlCorrection = Literal["none", "ratio"]


class ObjectiveOutput(NamedTuple):
    """What `Objective` returns: the loss with a graph, and its terms before their coefficients, for the log; None where
    the coefficient is 0."""

    loss: Tensor
    policy_loss: Tensor
    value_loss: Tensor | None
    kl: Tensor | None
    entropy: Tensor | None


class Objective(nn.Module):
    """The terms of a step together, each under the same mask.

    policy_loss           the policy loss; its aggregation is that of every term that is given none
    value_coef            weight of `value_loss`
    kl_coef               weight of the KL from the reference, estimated by `kl_estimator`, d held within
                          `kl_log_ratio_clamp` of 0, the estimate within `kl_clamp`
    kl_gradient           "plain": of the estimate; "k2": of k2, whatever the estimate; "weighted": of the estimate
                          times `exp(log_prob - log_prob.detach())`
    kl_correction         "ratio": the estimate is multiplied by the ratio of the policy loss before its clip, which has
                          a graph where the gradient is "weighted"; "none": it is not
    entropy_coef          weight of the entropy, which is subtracted: a bonus
    value_, kl_, entropy_aggregation    see `rlhf_reference.aggregation`; None: that of the policy loss
    """

    def __init__(
        self,
        policy_loss: PolicyLoss,
        *,
        value_coef: float = 0.0,
        value_clip_eps: float | None = None,
        value_aggregation: Aggregation | None = None,
        kl_coef: float = 0.0,
        kl_estimator: str = "k3",
        kl_log_ratio_clamp: float | None = None,
        kl_clamp: float | None = None,
        kl_gradient: KlGradient = "plain",
        kl_correction: KlCorrection = "none",
        kl_aggregation: Aggregation | None = None,
        entropy_coef: float = 0.0,
        entropy_aggregation: Aggregation | None = None,
    ) -> None:
        super().__init__()
        self.policy_loss = policy_loss
        self.value_coef, self.kl_coef, self.entropy_coef = value_coef, kl_coef, entropy_coef
        self.value_clip_eps = value_clip_eps
        self.kl_estimator, self.kl_gradient, self.kl_correction = kl_estimator, kl_gradient, kl_correction
        self.kl_clamps = {"log_ratio_clamp": kl_log_ratio_clamp, "clamp": kl_clamp}
        self.value_aggregation, self.kl_aggregation = value_aggregation, kl_aggregation
        self.entropy_aggregation = entropy_aggregation

    def forward(
        self,
        log_probs: Tensor,
        old_log_probs: Tensor,
        advantages: Tensor,
        action_mask: Tensor,
        *,
        entropies: Tensor | None = None,
        ref_log_probs: Tensor | None = None,
        values: Tensor | None = None,
        old_values: Tensor | None = None,
        returns: Tensor | None = None,
        loss_weights: Tensor | None = None,
        global_count: float | Tensor | None = None,
    ) -> ObjectiveOutput:
        """All of shape (B, T); computed in fp32 or better.

        entropies              of the policy's whole distribution at each action, in nats, with a graph
        ref_log_probs          of the reference model, in nats; constants
        values                 of the critic that is trained, with a graph
        old_values, returns    see `ValueLoss`
        loss_weights           of the policy loss, see `PolicyLoss`
        global_count           see `aggregate`; the same for every term
        raises                 ValueError if the shapes differ, or if what a term needs is missing
        """
        mask = action_mask.bool()
        of_policy = {"loss_weights": loss_weights, "global_count": global_count}
        policy = self.policy_loss(log_probs, old_log_probs, advantages, action_mask, **of_policy).loss
        loss, value, kl, entropy = policy, None, None, None
        if self.value_coef:
            if values is None or old_values is None or returns is None:
                raise ValueError("value_coef is not 0: values, old_values and returns are needed")
            value = self.value_loss(values, old_values, returns, action_mask, global_count=global_count)
            loss = loss + self.value_coef * value
        if self.kl_coef:
            if ref_log_probs is None:
                raise ValueError("kl_coef is not 0: ref_log_probs are needed")
            estimates = self._kl(log_probs, old_log_probs, ref_log_probs.detach(), mask)
            kl = self._mean(estimates, mask, self.kl_aggregation, global_count)
            loss = loss + self.kl_coef * kl
        if self.entropy_coef:
            if entropies is None:
                raise ValueError("entropy_coef is not 0: entropies are needed")
            wide = entropies.to(torch.promote_types(entropies.dtype, torch.float32))
            entropy = self._mean(wide, mask, self.entropy_aggregation, global_count)
            loss = loss - self.entropy_coef * entropy
        return ObjectiveOutput(loss, policy.detach(), *(x if x is None else x.detach() for x in (value, kl, entropy)))

    @property
    def value_loss(self) -> ValueLoss:
        """The value loss alone, before its coefficient."""
        aggregation = self.value_aggregation or self.policy_loss.aggregation
        return ValueLoss(self.value_clip_eps, aggregation, constant_length=self.policy_loss.constant_length)

    def _kl(self, log_probs: Tensor, old_log_probs: Tensor, ref_log_probs: Tensor, mask: Tensor) -> Tensor:
        """(B, T) the estimates, corrected, with the gradient that is asked for."""
        estimates = token_kl(log_probs, ref_log_probs, mask, self.kl_estimator, **self.kl_clamps)
        corrected, own = self.kl_correction == "ratio", log_probs.where(mask, 0.0)
        log_ratio = self.policy_loss.log_ratio(log_probs, old_log_probs, mask) if corrected else own - own.detach()
        ratio = log_ratio.exp()
        if self.kl_gradient == "weighted":
            return estimates * ratio
        if self.kl_gradient == "k2":
            k2 = token_kl(log_probs, ref_log_probs, mask, "k2")
            estimates = k2 - k2.detach() + estimates.detach()
        return estimates * ratio.detach() if corrected else estimates

    def _mean(
        self, values: Tensor, mask: Tensor, own: Aggregation | None, global_count: float | Tensor | None
    ) -> Tensor:
        """The aggregate of a term. Raises ValueError where it has another shape than the mask."""
        if values.shape != mask.shape:
            raise ValueError(f"a term of shape {tuple(values.shape)} under a mask of shape {tuple(mask.shape)}")
        return aggregate(
            values,
            mask,
            own or self.policy_loss.aggregation,
            global_count=global_count,
            constant_length=self.policy_loss.constant_length,
        )
