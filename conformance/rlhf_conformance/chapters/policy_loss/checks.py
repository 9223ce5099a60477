"""The checks of the policy loss."""

from __future__ import annotations

from typing import Any

import rlhf_spec.policy_loss as spec
from rlhf_conformance.chapters._losses import loss as losses
from rlhf_conformance.chapters._losses.cases import DressedCase
from rlhf_conformance.chapters._losses.loss import Loss
from rlhf_conformance.judging.checks import Questions, check, declares, use
from rlhf_conformance.judging.questions import Formula, Question, metric
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
has_dual_clip = declares("dual_clip", "dual_clip is not declared")
has_asymmetric_clip = declares("asymmetric_clip", "asymmetric_clip = False: one clip range for both sides")

# --- the token ------------------------------------------------------------------------------------------------------

use("policy-loss.ratio", losses.value_of_tokens(POLICY, zones=("inside",)))
use("policy-loss.clip", losses.value_of_tokens(POLICY, zones=("inside", "above", "below", "far")))
use(
    "policy-loss.asymmetric-clip",
    losses.value_of_tokens(POLICY, has_asymmetric_clip, zones=("above", "below", "between"), unequal_eps=True),
)
use(
    "policy-loss.dual-clip",
    losses.value_of_tokens(
        POLICY, has_dual_clip, gradient=True, zones=("above", "anywhere"), dual=True, advantage_signs=(-1,)
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
    cases=lambda s: POLICY.dressed(
        s, zones=("between", "inside", "above", "below", "far"), dual=None, unequal_eps=None
    ),
)
def clip_fraction(subject: Subject, case: DressedCase) -> Questions:
    c, o = case.case, case.case.options
    bounds = {"clip_eps_low": o.clip_eps_low, "clip_eps_high": o.clip_eps_high}
    yield Question(
        "clip fraction",
        POLICY.call(subject, case.dressed, about=c),
        spec.clip_fraction(*c.tables, c.action_mask, **bounds),
        budgets.clip_fraction(subject.dtype),
        reading=metric("clip_fraction"),
        formula=Formula("rlhf_spec.policy_loss.clip_fraction"),
    )


@check("policy-loss.kl-metric", needs=POLICY.needs, cases=lambda s: POLICY.dressed(s))
def kl_metric(subject: Subject, case: DressedCase) -> Questions:
    c, estimator = case.case, subject.adapter.kl_metric
    new, old, _ = c.tables
    yield Question(
        f"approximate KL ({estimator})",
        POLICY.call(subject, case.dressed, about=c),
        spec.approx_kl(new, old, c.action_mask, estimator),
        budgets.approx_kl([new[i][j] - old[i][j] for i, j in c.actions], estimator, subject.dtype),
        reading=metric("approx_kl"),
        formula=Formula("rlhf_spec.policy_loss.approx_kl", {"estimator": estimator}),
    )
