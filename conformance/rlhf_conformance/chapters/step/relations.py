"""What a wrong gradient is made of: so many times the part of each sample and of each term, where that is all of it.

A gradient of a step is a sum. If the one that came is the same sum with other weights, to within the budget, the
weights say what went wrong: a term that has none, a micro-batch that counts twice, a mean of means. If it is not, each
parameter is looked at by itself. What is said is read off the numbers of the case, and says no more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_conformance._lazy import torch

ENOUGH = 1e-3
"""Two weights that lie nearer are taken for the same."""
LISTED = 3
DISTINCT = 1e-4
"""The least eigenvalue of the cosines between the shares: below it they are too much alike to be told apart."""


@dataclass(frozen=True)
class Share:
    """What one sample adds to the gradient that is due by one term.

    actions     how many the sample has
    gradient    by the names of parameters, float64
    """

    sample: int
    term: str
    actions: int
    gradient: Mapping[str, Any]


def relation(
    mine: Mapping[str, Any],
    due: Mapping[str, Any],
    allowed: float,
    shares: Callable[[], Sequence[Share]],
    parts: Sequence[Sequence[int]],
) -> str:
    """What the gradient that came is of the one that is due, in a sentence; empty where nothing simple is found.

    parts   the samples of each micro-batch; none where they are the trainer's own affair
    """
    if not all(bool(x.isfinite().all()) for x in mine.values()):
        return ""
    factor = _factor(mine, due, allowed)
    if factor is not None:
        if abs(factor) <= ENOUGH:
            return "there is no gradient in any parameter"
        return f"the gradient is {_times(factor)} what is due{_of_cut(factor, len(parts))}"
    found = [share for share in shares() if any(bool((x.abs() > allowed).any()) for x in share.gradient.values())]
    weights = _solved(mine, found, allowed)
    if weights is not None:
        return _of_weights(list(zip(found, weights, strict=True)), parts)
    return _of_parameters(mine, due, allowed)


def _factor(mine: Mapping[str, Any], due: Mapping[str, Any], allowed: float) -> float | None:
    """By how much the whole gradient is scaled, if that is all that is wrong with it."""
    target, wanted = (torch.cat([x[name].reshape(-1) for name in mine]) for x in (mine, due))
    size = float(wanted @ wanted)
    if size <= allowed * allowed:
        return None
    factor = float(target @ wanted) / size
    return factor if bool((target - factor * wanted).abs().max() <= 2 * allowed) else None


def _solved(mine: Mapping[str, Any], shares: Sequence[Share], allowed: float) -> list[float] | None:
    """The weights with which the shares add up to the gradient, if any do and no others could."""
    if not shares:
        return None
    columns = torch.stack([torch.cat([s.gradient[name].reshape(-1) for name in mine]) for s in shares], dim=1)
    target = torch.cat([x.reshape(-1) for x in mine.values()])
    sizes = columns.norm(dim=0)
    unit = columns / sizes
    alike = unit.T @ unit
    if float(torch.linalg.eigvalsh(alike)[0]) < DISTINCT:
        return None
    weights = torch.linalg.solve(alike, unit.T @ target) / sizes
    rest = (columns @ weights - target).abs().max()
    return weights.tolist() if bool(rest <= 2 * allowed) else None


Weighed = Sequence[tuple[Share, float]]


def _of_weights(weighed: Weighed, parts: Sequence[Sequence[int]]) -> str:
    terms = {s.term for s, _ in weighed}
    by_term = {term: _common([w for s, w in weighed if s.term == term]) for term in sorted(terms)}
    if len(terms) > 1 and None not in by_term.values():
        said = [
            f"that of the {t} is {_times(w)} what is due" for t, w in by_term.items() if w is not None and _is_odd(w)
        ]
        lost = [f"the {t} has no gradient" for t, w in by_term.items() if w is not None and abs(w) <= ENOUGH]
        return "; ".join(lost + said)
    samples = sorted({s.sample for s, _ in weighed})
    by_sample = {i: _common([w for s, w in weighed if s.sample == i]) for i in samples}
    if None not in by_sample.values():
        weights = {i: w for i, w in by_sample.items() if w is not None}
        return _of_micro_batches(weights, weighed, parts) or _of_samples(weights)
    return _of_each_term(weighed, parts)


def _of_each_term(weighed: Weighed, parts: Sequence[Sequence[int]]) -> str:
    """Where the terms are weighed differently, one by one."""
    said = []
    for term in sorted({s.term for s, _ in weighed}):
        own = [(s, w) for s, w in weighed if s.term == term]
        one = _common([w for _, w in own])
        if one is not None:
            what = f"is {_times(one)} what is due" if abs(one - 1) > ENOUGH else ""
        else:
            known = {s.sample: w for s, w in own}
            what = _of_micro_batches(known, own, parts) or _of_samples(known)
        if what:
            said.append(f"of the {term}: {what}")
    return "; ".join(said)


def _of_micro_batches(by_sample: Mapping[int, float], weighed: Weighed, parts: Sequence[Sequence[int]]) -> str:
    """Where all samples of a micro-batch have the same weight."""
    if len(parts) < 2:
        return ""
    weights: dict[int, float] = {}
    for number, part in enumerate(parts):
        own = [by_sample[i] for i in part if i in by_sample]
        common = _common(own) if own else None
        if own and common is None:
            return ""
        if common is not None:
            weights[number] = common
    if all(abs(w - 1) <= ENOUGH for w in weights.values()):
        return ""
    actions = {s.sample: s.actions for s, _ in weighed}
    counts = {m: sum(actions.get(i, 0) for i in parts[m]) for m in weights}
    total = sum(counts.values())
    means = {m: total / (len(parts) * counts[m]) for m in weights if counts[m]}
    if _same(weights, means):
        return "each micro-batch is divided by its own count of actions, and then they are averaged: a mean of means"
    if _same(weights, {m: len(parts) * w for m, w in means.items()}):
        return "each micro-batch is divided by its own count of actions, and these means are added up"
    lost = [m for m, w in weights.items() if abs(w) <= ENOUGH]
    kept = [w for w in weights.values() if abs(w) > ENOUGH]
    if lost and all(abs(w - 1) <= ENOUGH for w in kept):
        return f"{_numbered('micro-batch', lost)} of {len(parts)} add{'s' * (len(lost) == 1)} nothing"
    said = ", ".join(f"{w:.4g}" for w in weights.values())
    return f"the micro-batches' gradients are {said} times what is due"


def _of_samples(by_sample: Mapping[int, float]) -> str:
    lost = [i for i, w in by_sample.items() if abs(w) <= ENOUGH]
    if lost and all(abs(w - 1) <= ENOUGH for i, w in by_sample.items() if i not in lost):
        return f"{_numbered('sample', lost)} add{'s' * (len(lost) == 1)} nothing"
    odd = {i: w for i, w in by_sample.items() if abs(w - 1) > ENOUGH}
    said = ", ".join(f"sample {i}'s {w:.4g}" for i, w in list(odd.items())[:LISTED])
    return f"the parts of samples are other multiples of what is due: {said}" if odd else ""


def _of_parameters(mine: Mapping[str, Any], due: Mapping[str, Any], allowed: float) -> str:
    """Where each parameter has a factor of its own."""
    factors = {}
    for name, x in mine.items():
        wanted = due[name]
        size = float((wanted * wanted).sum())
        if bool(wanted.abs().max() <= 10 * allowed):
            continue
        factor = float((x * wanted).sum()) / size
        if bool((x - factor * wanted).abs().max() > 2 * allowed):
            return ""
        factors[name] = factor
    none = [name for name, f in factors.items() if not bool(mine[name].any())]
    if none and all(abs(f - 1) <= 0.02 for name, f in factors.items() if name not in none):
        more = f" and {len(none) - LISTED} more" if len(none) > LISTED else ""
        return f"no gradient reaches {', '.join(none[:LISTED])}{more}, {len(none)} of {len(factors)} parameters"
    distinct = sorted(factors.values())
    if distinct and distinct[-1] - distinct[0] > 0.02:
        return (
            f"each parameter's gradient is scaled by a factor of its own, from {distinct[0]:.3g} to {distinct[-1]:.3g}"
        )
    return ""


def _is_odd(weight: float) -> bool:
    """Neither 0 nor 1."""
    return abs(weight) > ENOUGH and abs(weight - 1) > ENOUGH


def _common(weights: Sequence[float]) -> float | None:
    """The weight that all have, if they have one."""
    if not weights:
        return None
    middle = sorted(weights)[len(weights) // 2]
    return middle if all(abs(w - middle) <= ENOUGH * max(1.0, abs(middle)) for w in weights) else None


def _same(a: Mapping[int, float], b: Mapping[int, float]) -> bool:
    return set(a) == set(b) and all(abs(a[k] - b[k]) <= 2 * ENOUGH * max(1.0, abs(b[k])) for k in a)


def _times(weight: float) -> str:
    return "minus" if abs(weight + 1) <= ENOUGH else f"{weight:.4g} times"


def _of_cut(weight: float, parts: int) -> str:
    """What the factor of a whole gradient is of the number of micro-batches."""
    if parts > 1 and abs(weight * parts - 1) <= parts * ENOUGH:
        return f", one over the number of micro-batches, {parts}"
    if parts > 1 and abs(weight - parts) <= parts * ENOUGH:
        return f", the number of micro-batches, {parts}"
    return ""


def _numbered(what: str, numbers: Sequence[int]) -> str:
    plural = {"micro-batch": "micro-batches", "sample": "samples"}[what]
    return f"{what if len(numbers) == 1 else plural} {', '.join(map(str, numbers))}"
