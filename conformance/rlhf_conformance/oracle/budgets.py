"""How far an honest answer may lie from the truth, and why. Every tolerance of the suite comes from here.

The oracle is exact for our purposes (float64). An honest implementation rounds: its inputs are exactly representable
in the dtype under test, each operation adds a relative error of at most one unit round-off `u`, and a sum of n terms
adds at most (n - 1) u times the sum of their magnitudes, in whatever order it is taken (Higham, Accuracy and
Stability of Numerical Algorithms, 2nd ed., ch. 3 and 4). A budget adds these up for the formula at hand and doubles
the result.

Two things are not in the textbook. Trainers may compute in float32 whatever they are handed, and transformers does
so for norms and rotary tables, so no budget is below that of float32 (`unit`). And the depth of a model makes a
worst-case bound useless, so for model outputs a budget is a count of roundings plus four times the error that a
plain run of the same model in the same dtype on the same device makes on the same sequences: never that sampled
error alone, which can be zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from rlhf_conformance._lazy import torch

_UNIT = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
FLOAT32 = _UNIT["float32"]

ROUNDINGS = 6
"""Roundings to the dtype that add up on the way through a two-layer probe: some twelve operations stand one behind the
other, and their errors have either sign. The worst of the twins comes within half of what follows from it."""
REDUCTION = 300
"""Lengths of the inner products one behind the other in a two-layer probe (they accumulate in float32 or better)."""
PLAIN = 4.0
"""Honest implementations of one model differ from each other by about as much as each differs from the truth."""


def unit(dtype: torch.dtype) -> float:
    """Unit round-off of a dtype, not below float32's."""
    return max(FLOAT32, _UNIT[str(dtype).removeprefix("torch.")])


def log_prob(logits: Sequence[float], temperature: float, dtype: torch.dtype) -> float:
    """Of one log-prob from one row of logits, in nats.

    Each scaled logit carries an error of 2 u of its magnitude (division, subtraction of the maximum), the sum of V
    exponentials V u relative, the logarithm turns that into V u absolute, and two subtractions finish it.
    """
    largest = max(abs(z) for z in logits) / temperature
    return 2 * unit(dtype) * (6 * largest + len(logits) + 2 * math.log(len(logits)) + 2)


def entropy(logits: Sequence[float], temperature: float, dtype: torch.dtype) -> float:
    """Of one entropy, in nats: that of a log-prob, weighted with p, and p's own relative error times |log p|."""
    spread = (max(logits) - min(logits)) / temperature + math.log(len(logits))
    return log_prob(logits, temperature, dtype) * (2 + spread)


def log_prob_gradient(logits: Sequence[float], temperature: float, dtype: torch.dtype) -> float:
    """Of each entry of a log-prob's gradient with respect to the logits: p <= 1 with the relative error of exp."""
    return 2 * (log_prob(logits, temperature, dtype) + 2 * unit(dtype)) / temperature


def policy_token(loss: float, log_ratio: float, advantage: float, dtype: torch.dtype) -> float:
    """Of one token's policy loss or its gradient: the log-ratio's rounding is amplified by exp, then three operations.

    The ratio is compared with 1, so however small it is, it may carry a rounding of 1: hence the term of the advantage.
    """
    return 2 * unit(dtype) * (abs(loss) * (2 * abs(log_ratio) + 6) + abs(advantage))


def value_token(value: float, old_value: float, return_: float, dtype: torch.dtype) -> float:
    """Of one token's value loss: d(x^2) = 2 |x| dx, where dx is a few roundings of the largest of the three."""
    largest = max(abs(value), abs(old_value), abs(return_), 1e-3)
    error = 4 * unit(dtype) * largest
    distance = max(abs(value - return_), abs(old_value - return_) + 1.0)
    return 2 * (distance * error + 3 * unit(dtype) * distance**2)


def value_token_gradient(value: float, old_value: float, return_: float, dtype: torch.dtype) -> float:
    """Of one token's value loss gradient: V - R, a few roundings of the largest of the three."""
    return 2 * 6 * unit(dtype) * max(abs(value), abs(old_value), abs(return_), 1e-3)


def aggregate(losses: Sequence[float], errors: Sequence[float], weights: Sequence[float], dtype: torch.dtype) -> float:
    """Of a weighted sum of token losses: the tokens' own errors, and the sum's in any order."""
    carried = sum(w * e for w, e in zip(weights, errors, strict=True))
    summed = sum(w * abs(x) for w, x in zip(weights, losses, strict=True))
    return carried + 2 * unit(dtype) * (len(losses) + 3) * summed + 1e-12


def model_output(
    truth: Sequence[float], plain: Sequence[float], scale: float, dtype: torch.dtype, temperature: float = 1.0
) -> float:
    """Of each entry of a model's answer: `scale` is the largest magnitude of what is read (logits, scores).

    `truth` and `plain` are the float64 and the plain same-dtype answers for the sequences at hand.
    """
    arithmetic = scale * (ROUNDINGS * unit(dtype) + REDUCTION * FLOAT32)
    sampled = max((abs(a - b) for a, b in zip(truth, plain, strict=True)), default=0.0)
    return (2 * arithmetic) / min(1.0, temperature) + PLAIN * sampled


def model_gradient(largest: float, sampled: float, dtype: torch.dtype) -> float:
    """Of each entry of a parameter's gradient: `largest` is the largest magnitude of the gradient in the whole model,
    `sampled` the largest error of a plain backward pass in the same dtype. Backward doubles the chain of the
    forward."""
    arithmetic = largest * (2 * ROUNDINGS * unit(dtype) + 2 * REDUCTION * FLOAT32)
    return 2 * arithmetic + PLAIN * sampled + 1e-9


def ratio_guard(log_ratio: float, dtype: torch.dtype) -> float:
    """How far, relative to a kink, a ratio must lie from it so that no rounding can put it on the other side."""
    return max(1e-3, 4 * unit(dtype) * (2 * abs(log_ratio) + 4))


def value_guard(value: float, old_value: float, return_: float, dtype: torch.dtype) -> float:
    """How far a value must lie from a kink of its loss so that no rounding can put it on the other side."""
    return max(1e-3, 16 * unit(dtype) * max(abs(value), abs(old_value), abs(return_), 0.1))


def is_fine(dtype: torch.dtype) -> bool:
    """Whether a dtype is computed in no more coarsely than in float32."""
    return unit(dtype) == FLOAT32


def repeated(largest: float, dtype: torch.dtype) -> float:
    """Of an answer to a question that is asked again, of this magnitude: sums may be taken in another order."""
    return 8 * unit(dtype) * max(1.0, largest)


def two_answers(allowed: float, largest: float, right: bool, dtype: torch.dtype) -> float:
    """Of two answers to one question, by how much they may lie apart and still be the same: two right ones may lie on
    either side of the truth, and wrong ones have roundings of their own magnitude besides the right one's budget."""
    return allowed * (2 if right else 1) + 16 * unit(dtype) * largest


def kept_in(number: float, half: torch.dtype) -> float:
    """Of a number that went through a half, from the right one rounded to it: sixteen steps of what a half can hold."""
    return 32 * unit(half) * max(1.0, abs(number))


COARSE_BITS = 12
"""Significant bits that no half has more of (float16 has 11), and a sum of float32's has once in four thousand."""
COARSE_SHARE = 0.5
"""Of three numbers or more, the share that may be coarse by chance: two of three are once in five million times."""


def is_coarse(number: float) -> bool:
    """Whether a number is one that a half could hold."""
    mantissa, _ = math.frexp(number)
    return (mantissa * 2.0**COARSE_BITS).is_integer()


def clip_fraction(dtype: torch.dtype) -> float:
    """Of a share: a count that is exact, and one division."""
    return 8 * unit(dtype)


def approx_kl(log_ratios: Sequence[float], dtype: torch.dtype) -> float:
    """Of a mean of KL estimates: each a few roundings of the ratio's and the log-ratio's size, and the sum's."""
    largest = max((math.exp(abs(x)) * (1 + abs(x)) for x in log_ratios), default=1.0)
    return 2 * unit(dtype) * (len(log_ratios) + 8) * largest


def metric(log_ratios: Sequence[float], dtype: torch.dtype) -> float:
    """Of a number that is logged beside a policy loss, whichever it is."""
    return max(clip_fraction(dtype), approx_kl(log_ratios, dtype))


def normalized(score: float, mean: float, std: float, dtype: torch.dtype) -> float:
    """Of `(score - mean) / std`, of the allowance of the score."""
    return score / std * 2 + 8 * unit(dtype) * abs(mean) / std
