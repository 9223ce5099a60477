"""How far the policy has left the reference model, token by token.

All estimators are functions of d = log p - log p_ref at the sampled token (J. Schulman, "Approximating KL divergence",
2020). In expectation over the policy k1 and k3 are the KL divergence; k2 and |d| are not, and vary less.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

ESTIMATORS: dict[str, Callable[[Tensor], Tensor]] = {
    "k1": lambda d: d,
    "k2": lambda d: d.square() / 2,
    "k3": lambda d: torch.expm1(-d) + d,  # expm1: exp(-d) - 1 loses all digits of a small d
    "abs": torch.abs,
}


def token_kl(
    log_probs: Tensor,
    ref_log_probs: Tensor,
    action_mask: Tensor,
    estimator: str = "k1",
    *,
    log_ratio_clamp: float | None = None,
    clamp: float | None = None,
) -> Tensor:
    """The KL of each action, in nats, with a graph to both log-probs.

    log_probs, ref_log_probs    (B, T) floating, of the sampled tokens
    action_mask                 (B, T), nonzero where a token is an action; what lies elsewhere is not read, be it NaN
    log_ratio_clamp, clamp      how far d, and then the estimate, are held from 0; no gradient where they bind
    returns                     (B, T), 0 outside the mask, in fp32 or better
    raises                      ValueError for an estimator that there is not

    d is held before its exponential is taken: held afterwards, an infinite k3 is 10 with a gradient of NaN.
    """
    if estimator not in ESTIMATORS:
        raise ValueError(f"unknown estimator {estimator!r}")
    wide = torch.promote_types(log_probs.dtype, torch.float32)
    chosen = action_mask.bool()
    d = log_probs.to(wide).where(chosen, 0.0) - ref_log_probs.to(wide).where(chosen, 0.0)
    if log_ratio_clamp is not None:
        d = d.clamp(-log_ratio_clamp, log_ratio_clamp)
    kl = ESTIMATORS[estimator](d)
    return kl if clamp is None else kl.clamp(-clamp, clamp)
