"""The objective: what an optimizer step minimises.

``policy loss + value_coef * value loss + kl_coef * KL - entropy_coef * entropy``: each term is a loss of tokens under
the same action mask, put together by its own mean, which is that of the policy loss unless it is said otherwise.
Sources: Schulman et al. 2017, arXiv:1707.06347, equation 9, for the value and the entropy; Shao et al. 2024,
arXiv:2402.03300, equation 3, for the KL beside the policy loss; DeepSeek-AI 2025, arXiv:2512.02556, for the KL times
the ratio.
"""

from __future__ import annotations

import math
from typing import Any

from rlhf_spec.aggregation import Masks, Rows, aggregate, check_shapes, map_actions, scale, weights
from rlhf_spec.kl import token_kl, token_kl_gradient
from rlhf_spec.policy_loss import of_sequences, policy_loss, policy_loss_gradient, ratio
from rlhf_spec.value_loss import token_value_loss, token_value_loss_gradient

TERMS = ("value", "kl", "entropy")
AS_POLICY = "as-policy"
KL_CORRECTIONS = ("none", "ratio")


def value_term(
    values: Rows,
    old_values: Rows,
    returns: Rows,
    action_mask: Masks,
    *,
    value_clip_eps: float | None = None,
    value_aggregation: str = AS_POLICY,
    aggregation: str = "token-mean",
    global_count: float | None = None,
    count_empty_rows: bool = False,
    constant_length: float | None = None,
) -> float:
    """The value loss as a term, before its coefficient: ``B rows of (T,) -> ()``, in squared units of reward.

    ``value_aggregation`` is a mean or ``"as-policy"``, which is ``aggregation``. Raises ValueError as
    ``token_value_loss`` and ``aggregate`` do.

    >>> value_term([[5.0, 3.0]], [[0.0, 0.0]], [[2.0, 1.0]], [[1, 1]])  # (4.5 + 2) / 2
    3.25
    """
    losses = map_actions(
        lambda value, old_value, return_: token_value_loss(value, old_value, return_, value_clip_eps),
        action_mask,
        values,
        old_values,
        returns,
    )
    return _term(losses, action_mask, value_aggregation, aggregation, global_count, count_empty_rows, constant_length)


def kl_corrections(
    log_probs: Rows,
    old_log_probs: Rows,
    action_mask: Masks,
    *,
    kl_correction: str = "none",
    surrogate: str = "ppo",
) -> list[list[float]]:
    """What the KL of each action is multiplied with: 1, or for ``"ratio"`` the ratio of the policy to the one that
    sampled, for ``"gspo"`` that of the sequence: ``B rows of (T,) -> B rows of (T,)``, 0 under the mask.

    With it the estimate, whose action the old policy has sampled, is one of the KL of the new policy (TRL,
    ``use_bias_correction_kl``). Raises ValueError for a correction that is none of ``KL_CORRECTIONS``.

    >>> kl_corrections([[-1.0, -2.0]], [[-1.0, -1.0]], [[1, 0]])
    [[1.0, 0.0]]
    >>> kl_corrections([[0.0, 2.0]], [[0.0, 0.0]], [[1, 1]], kl_correction="ratio", surrogate="gspo")  # e for both
    [[2.718281828459045, 2.718281828459045]]
    """
    if kl_correction not in KL_CORRECTIONS:
        raise ValueError(f"there is no KL correction {kl_correction!r}; they are {', '.join(KL_CORRECTIONS)}")
    if kl_correction == "none":
        return map_actions(lambda _: 1.0, action_mask, log_probs)
    return map_actions(ratio, action_mask, *of_sequences(log_probs, old_log_probs, action_mask, surrogate))


def kl_term(
    log_probs: Rows,
    ref_log_probs: Rows,
    action_mask: Masks,
    *,
    old_log_probs: Rows | None = None,
    surrogate: str = "ppo",
    estimator: str = "k3",
    log_ratio_clamp: float | None = None,
    clamp: float | None = None,
    kl_correction: str = "none",
    kl_aggregation: str = AS_POLICY,
    aggregation: str = "token-mean",
    global_count: float | None = None,
    count_empty_rows: bool = False,
    constant_length: float | None = None,
) -> float:
    """The KL from the reference as a term, before its coefficient: ``B rows of (T,) -> ()``, in nats.

    ``old_log_probs`` and ``surrogate`` are those of the policy loss, for ``kl_correction``. Raises ValueError as
    ``token_kl``, ``kl_corrections`` and ``aggregate`` do.

    >>> kl_term([[-1.0, -2.0]], [[-1.5, -2.5]], [[1, 1]], estimator="k2")  # 0.5^2 / 2 each
    0.125
    >>> old = [[-1.0, -2.0 - math.log(3.0)]]
    >>> of_kl = dict(old_log_probs=old, estimator="k2", kl_correction="ratio")
    >>> round(kl_term([[-1.0, -2.0]], [[-1.5, -2.5]], [[1, 1]], **of_kl), 6)  # 1 and 3 times 0.125
    0.25
    """
    corrections = kl_corrections(
        log_probs, old_log_probs or log_probs, action_mask, kl_correction=kl_correction, surrogate=surrogate
    )
    estimates = map_actions(
        lambda log_prob, ref, correction: correction * token_kl(log_prob, ref, estimator, log_ratio_clamp, clamp),
        action_mask,
        log_probs,
        ref_log_probs,
        corrections,
    )
    return _term(estimates, action_mask, kl_aggregation, aggregation, global_count, count_empty_rows, constant_length)


def entropy_term(
    entropies: Rows,
    action_mask: Masks,
    *,
    entropy_aggregation: str = AS_POLICY,
    aggregation: str = "token-mean",
    global_count: float | None = None,
    count_empty_rows: bool = False,
    constant_length: float | None = None,
) -> float:
    """The entropy as a term, before its coefficient and its sign: ``B rows of (T,) -> ()``, in nats.

    >>> entropy_term([[1.0, 2.0], [6.0, 9.0]], [[1, 1], [1, 0]])
    3.0
    >>> entropy_term([[1.0, 2.0], [6.0, 9.0]], [[1, 1], [1, 0]], entropy_aggregation="sequence-mean")  # (1.5 + 6) / 2
    3.75
    """
    check_shapes(action_mask, entropies)
    return _term(
        entropies, action_mask, entropy_aggregation, aggregation, global_count, count_empty_rows, constant_length
    )


def objective(
    log_probs: Rows,
    old_log_probs: Rows,
    advantages: Rows,
    entropies: Rows,
    ref_log_probs: Rows,
    values: Rows,
    old_values: Rows,
    returns: Rows,
    action_mask: Masks,
    *,
    clip_eps_low: float,
    clip_eps_high: float,
    dual_clip: float | None = None,
    surrogate: str = "ppo",
    cispo_bounds: str = "both",
    value_coef: float = 0.0,
    value_clip_eps: float | None = None,
    value_aggregation: str = AS_POLICY,
    kl_coef: float = 0.0,
    estimator: str = "k3",
    log_ratio_clamp: float | None = None,
    clamp: float | None = None,
    kl_correction: str = "none",
    kl_aggregation: str = AS_POLICY,
    entropy_coef: float = 0.0,
    entropy_aggregation: str = AS_POLICY,
    aggregation: str = "token-mean",
    global_count: float | None = None,
    count_empty_rows: bool = False,
    constant_length: float | None = None,
) -> float:
    """What a step minimises, to be read off one batch: ``B rows of (T,) -> ()``. Cells under the mask are never read,
    and of a term whose coefficient is 0 no cell is.

    Raises ValueError where a shape differs, and as the terms do.

    >>> lp, olp, adv = [[-1.0, -2.0]], [[-1.0, -2.0]], [[3.0, -5.0]]
    >>> rest = [[0.5, 1.5]], [[-1.5, -2.5]], [[5.0, 3.0]], [[0.0, 0.0]], [[2.0, 1.0]]
    >>> band = dict(clip_eps_low=0.2, clip_eps_high=0.2)
    >>> objective(lp, olp, adv, *rest, [[1, 1]], **band)  # the policy loss, (-3 + 5) / 2
    1.0
    >>> objective(lp, olp, adv, *rest, [[1, 1]], **band, value_coef=0.5)  # + 0.5 * 3.25
    2.625
    >>> objective(lp, olp, adv, *rest, [[1, 1]], **band, kl_coef=2.0, estimator="k2")  # + 2 * 0.125
    1.25
    >>> objective(lp, olp, adv, *rest, [[1, 1]], **band, entropy_coef=0.25)  # - 0.25 * 1
    0.75
    """
    mean: dict[str, Any] = {
        "aggregation": aggregation,
        "global_count": global_count,
        "count_empty_rows": count_empty_rows,
        "constant_length": constant_length,
    }
    total = policy_loss(
        log_probs,
        old_log_probs,
        advantages,
        action_mask,
        clip_eps_low=clip_eps_low,
        clip_eps_high=clip_eps_high,
        dual_clip=dual_clip,
        surrogate=surrogate,
        cispo_bounds=cispo_bounds,
        **mean,
    )
    if value_coef:
        of_value: dict[str, Any] = {"value_clip_eps": value_clip_eps, "value_aggregation": value_aggregation}
        total += value_coef * value_term(values, old_values, returns, action_mask, **of_value, **mean)
    if kl_coef:
        of_kl: dict[str, Any] = {"estimator": estimator, "log_ratio_clamp": log_ratio_clamp, "clamp": clamp}
        of_kl |= {"kl_correction": kl_correction, "surrogate": surrogate, "kl_aggregation": kl_aggregation}
        total += kl_coef * kl_term(log_probs, ref_log_probs, action_mask, old_log_probs=old_log_probs, **of_kl, **mean)
    if entropy_coef:
        total -= entropy_coef * entropy_term(entropies, action_mask, entropy_aggregation=entropy_aggregation, **mean)
    return total


def objective_gradient(
    log_probs: Rows,
    old_log_probs: Rows,
    advantages: Rows,
    ref_log_probs: Rows,
    action_mask: Masks,
    *,
    clip_eps_low: float,
    clip_eps_high: float,
    dual_clip: float | None = None,
    surrogate: str = "ppo",
    cispo_bounds: str = "both",
    kl_coef: float = 0.0,
    estimator: str = "k3",
    log_ratio_clamp: float | None = None,
    clamp: float | None = None,
    kl_correction: str = "none",
    kl_gradient: str = "plain",
    kl_aggregation: str = AS_POLICY,
    aggregation: str = "token-mean",
    global_count: float | None = None,
    count_empty_rows: bool = False,
    constant_length: float | None = None,
) -> list[list[float]]:
    """The gradient of ``objective`` with respect to the log-probs: that of the policy loss and that of the KL, whether
    or not the clip binds. Rows shaped like them, 0 under the mask. The entropies are arguments of their own. A
    correction of the KL has a gradient where ``kl_gradient`` is ``"weighted"``, and is a constant otherwise.

    >>> band = dict(clip_eps_low=0.2, clip_eps_high=0.2)
    >>> objective_gradient([[-1.0]], [[-1.0]], [[3.0]], [[-1.5]], [[1]], **band, kl_coef=2.0, estimator="k2")  # -3 + 1
    [[-2.0]]
    >>> objective_gradient([[-1.0]], [[-3.0]], [[3.0]], [[-1.5]], [[1]], **band, kl_coef=2.0, estimator="k2")  # clipped
    [[1.0]]
    """
    mean: dict[str, Any] = {
        "global_count": global_count,
        "count_empty_rows": count_empty_rows,
        "constant_length": constant_length,
    }
    of_policy = policy_loss_gradient(
        log_probs,
        old_log_probs,
        advantages,
        action_mask,
        clip_eps_low=clip_eps_low,
        clip_eps_high=clip_eps_high,
        dual_clip=dual_clip,
        surrogate=surrogate,
        cispo_bounds=cispo_bounds,
        aggregation=aggregation,
        **mean,
    )
    if not kl_coef:
        return of_policy
    corrections = kl_corrections(
        log_probs, old_log_probs, action_mask, kl_correction=kl_correction, surrogate=surrogate
    )
    token_weights = weights(action_mask, mean_of(kl_aggregation, aggregation), **mean)
    through_sequences = (kl_correction, kl_gradient, surrogate) == ("ratio", "weighted", "gspo")
    slopes = map_actions(
        lambda log_prob, ref, correction: (
            kl_coef
            * correction
            * token_kl_gradient(
                log_prob, ref, estimator, log_ratio_clamp, clamp, "plain" if through_sequences else kl_gradient
            )
        ),
        action_mask,
        log_probs,
        ref_log_probs,
        corrections,
    )
    of_kl = scale(slopes, token_weights)
    if through_sequences:
        corrected = map_actions(
            lambda log_prob, ref, correction: (
                kl_coef * correction * token_kl(log_prob, ref, estimator, log_ratio_clamp, clamp)
            ),
            action_mask,
            log_probs,
            ref_log_probs,
            corrections,
        )
        through = _through_sequences(scale(corrected, token_weights), action_mask)
        of_kl = _sum(of_kl, through)
    return _sum(of_policy, of_kl)


def objective_gradient_of_values(
    values: Rows,
    old_values: Rows,
    returns: Rows,
    action_mask: Masks,
    *,
    value_coef: float = 0.0,
    value_clip_eps: float | None = None,
    value_aggregation: str = AS_POLICY,
    aggregation: str = "token-mean",
    global_count: float | None = None,
    count_empty_rows: bool = False,
    constant_length: float | None = None,
) -> list[list[float]]:
    """The gradient of ``objective`` with respect to the values: rows shaped like them, 0 under the mask.

    >>> objective_gradient_of_values([[5.0, 3.0]], [[0.0, 0.0]], [[2.0, 1.0]], [[1, 1]], value_coef=0.5)
    [[0.75, 0.5]]
    """
    slopes = map_actions(
        lambda value, old_value, return_: (
            value_coef * token_value_loss_gradient(value, old_value, return_, value_clip_eps) if value_coef else 0.0
        ),
        action_mask,
        values,
        old_values,
        returns,
    )
    token_weights = weights(
        action_mask,
        mean_of(value_aggregation, aggregation),
        global_count=global_count,
        count_empty_rows=count_empty_rows,
        constant_length=constant_length,
    )
    return scale(slopes, token_weights)


def objective_gradient_of_entropies(
    action_mask: Masks,
    *,
    entropy_coef: float = 0.0,
    entropy_aggregation: str = AS_POLICY,
    aggregation: str = "token-mean",
    global_count: float | None = None,
    count_empty_rows: bool = False,
    constant_length: float | None = None,
) -> list[list[float]]:
    """The gradient of ``objective`` with respect to the entropies: minus the coefficient at each action, weighted as in
    the mean; 0 under the mask.

    >>> objective_gradient_of_entropies([[1, 1], [1, 0]], entropy_coef=0.75)
    [[-0.25, -0.25], [-0.25, 0.0]]
    """
    token_weights = weights(
        action_mask,
        mean_of(entropy_aggregation, aggregation),
        global_count=global_count,
        count_empty_rows=count_empty_rows,
        constant_length=constant_length,
    )
    return [[-entropy_coef * weight if weight else 0.0 for weight in row] for row in token_weights]


def mean_of(own: str, aggregation: str) -> str:
    """The mean of a term: its own, or for ``"as-policy"`` that of the policy loss.

    >>> mean_of("as-policy", "sequence-mean"), mean_of("token-mean", "sequence-mean")
    ('sequence-mean', 'token-mean')
    """
    return aggregation if own == AS_POLICY else own


def _sum(one: Rows, other: Rows) -> list[list[float]]:
    return [[x + y for x, y in zip(*rows, strict=True)] for rows in zip(one, other, strict=True)]


def _through_sequences(rows: Rows, action_mask: Masks) -> list[list[float]]:
    """To each action its share of what the ratio of its sequence multiplies."""
    found = []
    for row, mask in zip(rows, action_mask, strict=True):
        total = math.fsum(x for x, m in zip(row, mask, strict=True) if m)
        found.append([total / sum(map(bool, mask)) if m else 0.0 for m in mask])
    return found


def _term(
    rows: Rows,
    action_mask: Masks,
    own: str,
    aggregation: str,
    global_count: float | None,
    count_empty_rows: bool,
    constant_length: float | None,
) -> float:
    return aggregate(
        rows,
        action_mask,
        mean_of(own, aggregation),
        global_count=global_count,
        count_empty_rows=count_empty_rows,
        constant_length=constant_length,
    )
