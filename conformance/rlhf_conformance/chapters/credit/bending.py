"""The whole path with its steps as arguments, for those who bend one of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import rlhf_reference as ref
from rlhf_conformance.chapters.advantages.bending import gae, with_returns
from rlhf_conformance.chapters.kl.faults import ESTIMATES, held, log_ratio
from rlhf_conformance.chapters.token_rewards.faults import rewards

if TYPE_CHECKING:
    from torch import Tensor


def penalized(adapter: Any, log_probs: Tensor, ref_log_probs: Tensor, mask: Tensor, options: Any) -> Tensor:
    """(B, T) the KL of each action."""
    return held(adapter, log_ratio(log_probs, ref_log_probs, mask), options, ESTIMATES[options.estimator])


def path(
    adapter: Any,
    arguments: tuple[Any, ...],
    *,
    kl: Callable[..., Tensor] = penalized,
    rewarded: Callable[..., Tensor] = rewards,
    recursion: Callable[..., Tensor] = gae,
) -> tuple[Tensor, Tensor]:
    """Advantages and returns of the adapter's six arguments, with another step: kl(adapter, log_probs, ref_log_probs,
    mask, options), rewarded(scores, kl, mask, options), or recursion(rewards, values, mask, options). Advantages are
    whitened where that is asked for."""
    scores, log_probs, ref_log_probs, values, mask, options = arguments
    estimates = kl(adapter, log_probs, ref_log_probs, mask, options)
    made = recursion(rewarded(scores, estimates, mask, options), values, mask, options)
    advantages, returns = with_returns(made, values, mask)
    return ref.whiten(advantages, mask, **adapter._whitening()) if options.whiten else advantages, returns
