"""The policy loss of PPO: more of what went better than expected, but not too far from the policy that sampled it.

``r = exp(lp - olp)`` says how much likelier an action is now than when it was sampled. The loss of a token is
``-min(r A, clip(r, 1 - eps_low, 1 + eps_high) A)``: it follows ``-r A`` until the ratio has left the band on the side
that the advantage pushes it to, and is flat from there on. For ``A < 0`` the other side is without bound; the dual
clip bounds it at ``-c A``. Sources: Schulman et al. 2017, arXiv:1707.06347, equation 7; Ye et al. 2020,
arXiv:1912.09729, for the dual clip; Yu et al. 2025, arXiv:2503.14476, for two different bounds.

Other surrogates are in use beside PPO's: GSPO takes one ratio for each sequence (Zheng et al. 2025, arXiv:2507.18071),
CISPO the log-prob times a clipped ratio without a graph (MiniMax 2025, arXiv:2506.13585), and REINFORCE the log-prob
without a ratio (Williams 1992).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from rlhf_spec.aggregation import Masks, Rows, Steps, aggregate, check_shapes, map_actions, scale, token_mean, weights

SURROGATES = ("ppo", "gspo", "cispo", "reinforce")
CISPO_BOUNDS = ("both", "upper", "cap")


def ratio(log_prob: float, old_log_prob: float) -> float:
    """``exp(lp - olp)``, of two log-probs in nats. Above what a float can hold it is inf, not an error.

    Raises ValueError where the difference is NaN.

    >>> round(ratio(math.log(0.6), math.log(0.4)), 6)
    1.5
    >>> ratio(0.0, -1000.0)
    inf
    """
    log_ratio = log_prob - old_log_prob
    if math.isnan(log_ratio):
        raise ValueError(f"there is no ratio of the log-probs {log_prob} and {old_log_prob}")
    try:
        return math.exp(log_ratio)
    except OverflowError:
        return math.inf


def clip(x: float, lowest: float, highest: float) -> float:
    """``x``, or the nearer bound where it lies outside.

    >>> clip(1.5, 0.8, 1.2), clip(0.5, 0.8, 1.2), clip(1.1, 0.8, 1.2)
    (1.2, 0.8, 1.1)
    """
    return min(max(x, lowest), highest)


def token_policy_loss(
    log_prob: float,
    old_log_prob: float,
    advantage: float,
    clip_eps_low: float,
    clip_eps_high: float,
    dual_clip: float | None = None,
    *,
    steps: Steps | None = None,
) -> float:
    """The loss of one action: ``-min(r A, clip(r, 1 - eps_low, 1 + eps_high) A)``, and for ``A < 0`` at most ``-c A``.

    An advantage of 0 gives 0, whatever the ratio. Where the ratio is inf and ``A > 0`` the clip decides; where
    ``A < 0`` and there is no dual clip, the loss is inf, as the formula says. Raises ValueError for a negative bound
    and for a dual clip ``c`` that is not above 1.

    The numbers on the way are added to ``steps``, each with its name.

    >>> double, half = math.log(2.0), math.log(0.5)
    >>> token_policy_loss(double, 0.0, 10.0, 0.25, 0.5)  # -min(20, 15)
    -15.0
    >>> token_policy_loss(half, 0.0, 10.0, 0.25, 0.5)  # -min(5, 7.5)
    -5.0
    >>> token_policy_loss(half, 0.0, -10.0, 0.25, 0.5)  # -min(-5, -7.5)
    7.5
    >>> token_policy_loss(math.log(8.0), 0.0, -10.0, 0.25, 0.5, dual_clip=3.0)  # -max(min(-80, -15), -30)
    30.0
    >>> token_policy_loss(0.0, -1000.0, 10.0, 0.25, 0.5)  # the ratio is inf, the clip decides
    -15.0
    """
    _check_bounds(clip_eps_low, clip_eps_high, dual_clip)
    if advantage == 0:
        if steps is not None:
            steps.append(("the advantage is 0, and so is the loss", 0.0))
        return 0.0
    r = ratio(log_prob, old_log_prob)
    held = clip(r, 1 - clip_eps_low, 1 + clip_eps_high)
    smaller = surrogate = min(r * advantage, held * advantage)
    if dual_clip is not None and advantage < 0:
        surrogate = max(smaller, dual_clip * advantage)
    if steps is not None:
        steps += [
            (f"ratio exp({log_prob:.7g} - {old_log_prob:.7g})", r),
            (f"ratio clipped to {1 - clip_eps_low:.7g} .. {1 + clip_eps_high:.7g}", held),
            (f"ratio * advantage {advantage:.7g}", r * advantage),
            (f"clipped ratio * advantage {advantage:.7g}", held * advantage),
            ("the smaller of the two", smaller),
        ]
        if dual_clip is not None and advantage < 0:
            steps.append((f"at least {dual_clip:.7g} * advantage {advantage:.7g}", surrogate))
    return -surrogate


def token_policy_loss_gradient(
    log_prob: float,
    old_log_prob: float,
    advantage: float,
    clip_eps_low: float,
    clip_eps_high: float,
    dual_clip: float | None = None,
) -> float:
    """The derivative of ``token_policy_loss`` with respect to ``log_prob``: ``-r A``, and 0 where a clip binds.

    At a bound itself, where the loss has a corner, it is that of the inside.

    >>> double, half = math.log(2.0), math.log(0.5)
    >>> token_policy_loss_gradient(double, 0.0, 10.0, 0.25, 0.5)  # clipped: nothing more to gain
    0.0
    >>> token_policy_loss_gradient(half, 0.0, 10.0, 0.25, 0.5)  # outside the band on the other side: still pulled back
    -5.0
    >>> token_policy_loss_gradient(double, 0.0, -10.0, 0.25, 0.5)
    20.0
    >>> token_policy_loss_gradient(math.log(8.0), 0.0, -10.0, 0.25, 0.5, dual_clip=3.0)
    0.0
    """
    _check_bounds(clip_eps_low, clip_eps_high, dual_clip)
    if advantage == 0:
        return 0.0
    r = ratio(log_prob, old_log_prob)
    if advantage > 0 and r > 1 + clip_eps_high:
        return 0.0
    if advantage < 0 and r < 1 - clip_eps_low:
        return 0.0
    if advantage < 0 and dual_clip is not None and r > dual_clip:
        return 0.0
    return -r * advantage


def sequence_log_ratio(log_probs: Sequence[float], old_log_probs: Sequence[float], mask: Sequence[int]) -> float:
    """GSPO's log-ratio of a sequence in nats, ``(T,), (T,), (T,) -> ()``: the mean over its actions of ``lp - olp``.

    Its exponential is the geometric mean of the tokens' ratios. Without any action it is 0.0. Cells under the mask are
    never read. Source: Zheng et al. 2025, arXiv:2507.18071, equation 7.

    >>> sequence_log_ratio([-1.0, -2.0, math.nan], [-1.5, -3.5, 0.0], [1, 1, 0])  # (0.5 + 1.5) / 2
    1.0
    """
    differences = map_actions(lambda lp, olp: lp - olp, [mask], [log_probs], [old_log_probs])
    return token_mean(differences, [mask])


def cispo_weight(
    log_prob: float, old_log_prob: float, clip_eps_low: float, clip_eps_high: float, cispo_bounds: str = "both"
) -> float:
    """The ratio of an action, held where ``cispo_bounds`` says, as the weight of its log-prob.

    ``"both"``: within ``1 - clip_eps_low`` and ``1 + clip_eps_high``; ``"upper"``: below ``1 + clip_eps_high``;
    ``"cap"``: below ``clip_eps_high`` itself. Raises ValueError for another name and for a negative bound.

    >>> double, half = math.log(2.0), math.log(0.5)
    >>> [cispo_weight(double, 0.0, 0.25, 0.5, bounds) for bounds in CISPO_BOUNDS]
    [1.5, 1.5, 0.5]
    >>> [round(cispo_weight(half, 0.0, 0.25, 4.0, bounds), 6) for bounds in CISPO_BOUNDS]
    [0.75, 0.5, 0.5]
    """
    _check_bounds(clip_eps_low, clip_eps_high, None)
    if cispo_bounds not in CISPO_BOUNDS:
        raise ValueError(f"there are no bounds {cispo_bounds!r}; there are {', '.join(CISPO_BOUNDS)}")
    lowest = 1 - clip_eps_low if cispo_bounds == "both" else 0.0
    highest = clip_eps_high if cispo_bounds == "cap" else 1 + clip_eps_high
    return clip(ratio(log_prob, old_log_prob), lowest, highest)


def token_surrogate_loss(
    log_prob: float,
    old_log_prob: float,
    advantage: float,
    clip_eps_low: float,
    clip_eps_high: float,
    dual_clip: float | None = None,
    surrogate: str = "ppo",
    cispo_bounds: str = "both",
    *,
    steps: Steps | None = None,
) -> float:
    """The loss of one action by the name of the surrogate.

    ``"ppo"``, and ``"gspo"`` for a log-ratio that is the sequence's: ``token_policy_loss``; ``"cispo"``: ``-w A lp``
    with ``w = cispo_weight(...)``; ``"reinforce"``: ``-A lp``. Raises ValueError for another name.

    >>> double = math.log(2.0)
    >>> round(token_surrogate_loss(-1.0, -1.0 - double, 10.0, 0.25, 0.5, surrogate="cispo"), 6)  # -1.5 * 10 * -1
    15.0
    >>> token_surrogate_loss(-1.0, -5.0, 10.0, 0.25, 0.5, surrogate="reinforce")
    10.0
    """
    _check_surrogate(surrogate)
    if surrogate in ("ppo", "gspo"):
        return token_policy_loss(log_prob, old_log_prob, advantage, clip_eps_low, clip_eps_high, dual_clip, steps=steps)
    weight = 1.0
    if surrogate == "cispo":
        weight = cispo_weight(log_prob, old_log_prob, clip_eps_low, clip_eps_high, cispo_bounds)
        if steps is not None:
            steps.append((f"ratio exp({log_prob:.7g} - {old_log_prob:.7g})", ratio(log_prob, old_log_prob)))
            steps.append((f"ratio held, bounds {cispo_bounds!r}", weight))
    if steps is not None:
        steps.append((f"that * advantage {advantage:.7g} * log-prob {log_prob:.7g}", weight * advantage * log_prob))
    return -weight * advantage * log_prob


def token_surrogate_gradient(
    log_prob: float,
    old_log_prob: float,
    advantage: float,
    clip_eps_low: float,
    clip_eps_high: float,
    dual_clip: float | None = None,
    surrogate: str = "ppo",
    cispo_bounds: str = "both",
) -> float:
    """The derivative of ``token_surrogate_loss`` with respect to ``log_prob``; CISPO's weight is a constant in it.

    >>> token_surrogate_gradient(-1.0, -1.0 - math.log(8.0), 10.0, 0.25, 0.5, surrogate="cispo")  # beyond the band, too
    -15.0
    >>> token_surrogate_gradient(-1.0, -5.0, 10.0, 0.25, 0.5, surrogate="reinforce")
    -10.0
    """
    _check_surrogate(surrogate)
    if surrogate in ("ppo", "gspo"):
        return token_policy_loss_gradient(log_prob, old_log_prob, advantage, clip_eps_low, clip_eps_high, dual_clip)
    if surrogate == "reinforce":
        return -advantage
    return -cispo_weight(log_prob, old_log_prob, clip_eps_low, clip_eps_high, cispo_bounds) * advantage


def policy_loss(
    log_probs: Rows,
    old_log_probs: Rows,
    advantages: Rows,
    action_mask: Masks,
    *,
    clip_eps_low: float,
    clip_eps_high: float,
    dual_clip: float | None = None,
    aggregation: str = "token-mean",
    global_count: float | None = None,
    count_empty_rows: bool = False,
    surrogate: str = "ppo",
    cispo_bounds: str = "both",
    constant_length: float | None = None,
    loss_weights: Rows | None = None,
) -> float:
    """The losses of all actions, aggregated: ``B rows of (T,) -> ()``. Cells under the mask are never read.

    ``loss_weights``, rows like the others, multiply the loss of each action; where one is 0, so is the loss, whatever
    it would have been. Raises ValueError where the shapes differ, and as ``token_surrogate_loss`` and ``aggregate`` do.

    >>> olp = [[0.0, 0.0], [0.0, math.nan]]
    >>> lp = [[math.log(2.0), math.log(0.5)], [0.0, math.nan]]
    >>> options = dict(clip_eps_low=0.25, clip_eps_high=0.5)
    >>> policy_loss(lp, olp, [[10.0, 10.0], [4.0, 0.0]], [[1, 1], [1, 0]], **options)  # (-15 - 5 - 4) / 3
    -8.0
    >>> policy_loss(lp, olp, [[10.0, 10.0], [4.0, 0.0]], [[1, 1], [1, 0]], **options, aggregation="sequence-mean")
    -7.0
    >>> lp[0][1] = 0.0  # GSPO: the ratio of the first sequence is the root of 2, inside the band
    >>> round(policy_loss(lp, olp, [[10.0, 10.0], [4.0, 0.0]], [[1, 1], [1, 0]], **options, surrogate="gspo"), 4)
    -10.7614
    """
    losses = map_actions(
        lambda weight, lp, olp, adv: (
            weight * token_surrogate_loss(lp, olp, adv, clip_eps_low, clip_eps_high, dual_clip, surrogate, cispo_bounds)
            if weight
            else 0.0
        ),
        action_mask,
        loss_weights or [[1.0] * len(mask) for mask in action_mask],
        *of_sequences(log_probs, old_log_probs, action_mask, surrogate),
        advantages,
    )
    return aggregate(
        losses,
        action_mask,
        aggregation,
        global_count=global_count,
        count_empty_rows=count_empty_rows,
        constant_length=constant_length,
    )


def policy_loss_gradient(
    log_probs: Rows,
    old_log_probs: Rows,
    advantages: Rows,
    action_mask: Masks,
    *,
    clip_eps_low: float,
    clip_eps_high: float,
    dual_clip: float | None = None,
    aggregation: str = "token-mean",
    global_count: float | None = None,
    count_empty_rows: bool = False,
    surrogate: str = "ppo",
    cispo_bounds: str = "both",
    constant_length: float | None = None,
    loss_weights: Rows | None = None,
) -> list[list[float]]:
    """The gradient of ``policy_loss`` with respect to the new log-probs: rows shaped like them, 0 under the mask.

    For GSPO the advantages of a sequence have to be equal, as they are in GRPO: through the mean every action then has
    the same share of the sequence's gradient as if the ratio had been its own.

    >>> options = dict(clip_eps_low=0.25, clip_eps_high=0.5)
    >>> policy_loss_gradient([[0.0, 0.0]], [[0.0, 0.0]], [[3.0, -5.0]], [[1, 1]], **options)  # -A / n
    [[-1.5, 2.5]]
    """
    gradients = map_actions(
        lambda weight, lp, olp, adv: (
            weight
            * token_surrogate_gradient(lp, olp, adv, clip_eps_low, clip_eps_high, dual_clip, surrogate, cispo_bounds)
            if weight
            else 0.0
        ),
        action_mask,
        loss_weights or [[1.0] * len(mask) for mask in action_mask],
        *of_sequences(log_probs, old_log_probs, action_mask, surrogate),
        advantages,
    )
    token_weights = weights(
        action_mask,
        aggregation,
        global_count=global_count,
        count_empty_rows=count_empty_rows,
        constant_length=constant_length,
    )
    return scale(gradients, token_weights)


def clip_fraction(
    log_probs: Rows,
    old_log_probs: Rows,
    advantages: Rows,
    action_mask: Masks,
    *,
    clip_eps_low: float,
    clip_eps_high: float,
) -> float:
    """The share of the actions at which the clip binds: ``(r > 1 + eps_high, A > 0)`` or ``(r < 1 - eps_low, A < 0)``.

    A ratio outside the band on the side that the advantage pulls back from does not count, and neither does the dual
    clip. Without any action it is 0.0.

    >>> lp = [[math.log(2.0), math.log(2.0), math.log(0.5), 0.0]]
    >>> clip_fraction(lp, [[0.0] * 4], [[1.0, -1.0, -1.0, 1.0]], [[1] * 4], clip_eps_low=0.2, clip_eps_high=0.2)
    0.5
    """
    _check_bounds(clip_eps_low, clip_eps_high, None)

    def is_clipped(log_prob: float, old_log_prob: float, advantage: float) -> float:
        r = ratio(log_prob, old_log_prob)
        above = r > 1 + clip_eps_high and advantage > 0
        below = r < 1 - clip_eps_low and advantage < 0
        return 1.0 if above or below else 0.0

    return token_mean(map_actions(is_clipped, action_mask, log_probs, old_log_probs, advantages), action_mask)


def approx_kl(log_probs: Rows, old_log_probs: Rows, action_mask: Masks, estimator: str = "k1") -> float:
    """An estimate of ``KL(old || new)`` in nats for each token, from actions that the old policy sampled.

    The mean over all actions of the batch of ``k1 = olp - lp``, of ``k2 = (lp - olp)**2 / 2`` or of
    ``k3 = exp(lp - olp) - (lp - olp) - 1``. k1 and k3 are right on average, k2 nearly so where the policies are near;
    k2 and k3 are never negative and vary less. Without any action it is 0.0. Raises ValueError for another estimator.
    Source: J. Schulman, "Approximating KL divergence", 2020, with p = new and q = old.

    >>> lp, olp = [[math.log(2.0), 0.0]], [[0.0, 0.0]]
    >>> round(approx_kl(lp, olp, [[1, 0]]), 4)  # -log(2)
    -0.6931
    >>> round(approx_kl(lp, olp, [[1, 0]], estimator="k3"), 4)  # 2 - log(2) - 1
    0.3069
    >>> round(approx_kl(lp, olp, [[1, 0]], estimator="k2"), 4)  # log(2)**2 / 2
    0.2402
    """
    token_kl = _ESTIMATORS.get(estimator)
    if token_kl is None:
        raise ValueError(f"there is no KL estimator {estimator!r}; the estimators are {', '.join(_ESTIMATORS)}")
    return token_mean(map_actions(token_kl, action_mask, log_probs, old_log_probs), action_mask)


def _k1(log_prob: float, old_log_prob: float) -> float:
    return old_log_prob - log_prob


def _k2(log_prob: float, old_log_prob: float) -> float:
    return (log_prob - old_log_prob) ** 2 / 2


def _k3(log_prob: float, old_log_prob: float) -> float:
    """``expm1`` is ``exp(x) - 1``, exact for ratios near 1, where k3 is a small difference of near-equal numbers."""
    log_ratio = log_prob - old_log_prob
    try:
        return math.expm1(log_ratio) - log_ratio
    except OverflowError:
        return math.inf


def of_sequences(log_probs: Rows, old_log_probs: Rows, masks: Masks, surrogate: str) -> tuple[Rows, Rows]:
    """New and old log-probs of the ratios that a surrogate has; for GSPO those of which every token's ratio is that of
    its sequence.

    >>> of_sequences([[-1.0, -2.0]], [[-1.5, -3.5]], [[1, 1]], "gspo")
    ([[1.0, 1.0]], [[0.0, 0.0]])
    """
    if surrogate != "gspo":
        return log_probs, old_log_probs
    check_shapes(masks, log_probs, old_log_probs)
    rows = zip(log_probs, old_log_probs, masks, strict=True)
    log_ratios = [sequence_log_ratio(lp, olp, mask) for lp, olp, mask in rows]
    return [[r] * len(mask) for r, mask in zip(log_ratios, masks, strict=True)], [[0.0] * len(mask) for mask in masks]


_ESTIMATORS = {"k1": _k1, "k2": _k2, "k3": _k3}


def _check_surrogate(surrogate: str) -> None:
    if surrogate not in SURROGATES:
        raise ValueError(f"there is no surrogate {surrogate!r}; the surrogates are {', '.join(SURROGATES)}")


def _check_bounds(clip_eps_low: float, clip_eps_high: float, dual_clip: float | None) -> None:
    if not (clip_eps_low >= 0 and clip_eps_high >= 0):
        raise ValueError(f"the clip bounds must not be negative, but are {clip_eps_low} and {clip_eps_high}")
    if dual_clip is not None and not dual_clip > 1:
        raise ValueError(f"the dual clip must be above 1, not {dual_clip}")
