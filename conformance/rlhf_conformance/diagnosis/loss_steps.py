"""The policy loss and the value loss, token by token: what the formula gives, and the adapter where it can be asked.

The adapter shows three things: the loss of the whole call, its gradient at each token, and, asked for one token alone,
the loss of that token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import rlhf_spec.policy_loss as policy
from rlhf_conformance import budgets
from rlhf_conformance._lazy import torch
from rlhf_conformance.cases.losses import DressedCase, LossCase, SplitCase, WidenedCase, widened
from rlhf_conformance.checks.losses import POLICY, VALUE, Loss
from rlhf_conformance.diagnosis import Evidence
from rlhf_conformance.diagnosis.lines import Block, Line, arranged, cells, number, parted
from rlhf_conformance.results import Step
from rlhf_conformance.subject import AdapterError, LossAnswer, Subject, WiringError

ALONE = 40
"""So many tokens are asked for alone."""
GRADIENTS = 6
"""So many tokens are shown whose gradient differs."""
MASK_DTYPES = ("bool", "int64", "int32", "float32")


@dataclass(frozen=True)
class Question:
    """A call of the loss: the case, the same with what stands under the mask, and how the mask comes."""

    case: LossCase
    seen: LossCase
    mask_dtype: str = ""

    @classmethod
    def plain(cls, case: LossCase) -> Question:
        return cls(case, case)


def loss_steps(evidence: Evidence) -> tuple[Step, ...]:
    """Of the first call of the check at which the two part company; of the first call, if they never do."""
    chapter, name = evidence.slug.split(".")
    loss = POLICY if chapter == POLICY.kind else VALUE
    found: list[tuple[list[Block], Block]] = []
    for parts in _questions(loss, name, evidence.smallest.case, evidence.subject):
        found.append(_formula(evidence, loss, name, parts))
        if parted([*found[-1][0], found[-1][1]]):
            return arranged(*found[-1])
        if evidence.late:
            break
    return arranged(*found[0])


def _questions(loss: Loss, name: str, case: Any, subject: Subject) -> Iterable[list[Question]]:
    """The calls that a check makes of a case, one after another; micro-batches belong together."""
    if isinstance(case, SplitCase):
        count = loss.count(case.case)
        yield [Question.plain(part.with_options(global_count=count)) for part in case.parts]
    elif isinstance(case, DressedCase):
        yield [Question(case.case, case.dressed)]
        if name == "mask" and subject.adapter.global_count:
            counted = case.with_options(global_count=loss.count(case.case))
            yield [Question(counted.case, counted.dressed)]
    elif isinstance(case, WidenedCase):
        yield [Question.plain(widened(case.case, case.columns, left=case.left))]
        yield [Question.plain(case.case)]
    elif name == "empty-batch":
        yield [Question.plain(replace(case, mask=tuple((0,) * len(row) for row in case.mask)))]
    elif name == "mask-dtype":
        for dtype in MASK_DTYPES:
            yield [Question(case, case, dtype)]
    else:
        yield [Question.plain(case)]
        if name in ("token-mean", "sequence-mean"):
            yield [Question.plain(case.repeated(107))]
        if name == "batch-order":
            yield [Question.plain(case.rows(range(len(case.mask) - 1, -1, -1)))]


def _formula(evidence: Evidence, loss: Loss, name: str, parts: list[Question]) -> tuple[list[Block], Block]:
    """Blocks of tokens, and the lines of the aggregate."""
    formula = _METRICS[name](evidence.subject) if name in _METRICS else _Formula(evidence.subject, loss)
    answers = [formula.answer(question) for question in parts]
    blocks: list[Block] = []
    end: list[Line] = []
    gradients: list[Line] = []
    for index, (question, answer) in enumerate(zip(parts, answers, strict=True)):
        where = f"micro-batch {index}, " if len(parts) > 1 else ""
        blocks += formula.tokens(question, where, evidence)
        end += formula.aggregate(question, answer, where, evidence)
        gradients += formula.gradient(question, answer, where)
    if len(parts) > 1:
        expected = math.fsum(formula.expected(q.case) for q in parts)
        came = [answer.value for answer in answers if answer]
        allowed = sum(formula.allowed(q.case) for q in parts)
        total = sum(came) if len(came) == len(parts) else None
        end.append(Line("sum of the micro-batches", expected, total, allowed))
    return blocks, [*end, *gradients[:GRADIENTS]]


@dataclass(frozen=True)
class _Formula:
    """A loss with its gradient."""

    subject: Subject
    loss: Loss

    def answer(self, question: Question) -> LossAnswer | None:
        """What the adapter answers; None where it cannot."""
        mask = None
        if question.mask_dtype:
            mask = self.subject.tensor(question.seen.mask, getattr(torch, question.mask_dtype))
        try:
            return self.subject.loss(self.loss.kind, question.seen, mask)
        except (AdapterError, WiringError):
            return None

    def shown(self, answer: LossAnswer | None) -> float | None:
        """The number that is looked at."""
        return answer.value if answer else None

    def expected(self, case: LossCase, counted: bool = False) -> float:
        return self.loss.value(case, counted)

    def allowed(self, case: LossCase) -> float:
        return self.loss.value_budget(case, self.subject.dtype)

    def token_lines(self, case: LossCase, i: int, j: int) -> list[tuple[str, float]]:
        return _policy_token(case, i, j) if self.loss is POLICY else _value_token(case, i, j)

    @property
    def token_name(self) -> str:
        how = "minus that" if self.loss is POLICY else "half of that"
        return f"{how}, the loss of the token (asked for alone)"

    def alone(self, question: Question, i: int, j: int) -> tuple[float, float | None, float]:
        """Expected, actual and allowed of one token, in a row by itself under a mask with nothing else in it."""
        only = tuple(int(column == j) for column in range(len(question.case.mask[i])))
        case = replace(question.case.rows([i]), mask=(only,)).with_options(global_count=None)
        seen = replace(question.seen.rows([i]), mask=(only,)).with_options(global_count=None)
        answer = self.answer(Question(case, seen, question.mask_dtype))
        return self.expected(case), self.shown(answer), self.allowed(case)

    def tokens(self, question: Question, where: str, evidence: Evidence) -> list[Block]:
        """The first tokens, one by one, up to the loss of each."""
        blocks: list[Block] = []
        for i, j in _actions(question.case)[:ALONE]:
            if evidence.late:
                break
            place = f"{where}row {i}, token {j}"
            lines = [Line(f"{place}: {label}", value) for label, value in self.token_lines(question.case, i, j)]
            blocks.append([*lines, Line(f"{place}: {self.token_name}", *self.alone(question, i, j))])
        return blocks

    def aggregate(self, question: Question, answer: LossAnswer | None, where: str, evidence: Evidence) -> list[Line]:
        """From the losses of the tokens to that of the call."""
        case, came = question.case, self.shown(answer)
        counted = _empty_rows_count(self, case, came)
        lines = _mask_lines(case, where)
        if case.options.aggregation == "sequence-mean":
            lines += self._row_means(question, where, evidence)
        else:
            summed = math.fsum(self.loss.token(case, i, j) for i, j in _actions(case))
            lines.append(Line(f"{where}sum of the losses of the action tokens", summed))
        name = f"{where}loss, the {case.options.aggregation}: divided by {_denominator(case, counted)}"
        if question.mask_dtype:
            name += f", the mask in {question.mask_dtype}"
        return [*lines, Line(name, self.expected(case, counted), came, self.allowed(case))]

    def gradient(self, question: Question, answer: LossAnswer | None, where: str) -> list[Line]:
        """The tokens whose gradient differs."""
        came, case = _gradient(answer), question.case
        if came is None:
            return []
        counted = _empty_rows_count(self, case, self.shown(answer))
        weights, truth = self.loss.weights(case, counted), self.loss.gradient(case, counted)
        budget = self.loss.gradient_budgets(case, self.subject.dtype)
        lines = []
        for i, row in enumerate(case.mask):
            for j, is_action in enumerate(row):
                how = "under the mask"
                if is_action:
                    how = f"weight {number(weights[i][j])} * {number(self.loss.token_gradient(case, i, j))}"
                label = f"{where}row {i}, token {j}: gradient of the loss, {how}"
                lines.append(Line(label, truth[i][j], came[i][j], budget[i][j]))
        return [line for line in lines if line.parted][:GRADIENTS]

    def _row_means(self, question: Question, where: str, evidence: Evidence) -> list[Line]:
        lines = []
        for i, count in enumerate(question.case.counts):
            case, seen = (c.rows([i]).with_options(global_count=None) for c in (question.case, question.seen))
            if count and not evidence.late:
                came = self.shown(self.answer(Question(case, seen, question.mask_dtype)))
                label = f"{where}mean of row {i} over its action tokens, {count} (asked for alone)"
                lines.append(Line(label, self.expected(case), came, self.allowed(case)))
        return lines


@dataclass(frozen=True)
class _Metric(_Formula):
    """A mean over the tokens that is logged beside the policy loss, which has no gradient."""

    name: str
    token: Callable[[LossCase, int, int], list[tuple[str, float]]]
    mean: Callable[[LossCase], float]

    def shown(self, answer: LossAnswer | None) -> float | None:
        metric = getattr(answer.result, self.name) if answer else None
        return None if metric is None else float(metric.detach() if isinstance(metric, torch.Tensor) else metric)

    def expected(self, case: LossCase, counted: bool = False) -> float:
        return self.mean(case)

    def allowed(self, case: LossCase) -> float:
        ratios = [math.exp(min(abs(case.new[i][j] - case.old[i][j]), 20.0)) for i, j in _actions(case)]
        size = max((r * (1 + math.log(r)) for r in ratios), default=1.0) if self.name == "approx_kl" else 4.0
        return 2 * budgets.unit(self.subject.dtype) * (len(ratios) + 8) * size

    def token_lines(self, case: LossCase, i: int, j: int) -> list[tuple[str, float]]:
        return self.token(case, i, j)

    @property
    def token_name(self) -> str:
        return f"{self.name} of the token (asked for alone)"

    def aggregate(self, question: Question, answer: LossAnswer | None, where: str, evidence: Evidence) -> list[Line]:
        case = question.case
        name = f"{self.name}: mean over the action tokens, {sum(case.counts)}"
        return [*_mask_lines(case, where), Line(name, self.expected(case), self.shown(answer), self.allowed(case))]

    def gradient(self, question: Question, answer: LossAnswer | None, where: str) -> list[Line]:
        return []


def _clip_fraction(subject: Subject) -> _Metric:
    def mean(case: LossCase) -> float:
        low, high = case.options.clip_eps_low, case.options.clip_eps_high
        return policy.clip_fraction(case.new, case.old, case.target, case.mask, clip_eps_low=low, clip_eps_high=high)

    def token(case: LossCase, i: int, j: int) -> list[tuple[str, float]]:
        o = case.options
        band = f"is it clipped, with the advantage {number(case.target[i][j])} and the band"
        return [_ratio(case, i, j), (f"{band} {_band(o)}", _is_clipped(case, i, j))]

    return _Metric(subject, POLICY, "clip_fraction", token, mean)


def _approx_kl(subject: Subject) -> _Metric:
    estimator = subject.adapter.kl_metric

    def token(case: LossCase, i: int, j: int) -> list[tuple[str, float]]:
        log_ratio = case.new[i][j] - case.old[i][j]
        label = f"log-ratio {number(case.new[i][j])} - {number(case.old[i][j])}"
        formula = "minus the log-ratio" if estimator == "k1" else "ratio - log-ratio - 1"
        value = policy.approx_kl([[case.new[i][j]]], [[case.old[i][j]]], [[1]], estimator)
        return [(label, log_ratio), (f"{estimator}: {formula}", value)]

    return _Metric(
        subject, POLICY, "approx_kl", token, lambda case: policy.approx_kl(case.new, case.old, case.mask, estimator)
    )


_METRICS: dict[str, Callable[[Subject], _Metric]] = {"clip-fraction": _clip_fraction, "kl-metric": _approx_kl}


def _policy_token(case: LossCase, i: int, j: int) -> list[tuple[str, float]]:
    """Ratio, clipped ratio, both products, their minimum, the dual clip."""
    advantage, o = case.target[i][j], case.options
    if advantage == 0:
        return [("the advantage is 0, and so is the loss", 0.0)]
    name, ratio = _ratio(case, i, j)
    clipped = policy.clip(ratio, 1 - o.clip_eps_low, 1 + o.clip_eps_high)
    a = number(advantage)
    smaller = min(ratio * advantage, clipped * advantage)
    lines = [
        (name, ratio),
        (f"ratio clipped to {_band(o)}", clipped),
        (f"ratio * advantage {a}", ratio * advantage),
        (f"clipped ratio * advantage {a}", clipped * advantage),
        ("the smaller of the two", smaller),
    ]
    if o.dual_clip is not None and advantage < 0:
        lines.append((f"at least {number(o.dual_clip)} * advantage {a}", max(smaller, o.dual_clip * advantage)))
    return lines


def _value_token(case: LossCase, i: int, j: int) -> list[tuple[str, float]]:
    """Squared error, clipped value, its squared error, the greater of them."""
    new, old, target, eps = case.new[i][j], case.old[i][j], case.target[i][j], case.options.clip_eps
    v, r = number(new), number(target)
    error = (new - target) ** 2
    lines = [(f"(value {v} - return {r}) squared", error)]
    if eps is not None:
        near = policy.clip(new, old - eps, old + eps)
        other = (near - target) ** 2
        lines += [
            (f"value {v} held within {number(eps)} of the old value {number(old)}", near),
            (f"(that - return {r}) squared", other),
            ("the greater of the two squares", max(error, other)),
        ]
    return lines


def _ratio(case: LossCase, i: int, j: int) -> tuple[str, float]:
    new, old = case.new[i][j], case.old[i][j]
    return f"ratio exp({number(new)} - {number(old)})", policy.ratio(new, old)


def _band(options: Any) -> str:
    return f"{number(1 - options.clip_eps_low)} .. {number(1 + options.clip_eps_high)}"


def _is_clipped(case: LossCase, i: int, j: int) -> float:
    low, high = case.options.clip_eps_low, case.options.clip_eps_high
    one = [[case.new[i][j]]], [[case.old[i][j]]], [[case.target[i][j]]], [[1]]
    return policy.clip_fraction(*one, clip_eps_low=low, clip_eps_high=high)


def _actions(case: LossCase) -> list[tuple[int, int]]:
    return [(i, j) for i, row in enumerate(case.mask) for j, m in enumerate(row) if m]


def _gradient(answer: LossAnswer | None) -> list[list[float]] | None:
    try:
        return answer.gradient if answer else None
    except AdapterError:
        return None


def _empty_rows_count(formula: _Formula, case: LossCase, came: float | None) -> bool:
    """Whether rows without an action count: as declared, and where nothing is, as the answer has it."""
    declared = formula.subject.adapter.count_empty_rows
    if declared is not None or came is None or all(case.counts):
        return bool(declared)
    return abs(formula.expected(case, True) - came) < abs(formula.expected(case, False) - came)


def _denominator(case: LossCase, counted: bool) -> str:
    options = case.options
    if options.global_count is not None:
        return f"the global count {number(options.global_count)}"
    if options.aggregation == "token-mean":
        return f"their number, {sum(case.counts)}"
    return f"the number of rows, {sum(1 for count in case.counts if count or counted)}"


def _mask_lines(case: LossCase, where: str) -> list[Line]:
    """The mask, where there is something under it."""
    if all(all(row) for row in case.mask):
        return []
    rows = " | ".join(cells(row, most=8)[0] for row in case.mask)
    return [Line(f"{where}action mask, row by row", rows)]
