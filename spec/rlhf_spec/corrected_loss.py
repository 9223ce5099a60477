"""The policy loss of actions that another engine sampled.

Either the loss of each action, after its clip, is multiplied by the weight of the action, ``off_policy_weights``, which
is a constant; or, as a bypass, the ratio itself is taken to the engine's log-probs: ``exp(lp - rollout)``. Sources: Yao
et al., "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training", 2025, for the weight; the rollout
correction of verl, 2025, for the bypass.
"""

from __future__ import annotations

from rlhf_spec.aggregation import Masks, Rows
from rlhf_spec.off_policy_correction import off_policy_weights
from rlhf_spec.policy_loss import policy_loss, policy_loss_gradient

REJECTED = ("counted", "left-out")


def corrected_loss(
    log_probs: Rows,
    old_log_probs: Rows,
    advantages: Rows,
    rollout_log_probs: Rows,
    action_mask: Masks,
    *,
    clip_eps_low: float,
    clip_eps_high: float,
    dual_clip: float | None = None,
    surrogate: str = "ppo",
    cispo_bounds: str = "both",
    bypass: bool = False,
    level: str | None = None,
    mode: str = "truncate",
    upper: float = 2.0,
    lower: float | None = None,
    sequence_weight: str = "product",
    log_clamp: float | None = None,
    log_clamped: str = "exponent",
    kept: str = "weight",
    of_nan: str | None = None,
    rejected: str = "counted",
    aggregation: str = "token-mean",
    global_count: float | None = None,
    count_empty_rows: bool = False,
    constant_length: float | None = None,
) -> float:
    """The losses of all actions times their weights, aggregated: ``B rows of (T,) -> ()``.

    Without a ``level`` there are no weights. With ``bypass`` the old log-probs are those of the engine. An action whose
    weight is 0 has the loss 0, whatever it would have been; it stays in the denominator where ``rejected`` is
    "counted", and is no action where it is "left-out". Masked cells are never read. Raises ValueError where the shapes
    differ, and as ``token_surrogate_loss``, ``off_policy_weights`` and ``aggregate`` do.

    >>> lp, olp, adv, rollout = [[-1.0, -2.0]], [[-1.0, -2.0]], [[3.0, -5.0]], [[-1.5, -1.0]]
    >>> band = dict(clip_eps_low=0.2, clip_eps_high=0.2)
    >>> corrected_loss(lp, olp, adv, rollout, [[1, 1]], **band)  # (-3 + 5) / 2
    1.0
    >>> round(corrected_loss(lp, olp, adv, rollout, [[1, 1]], **band, level="token"), 4)  # weights exp(0.5), exp(-1)
    -1.5534
    >>> corrected_loss(lp, olp, adv, rollout, [[1, 1]], **band, level="token", mode="mask", upper=1.0, lower=0.2)
    0.9196986029286058
    >>> asked = dict(level="token", mode="mask", upper=1.0, lower=0.2, rejected="left-out")
    >>> round(corrected_loss(lp, olp, adv, rollout, [[1, 1]], **band, **asked), 4)  # 5 exp(-1)
    1.8394
    >>> round(corrected_loss(lp, olp, adv, rollout, [[1, 1]], **band, bypass=True), 4)  # (-1.2 * 3 + 0.8 * 5) / 2
    0.2
    """
    loss_weights, mask = weights_and_mask(
        old_log_probs,
        rollout_log_probs,
        action_mask,
        level=level,
        mode=mode,
        upper=upper,
        lower=lower,
        sequence_weight=sequence_weight,
        log_clamp=log_clamp,
        log_clamped=log_clamped,
        kept=kept,
        of_nan=of_nan,
        rejected=rejected,
    )
    return policy_loss(
        log_probs,
        rollout_log_probs if bypass else old_log_probs,
        advantages,
        mask,
        clip_eps_low=clip_eps_low,
        clip_eps_high=clip_eps_high,
        dual_clip=dual_clip,
        surrogate=surrogate,
        cispo_bounds=cispo_bounds,
        aggregation=aggregation,
        global_count=global_count,
        count_empty_rows=count_empty_rows,
        constant_length=constant_length,
        loss_weights=loss_weights,
    )


def corrected_loss_gradient(
    log_probs: Rows,
    old_log_probs: Rows,
    advantages: Rows,
    rollout_log_probs: Rows,
    action_mask: Masks,
    *,
    clip_eps_low: float,
    clip_eps_high: float,
    dual_clip: float | None = None,
    surrogate: str = "ppo",
    cispo_bounds: str = "both",
    bypass: bool = False,
    level: str | None = None,
    mode: str = "truncate",
    upper: float = 2.0,
    lower: float | None = None,
    sequence_weight: str = "product",
    log_clamp: float | None = None,
    log_clamped: str = "exponent",
    kept: str = "weight",
    of_nan: str | None = None,
    rejected: str = "counted",
    aggregation: str = "token-mean",
    global_count: float | None = None,
    count_empty_rows: bool = False,
    constant_length: float | None = None,
) -> list[list[float]]:
    """The gradient of ``corrected_loss`` with respect to the new log-probs: the weights are constants in it. Rows
    shaped like them, 0 under the mask and for actions whose weight is 0.

    >>> lp, olp, adv, rollout = [[-1.0, -2.0]], [[-1.0, -2.0]], [[3.0, -5.0]], [[-1.5, -1.0]]
    >>> band = dict(clip_eps_low=0.2, clip_eps_high=0.2)
    >>> found = corrected_loss_gradient(lp, olp, adv, rollout, [[1, 1]], **band, level="token")
    >>> [round(x, 4) for x in found[0]]  # -3 exp(0.5) / 2, 5 exp(-1) / 2
    [-2.4731, 0.9197]
    """
    loss_weights, mask = weights_and_mask(
        old_log_probs,
        rollout_log_probs,
        action_mask,
        level=level,
        mode=mode,
        upper=upper,
        lower=lower,
        sequence_weight=sequence_weight,
        log_clamp=log_clamp,
        log_clamped=log_clamped,
        kept=kept,
        of_nan=of_nan,
        rejected=rejected,
    )
    return policy_loss_gradient(
        log_probs,
        rollout_log_probs if bypass else old_log_probs,
        advantages,
        mask,
        clip_eps_low=clip_eps_low,
        clip_eps_high=clip_eps_high,
        dual_clip=dual_clip,
        surrogate=surrogate,
        cispo_bounds=cispo_bounds,
        aggregation=aggregation,
        global_count=global_count,
        count_empty_rows=count_empty_rows,
        constant_length=constant_length,
        loss_weights=loss_weights,
    )


def weights_and_mask(
    old_log_probs: Rows,
    rollout_log_probs: Rows,
    action_mask: Masks,
    *,
    level: str | None,
    mode: str,
    upper: float,
    lower: float | None = None,
    sequence_weight: str = "product",
    log_clamp: float | None = None,
    log_clamped: str = "exponent",
    kept: str = "weight",
    of_nan: str | None = None,
    rejected: str = "counted",
) -> tuple[list[list[float]], Masks]:
    """The weights of the actions, and which of them are left: ``B rows of (T,)`` each. Raises ValueError for another
    ``rejected``, and as ``off_policy_weights`` does.

    >>> old, rollout, mask = [[-1.0, -2.0]], [[-1.0, -1.0]], [[1, 1]]
    >>> weights_and_mask(old, rollout, mask, level="token", mode="mask", upper=2.0, lower=0.5, rejected="left-out")
    ([[1.0, 0.0]], [[1, 0]])
    """
    if rejected not in REJECTED:
        raise ValueError(f"rejected {rejected!r} is none of {', '.join(REJECTED)}")
    if level is None:
        return [[1.0] * len(mask) for mask in action_mask], action_mask
    found = off_policy_weights(
        old_log_probs,
        rollout_log_probs,
        action_mask,
        level=level,
        mode=mode,
        upper=upper,
        lower=lower,
        sequence_weight=sequence_weight,
        log_clamp=log_clamp,
        log_clamped=log_clamped,
        kept=kept,
        of_nan=of_nan,
    )
    if rejected == "counted" or mode != "mask":
        return found, action_mask
    left = zip(action_mask, found, strict=True)
    return found, [[int(bool(m and weight)) for m, weight in zip(*row, strict=True)] for row in left]
