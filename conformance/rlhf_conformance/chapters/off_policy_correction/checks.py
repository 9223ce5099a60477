"""The checks of the weights that correct for the engine that sampled."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import rlhf_spec.off_policy_correction as spec
from rlhf_conformance._lazy import torch
from rlhf_conformance.adapter import Adapter
from rlhf_conformance.chapters._credit.asking import GARBAGE, POISON, Quantity
from rlhf_conformance.chapters._credit.editing import own_row, own_token, unmoved
from rlhf_conformance.chapters._masked import DressedCase
from rlhf_conformance.chapters.off_policy_correction.cases import (
    LOG_PROBS,
    LOOSE,
    VAST,
    Kind,
    OffPolicyCase,
    OffPolicyShape,
    asked,
    clamps,
    exponents,
    kinds,
    off_policy_cases,
)
from rlhf_conformance.judging.checks import Questions, Requirement, check, use
from rlhf_conformance.judging.questions import COMPARED, Answered, Attempt, Call, Fact, Question, Reading
from rlhf_conformance.judging.subject import Subject
from rlhf_conformance.oracle import budgets

FINITE = (1.0, *GARBAGE, -1e4, -200.0, 200.0, 1e30, -1e30)
"""Put under the mask: the difference of two of them is finite, its exponential need not be. 1.0 is a sentinel of
trainers for a log-prob that there is not."""


def declared(adapter: Adapter) -> dict[str, Any]:
    """What the formula is told beside the call."""
    return {**clamps(adapter), "kept": adapter.correction_kept, "of_nan": adapter.correction_nan}


def truth(adapter: Adapter, case: OffPolicyCase) -> list[list[float]]:
    o = case.options
    return spec.off_policy_weights(
        case.old_log_probs,
        case.rollout_log_probs,
        case.action_mask,
        level=o.level,
        mode=o.mode,
        upper=o.upper,
        lower=o.lower,
        sequence_weight=o.sequence_weight,
        **declared(adapter),
    )


def allowed(adapter: Adapter, case: OffPolicyCase, dtype: Any, *, exact: bool = False) -> list[list[float]]:
    """Nothing where a weight is 0, or 1 as such; that of a bound where it is held there. `exact`: nothing either where
    all log-ratios that a weight is made of are 0."""
    o = case.options
    kind: Kind = (o.level, o.mode, o.sequence_weight)
    single: Kind = ("token", o.mode, o.sequence_weight)
    kept = adapter.correction_kept if o.mode == "mask" else "weight"
    rows = []
    for i, weights in enumerate(truth(adapter, case)):
        log_ratios = case.log_ratios(i)
        errors = exponents(adapter, log_ratios, single if kept == "token-weight" else kind, dtype)
        actions = [j for j, m in enumerate(case.action_mask[i]) if m]
        row = [0.0] * len(weights)
        for j, (exponent, error) in zip(actions, errors, strict=True):
            if o.mode == "truncate" and weights[j] in (o.upper, o.lower):
                row[j] = budgets.correction_bound(weights[j], dtype)
            elif weights[j] and kept != "one" and (exponent or error or not exact):
                row[j] = budgets.correction_weight(weights[j], error, dtype)
        rows.append(row)
    return rows


WEIGHTS = Quantity(
    method="off_policy_weights",
    word="weight",
    draw=off_policy_cases,
    truth=truth,
    allowed=allowed,
    options=declared,
    given=lambda s, case, dtype: (
        s.tensor(case.old_log_probs),
        s.tensor(case.rollout_log_probs),
        s.tensor(case.action_mask, dtype),
        case.options,
    ),
)


def offers(what: str, **shape: Any) -> Requirement:
    """A kind of this shape is declared."""
    said = f"no kind of weight that is declared shows {what}"
    return lambda adapter: None if kinds(adapter, OffPolicyShape(**shape)) else said


def offers_several(adapter: Adapter) -> str | None:
    return None if len(kinds(adapter)) > 1 else "one kind of weight is declared: nothing can be exchanged"


def holds_from_below(adapter: Adapter) -> str | None:
    truncates = kinds(adapter, OffPolicyShape(modes=("truncate",)))
    return None if truncates and adapter.correction_lower == "both" else "correction_lower does not say 'both'"


def says_of_nan(adapter: Adapter) -> str | None:
    return None if adapter.correction_nan else "correction_nan is not declared: nothing is promised"


def says_of_masked(adapter: Adapter) -> str | None:
    return None if adapter.correction_masked else "correction_masked is not declared: nothing is promised"


def of(what: str, *requires: Requirement, zone: str = "usual", **shape: Any) -> Any:
    """The definition on cases of kinds that have to be declared."""
    of_kind = {name: shape[name] for name in ("levels", "modes", "sequence_weights", "shown") if name in shape}
    return WEIGHTS.definition(offers(what, **of_kind), *requires, zone=zone, **shape)


# --- the weight -----------------------------------------------------------------------------------------------------

TOKEN: dict[str, Any] = {"levels": ("token",)}
SEQUENCE: dict[str, Any] = {"levels": ("sequence",)}

use("off-policy-correction.token", of("that of a token by itself", **TOKEN, **LOOSE))
use(
    "off-policy-correction.sequence-product",
    of("the product of a sequence", **SEQUENCE, sequence_weights=("product",), columns=2, **LOOSE),
)
use(
    "off-policy-correction.sequence-geometric",
    of("the geometric mean of a sequence", **SEQUENCE, sequence_weights=("geometric",), columns=2, **LOOSE),
)


@check("off-policy-correction.agreement", needs=WEIGHTS.needs, cases=WEIGHTS.cases(equal=True))
def agreement(subject: Subject, case: OffPolicyCase) -> Questions:
    yield replace(WEIGHTS.asks(subject, case), allowed=allowed(subject.adapter, case, subject.dtype, exact=True))


# --- bounds ---------------------------------------------------------------------------------------------------------

use("off-policy-correction.truncation", of("how it is truncated", modes=("truncate",)))
use(
    "off-policy-correction.truncation-below",
    of("how it is truncated", holds_from_below, modes=("truncate",), lowers=(0.5, 0.8, 0.65, 0.9)),
)
use("off-policy-correction.band", of("a band", modes=("mask",)))
use(
    "off-policy-correction.bounds",
    WEIGHTS.definition(equal=True, uppers=(1.0, 0.75, 1.0, 45.0, 0.4), lowers=(None, 1.0, None, 0.3)),
)
use("off-policy-correction.kept", of("a band", modes=("mask",), uppers=(2.5, 6.0, 1.4), min_rows=2))
use(
    "off-policy-correction.log-clamp",
    WEIGHTS.definition(zone="beyond", uppers=(math.exp(VAST),), lowers=(None,)),
)


def _everywhere(answered: Answered, rows: Sequence[int] | None = None) -> Any:
    """The answer as (B, T), or some rows of it."""
    mask = answered.argument("action_mask")
    answer = answered.value.detach().reshape(len(mask), -1).expand(mask.shape)
    return answer if rows is None else answer[list(rows)]


use("off-policy-correction.overflow", WEIGHTS.definition(zone="huge"))


@check("off-policy-correction.overflow-finite", needs=WEIGHTS.needs, cases=WEIGHTS.cases(zone="huge"))
def overflow_finite(subject: Subject, case: OffPolicyCase) -> Questions:
    """Whatever an adapter makes of a weight that is too large, it lies between 0 and the upper bound; or is finite,
    where the weight that was compared with the bound is not the one that is kept."""
    o, nothing = case.options, [[0.0] * len(mask) for mask in case.action_mask]
    own = subject.adapter.correction_kept == "weight" or o.mode == "truncate"
    most = o.upper + budgets.correction_bound(o.upper, subject.dtype) if own else math.inf

    def outside(subject: Any, answers: Sequence[Answered]) -> Any:
        found = _everywhere(answers[-1]).double()
        found = found - found.clamp(0.0, most)  # NaN where it is infinite and so is the bound
        return found.masked_fill(answers[-1].argument("action_mask") == 0, 0.0)

    what = "weight of a large log-ratio, as far as it lies outside of its bounds"
    yield Question(what, WEIGHTS.call(subject, case), nothing, reading=Reading(outside, wanted=COMPARED))


# --- what is asked for ----------------------------------------------------------------------------------------------


@check(
    "off-policy-correction.options",
    needs=WEIGHTS.needs,
    requires=(offers_several,),
    cases=WEIGHTS.cases(everything=True, columns=2, min_rows=2),
    effort=2,
)
def options(subject: Subject, case: OffPolicyCase) -> Questions:
    """Each kind that is declared, asked about the same log-probs and bounds, and the first once more without a bound
    that binds."""
    for level, mode, sequence_weight in kinds(subject.adapter):
        other = case.changed(options=asked(case.options, (level, mode, sequence_weight)))
        word = "weight of an action" if level == "token" else f"{sequence_weight} weight of a sequence"
        yield WEIGHTS.asks(subject, other, what=f"{word}, mode {mode}")
    free = case.changed(options=replace(case.options, upper=math.exp(VAST), lower=None))
    yield WEIGHTS.asks(subject, free, what="weight with other bounds than before")


# --- rows and columns -----------------------------------------------------------------------------------------------

use("off-policy-correction.square", WEIGHTS.definition(square=True))
use(
    "off-policy-correction.own-token",
    unmoved(
        WEIGHTS, own_token, "others at other actions", offers("that of a token", **TOKEN), numbers=LOG_PROBS, **TOKEN
    ),
)
use(
    "off-policy-correction.own-row",
    unmoved(WEIGHTS, own_row, "others in other rows", numbers=LOG_PROBS, min_rows=2),
)
use("off-policy-correction.batch-order", WEIGHTS.batch_order(min_rows=2))
use("off-policy-correction.padding-invariance", WEIGHTS.padding_invariance())
use("off-policy-correction.empty-row", WEIGHTS.definition(empty_row=True))


@check("off-policy-correction.empty-row-finite", needs=WEIGHTS.needs, cases=WEIGHTS.cases(empty_row=True))
def empty_row_finite(subject: Subject, case: OffPolicyCase) -> Questions:
    """An error is as good, if other rows are answered."""
    full = [i for i, mask in enumerate(case.action_mask) if any(mask)]
    empty = [i for i, mask in enumerate(case.action_mask) if not any(mask)]
    yield WEIGHTS.asks(subject, case.rows(full), what="weight without the empty row")
    answered = yield Attempt(WEIGHTS.call(subject, case))
    if answered is not None:
        finite = bool(_everywhere(answered, empty).isfinite().all())
        yield Fact(finite, "weight of a row without an action", expected="finite, or an error", actual="not finite")


# --- the mask -------------------------------------------------------------------------------------------------------

use("off-policy-correction.mask", WEIGHTS.dressed(FINITE))
use("off-policy-correction.nan-under-mask", WEIGHTS.dressed(POISON))


@check(
    "off-policy-correction.holes",
    needs=WEIGHTS.needs,
    cases=lambda s: WEIGHTS.dressed_cases(s, FINITE, holes=True, columns=3),
)
def holes(subject: Subject, case: DressedCase) -> Questions:
    call = WEIGHTS.call(subject, case.dressed, about=case.case)
    yield WEIGHTS.asks(subject, case.case, call, "weight of several turns")


def masked(call: Call, case: OffPolicyCase, value: float) -> Question:
    """Do the cells that are no actions have the weight that is declared?"""
    kept = torch.tensor(case.action_mask) == 1

    def numbers(subject: Any, answers: Sequence[Answered]) -> Any:
        answer = _everywhere(answers[-1])
        return answer.masked_fill(kept.to(answer.device), 0.0)

    expected = [[0.0 if m else value for m in mask] for mask in case.action_mask]
    reading = Reading(numbers, wanted=COMPARED)
    return Question("weight of a cell that is no action", call, expected, reading=reading)


@check(
    "off-policy-correction.masked-cells",
    needs=WEIGHTS.needs,
    requires=(says_of_masked,),
    cases=lambda s: WEIGHTS.dressed_cases(s, GARBAGE[:-1], holes=True, columns=3),
)
def masked_cells(subject: Subject, case: DressedCase) -> Questions:
    value = {"zero": 0.0, "one": 1.0}[subject.adapter.correction_masked]
    yield masked(WEIGHTS.call(subject, case.dressed, about=case.case), case.case, value)


use("off-policy-correction.nan-of-the-engine", WEIGHTS.definition(says_of_nan, zone="lost"))
use("off-policy-correction.mask-dtype", WEIGHTS.mask_dtype())

# --- the graph, and what else is changed ----------------------------------------------------------------------------

use("off-policy-correction.no-graph", WEIGHTS.no_graph())
use("off-policy-correction.inputs-unwritten", WEIGHTS.inputs_unwritten())
use("off-policy-correction.side-effects", WEIGHTS.side_effects())
