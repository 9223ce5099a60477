"""Inputs of the objective: those of both losses, a reference and entropies, under one mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from rlhf_conformance.adapter import Adapter
from rlhf_conformance.chapters._losses.cases import (
    ROWS,
    TOKEN_PICKS,
    WIDTH,
    LossShape,
    PolicyLossCase,
    Token,
    loss_cases,
    value_token,
)
from rlhf_conformance.chapters._masked import MaskedCase, Masks, Rows, exactly
from rlhf_conformance.chapters.kl.cases import PICKS, clamps, held_pair, near_reference
from rlhf_conformance.chapters.objective.interface import ObjectiveOptions
from rlhf_conformance.chapters.policy_loss.interface import PolicyLossOptions
from rlhf_conformance.chapters.value_loss.interface import ValueLossOptions
from rlhf_conformance.judging.picks import Picked, Picks
from rlhf_conformance.judging.storing import stored
from rlhf_conformance.judging.subject import Subject

TERMS = ("value", "kl", "entropy")
COEFS = (0.5, 1.0, 0.1, 2.0, 0.01, 0.7)
ENTROPIES = tuple(0.17 * k for k in range(1, 31))
CLIP_EPS = (0.1, 0.2, 0.3)
CELLS = ROWS * WIDTH
CELL_PICKS = TOKEN_PICKS + 3
BESIDE = ("entropies", "ref_log_probs", "values", "old_values", "returns")
"""The tables beside those of the policy loss."""


@stored
@dataclass(frozen=True)
class ObjectiveCase(MaskedCase):
    """One call of the objective."""

    TABLES = (*PolicyLossCase.TABLES, *BESIDE)

    log_probs: Rows
    old_log_probs: Rows
    advantages: Rows
    entropies: Rows
    ref_log_probs: Rows
    values: Rows
    old_values: Rows
    returns: Rows
    action_mask: Masks
    options: ObjectiveOptions

    @property
    def policy(self) -> PolicyLossCase:
        """The call of the policy loss that is part of it."""
        own = {row.name: getattr(self.options, row.name) for row in fields(PolicyLossOptions)}
        tables = (self.log_probs, self.old_log_probs, self.advantages)
        return PolicyLossCase(*tables, self.action_mask, PolicyLossOptions(**own))

    def value_token(self, i: int, j: int) -> Token:
        return self.values[i][j], self.old_values[i][j], self.returns[i][j]

    def log_ratio(self, i: int, j: int) -> float:
        """Of the policy to its reference."""
        return self.log_probs[i][j] - self.ref_log_probs[i][j]


@dataclass(frozen=True)
class ObjectiveShape:
    """What a strategy is asked for beside the shape of a policy loss.

    terms   those that have a coefficient, as far as they are declared; None: each in three cases of four, and one at
            least
    coefs   what a coefficient may be
    """

    terms: Sequence[str] | None = None
    coefs: Sequence[float] = COEFS


def offered(adapter: Adapter, among: Sequence[str] = TERMS) -> list[str]:
    """Those of the terms that an adapter declares."""
    return [name for name in among if name in adapter.objective_terms]


def objective_cases(
    subject: Subject, *, terms: Sequence[str] | None = None, coefs: Sequence[float] = COEFS, **shape: Any
) -> Picked[ObjectiveCase]:
    """Cases of the policy loss, of whichever shape, with what the other terms are made of. No estimate of the KL is
    held by a clamp, and no value lies near a kink of its loss."""
    adapter, dtype = subject.adapter, subject.dtype
    wanted = ObjectiveShape(terms, coefs)

    def build(case: Any, picks: Picks) -> ObjectiveCase:
        options = _options(picks.part(OPTION_PICKS), adapter, case.options, wanted)
        zero, certain = picks.of((None, None, None, 0, 1, 2)), picks.chance(1, 8)
        of_value, anywhere = ValueLossOptions(options.value_clip_eps), LossShape(zones=("anywhere",))

        slots = [[picks.part(CELL_PICKS) for _ in range(WIDTH)] for _ in range(ROWS)]

        def cell(i: int, j: int) -> tuple[float, ...]:
            """Of one action: entropy, reference's log-prob, value, old value, return. Of many rows, every fourth one
            has the same choices."""
            own = slots[i % ROWS][j].again()
            if not case.action_mask[i][j]:
                return (0.0,) * len(BESIDE)
            value = value_token(own.part(TOKEN_PICKS), dtype, of_value, anywhere, zero)
            entropy = 0.0 if certain else exactly(own.of(ENTROPIES), dtype)
            return entropy, near_reference(own, case.log_probs[i][j], options.estimator, adapter, dtype), *value

        rows = [[cell(i, j) for j in range(len(marks))] for i, marks in enumerate(case.action_mask)]
        tables: dict[str, Any] = {
            name: tuple(tuple(cell[k] for cell in row) for row in rows) for k, name in enumerate(BESIDE)
        }
        tables |= {name: getattr(case, name) for name in case.TABLES}
        return ObjectiveCase(**tables, action_mask=case.action_mask, options=options)

    drawn = loss_cases(adapter, dtype, "policy-loss", LossShape(**shape))
    return drawn.with_more(OPTION_PICKS + 2 + CELL_PICKS * CELLS, build)


def beyond_clamps(cases: Picked[ObjectiveCase], subject: Subject) -> Picked[ObjectiveCase]:
    """Actions that are as likely as they were, and of which most lie beyond a clamp of the KL, of an estimator that is
    held by one in most cases."""
    adapter, slots = subject.adapter, ROWS * WIDTH
    estimators = [*adapter.kl_estimators, *(2 * [name for name in adapter.kl_estimators if name in adapter.kl_clamped])]

    def change(case: ObjectiveCase, picks: Picks) -> ObjectiveCase:
        estimator, drawn = picks.of(estimators), [picks.part(PICKS) for _ in range(slots)]
        tables = {name: [list(row) for row in getattr(case, name)] for name in ("log_probs", "ref_log_probs")}
        for n, (i, j) in enumerate(case.actions):
            pair = held_pair(drawn[n % slots].again(), estimator, adapter, subject.dtype)
            tables["log_probs"][i][j], tables["ref_log_probs"][i][j] = pair
        tables["old_log_probs"] = tables["log_probs"]
        held: dict[str, Any] = {"estimator": estimator, **clamps(adapter, estimator)}
        moved = case.changed(**{name: tuple(map(tuple, table)) for name, table in tables.items()})
        return moved.with_options(**held)

    return cases.with_more(1 + slots * PICKS, change)


OPTION_PICKS = 16


def _options(picks: Picks, adapter: Adapter, policy: PolicyLossOptions, wanted: ObjectiveShape) -> ObjectiveOptions:
    either = offered(adapter)
    chosen = [either[i] for i in picks.part(len(TERMS)).some(len(either), 1)]
    if wanted.terms is not None:
        chosen = offered(adapter, wanted.terms)
    coefs = {name: picks.of(wanted.coefs) if name in chosen else 0.0 for name in TERMS}
    clips, eps, estimator = picks.chance(1, 2), picks.of(CLIP_EPS), picks.of(adapter.kl_estimators)
    has_clip = adapter.value_clip and (clips or not adapter.unclipped_value)
    held: dict[str, Any] = clamps(adapter, estimator)
    return ObjectiveOptions(
        **vars(policy),
        value_coef=coefs["value"],
        value_clip_eps=eps if has_clip else None,
        value_aggregation=adapter.value_aggregation,
        kl_coef=coefs["kl"],
        estimator=estimator,
        **held,
        kl_correction=adapter.kl_correction,
        kl_gradient=adapter.kl_gradient or "plain",
        kl_aggregation=adapter.kl_aggregation,
        entropy_coef=coefs["entropy"],
        entropy_aggregation=adapter.entropy_aggregation,
    )
