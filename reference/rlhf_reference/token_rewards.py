"""From one score for a response to a reward for each of its tokens (Ziegler et al. 2019, section 2).

The score lands at the last action. What stands behind that, padding or an observation, is not trained on, and a score
there would be lost.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

MissingStop = Literal["constant", "factor"]


def token_level_rewards(
    scores: Tensor,
    kl: Tensor,
    action_mask: Tensor,
    *,
    kl_coef: float,
    score_clip: float | None = None,
    stopped: Tensor | None = None,
    stop_penalty: float | None = None,
    missing_stop: MissingStop = "constant",
) -> Tensor:
    """Minus the coefficient times the KL of each action, and the score on top at the last one. No graph.

    scores       (B,) floating, one for each sample; clipped to +-score_clip first where that is given
    kl           (B, T) floating, of each token; what lies outside the mask is not read
    action_mask  (B, T), nonzero where a token is an action; may have holes
    stopped, stop_penalty, missing_stop     as in `penalized_scores`, before the clip; without either of the first two
                                            no score is penalized
    returns      (B, T), 0 outside the mask; a row without an action has no reward at all
    """
    scores, kl, chosen = scores.detach(), kl.detach(), action_mask.bool()
    if stopped is not None and stop_penalty is not None:
        scores = penalized_scores(scores, stopped, stop_penalty, missing_stop)
    if score_clip is not None:
        scores = scores.clamp(-score_clip, score_clip)
    columns = torch.arange(chosen.shape[1], device=chosen.device)
    last = columns.where(chosen, -1).amax(1, keepdim=True)
    penalties = kl_coef * kl.where(chosen, 0.0) if kl_coef else torch.zeros_like(kl)  # 0 * inf is NaN
    return scores[:, None].where(columns == last, 0.0) - penalties


def penalized_scores(scores: Tensor, stopped: Tensor, stop_penalty: float, missing_stop: MissingStop) -> Tensor:
    """The scores of samples that did not stop are exchanged for the penalty, or multiplied with it. No graph.

    scores        (B,) floating
    stopped       (B,), nonzero on samples that ended with a stop token
    missing_stop  "constant": the penalty in place of the score; "factor": the score times the penalty, and the penalty
                  in its place where that is negative
    returns       (B,)
    raises        ValueError for another rule
    """
    if missing_stop not in ("constant", "factor"):
        raise ValueError(f"unknown rule for a missing stop: {missing_stop!r}")
    scores = scores.detach()
    is_factor = missing_stop == "factor" and stop_penalty >= 0
    return scores.where(stopped.bool(), scores * stop_penalty if is_factor else stop_penalty)
