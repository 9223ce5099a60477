"""A loss token by token: what the formula gives, and the adapter where it can be asked.

The adapter shows three things: the number that was compared, its gradient at each token, and, asked for one token
alone, that token's number.
"""

from __future__ import annotations

import math
import pkgutil
from dataclasses import dataclass, replace
from typing import Any

from rlhf_conformance.adapter import METHODS
from rlhf_conformance.chapters._losses.cases import LossCase
from rlhf_conformance.chapters._losses.loss import Loss, Minimised
from rlhf_conformance.diagnosis.evidence import Evidence
from rlhf_conformance.diagnosis.lines import Block, Line, arranged, cells, number
from rlhf_conformance.judging.isolation import AdapterError
from rlhf_conformance.judging.judge import Comparison
from rlhf_conformance.judging.questions import GRADIENT, NUMBER, Answered, Call, Formula, NotReturned, Reading
from rlhf_conformance.judging.wiring import WiringError
from rlhf_conformance.oracle import budgets
from rlhf_conformance.results import Step

ALONE = 40
"""The most tokens that are asked for alone."""
GRADIENTS = 6
"""The most tokens that are shown whose gradient differs."""


def loss_steps(loss: Loss, evidence: Evidence, comparison: Comparison | None) -> tuple[Step, ...]:
    """Of all calls that were judged together; micro-batches belong together. Of a call without an answer, what should
    have come."""
    if comparison is None:
        shown = _Shown(evidence, loss, evidence.smallest.calls[-1], None, NUMBER, None, False, "")
        return arranged(shown.tokens(), shown.aggregate())
    assert comparison.question is not None
    formula, row = comparison.question.formula, METHODS[loss.method]
    is_metric = formula is not None and formula.function not in (row.formula, f"{row.formula}_gradient")
    is_gradient = comparison.question.reading.is_gradient
    reading = comparison.question.reading if is_metric else NUMBER
    blocks: list[Block] = []
    end: list[Line] = []
    for index, answered in enumerate(comparison.answers):
        where = f"micro-batch {index}, " if len(comparison.answers) > 1 else ""
        assert answered.call is not None
        metric, counted = formula if is_metric else None, _counted(formula)
        shown = _Shown(evidence, loss, answered.call, answered, reading, metric, counted, where)
        blocks += shown.tokens()
        end += shown.aggregate()
    if len(comparison.answers) > 1 and not is_gradient:
        numbers = comparison.expected[0], comparison.actual[0], comparison.allowed[0]
        end.append(Line("sum of the micro-batches", *numbers))
    for other in evidence.smallest.broken:
        if other.question is not None and other.question.reading.is_gradient and other.answers == comparison.answers:
            end += _gradients(loss, other, _counted(formula))
    return arranged(blocks, end)


def asked_alone(
    minimised: Minimised, evidence: Evidence, call: Call, case: Any, label: str, counted: bool = False
) -> Line:
    """A call with the options of another case: expected, actual and allowed."""
    names = METHODS[minimised.method].arguments
    given = {**dict(zip(names, call.given, strict=True)), "options": case.options}
    actual: float | None
    try:
        answered = evidence.subject.answer(Call(minimised.method, tuple(given[name] for name in names)))
        actual = NUMBER.numbers(evidence.subject, [answered])
    except (AdapterError, WiringError, NotReturned):
        actual = None
    allowed = minimised.value_budget(case, evidence.subject.dtype)
    return Line(label, minimised.value(case, counted), actual, allowed)


def gradient_lines(comparison: Comparison) -> list[Line]:
    """The first cells whose gradient differs, if gradients were compared."""
    if comparison.question is None or not comparison.question.reading.is_gradient:
        return []
    numbers = zip(comparison.indices, comparison.expected, comparison.actual, comparison.allowed, strict=True)
    lines = [Line(f"row {i}, column {j}: {comparison.what}", *rest) for (i, j), *rest in numbers]
    return [line for line in lines if line.parted][:GRADIENTS]


def _counted(formula: Formula | None) -> bool:
    return bool(formula is not None and formula.options.get("count_empty_rows"))


@dataclass(frozen=True)
class _Shown:
    """One call of the loss, or of a metric that is returned beside it.

    answered    what came of it; None where nothing did
    metric      the formula of the metric; None for the loss itself
    counted     whether rows without an action count
    """

    evidence: Evidence
    loss: Loss
    call: Call
    answered: Answered | None
    reading: Reading
    metric: Formula | None
    counted: bool
    where: str

    @property
    def case(self) -> LossCase:
        """The case, without what stands under its mask."""
        case: LossCase = self.call.about
        return case

    @property
    def name(self) -> str:
        return self.metric.function.rpartition(".")[2] if self.metric else "loss"

    def expected(self, case: LossCase) -> float:
        if self.metric is None:
            return self.loss.value(case, self.counted)
        function = pkgutil.resolve_name(self.metric.function)
        known = {**dict(zip((*case.TABLES, "action_mask"), (*case.tables, case.action_mask), strict=True))}
        known |= {**vars(case.options), **self.metric.options}
        taken = function.__code__.co_varnames[: function.__code__.co_argcount + function.__code__.co_kwonlyargcount]
        return float(function(**{key: value for key, value in known.items() if key in taken}))

    def allowed(self, case: LossCase) -> float:
        if self.metric is None:
            return self.loss.value_budget(case, self.evidence.subject.dtype)
        new, old, _ = case.tables
        return budgets.metric([new[i][j] - old[i][j] for i, j in case.actions], self.evidence.subject.dtype)

    def asked(self, case: LossCase, rows: list[int], mask: Any) -> Line:
        """Some rows of the call under another mask: expected, actual and allowed, without a label."""
        names = METHODS[self.loss.method].arguments
        given = dict(zip(names, self.call.given, strict=True))
        for name in case.TABLES:
            given[name] = given[name].detach()[rows]
        given["action_mask"] = self.evidence.subject.tensor(mask, given["action_mask"].dtype)
        given["options"] = case.options
        try:
            answered = self.evidence.subject.answer(Call(self.loss.method, tuple(given[name] for name in names)))
            actual = self.reading.numbers(self.evidence.subject, [answered])
        except (AdapterError, WiringError, NotReturned):
            actual = None
        return Line("", self.expected(case), actual, self.allowed(case))

    def tokens(self) -> list[Block]:
        """The first tokens, one by one, up to the number of each, asked for in a row without another action."""
        blocks: list[Block] = []
        for i, j in self.case.actions[:ALONE]:
            if self.evidence.spent:
                break
            place = f"{self.where}row {i}, token {j}"
            only = tuple(int(column == j) for column in range(len(self.case.action_mask[i])))
            case = self.case.rows([i]).changed(action_mask=(only,)).with_options(global_count=None)
            on_the_way: list[tuple[str, float]] = []
            self.loss.token(case.token(0, j), case.options, on_the_way)
            ending = f"{self.loss.ending}, the loss of the token (asked for alone)"
            if self.metric is not None:
                on_the_way, ending = on_the_way[:1], f"{self.name} of the token (asked for alone)"
            lines = [Line(f"{place}: {label}", value) for label, value in on_the_way]
            blocks.append([*lines, replace(self.asked(case, [i], [only]), label=f"{place}: {ending}")])
        return blocks

    def aggregate(self) -> list[Line]:
        """From the numbers of the tokens to that of the call."""
        case, where = self.case, self.where
        actual = self.reading.numbers(self.evidence.subject, [self.answered]) if self.answered else None
        lines = _mask_lines(case, where)
        if self.metric is not None:
            name = f"{self.name}: mean over the action tokens, {sum(case.counts)}"
            return [*lines, Line(name, self.expected(case), actual, self.allowed(case))]
        if case.options.aggregation == "sequence-mean":
            lines += self._row_means()
        else:
            summed = math.fsum(self.loss.token(case.token(i, j), case.options) for i, j in case.actions)
            lines.append(Line(f"{where}sum of the losses of the action tokens", summed))
        name = f"{where}loss, the {case.options.aggregation}: {_denominator(case, self.counted)}"
        mask = str(self.call.argument("action_mask").dtype).removeprefix("torch.")
        name += f", the mask in {mask}" if mask != "int64" else ""
        return [*lines, Line(name, self.expected(case), actual, self.allowed(case))]

    def _row_means(self) -> list[Line]:
        lines = []
        for i, count in enumerate(self.case.counts):
            case = self.case.rows([i]).with_options(global_count=None)
            if count and not self.evidence.spent:
                label = f"{self.where}mean of row {i} over its action tokens, {count} (asked for alone)"
                lines.append(replace(self.asked(case, [i], case.action_mask), label=label))
        return lines


def _gradients(loss: Loss, comparison: Comparison, counted: bool) -> list[Line]:
    """The tokens whose gradient differs."""
    case: LossCase = comparison.answers[-1].about
    assert comparison.question is not None
    is_in_order = len(comparison.answers) == 1 and comparison.question.reading is GRADIENT
    weights = loss.weights(case, counted)
    lines = []
    numbers = zip(comparison.indices, comparison.expected, comparison.actual, comparison.allowed, strict=True)
    for (i, j), *rest in numbers:
        how = ""
        if is_in_order and not case.action_mask[i][j]:
            how = ", under the mask"
        elif is_in_order:
            token = loss.token_gradient(case.token(i, j), case.options)
            how = f", weight {number(weights[i][j])} * {number(token)}"
        lines.append(Line(f"row {i}, token {j}: gradient of the loss{how}", *rest))
    return [line for line in lines if line.parted][:GRADIENTS]


def _denominator(case: LossCase, counted: bool) -> str:
    options = case.options
    if options.aggregation == "token-sum":
        return "divided by nothing"
    if options.global_count is not None:
        divisor = f"the global count {number(options.global_count)}"
    elif options.aggregation == "token-mean":
        divisor = f"their number, {sum(case.counts)}"
    else:
        divisor = f"the number of rows, {sum(1 for count in case.counts if count or counted)}"
    if options.aggregation == "constant-length":
        divisor += f", times the constant length, {options.constant_length}"
    return f"divided by {divisor}"


def _mask_lines(case: LossCase, where: str) -> list[Line]:
    """The mask, where there is something under it."""
    if all(all(row) for row in case.action_mask):
        return []
    rows = " | ".join(cells(row, most=8)[0] for row in case.action_mask)
    return [Line(f"{where}action mask, row by row", rows)]
