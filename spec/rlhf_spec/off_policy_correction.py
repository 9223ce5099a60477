"""Weights that correct for the engine that sampled: how much likelier the trainer finds what another program drew.

``d = old_log_prob - rollout_log_prob`` compares the trainer's own log-prob of an action, taken with the weights that
sampled, with that of the engine. ``exp(d)`` is the importance weight of the action; that of a sequence is the
exponential of the sum of its actions' ``d`` (the product of their weights), or of the mean (the geometric mean). A
weight is truncated (Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training"), or is 0
outside of a band (IcePop, 2025).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from rlhf_spec.aggregation import Masks, Rows, Steps, check_shapes

LEVELS = ("token", "sequence")
MODES = ("truncate", "mask")
SEQUENCE_WEIGHTS = ("product", "geometric")
CLAMPED = ("exponent", "actions")
KEPT = ("weight", "token-weight", "one")
NAN = ("one", "zero")


def exponents(
    log_ratios: Sequence[float],
    level: str = "token",
    sequence_weight: str = "product",
    log_clamp: float | None = None,
    log_clamped: str = "exponent",
    *,
    steps: Steps | None = None,
) -> list[float]:
    """What the exponential is taken of, for each action of one sequence: ``(N,) -> (N,)``, in nats.

    At the level "token" each action's ``d``; at "sequence" one number for all of them, the sum of their ``d`` for the
    "product" of their weights, and the mean for the "geometric" mean. ``log_clamp`` holds it within so much of 0, or,
    where ``log_clamped`` is "actions", each ``d`` before they are summed. The numbers on the way of a sequence are
    added to ``steps``. Raises ValueError for a level, or another name, that there is not, and for a clamp that is not
    positive.

    >>> exponents([0.5, -0.2, 0.3], "token")
    [0.5, -0.2, 0.3]
    >>> [round(x, 4) for x in exponents([0.5, -0.2, 0.3], "sequence")]  # 0.6
    [0.6, 0.6, 0.6]
    >>> [round(x, 4) for x in exponents([0.5, -0.2, 0.3], "sequence", "geometric")]  # 0.6 / 3
    [0.2, 0.2, 0.2]
    >>> exponents([30.0, -25.0], "sequence", log_clamp=10.0)  # 5, which nothing holds
    [5.0, 5.0]
    >>> exponents([30.0, -25.0], "sequence", log_clamp=10.0, log_clamped="actions")  # 10 - 10
    [0.0, 0.0]
    """
    _named(level=(level, LEVELS), sequence_weight=(sequence_weight, SEQUENCE_WEIGHTS), clamp=(log_clamped, CLAMPED))
    if log_clamp is not None and not log_clamp > 0:
        raise ValueError(f"a clamp must be positive, not {log_clamp}")
    bound = math.inf if log_clamp is None else log_clamp
    if level == "token":
        return [_held(d, bound) for d in log_ratios]
    own = [_held(d, bound) for d in log_ratios] if log_clamped == "actions" else log_ratios
    total = math.fsum(own)
    number = total / max(1, len(own)) if sequence_weight == "geometric" else total
    held = _held(number, bound) if log_clamped == "exponent" else number
    if steps is not None:
        steps.append((f"sum of d of the {len(own)} actions of the sequence", total))
        if sequence_weight == "geometric":
            steps.append(("divided by their number", number))
        if held != number:
            steps.append((f"held within {bound:.7g} of 0", held))
    return [held] * len(own)


def within(weight: float, upper: float, lower: float | None = None) -> bool:
    """Whether a weight lies between its bounds, both of which belong to the band; ``lower`` None: no bound from below.

    Raises ValueError for bounds in the wrong order.

    >>> [within(x, 2.0, 0.5) for x in (0.4, 0.5, 2.0, 2.1)]
    [False, True, True, False]
    """
    if lower is not None and not lower <= upper:
        raise ValueError(f"the lower bound {lower} is above the upper one {upper}")
    return weight <= upper and (lower is None or weight >= lower)


def bounded(weight: float, mode: str, upper: float, lower: float | None = None) -> float:
    """A weight held between its bounds, "truncate", or 0.0 where it lies outside of them, "mask".

    Raises ValueError for a mode that there is not, and as ``within`` does.

    >>> [bounded(x, "truncate", 2.0) for x in (0.1, 1.5, 9.0)]
    [0.1, 1.5, 2.0]
    >>> [bounded(x, "mask", 2.0, 0.5) for x in (0.1, 0.5, 1.5, 2.0, 9.0)]
    [0.0, 0.5, 1.5, 2.0, 0.0]
    """
    _named(mode=(mode, MODES))
    least = -math.inf if lower is None else lower
    if mode == "truncate":
        return max(least, min(weight, upper))
    return weight if within(weight, upper, lower) else 0.0


def sequence_weights(
    log_ratios: Sequence[float],
    *,
    level: str,
    mode: str,
    upper: float,
    lower: float | None = None,
    sequence_weight: str = "product",
    log_clamp: float | None = None,
    log_clamped: str = "exponent",
    kept: str = "weight",
    of_nan: str | None = None,
) -> list[float]:
    """The weight of each action of one sequence, of their ``d``: ``(N,) -> (N,)``.

    In the mode "mask" what lies within the band has its own "weight"; or, as ``kept`` says, that of the action by
    itself, "token-weight", whatever the level; or "one". A ``d`` that is NaN, where the engine gave no log-prob, counts
    as 0 where ``of_nan`` is "one"; where it is "zero", the action has the weight 0, and so has the whole sequence at
    the level "sequence". Raises ValueError as ``exponents`` and ``bounded`` do.

    >>> [round(w, 4) for w in sequence_weights([0.5, -0.2, 0.3], level="token", mode="truncate", upper=1.5)]
    [1.5, 0.8187, 1.3499]
    >>> band = {"mode": "mask", "upper": 1.5, "lower": 0.9}
    >>> [round(w, 4) for w in sequence_weights([0.5, -0.2, 0.3], level="token", **band)]
    [0.0, 0.0, 1.3499]
    >>> band.update(level="sequence", sequence_weight="geometric")
    >>> [round(w, 4) for w in sequence_weights([0.5, -0.2, 0.3], **band)]
    [1.2214, 1.2214, 1.2214]
    >>> [round(w, 4) for w in sequence_weights([0.5, -0.2, 0.3], **band, kept="token-weight")]
    [1.6487, 0.8187, 1.3499]
    >>> [sequence_weights([math.nan, 0.0], **band, of_nan=rule) for rule in NAN]
    [[1.0, 1.0], [0.0, 0.0]]
    """
    _named(kept=(kept, KEPT), of_nan=(of_nan, (None, *NAN)))
    lost = [math.isnan(d) and of_nan == "zero" for d in log_ratios]
    known = [0.0 if math.isnan(d) and of_nan else d for d in log_ratios]
    found = exponents(known, level, sequence_weight, log_clamp, log_clamped)
    singly = exponents(known, "token", log_clamp=log_clamp)
    weights = []
    for own, alone, is_lost in zip(found, singly, lost, strict=True):
        weight = bounded(_exp(own), mode, upper, lower)
        if mode == "mask" and within(_exp(own), upper, lower):
            weight = {"weight": weight, "token-weight": _exp(alone), "one": 1.0}[kept]
        weights.append(0.0 if is_lost or (level == "sequence" and any(lost)) else weight)
    return weights


def off_policy_weights(
    old_log_probs: Rows,
    rollout_log_probs: Rows,
    action_mask: Masks,
    *,
    level: str,
    mode: str,
    upper: float,
    lower: float | None = None,
    sequence_weight: str = "product",
    log_clamp: float | None = None,
    log_clamped: str = "exponent",
    kept: str = "weight",
    of_nan: str | None = None,
) -> list[list[float]]:
    """``sequence_weights`` of the actions of each row, 0.0 elsewhere: ``B rows of (T,) -> B rows of (T,)``.

    Masked cells are not read, and are no part of a sequence. Raises ValueError for shapes that differ, for a mask not
    of 0 and 1, and as ``sequence_weights`` does.

    >>> off_policy_weights([[-1.0, 5.0, -2.0]], [[-1.0, 9.0, -2.0]], [[1, 0, 1]], level="token", mode="mask", upper=1.0)
    [[1.0, 0.0, 1.0]]
    """
    check_shapes(action_mask, old_log_probs, rollout_log_probs)
    rows = []
    for old, rollout, mask in zip(old_log_probs, rollout_log_probs, action_mask, strict=True):
        actions = [t for t, m in enumerate(mask) if m]
        weights = sequence_weights(
            [old[t] - rollout[t] for t in actions],
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
        row = [0.0] * len(mask)
        for t, weight in zip(actions, weights, strict=True):
            row[t] = weight
        rows.append(row)
    return rows


def _held(x: float, bound: float) -> float:
    return min(max(x, -bound), bound)


def _exp(x: float) -> float:
    """Infinite where a float64 cannot hold it."""
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf


def _named(**names: tuple[str | None, Sequence[str | None]]) -> None:
    for what, (name, choices) in names.items():
        if name not in choices:
            raise ValueError(f"{what} {name!r} is none of {', '.join(map(str, choices))}")
