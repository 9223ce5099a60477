"""The checks of the KL."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import rlhf_spec.kl as spec
from rlhf_conformance._lazy import torch
from rlhf_conformance.adapter import Adapter
from rlhf_conformance.chapters._credit.asking import GARBAGE, POISON, Quantity
from rlhf_conformance.chapters._credit.editing import masked_cells, own_token, unmoved, zeros
from rlhf_conformance.chapters._masked import DressedCase
from rlhf_conformance.chapters.kl.cases import LOG_PROBS, KlCase, clamps, kl_cases, offered, vocabularies
from rlhf_conformance.judging.checks import Questions, Requirement, check, declares, use
from rlhf_conformance.judging.questions import Answered, Call, Formula, Question, Reading
from rlhf_conformance.judging.subject import Subject
from rlhf_conformance.oracle import budgets

USUAL_GARBAGE = GARBAGE[:-1]
"""Put under the mask: the exponential of a difference of two of them is finite."""
HUGE = (*POISON, -200.0, -1e37)


def allowed(adapter: Adapter, case: KlCase, dtype: Any) -> list[list[float]]:
    return _at_actions(case, lambda i, j: error_of(adapter, case.options.estimator, case.log_ratio(i, j), dtype))


def error_of(adapter: Adapter, estimator: str, d: float, dtype: Any) -> float:
    """How far the estimate for a log-ratio may be off, with the clamps and the gradient that are declared."""
    return error_with(clamps(adapter, estimator), adapter.kl_gradient, estimator, d, dtype)


def error_with(held: Mapping[str, float | None], kind: str | None, estimator: str, d: float, dtype: Any) -> float:
    """How far the estimate for a log-ratio may be off; that of one that a clamp holds as far as the clamp itself."""
    bound = held["log_ratio_clamp"] or math.inf
    estimate = spec.token_kl(d, 0.0, estimator, held["log_ratio_clamp"], held["clamp"])
    if kind == "k2":  # whose value comes straight through another's gradient, and has its roundings
        return budgets.kl(d, estimator, dtype) + budgets.kl(d, "k2", dtype) + budgets.kl(estimate, "k1", dtype)
    if held["clamp"] and abs(estimate) == held["clamp"]:
        return budgets.kl(estimate, "k1", dtype)
    return budgets.kl(min(max(d, -bound), bound), estimator, dtype)


def _at_actions(case: KlCase, of: Any) -> list[list[float]]:
    return [[of(i, j) if m else 0.0 for j, m in enumerate(row)] for i, row in enumerate(case.action_mask)]


def truth(adapter: Adapter, case: KlCase) -> list[list[float]]:
    estimator = case.options.estimator
    return spec.kl(
        case.log_probs, case.ref_log_probs, case.action_mask, estimator=estimator, **clamps(adapter, estimator)
    )


KL = Quantity(
    method="kl",
    word="KL",
    draw=kl_cases,
    truth=truth,
    allowed=allowed,
    options=lambda adapter: {},
    given=lambda s, case, dtype: (
        s.tensor(case.log_probs),
        s.tensor(case.ref_log_probs),
        s.tensor(case.action_mask, dtype),
        case.options,
    ),
    options_of=lambda adapter, case: clamps(adapter, case.options.estimator),
)
promises_zeros = declares("kl_masked", "kl_masked is not declared", value="zero")


def has(*estimators: str) -> Requirement:
    """At least one of them is declared."""
    words = " or ".join(estimators)
    return lambda adapter: None if offered(adapter, estimators) else f"{words} is not among kl_estimators"


def has_gradient(adapter: Adapter) -> str | None:
    return None if adapter.kl_gradient else "kl_gradient is not declared: the KL is no term of a loss"


def has_clamped_gradient(adapter: Adapter) -> str | None:
    if adapter.kl_gradient != "plain":
        return "kl_gradient is not 'plain'"
    if not (adapter.kl_log_ratio_clamp or adapter.kl_clamp):
        return "no clamp is declared"
    return None if offered(adapter, adapter.kl_clamped) else "no estimator of kl_clamped is among kl_estimators"


# --- the estimators -------------------------------------------------------------------------------------------------

use("kl.k1", KL.definition(estimators=("k1",)), has("k1"))
use("kl.k2", KL.definition(estimators=("k2",)), has("k2"))
use("kl.k3", KL.definition(estimators=("k3",)), has("k3"))
use("kl.abs", KL.definition(estimators=("abs",)), has("abs"))
use("kl.clamp", KL.definition(zones=("beyond", "usual")))


@check("kl.agreement", needs=KL.needs, cases=KL.cases(zones=("equal", "usual")))
def agreement(subject: Subject, case: KlCase) -> Questions:
    """A KL of 0 is exact."""
    asked = KL.asks(subject, case)
    exact = _at_actions(case, lambda i, j: asked.allowed[i][j] if case.log_ratio(i, j) else 0.0)
    yield Question(asked.what, asked.calls, asked.expected, exact, reading=asked.reading, formula=asked.formula)


NEVER_NEGATIVE = ("k2", "k3", "abs")
BELOW_ZERO = Reading(
    lambda subject, answers: _masked(answers[-1]).clamp(max=0.0),
    "answer, mask = answers[-1], calls[-1]['action_mask']\n"
    "return flat(answer.detach().masked_fill(mask == 0, 0.0).clamp(max=0.0))",
)


def _masked(answered: Answered) -> Any:
    return answered.value.detach().masked_fill(answered.argument("action_mask") == 0, 0.0)


@check(
    "kl.not-negative",
    needs=KL.needs,
    requires=(has(*NEVER_NEGATIVE),),
    cases=KL.cases(zones=("small", "usual"), estimators=NEVER_NEGATIVE),
)
def not_negative(subject: Subject, case: KlCase) -> Questions:
    nothing = [[0.0] * len(row) for row in case.action_mask]
    below = budgets.kl_below_zero(subject.dtype)
    yield Question("KL, as far as it is negative", KL.call(subject, case), nothing, below, reading=BELOW_ZERO)


# --- expectations over a vocabulary ---------------------------------------------------------------------------------


def _expected(subject: Any, answers: Sequence[Answered]) -> Any:
    p = answers[-1].argument("log_probs").detach().double().exp()
    return (p * answers[-1].value.detach().double()).sum(-1)


EXPECTATION = Reading(
    _expected,
    "p = calls[-1]['log_probs'].detach().double().exp()\n"
    "return flat((p * answers[-1].detach().double()).sum(-1))  # each row holds a whole vocabulary",
    "return flat(answers[-1])",
)
UNBIASED = ("k1", "k3")


@check("kl.expectation", needs=KL.needs, requires=(has(*UNBIASED),), cases=lambda s: vocabularies(s, UNBIASED))
def expectation(subject: Subject, case: KlCase) -> Questions:
    rows = list(zip(case.log_probs, case.ref_log_probs, strict=True))
    yield Question(
        "expectation of the KL over the vocabulary",
        KL.call(subject, case),
        spec.kl_divergence(case.log_probs, case.ref_log_probs),
        [budgets.expected_kl(*row, case.options.estimator, subject.dtype) for row in rows],
        reading=EXPECTATION,
        formula=Formula("rlhf_spec.kl.kl_divergence"),
    )


def _expected_gradient(subject: Any, answers: Sequence[Answered]) -> Any:
    p = answers[-1].argument("log_probs").detach().double().exp()
    slopes = torch.tensor(answers[-1].gradient(subject, p), dtype=torch.float64, device=p.device)
    return slopes - p * slopes.sum(-1, keepdim=True)


EXPECTED_GRADIENT = Reading(
    _expected_gradient,
    "p = calls[-1][LEAF].detach().double().exp()\n"
    "slopes = gradient((p * answers[-1]).sum(), calls[-1][LEAF]).double()\n"
    "return flat(slopes - p * slopes.sum(-1, keepdim=True))  # a log-prob is a logit less the log of a sum",
    "return flat(answers[-1])",
)


@check(
    "kl.expected-gradient", needs=KL.needs, requires=(has_gradient,), cases=lambda s: vocabularies(s, spec.ESTIMATORS)
)
def expected_gradient(subject: Subject, case: KlCase) -> Questions:
    estimator, kind = case.options.estimator, subject.adapter.kl_gradient
    allowed = []
    for row, ref_row in zip(case.log_probs, case.ref_log_probs, strict=True):
        pairs = list(zip(row, ref_row, strict=True))
        slopes = [spec.token_kl_gradient(a, b, estimator, gradient=kind) for a, b in pairs]
        errors = [budgets.kl_slope(a - b, estimator, kind, subject.dtype) for a, b in pairs]
        allowed.append(budgets.expected_kl_gradient(row, slopes, errors, subject.dtype))
    yield Question(
        "expected gradient of the KL with respect to the logits",
        KL.call(subject, case, leaf=True),
        spec.expected_kl_gradient(case.log_probs, case.ref_log_probs, estimator=estimator, gradient=kind),
        allowed,
        reading=EXPECTED_GRADIENT,
        formula=Formula("rlhf_spec.kl.expected_kl_gradient", {"gradient": kind}),
    )


# --- the gradient ---------------------------------------------------------------------------------------------------


def _counted(mask: Any) -> Any:
    """1, 2, 3, ... at the actions, 0 elsewhere."""
    marks = (mask != 0).long()
    return marks.flatten().cumsum(0).reshape(mask.shape) * marks


STEPPED = Reading(
    lambda subject, answers: answers[-1].gradient(subject, _counted(answers[-1].argument("action_mask"))),
    "# The gradient of the sum of 1, 2, 3, ... times the KL of the actions.\n"
    "marks = (calls[-1]['action_mask'] != 0).long()\n"
    "weights = marks.flatten().cumsum(0).reshape(marks.shape) * marks\n"
    "return flat(gradient((answers[-1] * weights).sum(), calls[-1][LEAF]))",
    "return flat(answers[-1])",
)


def asks_gradient(subject: Subject, case: KlCase, call: Call, what: str = "") -> Question:
    """The gradient of the sum of 1, 2, 3, ... times the KL of the actions; exactly 0 where it has to be."""
    estimator, kind = case.options.estimator, subject.adapter.kl_gradient
    held = {**clamps(subject.adapter, estimator), "gradient": kind}
    tables = (case.log_probs, case.ref_log_probs, case.action_mask)
    expected = spec.kl_gradient(*tables, estimator=estimator, **held)
    counted = {place: 1.0 + n for n, place in enumerate(case.actions)}

    def error(i: int, j: int) -> float:
        return counted[i, j] * budgets.kl_slope(case.log_ratio(i, j), estimator, kind, subject.dtype)

    return Question(
        f"gradient of the KL{what} with respect to the log-prob",
        call,
        expected,
        _at_actions(case, lambda i, j: error(i, j) if expected[i][j] else 0.0),
        reading=STEPPED,
        formula=Formula("rlhf_spec.kl.kl_gradient", held),
    )


@check("kl.gradient", needs=KL.needs, requires=(has_gradient,), cases=KL.cases())
def gradient(subject: Subject, case: KlCase) -> Questions:
    yield asks_gradient(subject, case, KL.call(subject, case, leaf=True))


@check(
    "kl.clamped-gradient",
    needs=KL.needs,
    requires=(has_clamped_gradient,),
    cases=lambda s: kl_cases(s, zones=("beyond", "beyond", "usual"), estimators=s.adapter.kl_clamped),
)
def clamped_gradient(subject: Subject, case: KlCase) -> Questions:
    yield asks_gradient(subject, case, KL.call(subject, case, leaf=True))


# --- the mask -------------------------------------------------------------------------------------------------------


def _with_gradient(subject: Subject, case: DressedCase) -> Questions:
    call = KL.call(subject, case.dressed, about=case.case, leaf=bool(subject.adapter.kl_gradient))
    yield KL.asks(subject, case.case, call)
    if subject.adapter.kl_gradient:
        yield asks_gradient(subject, case.case, call)


@check("kl.mask", needs=KL.needs, cases=lambda s: KL.dressed_cases(s, USUAL_GARBAGE))
def mask(subject: Subject, case: DressedCase) -> Questions:
    yield from _with_gradient(subject, case)


@check("kl.nan-under-mask", needs=KL.needs, cases=lambda s: KL.dressed_cases(s, HUGE))
def nan_under_mask(subject: Subject, case: DressedCase) -> Questions:
    yield from _with_gradient(subject, case)


@check("kl.holes", needs=KL.needs, cases=lambda s: KL.dressed_cases(s, USUAL_GARBAGE, holes=True, columns=3))
def holes(subject: Subject, case: DressedCase) -> Questions:
    call = KL.call(subject, case.dressed, about=case.case)
    yield KL.asks(subject, case.case, call, "KL of several turns")
    if subject.adapter.kl_masked == "zero":
        yield zeros(KL, call, case.case)


use("kl.masked-cells", masked_cells(KL, promises_zeros))
use("kl.own-token", unmoved(KL, own_token, "others at other actions", numbers=LOG_PROBS))
use("kl.mask-dtype", KL.mask_dtype())

# --- what else is changed -------------------------------------------------------------------------------------------

use("kl.inputs-unwritten", KL.inputs_unwritten())
use("kl.side-effects", KL.side_effects())
