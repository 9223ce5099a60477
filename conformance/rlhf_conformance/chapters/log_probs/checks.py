"""The checks of token log-probs and entropies."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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
from rlhf_conformance.judging.questions import (
    ANSWER,
    GRADED,
    Call,
    Fact,
    Formula,
    NotReturned,
    Question,
    Reading,
    selected,
)
from rlhf_conformance.judging.subject import Subject
from rlhf_conformance.oracle import budgets

LOG_PROBS = ("token_log_probs",)
ENTROPY = ("token_entropy",)
HALF_DTYPES = ("bfloat16", "float16")
EDGES = (2, 0.05, 20.0)
"""A temperature that is a whole number, and those that leave one id, or all alike."""


def dtype_name(subject: Subject) -> str:
    return str(subject.dtype).removeprefix("torch.")


def at_least_float32(subject: Subject) -> str:
    """The dtype of logits of which entropies are asked, where half precision is the matter of a clause of its own: it
    may be computed in half, and the bound on its rounding there is larger than an entropy."""
    return dtype_name(subject) if budgets.is_fine(subject.dtype) else "float32"


# --- calls, truth and allowances ------------------------------------------------------------------------------------


def log_probs_call(
    subject: Subject, case: LogitsCase, temperature: float | None = None, *, leaf: bool = False, grad: bool = True
) -> Call:
    given = (_logits(subject, case, leaf), subject.tensor(case.labels), temperature or case.temperature)
    return Call("token_log_probs", given, recipes=lambda: case.recipes, about=case, grad=grad)


def entropy_call(subject: Subject, case: LogitsCase, *, leaf: bool = False, grad: bool = True) -> Call:
    given = (_logits(subject, case, leaf), case.temperature)
    return Call("token_entropy", given, recipes=lambda: case.recipes, about=case, grad=grad)


def _logits(subject: Subject, case: LogitsCase, leaf: bool) -> torch.Tensor:
    return subject.tensor(case.logits, case.logits.dtype).clone().requires_grad_(leaf)


def _possible(case: LogitsCase) -> list[list[list[float]]]:
    """The logits of the ids that are not ruled out: what rounding comes from."""
    return [[[z for z in logits if z > -math.inf] for logits in row] for row in case.logits.double().tolist()]


def true_log_probs(case: LogitsCase) -> list[list[float]]:
    return spec.token_log_probs(case.logits.double().tolist(), case.labels.tolist(), case.temperature)


def allowed(case: LogitsCase, dtype: torch.dtype) -> list[list[float]]:
    return [[budgets.log_prob(logits, case.temperature, dtype) for logits in row] for row in _possible(case)]


Allowance = Callable[[Sequence[float], Sequence[float], float, Any], list[float]]


def allowed_gradient(case: LogitsCase, truth: list[Any], temperature: float, allowance: Allowance) -> list[Any]:
    """Of 1, 2, 3, ... times a gradient: none at an id that is ruled out."""
    logits, dtype = case.logits.double().tolist(), case.logits.dtype
    found: list[list[list[float]]] = []
    weight = 0.0
    for row, gradients in zip(logits, truth, strict=True):
        found.append([])
        for z, gradient in zip(row, gradients, strict=True):
            weight += 1.0
            kept = [(x, g / weight) for x, g in zip(z, gradient, strict=True) if x > -math.inf]
            own = iter(allowance([g for _, g in kept], [x for x, _ in kept], temperature, dtype))
            found[-1].append([weight * next(own) if x > -math.inf else 0.0 for x in z])
    return found


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


def asks_entropies(
    subject: Subject, case: LogitsCase, what: str, call: Call | None = None, dtype: Any = None
) -> Question:
    """Are the entropies those of the formula? As `asks_log_probs`."""
    return Question(
        what,
        call or entropy_call(subject, case),
        spec.token_entropies(case.logits.double().tolist(), case.temperature),
        [[budgets.entropy(z, case.temperature, dtype or case.logits.dtype) for z in row] for row in _possible(case)],
        formula=Formula(METHODS["token_entropy"].formula),
    )


def asks_entropy_gradient(subject: Subject, case: LogitsCase, call: Call) -> Question:
    """Is their gradient that of the formula?"""
    truth = spec.token_entropies_gradient(case.logits.double().tolist(), case.temperature)
    return Question(
        "gradient of the weighted entropies with respect to the logits",
        call,
        truth,
        allowed_gradient(case, truth, case.temperature, budgets.entropy_gradient),
        reading=GRADED,
        formula=Formula("rlhf_spec.log_probs.token_entropies_gradient"),
    )


def in_float32(answered: Any, what: str) -> Fact:
    return Fact(
        answered.value.dtype in (torch.float32, torch.float64),
        what,
        expected="float32 or float64",
        actual=str(answered.value.dtype).removeprefix("torch."),
    )


# --- checks ---------------------------------------------------------------------------------------------------------


@check(
    "log-probs.definition",
    needs=LOG_PROBS,
    cases=lambda s: logits_cases(dtype_name(s), temperatures=(1.0, 1), wide=True),
)
def definition(subject: Subject, case: LogitsCase) -> Questions:
    yield asks_log_probs(subject, case, "log-prob of the label")


@check(
    "log-probs.temperature",
    needs=LOG_PROBS,
    requires=(temperature_declared,),
    cases=lambda s: logits_cases(dtype_name(s), temperatures=(*TEMPERATURES, *EDGES)),
)
def temperature(subject: Subject, case: LogitsCase) -> Questions:
    yield asks_log_probs(subject, case, f"log-prob of the label at temperature {case.temperature}")


@check("log-probs.strides", needs=LOG_PROBS, cases=lambda s: logits_cases(dtype_name(s)), effort=2)
def strides(subject: Subject, case: LogitsCase) -> Questions:
    """Handed over by themselves: a copy of a slice is contiguous."""
    logits, labels = _logits(subject, case, False), subject.tensor(case.labels)
    sliced = torch.cat([logits, logits[:, :1]], 1)[:, :-1], torch.cat([labels[:, :1], labels], 1)[:, 1:]
    turned = tuple(x.transpose(0, 1).contiguous().transpose(0, 1) for x in (logits, labels))
    for how, given in {"a slice [:, :-1]": sliced, "a transposed tensor": turned}.items():
        call = Call(
            "token_log_probs", (*given, case.temperature), copies=False, recipes=lambda: case.recipes, about=case
        )
        yield asks_log_probs(subject, case, f"log-prob from logits that are {how}", call)


@check(
    "log-probs.float32",
    needs=LOG_PROBS,
    cases=lambda s: logits_cases(*HALF_DTYPES, temperatures=known_temperatures(s.adapter)),
)
def float32(subject: Subject, case: LogitsCase) -> Questions:
    call = log_probs_call(subject, case)
    yield in_float32((yield call), f"dtype of the log-probs of {case.dtype} logits")
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


GRADIENTS = (1.0, 1.3)  # temperatures


@check(
    "log-probs.gradient",
    needs=LOG_PROBS,
    cases=lambda s: (
        logits_cases(dtype_name(s), temperatures=GRADIENTS)
        | logits_cases(dtype_name(s), *HALF_DTYPES, temperatures=GRADIENTS, likeliest=True)
    ),
)
def gradient(subject: Subject, case: LogitsCase) -> Questions:
    t = case.temperature if subject.adapter.temperature else 1.0
    call = log_probs_call(subject, case, t, leaf=True)
    answer = (yield call).value
    yield Fact(answer.requires_grad, "log-probs", expected="a graph back to the logits", actual="no graph: detached")
    yield asks_log_probs_gradient(case, call, t)


def asks_log_probs_gradient(case: LogitsCase, call: Call, temperature: float) -> Question:
    rows = case.logits.double().tolist()
    truth = spec.token_log_probs_gradient(rows, case.labels.tolist(), temperature)
    return Question(
        "gradient of the weighted log-probs with respect to the logits",
        call,
        truth,
        allowed_gradient(case, truth, temperature, budgets.log_prob_gradient),
        reading=GRADED,
        formula=Formula("rlhf_spec.log_probs.token_log_probs_gradient"),
    )


@check("log-probs.masked-logits", needs=LOG_PROBS, cases=lambda s: logits_cases(dtype_name(s), ruled_out=True))
def masked_logits(subject: Subject, case: LogitsCase) -> Questions:
    call = log_probs_call(subject, case, leaf=True)
    yield asks_log_probs(subject, case, "log-prob of the label, where other ids are ruled out", call)
    yield asks_log_probs_gradient(case, call, case.temperature)


WAYS = {
    "with a graph": {"leaf": True},
    "from logits without a gradient": {},
    "under no_grad": {"leaf": True, "grad": False},
}


@check(
    "log-probs.no-grad",
    needs=LOG_PROBS,
    cases=lambda s: logits_cases(dtype_name(s), temperatures=known_temperatures(s.adapter)),
    effort=2,
)
def no_grad(subject: Subject, case: LogitsCase) -> Questions:
    for way, how in WAYS.items():
        yield asks_log_probs(subject, case, f"log-prob {way}", log_probs_call(subject, case, **how))


@check(
    "log-probs.entropy",
    needs=ENTROPY,
    cases=lambda s: logits_cases(at_least_float32(s), temperatures=(1.0, *TEMPERATURES, *EDGES)),
)
def entropy(subject: Subject, case: LogitsCase) -> Questions:
    yield asks_entropies(subject, case, "entropy")


@check(
    "log-probs.entropy-no-grad",
    needs=ENTROPY,
    cases=lambda s: logits_cases(at_least_float32(s), temperatures=(1.0, *TEMPERATURES)),
    effort=2,
)
def entropy_no_grad(subject: Subject, case: LogitsCase) -> Questions:
    for way, how in WAYS.items():
        yield asks_entropies(subject, case, f"entropy {way}", entropy_call(subject, case, **how))


@check(
    "log-probs.entropy-float32",
    needs=ENTROPY,
    cases=lambda s: logits_cases(*HALF_DTYPES, temperatures=(1.0, *TEMPERATURES), offsets=(0.0, 64.0, -64.0)),
)
def entropy_float32(subject: Subject, case: LogitsCase) -> Questions:
    call = entropy_call(subject, case)
    yield in_float32((yield call), f"dtype of the entropies of {case.dtype} logits")
    yield asks_entropies(subject, case, f"entropy of {case.dtype} logits", call, torch.float32)


@check(
    "log-probs.entropy-stable",
    needs=ENTROPY,
    cases=lambda s: logits_cases("float32", scales=(2.0, 300.0, 3e4), offsets=(0.0, -1e4, 1e4, 6e4)),
)
def entropy_stable(subject: Subject, case: LogitsCase) -> Questions:
    call = entropy_call(subject, case)
    answer = (yield call).value.detach()
    finite = bool(torch.isfinite(answer).all())
    yield Fact(finite, "entropies of huge logits", expected="finite numbers", actual=str(answer.tolist()))
    yield asks_entropies(subject, case, "entropy of huge logits", call, torch.float32)


is_more_than_logged = lambda adapter: (  # noqa: E731
    "entropy_gradient = False: entropies are only logged" if adapter.entropy_gradient is False else None
)


def entropy_gradient_cases(subject: Subject) -> Picked[LogitsCase]:
    """Spreads at which all ids count, and those at which some probabilities underflow."""
    return logits_cases(at_least_float32(subject), temperatures=(1.0, *TEMPERATURES), scales=(1.0, 2.0, 4.0, 300.0))


@check(
    "log-probs.entropy-graph",
    needs=ENTROPY,
    requires=(is_more_than_logged,),
    cases=entropy_gradient_cases,
)
def entropy_graph(subject: Subject, case: LogitsCase) -> Questions:
    yield Question(
        "graphs from the entropies back to the logits",
        entropy_call(subject, case, leaf=True),
        1.0,
        reading=selected(lambda entropies: float(entropies.requires_grad)),
    )


@check(
    "log-probs.entropy-gradient", needs=ENTROPY, requires=(is_more_than_logged,), cases=entropy_gradient_cases, effort=2
)
def entropy_gradient(subject: Subject, case: LogitsCase) -> Questions:
    call = entropy_call(subject, case, leaf=True)
    has_graph = (yield call).value.requires_grad
    if not has_graph and not subject.adapter.entropy_gradient:
        raise NotReturned("the entropies have no graph, and entropy_gradient is not declared")
    yield Fact(has_graph, "entropies", expected="a graph back to the logits", actual="no graph: detached")
    yield asks_entropy_gradient(subject, case, call)


@check(
    "log-probs.entropy-masked-logits", needs=ENTROPY, cases=lambda s: logits_cases(at_least_float32(s), ruled_out=True)
)
def entropy_masked_logits(subject: Subject, case: LogitsCase) -> Questions:
    call = entropy_call(subject, case, leaf=True)
    yield asks_entropies(subject, case, "entropy, where some ids are ruled out", call)
    if (yield call).value.requires_grad:
        yield asks_entropy_gradient(subject, case, call)


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
    cases=lambda s: (
        logits_cases(dtype_name(s), ignored=True) | logits_cases(dtype_name(s), ignored=True, ruled_out=True)
    ),
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
