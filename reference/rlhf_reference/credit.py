"""The whole path from scores to advantages, as PPO for language models goes it (Stiennon et al. 2020, appendix C)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from rlhf_reference.advantages import advantages_and_returns
from rlhf_reference.kl import token_kl
from rlhf_reference.token_rewards import token_level_rewards
from rlhf_reference.whitening import whiten


def credited(
    scores: Tensor,
    log_probs: Tensor,
    ref_log_probs: Tensor,
    values: Tensor,
    action_mask: Tensor,
    *,
    estimator: str = "k1",
    log_ratio_clamp: float | None = None,
    clamp: float | None = None,
    kl_coef: float = 0.1,
    score_clip: float | None = None,
    gamma: float = 1.0,
    lam: float = 0.95,
    whitening: Mapping[str, Any] | None = None,
) -> tuple[Tensor, Tensor]:
    """Advantages and returns of a batch.

    scores                              (B,) floating, one for each sample
    log_probs, ref_log_probs, values    (B, T) floating; of the policy that sampled, of the reference, of the critic
    action_mask                         (B, T), nonzero where a token is an action; what lies elsewhere is not read
    whitening                           None, or options of `whiten`, {} for its own: the advantages come out whitened
                                        over the actions of the batch, and the returns as they were
    returns                             two of (B, T), 0 outside the mask, without a graph
    """
    kl = token_kl(log_probs, ref_log_probs, action_mask, estimator, log_ratio_clamp=log_ratio_clamp, clamp=clamp)
    rewards = token_level_rewards(scores, kl, action_mask, kl_coef=kl_coef, score_clip=score_clip)
    advantages, returns = advantages_and_returns(rewards, values, action_mask, gamma=gamma, lam=lam)
    return advantages if whitening is None else whiten(advantages, action_mask, **whitening), returns
