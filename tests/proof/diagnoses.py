"""How often the diagnosis names the fault: every fault at its own clause, and twins that just miss their budgets.

    python -m tests.proof diagnoses [--missing] [FAULT or TWIN ...]

writes docs/proof/diagnoses.json, from which docs/diagnosis.md is made. So that agreement to the last bit decides
nothing, every answer of a fault, and every gradient, carries a rounding or two that the library's does not. Red where
a wrong name is given, a near miss gets a name, or less than nine in ten get the right one.
"""

from __future__ import annotations

import collections
import json
import random
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch

from rlhf_conformance.adapter import METHODS, Adapter
from rlhf_conformance.diagnosis import nearest, provenance
from rlhf_conformance.diagnosis.evidence import Evidence, Observed, drawn, observe
from rlhf_conformance.faults import faults
from rlhf_conformance.judging.checks import checks
from rlhf_conformance.judging.judge import Comparison, Mismatch
from rlhf_conformance.judging.questions import NotReturned
from rlhf_conformance.results import ERROR, FAIL
from rlhf_conformance.twins import twins

from .files import MEASURED, by_line
from .trying import _subject, attempt_on, each, touched

NUMBERS = MEASURED / "diagnoses.json"
Row = dict[str, Any]

FIRST, AMONG, WRONG, SILENT, BY_ERROR, MISSED = "first", "among", "wrong", "silent", "error", "missed"
"""The right name comes first; it is one of several that answer alike; another's name; none; the clause ends in an
error whose message says what came; the clause did not fail."""

WORDS = {
    FIRST: "right name first",
    AMONG: "right name among several that answer alike",
    SILENT: "no name",
    WRONG: "wrong name",
    BY_ERROR: "named by the error itself",
    MISSED: "not caught",
}
TARGET = 0.9
SHRINKING = 0.3
"""Seconds; what has not been shrunk by then is looked into as it is."""

ALIASES = {
    "actions-clamped-for-the-exponent": ("correction_log_clamped = 'actions'",),
    "actor-temperature-ignored": ("temperature = False",),
    "band-keeps-one": ("correction_kept = 'one'",),
    "band-keeps-token-weights": ("correction_kept = 'token-weight'",),
    "clip-around-return": ("value_clip = False", "value-clip-ignored"),
    "correction-always-clamped": ("correction_log_clamp = 10.0",),
    "correction-never-clamped": ("correction_log_clamp = None",),
    "critic-clip-ignored": ("critic-old-values-taken-anew",),
    "critic-statistics-unset": ("critic_normalization = False",),
    "dual-clip-ignored": ("dual_clip = False",),
    "gae-over-observations": ("observations = 'value-steps'",),
    "generate-knows-one-stop": ("stop_ids = 'one'",),
    "ignored-label-is-token-zero": ("ignored_label = None",),
    "kl-clamp-ignored": ("kl_clamp = None",),
    "kl-detached": ("kl_gradient = None",),
    "kl-metric-k3": ("kl_metric = 'k3'",),
    "log-prob-temperature-ignored": ("temperature = False",),
    "masked-rows-in-denominator": ("count_empty_rows = True",),
    "kl-of-pads-left": ("kl_masked = None",),
    "mean-of-means": ("global_count = False",),
    "mean-of-micro-batch-means": ("step_denominators = 'micro-batch'",),
    "mean-removed-anyway": ("whitening_keeps_mean = False",),
    "nan-weighs-nothing": ("correction_nan = 'zero'",),
    "norm-statistics-unset": ("reward_normalization = False",),
    "one-eos-id": ("stop_ids = 'one'",),
    "one-eps-for-both-sides": ("asymmetric_clip = False",),
    "recursion-left-in-other-cells": ("advantages_masked = None",),
    "returns-over-observations": ("observations = 'zero-steps'", "observations = 'value-steps'"),
    "reward-mask-from-pad-id": ("takes_attention_mask = False",),
    "truncation-from-above-alone": ("correction_lower = 'mask'",),
    "value-clip-ignored": ("value_clip = False",),
    "value-loss-per-micro-batch": ("global_count = False",),
    "weights-of-pads-left": ("correction_masked = 'one'",),
    "values-behind-the-end": ("after_last_action = 'value'",),
}
"""Faults that do to the letter what a convention, or another fault, does: the same code, or, as for
`clip-around-return`, the same number always, |clip(x)| being at most |x|."""


HISTORY = "its answers depend on all that it was asked before, which a candidate was not"
DRAWN = "what it draws at random a candidate draws otherwise"
SAID = "the failure says it itself: no graph, or the mode that was left"
ROUGH = "it has its name without the rounding that is laid over its answers here"
REASONS: dict[str, str] = {
    "abs-smoothed": ROUGH,
    "batch-with-empty-row-detached": ROUGH,
    "kl-correction-turned-round": ROUGH,
    "penalties-by-suffix-sums": ROUGH,
    "small-number-in-the-logarithm": ROUGH,
    "temperatures-apart": ROUGH,
    "weight-of-the-largest-square": ROUGH,
    "advantages-scaled-by-history": HISTORY,
    "answers-drift": HISTORY,
    "kl-scaled-by-history": HISTORY,
    "path-scales-by-history": HISTORY,
    "scores-scaled-by-history": HISTORY,
    "values-scaled-by-history": HISTORY,
    "baseline-grows-with-calls": HISTORY,
    "bounds-of-the-first-call": HISTORY,
    "mean-grows-with-calls": HISTORY,
    "rewards-normalise-as-they-go": HISTORY,
    "weights-run-along": HISTORY,
    "critic-head-bias-drawn": DRAWN,
    "reward-head-bias-drawn": DRAWN,
    "entropy-leaves-eval-mode": SAID,
    "entropy-without-gradient": SAID,
    "rewards-with-output-without-graph": SAID,
    "values-with-output-without-graph": SAID,
    "with-output-without-graph": SAID,
}
"""Why a fault is not named, or not first."""


def reason(name: str, row: Row) -> str:
    """Why a fault is not called by its own name first."""
    if name in REASONS:
        return REASONS[name]
    return "they answer alike on every case that was tried" if row["outcome"] == AMONG else "not known"


# --- faults -------------------------------------------------------------------------------------------------------


def measure(name: str) -> tuple[str, Row]:
    """One fault at its own clause, with noise: what is said of it."""
    fault = faults()[name]
    for kind in (rough(fault.adapter), fault.adapter):  # noise hides what a clause about rounding sees
        subject = _subject(kind(), "float32")
        tried = attempt_on(subject, fault.clause, shrinking=SHRINKING)
        if tried.result.verdict in (ERROR, FAIL):
            break
    row = {"clause": fault.clause, "outcome": MISSED, "named": [], "alike": 0, "places": [], "seconds": 0.0}
    if tried.result.verdict == ERROR:
        return name, {**row, "outcome": BY_ERROR, "said": tried.result.reason}
    if tried.result.verdict != FAIL:
        return name, row
    started = time.process_time()
    check = checks()[fault.clause]
    evidence = Evidence(check, subject, observe(check, subject, tried.case))
    places = [d.name for d in provenance.diagnoses(evidence) if d.kind in ("place", "numbers")]
    named = [suspect.candidate.name for suspect in nearest.agreeing(evidence)]
    return name, {
        **row,
        "outcome": outcome(name, named),
        "named": named[: nearest.LISTED],
        "alike": len(named),
        "places": places,
        "seconds": round(time.process_time() - started, 2),
        "said": str(tried.result.reason),
    }


def outcome(name: str, named: list[str]) -> str:
    """What the names that were given are worth, for the fault `name`."""
    right = {name, *ALIASES.get(name, ())}
    if not named:
        return SILENT
    if named[0] in right:
        return FIRST
    return AMONG if right & set(named) else WRONG


def rough(kind: type[Adapter]) -> type[Adapter]:
    """The adapter with answers and gradients that are rounded otherwise: each number is off by up to two roundings."""

    def rounded(method: str) -> Any:
        def answer(self: Any, *arguments: Any) -> Any:
            if "action_mask" in METHODS[method].arguments and arguments[0].requires_grad:
                arguments = (_RoughGradient.apply(arguments[0]), *arguments[1:])
            return _rough(getattr(super(made, self), method)(*arguments))

        return answer

    made = type(kind.__name__, (kind,), {method: rounded(method) for method in FLOATS})
    return made


FLOATS = (
    "token_log_probs",
    "token_entropy",
    "action_log_probs",
    "action_entropy",
    "logits",
    "rewards",
    "action_values",
    "values",
    "step_gradients",
    "step_log_probs",
    *(name for name, row in METHODS.items() if "action_mask" in row.arguments),
)
"""The methods that answer with floating-point numbers."""


def _rough(answer: Any) -> Any:
    if is_dataclass(answer) and not isinstance(answer, type):
        return type(answer)(*(_rough(getattr(answer, part.name)) for part in fields(answer)))
    if isinstance(answer, list | tuple):
        return type(answer)(_rough(part) for part in answer)
    if isinstance(answer, dict):
        return {name: _rough(part) for name, part in answer.items()}
    if not isinstance(answer, torch.Tensor) or not answer.is_floating_point():
        return answer
    if torch.equal(answer.bfloat16().to(answer.dtype), answer):  # rounded so: finer noise would be rounded away
        return answer
    with torch.enable_grad():  # a fault may have switched it off
        return (answer.double() * _factors(answer)).to(answer.dtype)


def _factors(like: Any) -> Any:
    """The same for the same shape, so that a question asked twice has one answer; no global generator is used."""
    noise = torch.rand(like.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(like.device)
    return 1 + torch.finfo(like.dtype).eps * (2 * noise - 1)


class _RoughGradient(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, x: Any) -> Any:
        return x.view_as(x)

    @staticmethod
    def backward(_: Any, gradient: Any) -> Any:
        return _rough(gradient)


# --- near misses --------------------------------------------------------------------------------------------------

PUSHED = (1.2, 5.0)
"""Errors of a near miss, in budgets."""
CASES = 13


def nearly(twin: str, slug: str, seed: int = 0) -> list[str] | None:
    """Names that are given to an honest twin whose every answer is pushed just over its budget; None where the clause
    compares nothing within a budget."""
    check, subject = checks()[slug], _subject(twins()[twin](), "float32")
    if check.not_provided(subject.adapter):
        return None
    chance = random.Random(f"{twin}:{slug}:{seed}")
    cases = drawn(check, subject, 1 if check.single else CASES, seed)
    try:
        smallest, *more = (pushed(observe(check, subject, case), chance) for case in cases)
    except NotReturned:
        return None
    if not smallest.failed:
        return None
    evidence = Evidence(check, subject, smallest, seed)
    evidence.__dict__["more"] = tuple(more)
    return [suspect.candidate.name for suspect in nearest.agreeing(evidence)]


def pushed(seen: Observed, chance: random.Random) -> Observed:
    """With every number, or with every second case only one of them, off by 1.2 to 5 budgets to either side."""
    alone = chance.random() < 0.5
    return replace(seen, comparisons=tuple(_pushed(c, alone, chance) for c in seen.comparisons))


def _pushed(comparison: Comparison, alone: bool, chance: random.Random) -> Comparison:
    places = [i for i, allowed in enumerate(comparison.allowed) if allowed > 0]
    if alone and places:
        places = [chance.choice(places)]
    actual = list(comparison.actual)
    for i in places:
        actual[i] = comparison.expected[i] + chance.choice((-1, 1)) * chance.uniform(*PUSHED) * comparison.allowed[i]
    broken = Mismatch(comparison.what, "", "", "") if places else None
    return replace(comparison, actual=tuple(actual), broken=broken)


def near_misses(twin: str) -> tuple[str, dict[str, list[str] | None]]:
    """One twin, nearly right, on all clauses that could tell it from the reference."""
    return twin, {slug: nearly(twin, slug) for slug in touched(twins()[twin])}


# --- all of them --------------------------------------------------------------------------------------------------


def run(names: Iterable[str], *, workers: int, missing: bool = False) -> int:
    """Measure, write, and say what is wrong; the exit status.

    With names, only these faults and twins are measured anew; with `missing`, only those that have no row.
    """
    numbers = read()
    rows = {name: row for name, row in numbers["faults"].items() if name in faults()}
    misses = {name: row for name, row in numbers["near misses"].items() if name in twins()}
    wanted = set(names)
    unknown = wanted - set(faults()) - set(twins())
    if unknown:
        raise SystemExit(f"no such fault or twin: {', '.join(sorted(unknown))}")
    chosen, nearly_right = (
        [name for name in known if (name in wanted if wanted else not (missing and name in measured))]
        for known, measured in ((faults(), rows), (twins(), misses))
    )
    random.Random(0).shuffle(chosen)  # so that the slow ones do not come all at once
    for i, (name, row) in enumerate(each(measure, [(name,) for name in chosen], workers), 1):
        rows[name] = row
        print(f"{i}/{len(chosen)} {name}: {row['outcome']} {', '.join(row['named'])}", flush=True)
        write(rows, misses)
    for twin, found in each(near_misses, [(twin,) for twin in nearly_right], workers):
        tried = {slug: named for slug, named in found.items() if named is not None}
        misses[twin] = {"clauses": len(tried), "named": {slug: named for slug, named in tried.items() if named}}
        print(f"{twin}, nearly right: {misses[twin]}", flush=True)
        write(rows, misses)
    numbers = read()
    print("\n".join(figures(numbers)))
    wrong = complaints(numbers)
    print("\n".join(wrong) or "every name that was given is right")
    return 1 if wrong else 0


def counts(rows: Mapping[str, Row]) -> dict[str, int]:
    """How many faults came to which outcome."""
    found = collections.Counter(row["outcome"] for row in rows.values())
    return {outcome: found[outcome] for outcome in WORDS}


def share(rows: Mapping[str, Row]) -> float:
    """The right name first, of the faults whose clause fails on an answer."""
    count = counts(rows)
    return count[FIRST] / max(1, len(rows) - count[BY_ERROR])


def figures(numbers: Mapping[str, Any]) -> Iterator[str]:
    count, misses = counts(numbers["faults"]), numbers["near misses"]
    yield ", ".join(f"{outcome} {n}" for outcome, n in count.items())
    yield f"the right name first: {share(numbers['faults']):.1%}"
    tried, named = sum(r["clauses"] for r in misses.values()), sum(len(r["named"]) for r in misses.values())
    yield f"near misses: {tried}, of which got a name: {named}"


def complaints(numbers: Mapping[str, Any]) -> list[str]:
    """What makes the session red."""
    rows = numbers["faults"]
    without = [name for name in faults() if name not in rows]
    said = [f"{len(without)} faults have no row, {without[0]} first"] if without else []
    said += [f"{name} is called {row['named'][0]}" for name, row in rows.items() if row["outcome"] == WRONG]
    said += [f"{name} is not caught by {row['clause']}" for name, row in rows.items() if row["outcome"] == MISSED]
    if share(rows) < TARGET:
        said.append(f"the right name is first for {share(rows):.1%} of the faults, less than {TARGET:.0%}")
    for twin, row in numbers["near misses"].items():
        said += [f"{twin}, nearly right, is called {named[0]} by {slug}" for slug, named in row["named"].items()]
    return said


def read() -> dict[str, Any]:
    return json.loads(NUMBERS.read_text()) if NUMBERS.exists() else {"faults": {}, "near misses": {}}


def write(rows: Mapping[str, Row], misses: Mapping[str, Any]) -> None:
    numbers = {"faults": dict(sorted(rows.items())), "near misses": dict(sorted(misses.items()))}
    parts = (f"{json.dumps(key)}: {by_line(found)}" for key, found in numbers.items())
    NUMBERS.write_text("{\n" + ",\n".join(parts) + "\n}\n")
