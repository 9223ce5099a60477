"""The checks of token log-probs and entropies."""

from __future__ import annotations

from typing import Any

import rlhf_spec.log_probs as spec
from rlhf_conformance._lazy import torch
from rlhf_conformance.adapter import METHODS
from rlhf_conformance.chapters import _side_effects
from rlhf_conformance.chapters._temperatures import TEMPERATURES, known_temperatures, temperature_declared
from rlhf_conformance.chapters.log_probs.cases import (
    ODD_SIZES,
    LogitsCase,
    logits_cases,
    long_logits_cases,
)
from rlhf_conformance.judging.checks import Questions, check, declares, use
from rlhf_conformance.judging.picks import Picked
from rlhf_conformance.judging.questions import ANSWER, GRADED, Call, Fact, Formula, Question, Reading
from rlhf_conformance.judging.subject import Subject
from rlhf_conformance.oracle import budgets

LOG_PROBS = ("token_log_probs",)
ENTROPY = ("token_entropy",)
HALF_DTYPES = ("bfloat16", "float16")


def dtype_name(subject: Subject) -> str:
    return str(subject.dtype).removeprefix("torch.")


# --- calls, truth and allowances ------------------------------------------------------------------------------------


def log_probs_call(subject: Subject, case: LogitsCase, temperature: float | None = None, *, leaf: bool = False) -> Call:
    logits = subject.tensor(case.logits, case.logits.dtype).clone().requires_grad_(leaf)
    given = (logits, subject.tensor(case.labels), temperature or case.temperature)
    return Call("token_log_probs", given, recipes=lambda: case.recipes, about=case)


def entropy_call(subject: Subject, case: LogitsCase) -> Call:
    logits = subject.tensor(case.logits, case.logits.dtype)
    return Call("token_entropy", (logits, case.temperature), recipes=lambda: case.recipes, about=case)


def true_log_probs(case: LogitsCase) -> list[list[float]]:
    return spec.token_log_probs(case.logits.double().tolist(), case.labels.tolist(), case.temperature)


def allowed(case: LogitsCase, dtype: torch.dtype) -> list[list[float]]:
    rows = case.logits.double().tolist()
    return [[budgets.log_prob(logits, case.temperature, dtype) for logits in row] for row in rows]


def asks_log_probs(
    subject: Subject, case: LogitsCase, what: str, call: Call | None = None, dtype: Any = None
) -> Question:
    """Are the log-probs those of the formula? Computed in `dtype`, that of the logits if none is said."""
    return Question(
        what,
        call or log_probs_call(subject, case),
        true_log_probs(case),
        allowed(case, dtype or case.logits.dtype),
        formula=Formula(METHODS["token_log_probs"].formula),
    )


# --- checks ---------------------------------------------------------------------------------------------------------


@check("log-probs.definition", needs=LOG_PROBS, cases=lambda s: logits_cases(dtype_name(s)))
def definition(subject: Subject, case: LogitsCase) -> Questions:
    yield asks_log_probs(subject, case, "log-prob of the label")


@check(
    "log-probs.temperature",
    needs=LOG_PROBS,
    requires=(temperature_declared,),
    cases=lambda s: logits_cases(dtype_name(s), temperatures=TEMPERATURES),
)
def temperature(subject: Subject, case: LogitsCase) -> Questions:
    yield asks_log_probs(subject, case, f"log-prob of the label at temperature {case.temperature}")


@check(
    "log-probs.float32",
    needs=LOG_PROBS,
    cases=lambda s: logits_cases(*HALF_DTYPES, temperatures=known_temperatures(s.adapter)),
)
def float32(subject: Subject, case: LogitsCase) -> Questions:
    call = log_probs_call(subject, case)
    answered = yield call
    yield Fact(
        answered.value.dtype in (torch.float32, torch.float64),
        f"dtype of the log-probs of {case.dtype} logits",
        expected="float32 or float64",
        actual=str(answered.value.dtype).removeprefix("torch."),
    )
    yield asks_log_probs(subject, case, f"log-prob from {case.dtype} logits", call, torch.float32)


@check("log-probs.every-position", needs=LOG_PROBS, cases=lambda s: long_logits_cases(dtype_name(s)), effort=15)
def every_position(subject: Subject, case: LogitsCase) -> Questions:
    """Every length beside the usual chunk sizes, in each case."""
    for length in ODD_SIZES:
        yield asks_log_probs(subject, case.of_length(length), f"log-prob of the label, one of {length} positions")


@check(
    "log-probs.stable",
    needs=LOG_PROBS,
    cases=lambda s: logits_cases("float32", scales=(2.0, 300.0, 3e4), offsets=(0.0, -1e4, 1e4, 6e4)),
)
def stable(subject: Subject, case: LogitsCase) -> Questions:
    call = log_probs_call(subject, case)
    answer = (yield call).value.detach()
    yield Fact(
        bool(torch.isfinite(answer).all()),
        "log-probs of huge logits",
        expected="finite numbers",
        actual=str(answer.tolist()),
    )
    highest = float(answer.max())
    rounding = max(max(row) for row in allowed(case, torch.float32))
    yield Fact(highest <= rounding, "largest log-prob", expected="at most 0", actual=f"{highest:.6g}")
    yield asks_log_probs(subject, case, "log-prob from huge logits", call, torch.float32)


@check("log-probs.gradient", needs=LOG_PROBS, cases=lambda s: logits_cases(dtype_name(s), temperatures=(1.0, 1.3)))
def gradient(subject: Subject, case: LogitsCase) -> Questions:
    t = case.temperature if subject.adapter.temperature else 1.0
    call = log_probs_call(subject, case, t, leaf=True)
    answer = (yield call).value
    yield Fact(answer.requires_grad, "log-probs", expected="a graph back to the logits", actual="no graph: detached")
    rows = case.logits.double().tolist()
    weights = torch.arange(1.0, case.labels.numel() + 1).reshape(case.labels.shape).tolist()
    yield Question(
        "gradient of the weighted log-probs with respect to the logits",
        call,
        spec.token_log_probs_gradient(rows, case.labels.tolist(), t),
        [
            [w * budgets.log_prob_gradient(z, t, case.logits.dtype) for z, w in zip(row, ws, strict=True)]
            for row, ws in zip(rows, weights, strict=True)
        ],
        reading=GRADED,
        formula=Formula("rlhf_spec.log_probs.token_log_probs_gradient"),
    )


@check(
    "log-probs.entropy", needs=ENTROPY, cases=lambda s: logits_cases(dtype_name(s), temperatures=(1.0, *TEMPERATURES))
)
def entropy(subject: Subject, case: LogitsCase) -> Questions:
    t = case.temperature
    rows = case.logits.double().tolist()
    yield Question(
        "entropy",
        entropy_call(subject, case),
        spec.token_entropies(rows, t),
        [[budgets.entropy(logits, t, case.logits.dtype) for logits in row] for row in rows],
        formula=Formula(METHODS["token_entropy"].formula),
    )


@check(
    "log-probs.entropy-order",
    needs=LOG_PROBS + ENTROPY,
    cases=lambda s: logits_cases(dtype_name(s), temperatures=known_temperatures(s.adapter)),
)
def entropy_order(subject: Subject, case: LogitsCase) -> Questions:
    """The logits are handed over by themselves, not as a copy: whoever overwrites them wrecks them for the next."""
    t = case.temperature
    logits, labels = subject.tensor(case.logits, case.logits.dtype).clone(), subject.tensor(case.labels)
    before_entropy = (yield Call("token_entropy", (logits, t))).value.detach().clone()
    before_log_probs = (yield Call("token_log_probs", (logits, labels, t))).value.detach().clone()
    for turn in (1, 2):
        call = Call("token_log_probs", (logits, labels, t), copies=False)
        yield Question(f"log-probs in turn {turn} from the same logits", call, before_log_probs)
        call = Call("token_entropy", (logits, t), copies=False)
        yield Question(f"entropy in turn {turn} from the same logits", call, before_entropy)


@check(
    "log-probs.ignored-label",
    needs=LOG_PROBS,
    requires=(declares("ignored_label", "ignored_label is not declared: nothing is promised for -100", value="zero"),),
    cases=lambda s: logits_cases(dtype_name(s), ignored=True),
)
def ignored_label(subject: Subject, case: LogitsCase) -> Questions:
    call = log_probs_call(subject, case, leaf=True)
    yield asks_log_probs(subject, case, "log-prob with labels -100", call)
    ignored = case.labels < 0

    def at_ignored(subject: Subject, answers: Any) -> Any:
        return torch.tensor(answers[-1].gradient(subject, torch.ones_like(answers[-1].value)))[ignored]

    zeros = torch.zeros(int(ignored.sum()), case.vocab_size)
    yield Question("gradient at labels -100", call, zeros, reading=Reading(at_ignored))


# --- side effects ---------------------------------------------------------------------------------------------------


def side_effect_cases(subject: Subject) -> Picked[LogitsCase]:
    """At any temperature, and with labels of -100 where they are promised to be taken."""
    known = known_temperatures(subject.adapter)
    plain = logits_cases(dtype_name(subject), temperatures=known)
    if subject.adapter.ignored_label is None:
        return plain
    return plain | logits_cases(dtype_name(subject), temperatures=known, ignored=True)


def both(subject: Subject, case: LogitsCase) -> list[tuple[Call, Reading]]:
    """Log-probs, and entropies where the trainer has them."""
    calls = [log_probs_call(subject, case)]
    if "token_entropy" in subject.provided:
        calls.append(entropy_call(subject, case))
    return [(call, ANSWER) for call in calls]


use("log-probs.inputs-unwritten", _side_effects.inputs_unwritten(both, LOG_PROBS, side_effect_cases))
use("log-probs.side-effects", _side_effects.side_effects(both, LOG_PROBS, side_effect_cases))
