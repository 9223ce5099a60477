"""Readings by number: the right numbers, transformed afterwards or on their way."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable

from rlhf_conformance.diagnosis.answers import Answer, Seen
from rlhf_conformance.diagnosis.explaining import Reading
from rlhf_conformance.methods import Readout

SMALLEST = 1e-3
"""A factor below this is a zero."""
Transformed = Callable[[Seen, Answer], "tuple[float, ...]"]


def number_readings(readout: Readout, seens: list[Seen]) -> list[Reading]:
    """All of this kind that are known, for answers of this kind."""
    known: list[tuple[str, str, Transformed]] = [*_ANY]
    if readout.word in ("log-prob", "entropy"):
        known += _TEMPERATURE
    if readout.word == "entropy":
        known.append(("surprisal", "minus the log-prob of the sampled token", _surprisal))
    if readout.labeled:
        known += _LOG_PROB
    if readout.word.startswith("logit"):
        known += _LOGITS
    if readout.head:
        known += _SCORES
    if not readout.index:
        known += _POOLED
    if any(seen.normalizes for seen in seens):
        known += _NORMALIZATION
    if all(seen.case.temperature == 1.0 for seen in seens):
        known = [row for row in known if "temperature" not in row[1]]
    found = [Reading("numbers", name, text, function) for name, text, function in known]
    if any(answer.actual for seen in seens for answer in seen.answers):
        found.append(Reading("numbers", "zero", "0 is returned", lambda s, a: (0.0,), constant=True))
    return found + _fitted(seens)


def _raw(seen: Seen, answer: Answer) -> float:
    return seen.tables()[answer.sample][answer.position][answer.column]


def _of(change: Callable[[float], float]) -> Transformed:
    return lambda seen, answer: (change(answer.expected),)


def _at(change: Callable[[float], float]) -> Transformed:
    """The number at another temperature."""

    def numbers(seen: Seen, answer: Answer) -> tuple[float, ...]:
        return (seen.read(answer, answer.sample, answer.position, change(seen.case.temperature)),)

    return numbers


def _batch(seen: Seen) -> list[float]:
    return [answer.expected for answer in seen.answers]


def _whitened(seen: Seen, answer: Answer) -> tuple[float, ...]:
    numbers = _batch(seen)
    if len(numbers) < 2:
        return (0.0, answer.expected)
    mean, spreads = statistics.fmean(numbers), (statistics.pstdev(numbers), statistics.stdev(numbers))
    return tuple(
        (answer.expected - mean) / (spread + eps)
        for spread in spreads
        for eps in (0.0, 1e-8, 1e-6, 1e-5, 1e-4)
        if spread + eps > 0
    )


_ANY: list[tuple[str, str, Transformed]] = [
    ("sign", "the sign is flipped", _of(lambda x: -x)),
    ("scale", "half of the number", _of(lambda x: x / 2)),
    ("scale", "twice the number", _of(lambda x: 2 * x)),
    ("centred", "the mean over the batch is subtracted", lambda s, a: (a.expected - statistics.fmean(_batch(s)),)),
    ("whitened", "the numbers are whitened over the batch", _whitened),
]
_TEMPERATURE: list[tuple[str, str, Transformed]] = [
    ("temperature", "the number at temperature 1, so the temperature is missing", _at(lambda t: 1.0)),
    ("temperature", "the temperature is divided out twice", _at(lambda t: t * t)),
    ("temperature", "the logits are multiplied by the temperature", _at(lambda t: 1 / t)),
    (
        "temperature",
        "the number at temperature 1, divided by the temperature afterwards",
        lambda s, a: (s.read(a, a.sample, a.position, 1.0) / s.case.temperature,),
    ),
    (
        "temperature",
        "the number at temperature 1, multiplied by the temperature afterwards",
        lambda s, a: (s.read(a, a.sample, a.position, 1.0) * s.case.temperature,),
    ),
]


def _logit(seen: Seen, answer: Answer) -> float:
    assert answer.token is not None
    return float(seen.outputs(answer.sample)[answer.position, answer.token])


def _surprisal(seen: Seen, answer: Answer) -> tuple[float, ...]:
    row = seen.outputs(answer.sample)[answer.position] / seen.case.temperature
    return (-float(row.log_softmax(-1)[seen.case.samples[answer.sample].tokens[answer.position + 1]]),)


_LOG_PROB: list[tuple[str, str, Transformed]] = [
    ("probability", "the probability, where its logarithm is due", _of(math.exp)),
    ("logarithm", "the logarithm to the base 2", _of(lambda x: x / math.log(2))),
    ("logit", "the logit, not normalized", lambda s, a: (_logit(s, a),)),
    ("logit", "the logit over the temperature, not normalized", lambda s, a: (_logit(s, a) / s.case.temperature,)),
    ("token", "the log-prob of the most probable token", lambda s, a: (max(s.tables()[a.sample][a.position]),)),
]
_LOGITS: list[tuple[str, str, Transformed]] = [
    ("temperature", "the logits are divided by the temperature", lambda s, a: (a.expected / s.case.temperature,)),
    ("log-prob", "log-probs, where logits are due", lambda s, a: (_normalized_logit(s, a, 1.0),)),
    (
        "log-prob",
        "log-probs at the temperature, where logits are due",
        lambda s, a: (_normalized_logit(s, a, s.case.temperature),),
    ),
]


def _normalized_logit(seen: Seen, answer: Answer, temperature: float) -> float:
    row = seen.outputs(answer.sample)[answer.position]
    return answer.expected / temperature - float((row / temperature).logsumexp(-1))


_SCORES: list[tuple[str, str, Transformed]] = [
    ("squashed", "the tanh of the number", _of(math.tanh)),
    ("squashed", "the sigmoid of the number", _of(lambda x: 1 / (1 + math.exp(-x)))),
]


def _scores(seen: Seen, answer: Answer) -> list[float]:
    return [seen.finish(row[0]) for row in seen.tables()[answer.sample]]


_POOLED: list[tuple[str, str, Transformed]] = [
    ("pooled", "the mean of the scores over the sample", lambda s, a: (statistics.fmean(_scores(s, a)),)),
    ("pooled", "the sum of the scores over the sample", lambda s, a: (sum(_scores(s, a)),)),
    ("pooled", "the largest score of the sample", lambda s, a: (max(_scores(s, a)),)),
]


def _normalizing(change: Callable[[float, float, float], float]) -> Transformed:
    def numbers(seen: Seen, answer: Answer) -> tuple[float, ...]:
        return (change(_raw(seen, answer), seen.case.probe.mean, seen.case.probe.std),)

    return numbers


_NORMALIZATION: list[tuple[str, str, Transformed]] = [
    ("normalization", "the raw score, not normalized", _normalizing(lambda x, mean, std: x)),
    (
        "normalization",
        "(r - mean) / std, where the raw score is due",
        _normalizing(lambda x, mean, std: (x - mean) / std),
    ),
    ("normalization", "the mean is subtracted, but not divided by std", _normalizing(lambda x, mean, std: x - mean)),
    ("normalization", "divided by std, but the mean is not subtracted", _normalizing(lambda x, mean, std: x / std)),
    ("normalization", "normalized twice", _normalizing(lambda x, mean, std: ((x - mean) / std - mean) / std)),
    ("normalization", "(r - mean) / std^2", _normalizing(lambda x, mean, std: (x - mean) / std**2)),
    ("normalization", "r - mean / std", _normalizing(lambda x, mean, std: x - mean / std)),
    ("normalization", "r std + mean", _normalizing(lambda x, mean, std: x * std + mean)),
    ("normalization", "mean and std are swapped", _normalizing(lambda x, mean, std: (x - std) / abs(mean))),
]


# --- with a number taken from the answers --------------------------------------------------------------------------


def _fitted(seens: list[Seen]) -> list[Reading]:
    """One factor, one offset, or one bound for all numbers, where there is one at all."""
    every = [answer for seen in seens for answer in seen.answers]
    off = [answer for answer in every if answer.differs]
    if not off:
        return []
    clearest = max(off, key=lambda a: abs(a.expected))
    factor = clearest.actual / clearest.expected if clearest.expected else 1.0
    offset = statistics.median(answer.actual - answer.expected for answer in off)
    scaled = [
        Reading("numbers", "scale", f"{factor:.4g} times the number", _of(lambda x: factor * x), fitted=1),
        Reading("numbers", "offset", f"the right number and {offset:+.4g}", _of(lambda x: x + offset), fitted=1),
    ]
    return [*(scaled if abs(factor) > SMALLEST else scaled[1:]), *_clamped(every)]


def _clamped(every: list[Answer]) -> list[Reading]:
    """Numbers held within bounds that some of them have reached, and some have not."""
    low, high = (bound(answer.actual for answer in every) for bound in (min, max))
    below = any(answer.differs and answer.actual == low for answer in every)
    above = any(answer.differs and answer.actual == high for answer in every)
    if low == high or not (below or above) or all(answer.differs for answer in every):
        return []
    words = " or ".join([f"below {low:.4g}"] * below + [f"above {high:.4g}"] * above)
    bounds = (low if below else -math.inf, high if above else math.inf)
    held = _of(lambda x: min(max(x, bounds[0]), bounds[1]))
    return [Reading("numbers", "clamp", f"the numbers are not let {words}", held, constant=True)]
