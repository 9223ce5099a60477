"""The checks of the policy loss."""

from __future__ import annotations

from typing import Any

import rlhf_spec.policy_loss as spec
from rlhf_conformance.chapters._losses import loss as losses
from rlhf_conformance.chapters._losses.cases import LossCase
from rlhf_conformance.chapters._losses.loss import Loss
from rlhf_conformance.chapters._masked import DressedCase
from rlhf_conformance.judging.checks import Questions, check, declares, use
from rlhf_conformance.judging.questions import Call, Formula, NotReturned, Question, metric
from rlhf_conformance.judging.subject import Subject
from rlhf_conformance.oracle import budgets

Token = tuple[float, float, float]


def _arguments(token: Token, options: Any) -> tuple[Any, ...]:
    return *token, options.clip_eps_low, options.clip_eps_high, options.dual_clip


def _log_ratio(token: Token) -> float:
    """Where the ratio overflows its gradient is zero, and its loss the clip's: no amplification."""
    return min(token[0] - token[1], 20.0)


def _token(token: Token, options: Any, steps: spec.Steps | None = None) -> float:
    return spec.token_policy_loss(*_arguments(token, options), steps=steps)


def _gradient(token: Token, options: Any) -> float:
    return spec.token_policy_loss_gradient(*_arguments(token, options))


POLICY = Loss(
    kind="policy-loss",
    token=_token,
    token_gradient=_gradient,
    token_budget=lambda t, o, dtype: budgets.policy_token(_token(t, o), _log_ratio(t), t[2], dtype),
    gradient_budget=lambda t, o, dtype: budgets.policy_token(_gradient(t, o), _log_ratio(t), t[2], dtype),
    ending="minus that",
)
has_dual_clip = lambda adapter: None if adapter.dual_clip else "dual_clip is not declared"  # noqa: E731
has_asymmetric_clip = declares("asymmetric_clip", "asymmetric_clip = False: one clip range for both sides")

# --- the token ------------------------------------------------------------------------------------------------------

use("policy-loss.ratio", losses.value_of_tokens(POLICY, zones=("inside",)))
use("policy-loss.clip", losses.value_of_tokens(POLICY, zones=("inside", "above", "below", "far")))
use(
    "policy-loss.asymmetric-clip",
    losses.value_of_tokens(POLICY, has_asymmetric_clip, zones=("above", "below", "between"), unequal_eps=True),
)
use(
    "policy-loss.bounds-as-given",
    losses.value_of_tokens(
        POLICY, gradient=True, zones=("between", "above", "below"), dual=None, unequal_eps=None, edges=True
    ),
)
use(
    "policy-loss.dual-clip",
    losses.value_of_tokens(
        POLICY, has_dual_clip, gradient=True, zones=("above", "anywhere", "far"), dual=True, advantage_signs=(-1,)
    ),
)
use(
    "policy-loss.dual-clip-sign",
    losses.value_of_tokens(
        POLICY, has_dual_clip, gradient=True, zones=("above", "below", "anywhere"), dual=True, advantage_signs=(1,)
    ),
)
use(
    "policy-loss.overflow",
    losses.value_of(POLICY, gradient=True, zones=("overflow", "inside"), advantage_signs=(1,)),
)
use("policy-loss.first-step", losses.value_of(POLICY, gradient=True, zones=("equal",)))

# --- the mean and the mask ------------------------------------------------------------------------------------------

use("policy-loss.aggregation", losses.value_of(POLICY, unequal_rows=True))
use("policy-loss.token-mean", losses.mean(POLICY, "token-mean"))
use("policy-loss.sequence-mean", losses.mean(POLICY, "sequence-mean"))
use("policy-loss.micro-batches", losses.micro_batches(POLICY))
use("policy-loss.empty-rows-counted", losses.empty_rows_counted(POLICY))
use("policy-loss.mask", losses.mask(POLICY))
use("policy-loss.nan-under-mask", losses.nan_under_mask(POLICY))
use("policy-loss.empty-row", losses.empty_row(POLICY))
use("policy-loss.empty-batch", losses.empty_batch(POLICY))
use("policy-loss.mask-dtype", losses.mask_dtype(POLICY))

# --- the graph, and what changes nothing ----------------------------------------------------------------------------

use("policy-loss.gradient", losses.gradient_of(POLICY, zones=("inside",)))
use(
    "policy-loss.clipped-gradient",
    losses.gradient_of(POLICY, zones=("between", "above", "below", "inside", "far"), dual=None, unequal_eps=None),
)
use("policy-loss.scalar", losses.scalar(POLICY))
use("policy-loss.padding-invariance", losses.padding_invariance(POLICY))
use("policy-loss.batch-order", losses.batch_order(POLICY))
use("policy-loss.inputs-unwritten", losses.inputs_unwritten(POLICY))
use("policy-loss.side-effects", losses.side_effects(POLICY))

# --- what is logged -------------------------------------------------------------------------------------------------


@check(
    "policy-loss.clip-fraction",
    needs=POLICY.needs,
    cases=lambda s: POLICY.of_any_size(
        s, zones=("between", "inside", "above", "below", "far"), dual=None, unequal_eps=None
    ),
)
def clip_fraction(subject: Subject, case: DressedCase) -> Questions:
    yield asks_clip_fraction(subject, case.case, POLICY.call(subject, case.dressed, about=case.case))


def asks_clip_fraction(subject: Subject, case: LossCase, call: Call) -> Question:
    o = case.options
    bounds = {"clip_eps_low": o.clip_eps_low, "clip_eps_high": o.clip_eps_high}
    return Question(
        "clip fraction",
        call,
        spec.clip_fraction(*case.tables, case.action_mask, **bounds),
        budgets.clip_fraction(subject.dtype),
        reading=metric("clip_fraction"),
        formula=Formula("rlhf_spec.policy_loss.clip_fraction"),
    )


@check("policy-loss.kl-metric", needs=POLICY.needs, cases=lambda s: POLICY.of_any_size(s))
def kl_metric(subject: Subject, case: DressedCase) -> Questions:
    yield asks_kl(subject, case.case, POLICY.call(subject, case.dressed, about=case.case))


def asks_kl(subject: Subject, case: LossCase, call: Call) -> Question:
    estimator, (new, old, _) = subject.adapter.kl_metric, case.tables
    return Question(
        f"approximate KL ({estimator})",
        call,
        spec.approx_kl(new, old, case.action_mask, estimator),
        budgets.approx_kl([new[i][j] - old[i][j] for i, j in case.actions], estimator, subject.dtype),
        reading=metric("approx_kl"),
        formula=Formula("rlhf_spec.policy_loss.approx_kl", {"estimator": estimator}),
    )


def asks_metrics(subject: Subject, case: LossCase, dressed: LossCase) -> Questions:
    """Those that the trainer returns."""
    call = POLICY.call(subject, dressed, about=case)
    came = (yield call).value
    if came.clip_fraction is None and came.approx_kl is None:
        raise NotReturned("policy_loss returns no metric")
    if came.clip_fraction is not None:
        yield asks_clip_fraction(subject, case, call)
    if came.approx_kl is not None:
        yield asks_kl(subject, case, call)


@check(
    "policy-loss.metrics-nan-under-mask",
    needs=POLICY.needs,
    cases=lambda s: POLICY.dressed(s, losses.POISON, dual=None),
)
def metrics_nan_under_mask(subject: Subject, case: DressedCase) -> Questions:
    yield from asks_metrics(subject, case.case, case.dressed)


@check("policy-loss.metrics-empty", needs=POLICY.needs, cases=POLICY.cases(empty_row=True, dual=None))
def metrics_empty(subject: Subject, case: LossCase) -> Questions:
    """With a row that has no action, and with nothing but such rows."""
    yield from asks_metrics(subject, case, case)
    nothing = losses.emptied(case)
    yield from asks_metrics(subject, nothing, nothing)
