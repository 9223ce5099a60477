"""From one score for a response to a reward for each of its tokens (Ziegler et al. 2019, section 2).

The score lands at the last action. What stands behind that, padding or an observation, is not trained on, and a score
there would be lost.
"""

from __future__ import annotations

import torch
from torch import Tensor


def token_level_rewards(
    scores: Tensor, kl: Tensor, action_mask: Tensor, *, kl_coef: float, score_clip: float | None = None
) -> Tensor:
    """Minus the coefficient times the KL of each action, and the score on top at the last one. No graph.

    scores       (B,) floating, one for each sample; clipped to +-score_clip first where that is given
    kl           (B, T) floating, of each token; what lies outside the mask is not read
    action_mask  (B, T), nonzero where a token is an action; may have holes
    returns      (B, T), 0 outside the mask; a row without an action has no reward at all
    """
    scores, kl, chosen = scores.detach(), kl.detach(), action_mask.bool()
    if score_clip is not None:
        scores = scores.clamp(-score_clip, score_clip)
    columns = torch.arange(chosen.shape[1], device=chosen.device)
    last = columns.where(chosen, -1).amax(1, keepdim=True)
    penalties = kl_coef * kl.where(chosen, 0.0) if kl_coef else torch.zeros_like(kl)  # 0 * inf is NaN
    return scores[:, None].where(columns == last, 0.0) - penalties
