"""The objective as the oracle sees it: four terms, each with its mean and its coefficient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import rlhf_spec.objective as spec
from rlhf_conformance.adapter import Adapter
from rlhf_conformance.chapters._losses.cases import aggregations_of
from rlhf_conformance.chapters._losses.loss import Minimised
from rlhf_conformance.chapters.kl.checks import error_with
from rlhf_conformance.chapters.objective.cases import ObjectiveCase, objective_cases, offered
from rlhf_conformance.chapters.policy_loss.checks import POLICY
from rlhf_conformance.chapters.value_loss.checks import VALUE
from rlhf_conformance.chapters.value_loss.interface import ValueLossOptions
from rlhf_conformance.judging.picks import Picked
from rlhf_conformance.judging.subject import Subject
from rlhf_conformance.oracle import budgets
from rlhf_spec.kl import token_kl, token_kl_gradient
from rlhf_spec.value_loss import token_value_loss

LEAVES = {"value": "values", "entropy": "entropies"}
"""What a term has a gradient with respect to that the policy loss has not."""


class Objective(Minimised):
    """The objective; see `Minimised`."""

    kind = "objective"
    tables = len(ObjectiveCase.TABLES)

    def leaves(self, adapter: Adapter) -> tuple[str, ...]:
        return ("log_probs", *(leaf for term, leaf in LEAVES.items() if term in adapter.objective_terms))

    def has_one_count(self, adapter: Adapter) -> bool:
        """Whether all terms are divided by the same count, of tokens or of sequences."""
        own = {getattr(adapter, f"{term}_aggregation") for term in offered(adapter)} - {spec.AS_POLICY}
        of_tokens = {name == "token-mean" for name in (*own, *aggregations_of("policy-loss", adapter))}
        return not own or len(of_tokens) == 1

    def takes_global_count(self, adapter: Adapter) -> bool:
        return super().takes_global_count(adapter) and self.has_one_count(adapter)

    def drawn(self, subject: Subject, **shape: Any) -> Picked[ObjectiveCase]:
        return objective_cases(subject, **shape)

    # --- truth -------------------------------------------------------------------------------------------------------

    def value(self, case: ObjectiveCase, count_empty_rows: bool = False) -> float:
        return float(self.given(spec.objective, case, count_empty_rows))

    def gradient(self, case: ObjectiveCase, count_empty_rows: bool = False, leaf: str = "") -> list[list[float]]:
        found: list[list[float]] = self.given(_GRADIENTS[leaf], case, count_empty_rows)
        return found

    def value_budget(self, case: ObjectiveCase, dtype: Any) -> float:
        """Of each term that of its own, times the coefficient, and the roundings of products and sums."""
        o = case.options
        found, size = POLICY.value_budget(case.policy, dtype), abs(POLICY.value(case.policy))
        for term, coef in (("value", o.value_coef), ("kl", o.kl_coef), ("entropy", o.entropy_coef)):
            if coef:
                value, error = self.term(case, term), self.term_budget(case, term, dtype)
                found, size = found + abs(coef) * error, size + abs(coef * value)
        return found + 8 * budgets.unit(dtype) * size

    def term(self, case: ObjectiveCase, term: str, count_empty_rows: bool = False) -> float:
        """A term before its coefficient and its sign; the policy loss is the term "policy"."""
        if term == "policy":
            return POLICY.value(case.policy, count_empty_rows)
        return float(self.given(_TERMS[term], case, count_empty_rows))

    def term_budget(self, case: ObjectiveCase, term: str, dtype: Any) -> float:
        """How far it may be off."""
        if term == "policy":
            return POLICY.value_budget(case.policy, dtype)
        weights, token = self._weights(case, term), _TOKENS[term]
        both = [token(case, i, j, dtype) for i, j in case.actions]
        numbers, errors = [x for x, _ in both], [e for _, e in both]
        return budgets.aggregate(numbers, errors, [weights[i][j] for i, j in case.actions], dtype)

    def gradient_budgets(self, case: ObjectiveCase, dtype: Any, leaf: str = "") -> list[list[float]]:
        """Zero where the gradient is exactly zero."""
        gradient, unit = self.gradient(case, leaf=leaf), budgets.unit(dtype)
        errors = {"": self._log_prob_errors, "values": self._value_errors, "entropies": _no_errors}[leaf](case, dtype)
        return [
            [e + 8 * unit * abs(x) if x else 0.0 for e, x in zip(*rows, strict=True)]
            for rows in zip(errors, gradient, strict=True)
        ]

    def _log_prob_errors(self, case: ObjectiveCase, dtype: Any) -> list[list[float]]:
        o, errors = case.options, POLICY.gradient_budgets(case.policy, dtype)
        of_policy, weights = POLICY.gradient(case.policy), self._weights(case, "kl")
        for i, j in case.actions if o.kl_coef else ():
            d, weight = case.log_ratio(i, j), abs(o.kl_coef) * weights[i][j]
            slope = token_kl_gradient(d, 0.0, o.estimator, o.log_ratio_clamp, o.clamp, o.kl_gradient)
            errors[i][j] += weight * budgets.kl_slope(d, o.estimator, o.kl_gradient, dtype)
            errors[i][j] += 4 * budgets.unit(dtype) * (abs(of_policy[i][j]) + weight * abs(slope))
        return errors

    def _value_errors(self, case: ObjectiveCase, dtype: Any) -> list[list[float]]:
        coef, weights, errors = case.options.value_coef, self._weights(case, "value"), _no_errors(case, dtype)
        for i, j in case.actions:
            errors[i][j] = coef * weights[i][j] * VALUE.gradient_budget(case.value_token(i, j), _of_value(case), dtype)
        return errors

    def _weights(self, case: ObjectiveCase, term: str) -> list[list[float]]:
        own = getattr(case.options, f"{term}_aggregation")
        return self.weights(case, aggregation=spec.mean_of(own, case.options.aggregation))


def _no_errors(case: ObjectiveCase, dtype: Any) -> list[list[float]]:
    return [[0.0] * len(row) for row in case.action_mask]


def _of_value(case: ObjectiveCase) -> ValueLossOptions:
    return ValueLossOptions(case.options.value_clip_eps)


_TERMS: dict[str, Callable[..., float]] = {
    "value": spec.value_term,
    "kl": spec.kl_term,
    "entropy": spec.entropy_term,
}
_GRADIENTS: dict[str, Callable[..., list[list[float]]]] = {
    "": spec.objective_gradient,
    "values": spec.objective_gradient_of_values,
    "entropies": spec.objective_gradient_of_entropies,
}

Number = tuple[float, float]
"""A number, and by how much it may be off."""


def _value_token(case: ObjectiveCase, i: int, j: int, dtype: Any) -> Number:
    token, options = case.value_token(i, j), _of_value(case)
    return token_value_loss(*token, options.clip_eps), VALUE.token_budget(token, options, dtype)


def _kl_token(case: ObjectiveCase, i: int, j: int, dtype: Any) -> Number:
    o, d = case.options, case.log_ratio(i, j)
    held = {"log_ratio_clamp": o.log_ratio_clamp, "clamp": o.clamp}
    return token_kl(d, 0.0, o.estimator, o.log_ratio_clamp, o.clamp), error_with(
        held, o.kl_gradient, o.estimator, d, dtype
    )


def _entropy_token(case: ObjectiveCase, i: int, j: int, dtype: Any) -> Number:
    """A given number."""
    return case.entropies[i][j], 0.0


_TOKENS: dict[str, Callable[..., Number]] = {"value": _value_token, "kl": _kl_token, "entropy": _entropy_token}
OBJECTIVE = Objective()
