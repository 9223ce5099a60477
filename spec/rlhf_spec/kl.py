"""The KL of the policy from the reference model, estimated for each action from the log-probs that both give it.

``d = log_prob - ref_log_prob`` says how much likelier the policy finds the action than the reference does, in nats.
Four estimates are made of it: ``k1 = d``, ``k2 = d^2 / 2``, ``k3 = exp(-d) - 1 + d`` and ``abs = |d|``. In expectation
over actions of the policy, k1 and k3 are the KL divergence itself. Source: J. Schulman, "Approximating KL divergence",
2020, with q = policy and p = reference.
"""

from __future__ import annotations

import math

from rlhf_spec.aggregation import Masks, Rows, Steps, map_actions

ESTIMATORS = ("k1", "k2", "k3", "abs")
GRADIENTS = ("plain", "k2", "weighted")


def token_kl(
    log_prob: float,
    ref_log_prob: float,
    estimator: str,
    log_ratio_clamp: float | None = None,
    clamp: float | None = None,
    *,
    steps: Steps | None = None,
) -> float:
    """The estimate for one action, in nats (k2: in nats squared).

    Where they are given, ``d`` is held within ``log_ratio_clamp`` of 0 first, and the estimate within ``clamp`` last.
    The numbers on the way are added to ``steps``. Raises ValueError for an estimator that there is not, and for a clamp
    that is not positive.

    >>> [round(token_kl(-1.0, -1.5, name), 4) for name in ESTIMATORS]  # d = 0.5
    [0.5, 0.125, 0.1065, 0.5]
    >>> [round(token_kl(-1.5, -1.0, name), 4) for name in ESTIMATORS]  # the other way round: d = -0.5
    [-0.5, 0.125, 0.1487, 0.5]
    >>> token_kl(-40.0, -1.0, "k3", log_ratio_clamp=20.0, clamp=10.0)
    10.0
    """
    _check(estimator, log_ratio_clamp, clamp)
    d = log_prob - ref_log_prob
    held = d if log_ratio_clamp is None else _held(d, log_ratio_clamp)
    estimate = _ESTIMATES[estimator](held)
    result = estimate if clamp is None else _held(estimate, clamp)
    if steps is not None:
        steps.append((f"d = log-prob {log_prob:.7g} - reference's {ref_log_prob:.7g}", d))
        if held != d:
            steps.append((f"d held within {log_ratio_clamp:.7g} of 0", held))
        steps.append((f"{estimator} = {_WORDS[estimator]}", estimate))
        if result != estimate:
            steps.append((f"held within {clamp:.7g} of 0", result))
    return result


def token_kl_gradient(
    log_prob: float,
    ref_log_prob: float,
    estimator: str,
    log_ratio_clamp: float | None = None,
    clamp: float | None = None,
    gradient: str = "plain",
) -> float:
    """The derivative with respect to ``log_prob`` that the estimate of one action has as a term of a loss.

    ``plain``: that of the estimate, 0 where a clamp binds. ``k2``: that of k2, ``d``, whatever the estimate.
    ``weighted``: that of the estimate times ``exp(log_prob - stop_gradient(log_prob))``, which is the estimate plus its
    derivative. Where ``|d|`` has its corner, at 0, it is 0. Raises ValueError as ``token_kl`` does.

    >>> [round(token_kl_gradient(-1.0, -1.5, name), 4) for name in ESTIMATORS]  # d = 0.5
    [1.0, 0.5, 0.3935, 1.0]
    >>> token_kl_gradient(-40.0, -1.0, "k3", log_ratio_clamp=20.0, clamp=10.0)
    0.0
    >>> round(token_kl_gradient(-1.0, -1.5, "k3", gradient="weighted"), 4)  # 0.1065 + 0.3935 = d
    0.5
    """
    _check(estimator, log_ratio_clamp, clamp)
    if gradient not in GRADIENTS:
        raise ValueError(f"there is no gradient {gradient!r}; the gradients are {', '.join(GRADIENTS)}")
    d = log_prob - ref_log_prob
    if gradient == "k2":
        return d
    estimate = token_kl(log_prob, ref_log_prob, estimator, log_ratio_clamp, clamp)
    binds = log_ratio_clamp is not None and abs(d) > log_ratio_clamp
    binds = binds or (clamp is not None and abs(_ESTIMATES[estimator](d)) > clamp)
    slope = 0.0 if binds else _SLOPES[estimator](d)
    return slope + estimate if gradient == "weighted" else slope


def kl(
    log_probs: Rows,
    ref_log_probs: Rows,
    action_mask: Masks,
    *,
    estimator: str,
    log_ratio_clamp: float | None = None,
    clamp: float | None = None,
) -> list[list[float]]:
    """``token_kl`` of each action, 0 elsewhere: ``B rows of (T,) -> B rows of (T,)``. Masked cells are not read.

    >>> kl([[-1.0, math.nan]], [[-1.5, 9.0]], [[1, 0]], estimator="k1")
    [[0.5, 0.0]]
    """
    return map_actions(
        lambda log_prob, ref: token_kl(log_prob, ref, estimator, log_ratio_clamp, clamp),
        action_mask,
        log_probs,
        ref_log_probs,
    )


def kl_gradient(
    log_probs: Rows,
    ref_log_probs: Rows,
    action_mask: Masks,
    *,
    estimator: str,
    log_ratio_clamp: float | None = None,
    clamp: float | None = None,
    gradient: str = "plain",
) -> list[list[float]]:
    """The gradient of the sum of 1, 2, 3, ... times the estimates of the actions, row by row: ``B rows of (T,)``.

    The weights differ, so that a gradient that lands at another action is seen.

    >>> kl_gradient([[-1.0, 0.0, -1.0]], [[-1.5, 0.0, -1.25]], [[1, 0, 1]], estimator="k2")
    [[0.5, 0.0, 0.5]]
    """
    slopes = map_actions(
        lambda log_prob, ref: token_kl_gradient(log_prob, ref, estimator, log_ratio_clamp, clamp, gradient),
        action_mask,
        log_probs,
        ref_log_probs,
    )
    weight, rows = 0.0, []
    for row, mask in zip(slopes, action_mask, strict=True):
        weighted = []
        for slope, is_action in zip(row, mask, strict=True):
            weight += is_action
            weighted.append(weight * slope if is_action else 0.0)
        rows.append(weighted)
    return rows


def kl_divergence(log_probs: Rows, ref_log_probs: Rows) -> list[float]:
    """``KL(policy || reference)`` of whole distributions, in nats: ``B rows of (V,) -> (B,)``.

    Each row has the log-probs of all V tokens of a vocabulary, so that the expectation is a finite sum.

    >>> half, quarter = math.log(0.5), math.log(0.25)
    >>> [round(x, 4) for x in kl_divergence([[half, half]], [[quarter, math.log(0.75)]])]  # log(2)/2 + log(2/3)/2
    [0.1438]
    """
    return [
        math.fsum(math.exp(log_prob) * (log_prob - ref) for log_prob, ref in zip(*rows, strict=True))
        for rows in zip(log_probs, ref_log_probs, strict=True)
    ]


def expected_kl_gradient(
    log_probs: Rows, ref_log_probs: Rows, *, estimator: str, gradient: str = "plain"
) -> list[list[float]]:
    """The expectation, over tokens of the policy, of the gradient that the estimate has with respect to the policy's
    logits: ``B rows of (V,) -> B rows of (V,)``, each row with the log-probs of a whole vocabulary.

    With ``g`` the derivative by the token's own log-prob it is ``p[u] (g[u] - sum(p g))``: a log-prob is a logit less
    the logarithm of the sum of all exponentials.

    >>> log_probs, ref_log_probs = [[math.log(0.5), math.log(0.5)]], [[math.log(0.25), math.log(0.75)]]
    >>> [abs(round(x, 4)) for x in expected_kl_gradient(log_probs, ref_log_probs, estimator="k1")[0]]  # nothing
    [0.0, 0.0]
    >>> [round(x, 4) for x in expected_kl_gradient(log_probs, ref_log_probs, estimator="k2")[0]]  # of KL(policy||ref)
    [0.2747, -0.2747]
    >>> [round(x, 4) for x in expected_kl_gradient(log_probs, ref_log_probs, estimator="k3")[0]]  # p - ref
    [0.25, -0.25]
    """
    rows = []
    for row, ref_row in zip(log_probs, ref_log_probs, strict=True):
        p = [math.exp(log_prob) for log_prob in row]
        pairs = zip(row, ref_row, strict=True)
        g = [token_kl_gradient(log_prob, ref, estimator, gradient=gradient) for log_prob, ref in pairs]
        mean = math.fsum(share * slope for share, slope in zip(p, g, strict=True))
        rows.append([share * (slope - mean) for share, slope in zip(p, g, strict=True)])
    return rows


def _k3(d: float) -> float:
    """``expm1`` is ``exp(x) - 1``, exact for small d, where k3 is a small difference of near-equal numbers."""
    try:
        return math.expm1(-d) + d
    except OverflowError:
        return math.inf


def _k3_slope(d: float) -> float:
    try:
        return -math.expm1(-d)
    except OverflowError:
        return -math.inf


def _sign(d: float) -> float:
    return math.copysign(1.0, d) if d else 0.0


_ESTIMATES = {"k1": lambda d: d, "k2": lambda d: d * d / 2, "k3": _k3, "abs": lambda d: abs(d)}
_SLOPES = {"k1": lambda d: 1.0, "k2": lambda d: d, "k3": _k3_slope, "abs": _sign}
_WORDS = {"k1": "d", "k2": "d squared / 2", "k3": "exp(-d) - 1 + d", "abs": "the absolute value of d"}


def _held(x: float, bound: float) -> float:
    return min(max(x, -bound), bound)


def _check(estimator: str, log_ratio_clamp: float | None, clamp: float | None) -> None:
    if estimator not in ESTIMATORS:
        raise ValueError(f"there is no KL estimator {estimator!r}; the estimators are {', '.join(ESTIMATORS)}")
    for bound in (log_ratio_clamp, clamp):
        if bound is not None and not bound > 0:
            raise ValueError(f"a clamp must be positive, not {bound}")
