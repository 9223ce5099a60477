"""The corrected loss as the oracle sees it: the policy loss, each action's times its weight."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import rlhf_spec.corrected_loss as spec
from rlhf_conformance.adapter import Adapter
from rlhf_conformance.chapters._losses.loss import Minimised, every_branch
from rlhf_conformance.chapters._masked import Masks
from rlhf_conformance.chapters.corrected_loss.cases import CorrectedLossCase, corrected_cases
from rlhf_conformance.chapters.off_policy_correction.checks import allowed
from rlhf_conformance.chapters.policy_loss.checks import POLICY
from rlhf_conformance.judging.picks import Picked
from rlhf_conformance.judging.questions import Question
from rlhf_conformance.judging.subject import Subject
from rlhf_conformance.oracle import budgets


class CorrectedLoss(Minimised):
    """The corrected loss; see `Minimised`."""

    kind = "corrected-loss"
    tables = len(CorrectedLossCase.TABLES)

    def branches(self, adapter: Adapter) -> dict[str, Any]:
        return every_branch(adapter)

    def also(self, adapter: Adapter, case: Any) -> list[Any]:
        """The bypass."""
        return [case.with_options(level=None, bypass=True)] if adapter.correction_bypass else []

    def asks_value(self, subject: Subject, case: Any, *given: Any, counted: bool = False, **how: Any) -> Question:
        return super().asks_value(subject, case, *given, counted=counted or _leaves_rows(subject, case), **how)

    def asks_gradients(self, subject: Subject, case: Any, *given: Any, counted: bool = False, **how: Any) -> Any:
        return super().asks_gradients(subject, case, *given, counted=counted or _leaves_rows(subject, case), **how)

    def drawn(self, subject: Subject, **shape: Any) -> Picked[CorrectedLossCase]:
        return corrected_cases(subject, **shape)

    def value(self, case: CorrectedLossCase, count_empty_rows: bool = False) -> float:
        return float(self.given(spec.corrected_loss, case, count_empty_rows))

    def gradient(self, case: CorrectedLossCase, count_empty_rows: bool = False, leaf: str = "") -> list[list[float]]:
        found: list[list[float]] = self.given(spec.corrected_loss_gradient, case, count_empty_rows)
        return found

    def value_budget(self, case: CorrectedLossCase, dtype: Any) -> float:
        weights, mask = self.weights_and_mask(case)
        policy, errors, places = case.policy(mask), _weight_errors(case, dtype), case.changed(action_mask=mask).actions
        shares, losses, off = POLICY.weights(policy), [], []
        for i, j in places:
            token = policy.token(i, j)
            loss, weight = (POLICY.token(token, case.options), weights[i][j]) if weights[i][j] else (0.0, 0.0)
            own = POLICY.token_budget(token, case.options, dtype) if weight else 0.0
            losses.append(weight * loss)
            off.append(budgets.weighted(loss, own, weight, errors[i][j], dtype))
        return budgets.aggregate(losses, off, [shares[i][j] for i, j in places], dtype)

    def gradient_budgets(self, case: CorrectedLossCase, dtype: Any, leaf: str = "") -> list[list[float]]:
        """Zero where the gradient is exactly zero."""
        weights, mask = self.weights_and_mask(case)
        policy, errors = case.policy(mask), _weight_errors(case, dtype)
        shares, found = POLICY.weights(policy), [[0.0] * len(row) for row in case.action_mask]
        for i, j in case.changed(action_mask=mask).actions:
            token, weight = policy.token(i, j), weights[i][j]
            slope = POLICY.token_gradient(token, case.options) if weight else 0.0
            if slope:
                own = POLICY.gradient_budget(token, case.options, dtype)
                found[i][j] = shares[i][j] * budgets.weighted(slope, own, weight, errors[i][j], dtype)
        return found

    def weights_and_mask(self, case: CorrectedLossCase) -> tuple[list[list[float]], Masks]:
        """The weights of the actions, and which of them are left."""
        weights, mask = self.given(spec.weights_and_mask, case)
        return weights, tuple(tuple(row) for row in mask)


def _leaves_rows(subject: Subject, case: CorrectedLossCase) -> bool:
    """Whether a row that is rejected whole, and left out, is declared to count all the same, as one without actions."""
    return case.options.rejected == "left-out" and bool(subject.adapter.count_empty_rows)


def _weight_errors(case: CorrectedLossCase, dtype: Any) -> list[list[float]]:
    """Of the weights; nothing without weights."""
    o = case.options
    if o.level is None:
        return [[0.0] * len(row) for row in case.action_mask]
    declared: Any = SimpleNamespace(
        correction_log_clamp=o.log_clamp,
        correction_log_clamped=o.log_clamped,
        correction_kept=o.kept,
        correction_nan=o.of_nan,
    )
    return allowed(declared, case.engines, dtype)


CORRECTED = CorrectedLoss()
