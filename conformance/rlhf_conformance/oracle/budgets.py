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
from collections.abc import Callable, Sequence

from rlhf_conformance._lazy import torch

_UNIT = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
FLOAT32 = _UNIT["float32"]
SMALLEST = {"float32": 2.0**-126, "float16": 2.0**-24, "bfloat16": 2.0**-126}
"""Below which numbers of a dtype are lost: in float16 the least of those without a leading one, in the other two the
least that has one, since devices may flush the rest."""

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


def log_prob_gradient(
    gradient: Sequence[float], logits: Sequence[float], temperature: float, dtype: torch.dtype
) -> list[float]:
    """Of each entry of a log-prob's gradient with respect to the logits: p <= 1 with the relative error of exp.

    It is computed in float32 or better whatever the dtype of the logits, as the log-prob is, and only then rounded to
    it: an allowance for softmaxes in half precision would be larger than the whole gradient of a confident label.
    """
    computed = 2 * (log_prob(logits, temperature, torch.float32) + 2 * FLOAT32) / temperature
    return [computed + rounded(entry, dtype) for entry in gradient]


def entropy_gradient(
    gradient: Sequence[float], logits: Sequence[float], temperature: float, dtype: torch.dtype
) -> list[float]:
    """Of each entry -p (log p + H) / T of an entropy's gradient: p with the relative error of exp, and the errors of
    the log-prob and of the entropy times p. Computed in float32 or better and then rounded, as `log_prob_gradient`.

    A probability that underflows has no gradient.
    """
    of_log_prob, of_entropy = (of(logits, temperature, torch.float32) for of in (log_prob, entropy))
    scaled = [z / temperature for z in logits]
    largest = max(scaled)
    log_sum = largest + math.log(math.fsum(math.exp(z - largest) for z in scaled))
    allowed = []
    for entry, z in zip(gradient, scaled, strict=True):
        p, relative = math.exp(z - log_sum), 2 * of_log_prob * abs(entry)
        computed = relative + 2 * p * (of_log_prob + of_entropy) / temperature
        underflow = SMALLEST["float32"] * (2 + largest - z) / temperature
        allowed.append(computed + underflow + rounded(entry, dtype))
    return allowed


def rounded(number: float, dtype: torch.dtype) -> float:
    """Of a number that was computed in float32 or better and rounded to the dtype, at most twice: once where it was
    kept, once where it was multiplied by what comes from behind. Nothing for float32 and float64."""
    name = str(dtype).removeprefix("torch.")
    return 4 * unit(dtype) * abs(number) + 2 * SMALLEST[name] if name in ("float16", "bfloat16") else 0.0


def policy_token(loss: float, log_ratio: float, advantage: float, dtype: torch.dtype) -> float:
    """Of one token's policy loss or its gradient: the log-ratio's rounding is amplified by exp, then three operations.

    The ratio may come as expm1 + 1, so however small it is, it may carry a rounding of 1: hence the term of the
    advantage. That is one of float32: who takes the exponential in half precision takes it as it is, and an allowance
    of a rounding of the half would be larger than what a small ratio leaves of the gradient.
    """
    return 2 * (unit(dtype) * abs(loss) * (2 * abs(log_ratio) + 6) + FLOAT32 * abs(advantage))


def value_token(value: float, old_value: float, return_: float, clip_eps: float | None, dtype: torch.dtype) -> float:
    """Of one token's value loss: half a square, d(x^2 / 2) = |x| dx, of the distance V - R, which has the one rounding
    of its subtraction, and of that of the clipped value."""
    far, near, error = _distances(value, old_value, return_, clip_eps, dtype)
    return 2 * (2 * unit(dtype) * far**2 + near * error + error**2 + unit(dtype) * near**2)


def value_token_gradient(
    value: float, old_value: float, return_: float, clip_eps: float | None, dtype: torch.dtype
) -> float:
    """Of one token's value loss gradient: V - R, or within the band the same by way of the clipped value."""
    far, _, error = _distances(value, old_value, return_, clip_eps, dtype)
    return 2 * (3 * unit(dtype) * far + error)


def _distances(
    value: float, old_value: float, return_: float, clip_eps: float | None, dtype: torch.dtype
) -> tuple[float, float, float]:
    """Of the value and of the clipped one from the return, and the rounding of the latter: the difference from the old
    value, the sum with it, and the difference from the return. Without a clip there is none."""
    far = max(abs(value - return_), 1e-3)
    if clip_eps is None:
        return far, 0.0, 0.0
    moved = max(-clip_eps, min(clip_eps, value - old_value))
    near = abs(old_value + moved - return_)
    return far, near, unit(dtype) * (abs(moved) + abs(old_value + moved) + near)


def aggregate(losses: Sequence[float], errors: Sequence[float], weights: Sequence[float], dtype: torch.dtype) -> float:
    """Of a weighted sum of token losses: the tokens' own errors, and the sum's in any order."""
    carried = sum(w * e for w, e in zip(weights, errors, strict=True))
    summed = sum(w * abs(x) for w, x in zip(weights, losses, strict=True))
    return carried + 2 * unit(dtype) * (len(losses) + 3) * summed + 1e-12


def terms(numbers: Sequence[float], errors: Sequence[float], dtype: torch.dtype) -> float:
    """Of a sum of terms, each times a coefficient that the dtype need not hold: their own errors, and a few roundings
    of what is added."""
    return math.fsum(errors) + 8 * unit(dtype) * math.fsum(map(abs, numbers))


def weighted(number: float, error: float, weight: float, of_weight: float, dtype: torch.dtype) -> float:
    """Of a number times a weight, of the errors of both, and a rounding of the product."""
    return weight * error + of_weight * (abs(number) + error) + 2 * unit(dtype) * abs(weight * number)


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


def weight(largest: float, dtype: torch.dtype) -> float:
    """Of each entry of a weight that was loaded, of this largest magnitude: it is stored exactly, and may have been
    added to and subtracted from on the way."""
    return 8 * unit(dtype) * largest


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


def approx_kl(log_ratios: Sequence[float], estimator: str, dtype: torch.dtype) -> float:
    """Of a mean of KL estimates: of each a few roundings of its terms, the log-ratio for k1, its square for k2, and the
    ratio as well for k3, and of the sum those of what is summed."""
    terms = [{"k1": abs(x), "k2": x**2}.get(estimator, math.exp(x) * (1 + abs(x)) + abs(x)) for x in log_ratios]
    summed = [{"k1": abs(x), "k2": x**2 / 2}.get(estimator, math.expm1(x) - x) for x in log_ratios]
    count = max(1, len(log_ratios))
    return 2 * unit(dtype) * (8 * math.fsum(terms) / count + math.fsum(summed))


def metric(log_ratios: Sequence[float], dtype: torch.dtype) -> float:
    """Of a number that is logged beside a policy loss, whichever it is."""
    return max(clip_fraction(dtype), *(approx_kl(log_ratios, estimator, dtype) for estimator in ("k1", "k2", "k3")))


def normalized(score: float, mean: float, std: float, dtype: torch.dtype) -> float:
    """Of `(score - mean) / std`, of the allowance of the score."""
    return score / std * 2 + 8 * unit(dtype) * abs(mean) / std


def kl(log_ratio: float, estimator: str, dtype: torch.dtype) -> float:
    """Of one KL estimate: the log-ratio has the rounding of its subtraction, which the square doubles and the
    exponential amplifies, and the estimate that of where it is kept. Where the exponential is taken less 1, a small
    estimate still carries a rounding of 1."""
    x = abs(log_ratio)
    if estimator == "k3":
        return 2 * unit(dtype) * (_exp(-log_ratio) * (x + 3) + 2 * x + 1)
    return 2 * unit(dtype) * (4 * x**2 / 2 if estimator == "k2" else 2 * x)


def kl_slope(log_ratio: float, estimator: str, kl_gradient: str, dtype: torch.dtype) -> float:
    """Of one KL estimate's derivative: that of k1 and abs is a whole number, of k2 the log-ratio, of k3 a term of the
    estimate itself, each rounded twice more where it is multiplied with its weight and with what comes from behind; a
    weighted one has the estimate on top."""
    own = {"k1": 6 * unit(dtype), "abs": 6 * unit(dtype), "k2": 6 * unit(dtype) * abs(log_ratio)}
    of_k2, plain = own["k2"], own.get(estimator) or kl(log_ratio, "k3", dtype)
    if kl_gradient == "k2":
        return of_k2
    return plain if kl_gradient == "plain" else 2 * (plain + kl(log_ratio, estimator, dtype))


def kl_below_zero(dtype: torch.dtype) -> float:
    """Of an estimate that is never negative: a rounding of 1, of which a small number was made by subtraction."""
    return 4 * unit(dtype)


def expected_kl(
    log_probs: Sequence[float], ref_log_probs: Sequence[float], estimator: str, dtype: torch.dtype
) -> float:
    """Of the expectation of a KL estimate over a vocabulary: the estimates' own errors and those of the sum. The
    probabilities were rounded to the dtype when their logarithms were, so that they do not quite add up to 1."""
    total = 0.0
    for log_prob, ref in zip(log_probs, ref_log_probs, strict=True):
        p = math.exp(log_prob)
        total += p * (kl(log_prob - ref, estimator, dtype) + 2 * unit(dtype) * abs(log_prob - ref))
        total += 2 * unit(dtype) * (p * (abs(log_prob) + 1) + math.exp(ref) * (abs(ref) + 1))
    return total


def expected_kl_gradient(
    log_probs: Sequence[float], slopes: Sequence[float], errors: Sequence[float], dtype: torch.dtype
) -> list[float]:
    """Of each entry `p (g - sum of p g)` of a KL estimate's expected gradient: the errors of the slopes `g`, and a few
    roundings of what is summed."""
    p = [math.exp(log_prob) for log_prob in log_probs]
    carried = math.fsum(x * e for x, e in zip(p, errors, strict=True))
    size = math.fsum(x * abs(g) for x, g in zip(p, slopes, strict=True))
    return [x * (e + carried + 8 * unit(dtype) * (abs(g) + size)) for x, g, e in zip(p, slopes, errors, strict=True)]


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf


def kl_guard(bound: float) -> float:
    """How far from a clamp a log-ratio or an estimate must lie so that no rounding puts it on the other side."""
    return 0.05 * bound


def token_reward(score: float, penalty: float, dtype: torch.dtype) -> float:
    """Of one reward: a product and a difference. The coefficient is a number that the dtype does not hold."""
    return 2 * unit(dtype) * (3 * abs(penalty) + 2 * abs(score))


def reward_sum(score: float, penalties: Sequence[float], dtype: torch.dtype) -> float:
    """Of what the rewards of a sample add up to: their own errors and those of the sum."""
    size = abs(score) + math.fsum(map(abs, penalties))
    return 2 * unit(dtype) * (len(penalties) + 5) * size


def advantage(size: float, steps: int, dtype: torch.dtype) -> float:
    """Of one advantage: `size` is the discounted sum of the magnitudes of all rewards and values that enter, `steps`
    how many steps it goes through, each with a product, a sum, and a factor that the dtype does not hold."""
    return 2 * unit(dtype) * (3 * steps + 6) * size


def whitened(
    numbers: Sequence[float],
    divisor: Callable[[float], float],
    ddof: int,
    dtype: torch.dtype,
    *,
    kept: bool = False,
    passes: int = 1,
    spread_of: Sequence[float] | None = None,
    errors: Sequence[float] | None = None,
) -> list[float]:
    """Of each of some numbers less their mean and divided by `divisor(variance)`, with the mean added again if `kept`;
    `spread_of` are those that the variance is of, if others; `errors`, how far each may be off that is whitened, if it
    was computed.

    The mean carries the rounding of a sum. So does the variance, of squares of centered numbers where two passes are
    made, and of plain ones, from which the square of the mean is subtracted, where it is one. What that does to the
    quotient is not linear where the variance is small: the divisor is taken at both ends of its interval. Errors of the
    numbers move the mean by their mean, and the deviation by no more than their own, which is a norm.
    """
    u = unit(dtype)
    mean, of_mean = _mean(numbers, dtype)
    variance, of_variance = _variance(numbers if spread_of is None else spread_of, ddof, dtype, passes)
    off = list(errors) if errors is not None else [0.0] * len(numbers)
    if any(off):
        of_mean += math.fsum(off) / len(off)
        deviation = math.sqrt(math.fsum(x * x for x in off) / max(1, len(off) - ddof))
        of_variance += deviation * (2 * math.sqrt(variance) + deviation)
    least, middle, most = (divisor(max(0.0, variance + by)) for by in (-of_variance, 0.0, of_variance))
    if least == 0.0:  # which only numbers that were computed can bring about: nothing can be said of a quotient
        return [math.inf] * len(numbers)
    allowed = []
    for x, by in zip(numbers, off, strict=True):
        quotient = (x - mean) / middle if x != mean else 0.0
        ends = [abs((x - mean) / end - quotient) for end in (least, most) if x != mean]
        of_result = 8 * u * (abs(quotient) + (abs(mean) if kept else 0.0))
        moved = (2 * of_mean + by) / least
        allowed.append(max(ends, default=0.0) + moved + of_result + (of_mean if kept else 0.0))
    return allowed


def _mean(numbers: Sequence[float], dtype: torch.dtype) -> tuple[float, float]:
    """The mean of some numbers, and by how much it may be off."""
    n = max(1, len(numbers))
    return math.fsum(numbers) / n, 2 * (n + 2) * unit(dtype) * math.fsum(map(abs, numbers)) / n


def _variance(numbers: Sequence[float], ddof: int, dtype: torch.dtype, passes: int) -> tuple[float, float]:
    """Their variance, and by how much it may be off."""
    n, (mean, of_mean) = len(numbers), _mean(numbers, dtype)
    squares = math.fsum((x - mean) ** 2 for x in numbers)
    summed = squares if passes == 2 else 2 * math.fsum(x * x for x in numbers)
    left = max(1, n - ddof)
    return squares / left, (2 * (n + 4) * unit(dtype) * summed + n * of_mean**2) / left


NOISE = 1e-2
"""Of an advantage that should be 0, what is still too small to train on: a hundredth of a usual one."""


def correction_exponent(log_ratios: Sequence[float], mean: bool, dtype: torch.dtype) -> float:
    """Of the number that a correction's exponential is taken of: each log-ratio has the rounding of its subtraction,
    their sum that of a sum, and their `mean` that of a division. Whoever multiplies the weights instead rounds each of
    them, and each product. Nothing where all are 0: sums of 0 and products of 1 are exact."""
    count = max(1, len(log_ratios))
    size = math.fsum(map(abs, log_ratios))
    roundings = (count + 1 + mean) * size + 2 * count
    return 2 * unit(dtype) * roundings / (count if mean else 1) if size else 0.0


def correction_weight(weight: float, of_exponent: float, dtype: torch.dtype) -> float:
    """Of one importance weight: the error of its exponent, and a few roundings. Whoever takes it as expm1 + 1 has a
    rounding of 1, however small it is."""
    return weight * ((_exp(of_exponent) - 1) + 6 * unit(dtype)) + 2 * FLOAT32


def correction_bound(bound: float, dtype: torch.dtype) -> float:
    """Of a weight that is held at a bound: the dtype need not hold the bound."""
    return 4 * unit(dtype) * abs(bound)


def correction_guard(of_exponent: float) -> float:
    """How far an exponent must lie from the logarithm of a bound so that no rounding puts its weight on the other
    side."""
    return max(1e-3, 2 * of_exponent)


def accumulated(largest: float, sampled: float, parts: int, dtype: torch.dtype) -> float:
    """Of each entry of a gradient that is the sum of those of so many micro-batches, each rounded as it is added: as
    for `model_gradient`, of what is due and what a plain backward pass in the same dtype gives."""
    return model_gradient(largest, sampled, dtype) + 2 * parts * unit(dtype) * largest


def norm(size: float, apart: float, dtype: torch.dtype) -> float:
    """Of the norm of a gradient of this size, where that of a plain backward pass in the same dtype lies so far
    apart."""
    return PLAIN * apart + size * (4 * ROUNDINGS * unit(dtype) + 4 * REDUCTION * FLOAT32) + 1e-9


def updated(largest: float, moved: float, allowed: float, dtype: torch.dtype) -> float:
    """Of each entry of a weight, of this largest magnitude, that was moved by a gradient times a learning rate: the
    error of the move, and the rounding of the sum."""
    return allowed + 2 * unit(dtype) * (largest + moved)
