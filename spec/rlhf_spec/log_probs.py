"""Token log-probs: how likely the policy finds the token that was sampled.

A model answers each position with one logit for each id of its vocabulary. The log-prob of a label is the log of
``softmax(logits / temperature)`` at that label, in nats: 0 means certain, and nothing is above 0. Logits at position
``t`` predict token ``t + 1``. Everything that PPO does rests on differences of these numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def log_softmax(logits: Sequence[float], temperature: float = 1.0) -> list[float]:
    """The log-prob of every id of the vocabulary, in nats: ``z / T - log(sum(exp(z / T)))``, ``(V,) -> (V,)``.

    The greatest logit is taken off first, so that no ``exp`` can overflow; it cancels in the result. A logit of -inf
    (an id that is ruled out) has log-prob -inf. Raises ValueError for a temperature that is not positive, and for
    logits that are empty, NaN, +inf, or all -inf.

    >>> [round(math.exp(x), 6) for x in log_softmax([math.log(1), math.log(3)])]
    [0.25, 0.75]
    >>> [round(math.exp(x), 6) for x in log_softmax([0.0, 2 * math.log(3)], temperature=2.0)]
    [0.25, 0.75]
    >>> log_softmax([1000.0, 0.0])
    [0.0, -1000.0]
    """
    if not 0 < temperature < math.inf:
        raise ValueError(f"the temperature must be positive and finite, not {temperature}")
    if not logits:
        raise ValueError("there must be at least one logit")
    greatest = max(logits)
    if any(math.isnan(logit) for logit in logits) or math.isinf(greatest):
        raise ValueError("logits must not be NaN or +inf, and at least one must be finite")
    scaled = [(logit - greatest) / temperature for logit in logits]
    log_sum = math.log(math.fsum(math.exp(logit) for logit in scaled))
    return [logit - log_sum for logit in scaled]


def token_log_prob(logits: Sequence[float], label: int, temperature: float = 1.0) -> float:
    """The log-prob of ``label``, in nats: ``log softmax(logits / T)[label]``.

    Raises ValueError for a label outside the vocabulary. The ignored label -100 is outside: what is returned there is
    a convention of the trainer, not a log-prob.

    >>> round(token_log_prob([0.0, 0.0, 0.0, 0.0], label=2), 4)  # log(1/4)
    -1.3863
    >>> token_log_prob([0.0, 0.0], label=-100)
    Traceback (most recent call last):
        ...
    ValueError: the label -100 is not an id of a vocabulary of 2
    """
    _check_label(logits, label)
    return log_softmax(logits, temperature)[label]


def token_log_prob_gradient(logits: Sequence[float], label: int, temperature: float = 1.0) -> list[float]:
    """The gradient of ``token_log_prob`` with respect to the logits: ``(onehot(label) - softmax(z / T)) / T``.

    >>> token_log_prob_gradient([0.0, 0.0, 0.0, 0.0], label=0)
    [0.75, -0.25, -0.25, -0.25]
    >>> token_log_prob_gradient([0.0, 0.0, 0.0, 0.0], label=0, temperature=2.0)
    [0.375, -0.125, -0.125, -0.125]
    """
    _check_label(logits, label)
    gradient = []
    for token_id, log_prob in enumerate(log_softmax(logits, temperature)):
        onehot = 1.0 if token_id == label else 0.0
        gradient.append((onehot - math.exp(log_prob)) / temperature)
    return gradient


def entropy(logits: Sequence[float], temperature: float = 1.0) -> float:
    """The entropy of ``softmax(z / T)``, in nats: ``-sum(p * log(p))``. An id of probability 0 adds nothing.

    >>> round(entropy([5.0, 5.0, 5.0, 5.0]), 4)  # log(4), four ids alike
    1.3863
    >>> entropy([1000.0, 0.0])
    0.0
    """
    total = 0.0
    for log_prob in log_softmax(logits, temperature):
        probability = math.exp(log_prob)
        if probability > 0.0:
            total -= probability * log_prob
    return total


def entropy_gradient(logits: Sequence[float], temperature: float = 1.0) -> list[float]:
    """The gradient of ``entropy`` with respect to the logits: ``-p * (log(p) + H) / T``, and 0 where ``p`` is 0.

    It is 0 where all ids are alike, and pushes down what is likelier than the average otherwise.

    >>> logits = [math.log(1), math.log(3)]  # p = 1/4, 3/4 and H = 0.5623
    >>> [round(x, 4) for x in entropy_gradient(logits)]  # 3/16 log 3, and as much less
    [0.206, -0.206]
    >>> [round(x, 4) for x in entropy_gradient([2 * x for x in logits], temperature=2.0)]
    [0.103, -0.103]
    >>> entropy_gradient([0.0, 0.0, -math.inf]) == [0.0, 0.0, 0.0]
    True
    """
    log_probs, whole = log_softmax(logits, temperature), entropy(logits, temperature)
    gradient = []
    for log_prob in log_probs:
        probability = math.exp(log_prob)
        gradient.append(-probability * (log_prob + whole) / temperature if probability > 0.0 else 0.0)
    return gradient


Batch = Sequence[Sequence[Sequence[float]]]
"""Logits ``(B, T, V)``, as nested sequences."""


def token_log_probs(
    logits: Batch, labels: Sequence[Sequence[int]], temperature: float = 1.0, ignore_index: int = -100
) -> list[list[float]]:
    """``token_log_prob`` of each label of a batch, and 0 where the label is ``ignore_index``: ``(B, T, V) -> (B, T)``.

    >>> token_log_probs([[[0.0, 0.0], [1000.0, 0.0]]], [[-100, 0]])
    [[0.0, 0.0]]
    """
    return [
        [
            0.0 if label == ignore_index else token_log_prob(z, label, temperature)
            for z, label in zip(rows, row_labels, strict=True)
        ]
        for rows, row_labels in zip(logits, labels, strict=True)
    ]


def token_log_probs_gradient(
    logits: Batch, labels: Sequence[Sequence[int]], temperature: float = 1.0, ignore_index: int = -100
) -> list[list[list[float]]]:
    """The gradient of 1, 2, 3, ... times the log-probs of a batch, position by position: ``(B, T, V) -> (B, T, V)``.

    The weights differ, so that a gradient that lands at another position is seen.

    >>> token_log_probs_gradient([[[0.0, 0.0], [0.0, 0.0]]], [[0, 1]])
    [[[0.5, -0.5], [-1.0, 1.0]]]
    """
    gradient, weight = [], 0.0
    for rows, row_labels in zip(logits, labels, strict=True):
        row = []
        for z, label in zip(rows, row_labels, strict=True):
            weight += 1.0
            of_token = [0.0] * len(z) if label == ignore_index else token_log_prob_gradient(z, label, temperature)
            row.append([weight * x for x in of_token])
        gradient.append(row)
    return gradient


def token_entropies(logits: Batch, temperature: float = 1.0) -> list[list[float]]:
    """``entropy`` at each position of a batch: ``(B, T, V) -> (B, T)``.

    >>> token_entropies([[[1000.0, 0.0]]])
    [[0.0]]
    """
    return [[entropy(z, temperature) for z in rows] for rows in logits]


def token_entropies_gradient(logits: Batch, temperature: float = 1.0) -> list[list[list[float]]]:
    """The gradient of 1, 2, 3, ... times the entropies of a batch, position by position: ``(B, T, V) -> (B, T, V)``.

    >>> token_entropies_gradient([[[1.0, 1.0], [1000.0, 0.0]]]) == [[[0.0, 0.0], [0.0, 0.0]]]
    True
    """
    gradient, weight = [], 0.0
    for rows in logits:
        row = []
        for z in rows:
            weight += 1.0
            row.append([weight * x for x in entropy_gradient(z, temperature)])
        gradient.append(row)
    return gradient


def next_token_log_probs(
    logits_rows: Sequence[Sequence[float]], tokens: Sequence[int], temperature: float = 1.0
) -> list[float]:
    """The log-prob of each token but the first, read at the position before it: ``(L, V), (L,) -> (L - 1,)``.

    Raises ValueError where there is not one row of logits for each token.

    >>> rows = [[0.0, 0.0], [math.log(1), math.log(3)], [9.0, 0.0]]
    >>> [round(x, 4) for x in next_token_log_probs(rows, tokens=[0, 1, 1])]  # log(1/2), log(3/4)
    [-0.6931, -0.2877]
    """
    if len(logits_rows) != len(tokens):
        raise ValueError(f"there are {len(logits_rows)} rows of logits for {len(tokens)} tokens")
    log_probs = []
    for position in range(len(tokens) - 1):
        log_probs.append(token_log_prob(logits_rows[position], tokens[position + 1], temperature))
    return log_probs


def _check_label(logits: Sequence[float], label: int) -> None:
    if not 0 <= label < len(logits):
        raise ValueError(f"the label {label} is not an id of a vocabulary of {len(logits)}")
