"""The KL of the policy from the reference, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from rlhf_conformance.judging.storing import stored
from rlhf_conformance.judging.wiring import Tensor as Numbers
from rlhf_conformance.methods import AtLeast, OneOf, SomeOf, method

if TYPE_CHECKING:
    from torch import Tensor

ESTIMATORS = ("k1", "k2", "k3", "abs")


@stored
@dataclass(frozen=True)
class KlOptions:
    """What the KL is asked to be. `estimator` is one of those that are declared; clamps are declared, not asked for."""

    estimator: str = "k1"

    def offered_by(self, adapter: Kl) -> bool:
        """Whether an adapter declares what is asked for."""
        return self.estimator in adapter.kl_estimators


class Kl:
    """Estimators of the KL."""

    kl_estimators: Annotated[Sequence[str], SomeOf(ESTIMATORS), 'of "k1", "k2", "k3", "abs"'] = ("k1", "k2", "k3")
    kl_log_ratio_clamp: Annotated[
        float | None, AtLeast(0.0, or_none=True), "how far from 0 the log-ratio is held before anything is made of it"
    ] = None
    kl_clamp: Annotated[float | None, AtLeast(0.0, or_none=True), "how far from 0 the estimate is held"] = None
    kl_clamped: Annotated[Sequence[str], SomeOf(ESTIMATORS), "the estimators that the clamps hold"] = ESTIMATORS
    kl_gradient: Annotated[
        str | None,
        OneOf((None, "plain", "k2", "weighted")),
        "the gradient that the KL has as a term of the loss: that of the estimate, that of k2 whatever the estimate, "
        "or that of the estimate times `exp(log_prob - log_prob.detach())`; None: it is no such term",
    ] = None
    kl_masked: Annotated[
        str | None,
        OneOf((None, "zero")),
        '"zero" if cells outside of the mask are promised a KL of 0, None if nothing is promised',
    ] = None

    @method(
        Numbers(lambda given: tuple(given["log_probs"].shape), "a KL for each cell"),
        leaf="log_probs",
        formula="rlhf_spec.kl.kl",
        returns="the KL of each cell, a tensor shaped like log_probs",
    )
    def kl(self, log_probs: Tensor, ref_log_probs: Tensor, action_mask: Tensor, options: KlOptions) -> Tensor:
        """The KL from the reference as `options.estimator` estimates it, in nats. All tensors (B, T); `action_mask` 1
        on actions. -> (B, T), of which the actions are judged"""
        raise NotImplementedError
