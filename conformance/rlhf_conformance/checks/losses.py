"""Chapters policy-loss and value-loss: one table for what the two losses share, then what each has alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hypothesis import strategies as st

import rlhf_spec.aggregation
import rlhf_spec.policy_loss as policy
import rlhf_spec.value_loss as value
from rlhf_conformance import budgets
from rlhf_conformance._lazy import torch
from rlhf_conformance.adapter import AGGREGATIONS, Adapter
from rlhf_conformance.cases.losses import (
    Builder,
    DressedCase,
    LossCase,
    LossShape,
    SplitCase,
    WidenedCase,
    loss_builder,
    loss_cases,
    split,
    under_mask,
    widened,
)
from rlhf_conformance.checks import NotReturned, Requirement, check, declares, side_effects
from rlhf_conformance.judge import Judge
from rlhf_conformance.subject import LossAnswer, Subject

GARBAGE = (-30.0, -3.0, -0.5, 0.7, 2.0, 30.0)
"""Put under the mask: a masked token's loss stays finite (a ratio of e^60 at most)."""
SMALL_GARBAGE = (-3.0, -0.5, 0.7, 2.0, 5.0)
"""The same for float16, which ends at 65504."""
POISON = (math.nan, math.inf, -math.inf, 1e4, -1e4)


@dataclass(frozen=True)
class Loss:
    """One of the two losses, as the oracle sees it: token by token, then aggregated."""

    kind: str
    token: Callable[[LossCase, int, int], float]
    token_gradient: Callable[[LossCase, int, int], float]
    token_budget: Callable[[LossCase, int, int, Any], float]
    gradient_budget: Callable[[LossCase, int, int, Any], float]

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.kind.replace("-", "_"),)

    def cases(self, **shape: Any) -> Callable[[Subject], st.SearchStrategy[LossCase]]:
        """Cases of this loss, of the shape asked for."""
        return lambda s: loss_cases(self.builder(s, **shape))

    def builder(self, subject: Subject, **shape: Any) -> Builder:
        return loss_builder(subject.adapter, subject.dtype, self.kind, LossShape(**shape))

    def dressed(self, subject: Subject, filler: Sequence[float] = (), **shape: Any) -> st.SearchStrategy[DressedCase]:
        """Cases with numbers under the mask: `filler`, or finite ones of any size that the dtype can take."""
        garbage = SMALL_GARBAGE if subject.dtype == torch.float16 else GARBAGE
        return under_mask(self.builder(subject, **shape), filler or garbage, subject.dtype)

    def weights(self, case: LossCase, count_empty_rows: bool = False) -> list[list[float]]:
        """The weight of each token in the aggregate."""
        options = case.options
        return rlhf_spec.aggregation.weights(
            case.mask, options.aggregation, global_count=options.global_count, count_empty_rows=count_empty_rows
        )

    def count(self, case: LossCase) -> float:
        """The denominator of the case's aggregate, as the global count of a step that is this batch alone."""
        return float(sum(case.counts) if case.options.aggregation == "token-mean" else len(case.mask))

    def value(self, case: LossCase, count_empty_rows: bool = False) -> float:
        weights = self.weights(case, count_empty_rows)
        return math.fsum(weights[i][j] * self.token(case, i, j) for i, j in _actions(case))

    def gradient(self, case: LossCase, count_empty_rows: bool = False) -> list[list[float]]:
        weights = self.weights(case, count_empty_rows)
        return [
            [weights[i][j] * self.token_gradient(case, i, j) if m else 0.0 for j, m in enumerate(row)]
            for i, row in enumerate(case.mask)
        ]

    def value_budget(self, case: LossCase, dtype: Any) -> float:
        places, weights = list(_actions(case)), self.weights(case)
        losses = [self.token(case, i, j) for i, j in places]
        errors = [self.token_budget(case, i, j, dtype) for i, j in places]
        return budgets.aggregate(losses, errors, [weights[i][j] for i, j in places], dtype)

    def gradient_budgets(self, case: LossCase, dtype: Any) -> list[list[float]]:
        """Zero where the gradient is exactly zero: under the mask, and where a clip binds."""
        weights = self.weights(case)
        return [
            [
                weights[i][j] * self.gradient_budget(case, i, j, dtype)
                if m and self.token_gradient(case, i, j)
                else 0.0
                for j, m in enumerate(row)
            ]
            for i, row in enumerate(case.mask)
        ]

    def judge_value(
        self, subject: Subject, case: LossCase, judge: Judge, *, what: str = "loss", note: str = ""
    ) -> LossAnswer:
        """Ask for the loss and compare it with the formula."""
        answer = subject.loss(self.kind, case)
        judge.close(
            answer.value,
            self.value(case),
            self.value_budget(case, subject.dtype),
            what=what,
            note=lambda: note + self._other_mean(case, answer.value, subject.dtype),
        )
        return answer

    def _other_mean(self, case: LossCase, came: float, dtype: Any) -> str:
        """A hint, where the answer is that of an aggregation that was not asked for."""
        for other in AGGREGATIONS:
            asked = case.with_options(aggregation=other)
            apart = abs(self.value(asked) - self.value(case)) > 2 * self.value_budget(case, dtype)
            if (
                other != case.options.aggregation
                and apart
                and abs(came - self.value(asked)) <= self.value_budget(asked, dtype)
            ):
                return f"; the answer is the {other}: is another aggregation declared than the trainer uses?"
        return ""

    def judge_gradient(
        self, subject: Subject, case: LossCase, answer: LossAnswer, judge: Judge, *, note: str = ""
    ) -> None:
        """Compare the gradient with the formula's."""
        self.judge_rows(subject, case, answer.gradient, judge, note=note)

    def judge_rows(self, subject: Subject, case: LossCase, rows: Any, judge: Judge, *, note: str = "") -> None:
        """The same for rows of a gradient that the check has put together."""
        judge.close(
            rows,
            self.gradient(case),
            self.gradient_budgets(case, subject.dtype),
            what=f"gradient with respect to the new {'log-prob' if self.kind == 'policy-loss' else 'value'}",
            note=note,
        )


def _actions(case: LossCase) -> list[tuple[int, int]]:
    return [(i, j) for i, row in enumerate(case.mask) for j, m in enumerate(row) if m]


def _policy_arguments(case: LossCase, i: int, j: int) -> tuple[Any, ...]:
    o = case.options
    return case.new[i][j], case.old[i][j], case.target[i][j], o.clip_eps_low, o.clip_eps_high, o.dual_clip


def _log_ratio(case: LossCase, i: int, j: int) -> float:
    """Where the ratio overflows its gradient is zero, and its loss the clip's: no amplification."""
    return min(case.new[i][j] - case.old[i][j], 20.0)


def _policy_gradient(case: LossCase, i: int, j: int) -> float:
    return policy.token_policy_loss_gradient(*_policy_arguments(case, i, j))


def _policy_token(case: LossCase, i: int, j: int) -> float:
    return policy.token_policy_loss(*_policy_arguments(case, i, j))


def _value_arguments(case: LossCase, i: int, j: int) -> tuple[float, float, float]:
    return case.new[i][j], case.old[i][j], case.target[i][j]


POLICY = Loss(
    kind="policy-loss",
    token=_policy_token,
    token_gradient=_policy_gradient,
    token_budget=lambda c, i, j, dtype: budgets.policy_token(
        _policy_token(c, i, j), _log_ratio(c, i, j), c.target[i][j], dtype
    ),
    gradient_budget=lambda c, i, j, dtype: budgets.policy_token(
        _policy_gradient(c, i, j), _log_ratio(c, i, j), c.target[i][j], dtype
    ),
)
VALUE = Loss(
    kind="value-loss",
    token=lambda c, i, j: value.token_value_loss(*_value_arguments(c, i, j), c.options.clip_eps),
    token_gradient=lambda c, i, j: value.token_value_loss_gradient(*_value_arguments(c, i, j), c.options.clip_eps),
    token_budget=lambda c, i, j, dtype: budgets.value_token(*_value_arguments(c, i, j), dtype),
    gradient_budget=lambda c, i, j, dtype: budgets.value_token_gradient(*_value_arguments(c, i, j), dtype),
)


def aggregates(aggregation: str) -> Requirement:
    return lambda adapter: None if aggregation in adapter.aggregations else f"{aggregation} is not declared"


def token_mean_first(loss: Loss, **shape: Any) -> Callable[[Subject], st.SearchStrategy[LossCase]]:
    """Cases with a single row, in which all aggregations agree: what is at stake is the token, not the mean."""
    return loss.cases(single_row=True, **shape)


has_clip = declares("value_clip", "value_clip = False: the value loss cannot be clipped")
has_dual_clip = declares("dual_clip", "dual_clip is not declared")
has_asymmetric_clip = declares("asymmetric_clip", "asymmetric_clip = False: one clip range for both sides")
has_global_count = declares("global_count", "global_count is not declared")


def counts_empty_rows(adapter: Adapter) -> str | None:
    if adapter.count_empty_rows is None:
        return "count_empty_rows is not declared: nothing is promised for a row without actions"
    return aggregates("sequence-mean")(adapter)


# --- what both losses have ----------------------------------------------------------------------------------------


def register(loss: Loss) -> None:
    _register_aggregation(loss)
    _register_mask(loss)
    _register_gradients(loss)
    _register_invariances(loss)
    side_effects.register(
        loss.kind,
        needs=loss.needs,
        cases=lambda s: loss.dressed(s, dual=None),
        ask=lambda subject, case: _value_and_gradient(subject.loss(loss.kind, case.dressed)),
    )


def _register_aggregation(loss: Loss) -> None:
    @check(f"{loss.kind}.aggregation", needs=loss.needs, cases=loss.cases(unequal_rows=True))
    def aggregation(subject: Subject, case: LossCase, judge: Judge) -> None:
        note = f"declared: {', '.join(subject.adapter.aggregations)}; asked for: {case.options.aggregation}"
        loss.judge_value(subject, case, judge, note=note)

    for name, over in (
        ("token-mean", "all action tokens of the batch"),
        ("sequence-mean", "the sequences, of token means"),
    ):

        @check(
            f"{loss.kind}.{name}",
            needs=loss.needs,
            requires=(aggregates(name),),
            cases=loss.cases(unequal_rows=True, square=True, aggregations=(name,)),
            effort=2,
        )
        def mean(subject: Subject, case: LossCase, judge: Judge, over: str = over) -> None:
            """The case, and the same with every row repeated, which is longer than bytes and bfloat16 can count."""
            for how_long in (case, case.repeated(107)):
                loss.judge_value(subject, how_long, judge, note=f"the mean is over {over}")

    @check(
        f"{loss.kind}.micro-batches",
        needs=loss.needs,
        requires=(has_global_count,),
        cases=lambda s: split(loss.builder(s, unequal_rows=True, min_rows=2)),
    )
    def micro_batches(subject: Subject, case: SplitCase, judge: Judge) -> None:
        whole = case.case
        count = loss.count(whole)
        parts = [part.with_options(global_count=count) for part in case.parts]
        answers = [subject.loss(loss.kind, part) for part in parts]
        note = "one mean over the whole step, not a mean of means"
        judge.close(
            math.fsum(answer.value for answer in answers),
            loss.value(whole),
            sum(loss.value_budget(part, subject.dtype) for part in parts),
            what=f"sum of the losses of {len(parts)} micro-batches with the global count {count:g}",
            note=note,
        )
        loss.judge_rows(subject, whole, [row for answer in answers for row in answer.gradient], judge, note=note)


def _register_mask(loss: Loss) -> None:
    @check(
        f"{loss.kind}.mask",
        needs=loss.needs,
        cases=lambda s: loss.dressed(s, dual=None),
    )
    def mask(subject: Subject, case: DressedCase, judge: Judge) -> None:
        _judge_dressed(loss, subject, case, judge, "finite numbers under the mask do not matter")
        if subject.adapter.global_count:  # with another denominator, as trainers ask in micro-batches
            counted = case.with_options(global_count=loss.count(case.case))
            _judge_dressed(loss, subject, counted, judge, "nor do they with a global count")

    @check(
        f"{loss.kind}.nan-under-mask",
        needs=loss.needs,
        cases=lambda s: loss.dressed(s, POISON, dual=None),
    )
    def nan_under_mask(subject: Subject, case: DressedCase, judge: Judge) -> None:
        _judge_dressed(loss, subject, case, judge, "select with torch.where: NaN * 0 is NaN")

    @check(f"{loss.kind}.empty-row", needs=loss.needs, cases=loss.cases(empty_row=True))
    def empty_row(subject: Subject, case: LossCase, judge: Judge) -> None:
        """Whether the row counts in a sequence-mean is a convention: either is right here."""
        answer = subject.loss(loss.kind, case)
        counted = _counted_like(loss, case, answer)
        allowed, note = loss.value_budget(case, subject.dtype), "0 / 0 is NaN"
        truth = loss.value(case, counted)
        judge.close(answer.value, truth, allowed, what="loss with a row that has no action", note=note)
        judge.close(
            answer.gradient,
            loss.gradient(case, counted),
            loss.gradient_budgets(case, subject.dtype),
            what="gradient with a row that has no action",
            note="that row gets none, the others the formula's",
        )

    @check(f"{loss.kind}.empty-batch", needs=loss.needs, cases=loss.cases())
    def empty_batch(subject: Subject, case: LossCase, judge: Judge) -> None:
        nothing = replace(case, mask=tuple((0,) * len(row) for row in case.mask))
        answer = subject.loss(loss.kind, nothing)
        judge.equal(answer.value, 0.0, what="loss of a batch without any action", note="0 / 0 is NaN")
        zeros = [[0.0] * len(row) for row in case.mask]
        judge.equal(answer.gradient, zeros, what="gradient of a batch without any action")

    @check(f"{loss.kind}.mask-dtype", needs=loss.needs, cases=loss.cases())
    def mask_dtype(subject: Subject, case: LossCase, judge: Judge) -> None:
        for dtype in (torch.bool, torch.int64, torch.int32, torch.float32):
            answer = subject.loss(loss.kind, case, mask=subject.tensor(case.mask, dtype))
            allowed = loss.value_budget(case, subject.dtype)
            judge.close(answer.value, loss.value(case), allowed, what=f"loss with a mask of {dtype}")


def _counted_like(loss: Loss, case: LossCase, answer: LossAnswer) -> bool:
    """Which of the two conventions for an empty row the answer is nearer to, by its value and its gradient."""

    def distance(counted: bool) -> float:
        gaps = [abs(loss.value(case, counted) - answer.value)]
        for truth, row in zip(loss.gradient(case, counted), answer.gradient, strict=True):
            gaps += [abs(a - b) for a, b in zip(truth, row, strict=True)]
        return sum(gaps)

    return distance(True) < distance(False)


def _detached(metric: Any) -> float:
    return float(metric.detach() if isinstance(metric, torch.Tensor) else metric)


def _value_and_gradient(answer: LossAnswer) -> list[Any]:
    return [answer.value, answer.gradient]


def _judge_dressed(loss: Loss, subject: Subject, case: DressedCase, judge: Judge, note: str) -> None:
    answer = subject.loss(loss.kind, case.dressed)
    allowed = loss.value_budget(case.case, subject.dtype)
    judge.close(answer.value, loss.value(case.case), allowed, what="loss", note=note)
    loss.judge_gradient(subject, case.case, answer, judge, note=note)


def _register_gradients(loss: Loss) -> None:
    @check(f"{loss.kind}.gradient", needs=loss.needs, cases=loss.cases(zones=("inside",)))
    def gradient(subject: Subject, case: LossCase, judge: Judge) -> None:
        loss.judge_gradient(subject, case, subject.loss(loss.kind, case), judge)

    zones = ("between", "above", "below", "inside", "far") if loss is POLICY else ("outside", "inside")
    requires = () if loss is POLICY else (has_clip,)

    @check(
        f"{loss.kind}.clipped-gradient",
        needs=loss.needs,
        requires=requires,
        cases=loss.cases(zones=zones, dual=None, unequal_eps=None),
    )
    def clipped_gradient(subject: Subject, case: LossCase, judge: Judge) -> None:
        note = "exactly zero where the clip binds, the formula's everywhere else"
        loss.judge_gradient(subject, case, subject.loss(loss.kind, case), judge, note=note)

    @check(f"{loss.kind}.scalar", needs=loss.needs, cases=loss.cases())
    def scalar(subject: Subject, case: LossCase, judge: Judge) -> None:
        result = subject.loss(loss.kind, case).result.loss
        judge.that(result.ndim == 0, "shape of the loss", expected="()", actual=str(tuple(result.shape)))
        judge.that(result.is_floating_point(), "dtype of the loss", expected="a float dtype", actual=str(result.dtype))
        judge.that(
            result.requires_grad,
            "graph of the loss",
            expected="one that leads back to the new log-probs or values",
            actual="none: the loss is detached",
        )


def _register_invariances(loss: Loss) -> None:
    @check(
        f"{loss.kind}.padding-invariance",
        needs=loss.needs,
        cases=lambda s: st.builds(WidenedCase, loss.cases(dual=None)(s), st.integers(1, 3), st.booleans()),
    )
    def padding_invariance(subject: Subject, case: WidenedCase, judge: Judge) -> None:
        wide = widened(case.case, case.columns, left=case.left)
        without, answer = subject.loss(loss.kind, case.case), subject.loss(loss.kind, wide)
        what = f"loss with {case.columns} more masked columns, against without"
        judge.close(answer.value, without.value, 2 * loss.value_budget(case.case, subject.dtype), what=what)
        loss.judge_gradient(subject, wide, answer, judge, note="masked columns change no gradient")

    @check(f"{loss.kind}.batch-order", needs=loss.needs, cases=loss.cases(dual=None, min_rows=2))
    def batch_order(subject: Subject, case: LossCase, judge: Judge) -> None:
        backwards = case.rows(range(len(case.mask) - 1, -1, -1))
        there, back = (subject.loss(loss.kind, c) for c in (case, backwards))
        allowed = 2 * loss.value_budget(case, subject.dtype)
        judge.close(back.value, there.value, allowed, what="loss of the rows in reverse order")
        loss.judge_rows(subject, case, back.gradient[::-1], judge, note="each row keeps its own gradient")


for _loss in (POLICY, VALUE):
    register(_loss)


@check(
    "policy-loss.empty-rows-counted",
    needs=POLICY.needs,
    requires=(counts_empty_rows,),
    cases=POLICY.cases(empty_row=True, aggregations=("sequence-mean",)),
)
def empty_rows_counted(subject: Subject, case: LossCase, judge: Judge) -> None:
    counted = bool(subject.adapter.count_empty_rows)
    answer, allowed = subject.loss("policy-loss", case), POLICY.value_budget(case, subject.dtype)
    note = f"declared: count_empty_rows = {counted}"
    judge.close(answer.value, POLICY.value(case, counted), allowed, what="sequence-mean with an empty row", note=note)


# --- the policy loss alone ----------------------------------------------------------------------------------------


def _policy_value(
    slug: str, note: str, *, requires: Sequence[Requirement] = (), gradient: bool = False, **shape: Any
) -> None:
    """A clause about the value of a token's loss, and where asked its gradient, tried on single rows of a shape."""

    @check(slug, needs=POLICY.needs, requires=requires, cases=token_mean_first(POLICY, **shape))
    def value_of_tokens(subject: Subject, case: LossCase, judge: Judge) -> None:
        answer = POLICY.judge_value(subject, case, judge, note=note)
        if gradient:
            POLICY.judge_gradient(subject, case, answer, judge, note=note)


_policy_value("policy-loss.ratio", "inside the band the loss of a token is -r A, r = exp(lp - olp)", zones=("inside",))
_policy_value(
    "policy-loss.clip",
    "-min(r A, clip(r) A), each token clipped by itself",
    zones=("inside", "above", "below", "far"),
)
_policy_value(
    "policy-loss.asymmetric-clip",
    "eps_low bounds below, eps_high above",
    requires=(has_asymmetric_clip,),
    zones=("above", "below", "between"),
    unequal_eps=True,
)
_policy_value(
    "policy-loss.dual-clip",
    "max(min(r A, clip(r) A), c A) where A < 0",
    requires=(has_dual_clip,),
    gradient=True,
    zones=("above", "anywhere"),
    dual=True,
    advantage_signs=(-1,),
)
_policy_value(
    "policy-loss.dual-clip-sign",
    "the dual clip concerns negative advantages only",
    requires=(has_dual_clip,),
    gradient=True,
    zones=("above", "below", "anywhere"),
    dual=True,
    advantage_signs=(1,),
)


@check(
    "policy-loss.overflow", needs=POLICY.needs, cases=POLICY.cases(zones=("overflow", "inside"), advantage_signs=(1,))
)
def overflow(subject: Subject, case: LossCase, judge: Judge) -> None:
    note = "exp overflows to infinity in float32 above 88; the clip decides, and its gradient is zero"
    answer = POLICY.judge_value(subject, case, judge, note=note)
    POLICY.judge_gradient(subject, case, answer, judge, note=note)


@check("policy-loss.first-step", needs=POLICY.needs, cases=POLICY.cases(zones=("equal",)))
def first_step(subject: Subject, case: LossCase, judge: Judge) -> None:
    note = "before any step the ratio is 1: the loss is minus the mean advantage"
    answer = POLICY.judge_value(subject, case, judge, note=note)
    POLICY.judge_gradient(subject, case, answer, judge, note=note)


@check(
    "policy-loss.clip-fraction",
    needs=POLICY.needs,
    cases=lambda s: POLICY.dressed(
        s, zones=("between", "inside", "above", "below", "far"), dual=None, unequal_eps=None
    ),
)
def clip_fraction(subject: Subject, case: DressedCase, judge: Judge) -> None:
    metric = subject.loss("policy-loss", case.dressed).result.clip_fraction
    if metric is None:
        raise NotReturned("policy_loss returns no clip_fraction")
    c, o = case.case, case.case.options
    bounds = {"clip_eps_low": o.clip_eps_low, "clip_eps_high": o.clip_eps_high}
    truth = policy.clip_fraction(c.new, c.old, c.target, c.mask, **bounds)
    judge.close(_detached(metric), truth, 8 * budgets.unit(subject.dtype), what="clip fraction")


@check("policy-loss.kl-metric", needs=POLICY.needs, cases=lambda s: POLICY.dressed(s))
def kl_metric(subject: Subject, case: DressedCase, judge: Judge) -> None:
    metric = subject.loss("policy-loss", case.dressed).result.approx_kl
    if metric is None:
        raise NotReturned("policy_loss returns no approx_kl")
    c, estimator = case.case, subject.adapter.kl_metric
    truth = policy.approx_kl(c.new, c.old, c.mask, estimator)
    log_ratios = [c.new[i][j] - c.old[i][j] for i, j in _actions(c)]
    largest = max(math.exp(abs(x)) * (1 + abs(x)) for x in log_ratios)
    allowed = 2 * budgets.unit(subject.dtype) * (len(log_ratios) + 8) * largest
    judge.close(_detached(metric), truth, allowed, what=f"approximate KL ({estimator})")


# --- the value loss alone -----------------------------------------------------------------------------------------


def _value_value(slug: str, note: str, *, requires: Sequence[Requirement] = (), **shape: Any) -> None:
    @check(slug, needs=VALUE.needs, requires=requires, cases=token_mean_first(VALUE, **shape))
    def value_of_tokens(subject: Subject, case: LossCase, judge: Judge) -> None:
        VALUE.judge_value(subject, case, judge, note=note)


_value_value(
    "value-loss.clip",
    "0.5 max((V - R)^2, (V_old + clip(V - V_old) - R)^2)",
    requires=(has_clip,),
    zones=("inside", "outside"),
)
_value_value(
    "value-loss.unclipped",
    "without a clip: 0.5 (V - R)^2",
    requires=(declares("unclipped_value", "unclipped_value = False: the value loss always clips"),),
    clipped=False,
)
_value_value("value-loss.half", "inside the band the loss of a token is 0.5 (V - R)^2", zones=("inside",))
