"""The checks of the policy loss."""

from __future__ import annotations

from typing import Any

import rlhf_spec.policy_loss as spec
from rlhf_conformance.adapter import Adapter
from rlhf_conformance.chapters._losses import loss as losses
from rlhf_conformance.chapters._losses.cases import LossCase
from rlhf_conformance.chapters._losses.loss import Loss
from rlhf_conformance.chapters._masked import DressedCase
from rlhf_conformance.judging.checks import Questions, Requirement, check, declares, use
from rlhf_conformance.judging.questions import Call, Formula, NotReturned, Question, metric
from rlhf_conformance.judging.subject import Subject
from rlhf_conformance.oracle import budgets

Token = tuple[float, float, float]


def _arguments(token: Token, options: Any) -> tuple[Any, ...]:
    bounds = options.clip_eps_low, options.clip_eps_high, options.dual_clip
    return *token, *bounds, options.surrogate, options.cispo_bounds


def _log_ratio(token: Token) -> float:
    """Where the ratio overflows its gradient is zero, and its loss the clip's: no amplification."""
    return min(token[0] - token[1], 20.0)


def _token(token: Token, options: Any, steps: spec.Steps | None = None) -> float:
    return spec.token_surrogate_loss(*_arguments(token, options), steps=steps)


def _gradient(token: Token, options: Any) -> float:
    return spec.token_surrogate_gradient(*_arguments(token, options))


def _token_budget(token: Token, options: Any, dtype: Any) -> float:
    """CISPO's loss is a ratio's times a log-prob, REINFORCE's a product of two given numbers."""
    log_ratio = 0.0 if options.surrogate == "reinforce" else _log_ratio(token)
    measure = token[2] if options.surrogate in ("ppo", "gspo") else token[2] * token[0]
    return budgets.policy_token(_token(token, options), log_ratio, measure, dtype)


def _gradient_budget(token: Token, options: Any, dtype: Any) -> float:
    log_ratio = 0.0 if options.surrogate == "reinforce" else _log_ratio(token)
    return budgets.policy_token(_gradient(token, options), log_ratio, token[2], dtype)


POLICY = Loss(
    kind="policy-loss",
    token=_token,
    token_gradient=_gradient,
    token_budget=_token_budget,
    gradient_budget=_gradient_budget,
    ending="minus that",
)
has_dual_clip = lambda adapter: None if adapter.dual_clip else "dual_clip is not declared"  # noqa: E731
has_asymmetric_clip = declares("asymmetric_clip", "asymmetric_clip = False: one clip range for both sides")


def follows(*surrogates: str) -> Requirement:
    """One of these is declared."""

    def missing(adapter: Adapter) -> str | None:
        declared = any(name in adapter.surrogates for name in surrogates)
        return None if declared else f"surrogates = {tuple(adapter.surrogates)!r}: none is {' or '.join(surrogates)}"

    return missing


PPO, GSPO, CISPO, REINFORCE = ("ppo",), ("gspo",), ("cispo",), ("reinforce",)

# --- the token ------------------------------------------------------------------------------------------------------

use("policy-loss.ratio", losses.value_of_tokens(POLICY, follows("ppo"), zones=("inside",), surrogates=PPO))
use(
    "policy-loss.clip",
    losses.value_of_tokens(POLICY, follows("ppo"), zones=("inside", "above", "below", "far"), surrogates=PPO),
)
use(
    "policy-loss.asymmetric-clip",
    losses.value_of_tokens(
        POLICY,
        follows("ppo"),
        has_asymmetric_clip,
        zones=("above", "below", "between"),
        unequal_eps=True,
        surrogates=PPO,
    ),
)
use(
    "policy-loss.bounds-as-given",
    losses.value_of_tokens(
        POLICY,
        follows("ppo"),
        gradient=True,
        zones=("between", "above", "below"),
        dual=None,
        unequal_eps=None,
        edges=True,
        surrogates=PPO,
    ),
)
use(
    "policy-loss.dual-clip",
    losses.value_of_tokens(
        POLICY,
        follows("ppo"),
        has_dual_clip,
        gradient=True,
        zones=("above", "anywhere", "far"),
        dual=True,
        advantage_signs=(-1,),
        surrogates=PPO,
    ),
)
use(
    "policy-loss.dual-clip-sign",
    losses.value_of_tokens(
        POLICY,
        follows("ppo"),
        has_dual_clip,
        gradient=True,
        zones=("above", "below", "anywhere"),
        dual=True,
        advantage_signs=(1,),
        surrogates=PPO,
    ),
)
use(
    "policy-loss.overflow",
    losses.value_of(
        POLICY, follows("ppo"), gradient=True, zones=("overflow", "inside"), advantage_signs=(1,), surrogates=PPO
    ),
)
use("policy-loss.first-step", losses.value_of(POLICY, gradient=True, zones=("equal",)))

# --- other surrogates -----------------------------------------------------------------------------------------------

use("policy-loss.sequence-ratio", losses.value_of(POLICY, follows("gspo"), zones=("inside",), surrogates=GSPO))
use(
    "policy-loss.sequence-ratio-clip",
    losses.value_of(POLICY, follows("gspo"), zones=("above", "below", "far"), unequal_eps=None, surrogates=GSPO),
)
use(
    "policy-loss.sequence-ratio-gradient",
    losses.gradient_of(
        POLICY, follows("gspo"), zones=("inside", "above", "below", "far"), unequal_eps=None, surrogates=GSPO
    ),
)
use("policy-loss.sequence-ratio-mask", losses.mask(POLICY, follows("gspo"), surrogates=GSPO))
use("policy-loss.sequence-ratio-empty-row", losses.empty_row(POLICY, follows("gspo"), surrogates=GSPO))
use("policy-loss.cispo", losses.value_of(POLICY, follows("cispo"), zones=("inside",), surrogates=CISPO))
use(
    "policy-loss.cispo-bounds",
    losses.value_of_tokens(
        POLICY, follows("cispo"), zones=("above", "below", "between"), unequal_eps=None, surrogates=CISPO
    ),
)
use(
    "policy-loss.cispo-gradient",
    losses.gradient_of(
        POLICY, follows("cispo"), zones=("above", "below", "inside", "far"), unequal_eps=None, surrogates=CISPO
    ),
)
use(
    "policy-loss.cispo-overflow",
    losses.value_of(POLICY, follows("cispo"), gradient=True, zones=("overflow", "inside"), surrogates=CISPO),
)
use("policy-loss.reinforce", losses.value_of(POLICY, follows("reinforce"), gradient=True, surrogates=REINFORCE))
use(
    "policy-loss.reinforce-old",
    losses.value_of(POLICY, follows("reinforce"), gradient=True, zones=("overflow", "far"), surrogates=REINFORCE),
)
use(
    "policy-loss.surrogate-mask",
    losses.mask(POLICY, follows("cispo", "reinforce"), surrogates=("cispo", "reinforce")),
)
use(
    "policy-loss.surrogate-nan-under-mask",
    losses.nan_under_mask(POLICY, follows("gspo", "cispo", "reinforce"), surrogates=("gspo", "cispo", "reinforce")),
)

# --- the mean and the mask ------------------------------------------------------------------------------------------

use("policy-loss.aggregation", losses.value_of(POLICY, unequal_rows=True))
use("policy-loss.token-mean", losses.mean(POLICY, "token-mean"))
use("policy-loss.sequence-mean", losses.mean(POLICY, "sequence-mean"))
use("policy-loss.constant-length", losses.mean(POLICY, "constant-length"))
use("policy-loss.token-sum", losses.mean(POLICY, "token-sum"))
use("policy-loss.micro-batches", losses.micro_batches(POLICY))
use(
    "policy-loss.constant-length-micro-batches",
    losses.micro_batches(POLICY, losses.aggregates(POLICY, "constant-length"), aggregations=("constant-length",)),
)
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
    losses.gradient_of(
        POLICY,
        follows("ppo"),
        zones=("between", "above", "below", "inside", "far"),
        dual=None,
        unequal_eps=None,
        surrogates=PPO,
    ),
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
        s, zones=("between", "inside", "above", "below", "far"), dual=None, unequal_eps=None, surrogates=PPO
    ),
    requires=(follows("ppo"),),
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
    """Those that the trainer returns; the clip fraction is PPO's."""
    call = POLICY.call(subject, dressed, about=case)
    came = (yield call).value
    clips = case.options.surrogate == "ppo" and came.clip_fraction is not None
    if not clips and came.approx_kl is None:
        raise NotReturned("policy_loss returns no metric")
    if clips:
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
