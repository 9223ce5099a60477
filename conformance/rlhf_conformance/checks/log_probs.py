"""Chapter log-probs: the log-prob of each label, and the entropy, from logits."""

from __future__ import annotations

from hypothesis import strategies as st

import rlhf_spec.log_probs as spec
from rlhf_conformance import budgets
from rlhf_conformance._lazy import torch
from rlhf_conformance.cases.logits import ODD_SIZES, TEMPERATURES, LogitsCase, logits_cases, long_logits_cases
from rlhf_conformance.checks import check, declares, side_effects
from rlhf_conformance.checks.roles import known_temperatures, temperature_declared
from rlhf_conformance.judge import Judge
from rlhf_conformance.subject import Subject

LOG_PROBS = ("token_log_probs",)
ENTROPY = ("token_entropy",)
HALF_DTYPES = ("bfloat16", "float16")


def dtype_name(subject: Subject) -> str:
    return str(subject.dtype).removeprefix("torch.")


def ask(subject: Subject, case: LogitsCase, temperature: float | None = None) -> torch.Tensor:
    logits = subject.tensor(case.logits, case.logits.dtype)
    return subject.token_log_probs(logits, subject.tensor(case.labels), temperature or case.temperature)


def ask_entropy(subject: Subject, case: LogitsCase) -> torch.Tensor:
    return subject.token_entropy(subject.tensor(case.logits, case.logits.dtype), case.temperature)


def expected(case: LogitsCase) -> list[list[float]]:
    """The specification's log-probs of a case."""
    pairs = zip(case.logits.double().tolist(), case.labels.tolist(), strict=True)
    return [
        [spec.token_log_prob(logits, label, case.temperature) for logits, label in zip(rows, labels, strict=True)]
        for rows, labels in pairs
    ]


def allowed(case: LogitsCase, dtype: torch.dtype) -> list[list[float]]:
    rows = case.logits.double().tolist()
    return [[budgets.log_prob(logits, case.temperature, dtype) for logits in row] for row in rows]


def judge_log_probs(subject: Subject, case: LogitsCase, judge: Judge, what: str) -> None:
    judge.close(ask(subject, case), expected(case), allowed(case, case.logits.dtype), what=what)


@check("log-probs.definition", needs=LOG_PROBS, cases=lambda s: logits_cases(dtype_name(s)))
def definition(subject: Subject, case: LogitsCase, judge: Judge) -> None:
    judge_log_probs(subject, case, judge, "log-prob of the label")


@check(
    "log-probs.temperature",
    needs=LOG_PROBS,
    requires=(temperature_declared,),
    cases=lambda s: logits_cases(dtype_name(s), temperatures=TEMPERATURES),
)
def temperature(subject: Subject, case: LogitsCase, judge: Judge) -> None:
    judge_log_probs(subject, case, judge, f"log-prob of the label at temperature {case.temperature}")


@check(
    "log-probs.float32",
    needs=LOG_PROBS,
    cases=lambda s: st.one_of(*(logits_cases(d, temperatures=known_temperatures(s.adapter)) for d in HALF_DTYPES)),
)
def float32(subject: Subject, case: LogitsCase, judge: Judge) -> None:
    answer = ask(subject, case)
    judge.that(
        answer.dtype in (torch.float32, torch.float64),
        f"dtype of the log-probs of {case.dtype} logits",
        expected="float32 or float64",
        actual=str(answer.dtype).removeprefix("torch."),
        note="upcast the logits before the log-softmax",
    )
    note = "the log-softmax ran in half precision: upcast the logits first"
    judge.close(
        answer, expected(case), allowed(case, torch.float32), what=f"log-prob from {case.dtype} logits", note=note
    )


@check("log-probs.every-position", needs=LOG_PROBS, cases=lambda s: long_logits_cases(dtype_name(s)), effort=15)
def every_position(subject: Subject, case: LogitsCase, judge: Judge) -> None:
    """Every length beside the usual chunk sizes, in each case."""
    for length in ODD_SIZES:
        what = f"log-prob of the label, one of {length} positions"
        judge_log_probs(subject, case.of_length(length), judge, what)


@check(
    "log-probs.stable",
    needs=LOG_PROBS,
    cases=lambda s: logits_cases("float32", scales=(2.0, 300.0, 3e4), offsets=(0.0, -1e4, 1e4, 6e4)),
)
def stable(subject: Subject, case: LogitsCase, judge: Judge) -> None:
    answer = ask(subject, case)
    judge.that(
        bool(torch.isfinite(answer).all()),
        "log-probs of huge logits",
        expected="finite numbers",
        actual=str(answer.tolist()),
    )
    highest = float(answer.max())
    rounding = max(max(row) for row in allowed(case, torch.float32))
    judge.that(highest <= rounding, "largest log-prob", expected="at most 0", actual=f"{highest:.6g}")
    judge.close(answer, expected(case), allowed(case, torch.float32), what="log-prob from huge logits")


@check("log-probs.gradient", needs=LOG_PROBS, cases=lambda s: logits_cases(dtype_name(s), temperatures=(1.0, 1.3)))
def gradient(subject: Subject, case: LogitsCase, judge: Judge) -> None:
    t = case.temperature if subject.adapter.temperature else 1.0
    logits = subject.tensor(case.logits, case.logits.dtype).requires_grad_()
    answer = subject.token_log_probs(logits, subject.tensor(case.labels), t)
    judge.that(answer.requires_grad, "log-probs", expected="a graph back to the logits", actual="no graph: detached")
    weights = torch.arange(1.0, answer.numel() + 1, device=answer.device).reshape(answer.shape)
    (grad,) = subject.gradients("token_log_probs", (answer * weights).sum(), [logits])
    pairs = zip(case.logits.double().tolist(), case.labels.tolist(), strict=True)
    truth = [
        [spec.token_log_prob_gradient(row, label, t) for row, label in zip(rows, labels, strict=True)]
        for rows, labels in pairs
    ]
    scaled = (torch.tensor(truth, dtype=torch.float64) * weights.cpu().double()[..., None]).tolist()
    allowance = [
        [w * budgets.log_prob_gradient(row, t, case.logits.dtype) for row, w in zip(rows, ws, strict=True)]
        for rows, ws in zip(case.logits.double().tolist(), weights.tolist(), strict=True)
    ]
    judge.close(grad, scaled, allowance, what="gradient of the weighted log-probs with respect to the logits")


@check(
    "log-probs.entropy", needs=ENTROPY, cases=lambda s: logits_cases(dtype_name(s), temperatures=(1.0, *TEMPERATURES))
)
def entropy(subject: Subject, case: LogitsCase, judge: Judge) -> None:
    judge_entropy(subject, case, judge, "entropy")


def judge_entropy(subject: Subject, case: LogitsCase, judge: Judge, what: str) -> None:
    t = case.temperature
    rows = case.logits.double().tolist()
    truth = [[spec.entropy(logits, t) for logits in row] for row in rows]
    allowance = [[budgets.entropy(logits, t, case.logits.dtype) for logits in row] for row in rows]
    judge.close(ask_entropy(subject, case), truth, allowance, what=what)


@check(
    "log-probs.entropy-order",
    needs=LOG_PROBS + ENTROPY,
    cases=lambda s: logits_cases(dtype_name(s), temperatures=known_temperatures(s.adapter)),
)
def entropy_order(subject: Subject, case: LogitsCase, judge: Judge) -> None:
    """The logits are handed over by themselves, not as a copy: whoever overwrites them wrecks them for the next."""
    t = case.temperature
    logits, labels = subject.tensor(case.logits, case.logits.dtype).clone(), subject.tensor(case.labels)
    entropy = subject.token_entropy(logits, t).detach().clone()
    log_probs = subject.token_log_probs(logits, labels, t).detach().clone()
    for turn in (1, 2):
        after = subject.uncopied("token_log_probs", logits, labels, t)
        judge.equal(
            after, log_probs, what=f"log-probs in turn {turn} from the same logits", note="they were overwritten"
        )
        after = subject.uncopied("token_entropy", logits, t)
        judge.equal(after, entropy, what=f"entropy in turn {turn} from the same logits", note="they were overwritten")


@check(
    "log-probs.ignored-label",
    needs=LOG_PROBS,
    requires=(declares("ignored_label", "ignored_label is not declared: nothing is promised for -100", value="zero"),),
    cases=lambda s: logits_cases(dtype_name(s), ignored=True),
)
def ignored_label(subject: Subject, case: LogitsCase, judge: Judge) -> None:
    labels = case.labels.clamp(min=0).tolist()
    rows = case.logits.double().tolist()
    truth = [
        [
            0.0 if raw < 0 else spec.token_log_prob(z, label, case.temperature)
            for z, label, raw in zip(*row, strict=True)
        ]
        for row in zip(rows, labels, case.labels.tolist(), strict=True)
    ]
    logits = subject.tensor(case.logits, case.logits.dtype).requires_grad_()
    answer = subject.token_log_probs(logits, subject.tensor(case.labels), case.temperature)
    judge.close(answer, truth, allowed(case, case.logits.dtype), what="log-prob with labels -100")
    (grad,) = subject.gradients("token_log_probs", answer.sum(), [logits])
    ignored = grad[subject.tensor(case.labels) < 0]
    judge.equal(ignored, torch.zeros_like(ignored), what="gradient at labels -100")


def side_effect_cases(subject: Subject) -> st.SearchStrategy[LogitsCase]:
    """At any temperature, and with labels of -100 where they are promised to be taken."""
    known = known_temperatures(subject.adapter)
    plain = logits_cases(dtype_name(subject), temperatures=known)
    if subject.adapter.ignored_label is None:
        return plain
    return plain | logits_cases(dtype_name(subject), temperatures=known, ignored=True)


def ask_both(subject: Subject, case: LogitsCase) -> list[torch.Tensor]:
    """Log-probs, and entropies where the trainer has them; what either of them wrote or disturbed is on record."""
    answers = [ask(subject, case).detach()]
    if "token_entropy" in subject.provided:
        record = subject.record
        answers.append(ask_entropy(subject, case).detach())
        subject.record.written += record.written
        subject.record.disturbed += record.disturbed
    return answers


side_effects.register("log-probs", needs=LOG_PROBS, cases=side_effect_cases, ask=ask_both)
