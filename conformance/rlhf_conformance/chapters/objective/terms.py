"""The objective as the oracle sees it: four terms, each with its mean and its coefficient."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import rlhf_spec.objective as spec
from rlhf_conformance.adapter import Adapter
from rlhf_conformance.chapters._losses.cases import aggregations_of
from rlhf_conformance.chapters._losses.loss import Minimised, every_branch
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

Number = tuple[float, float]
"""A number, and by how much it may be off."""
Parts = Callable[[int, int], list[Number]]
"""(row, column) -> what a gradient is the sum of there."""
LEAVES = {"value": "values", "entropy": "entropies"}
"""What a term has a gradient with respect to that the policy loss has not."""


class Objective(Minimised):
    """The objective; see `Minimised`."""

    kind = "objective"
    tables = len(ObjectiveCase.TABLES)

    def leaves(self, adapter: Adapter) -> tuple[str, ...]:
        return ("log_probs", *(leaf for term, leaf in LEAVES.items() if term in adapter.objective_terms))

    def has_one_count(self, adapter: Adapter) -> bool:
        """Whether all terms are divided by the same count, of tokens or of sequences, and take it."""
        own = {getattr(adapter, f"{term}_aggregation") for term in offered(adapter)} - {spec.AS_POLICY}
        of_tokens = {name == "token-mean" for name in (*own, *aggregations_of("policy-loss", adapter))}
        return adapter.objective_global_count and (not own or len(of_tokens) == 1)

    def takes_global_count(self, adapter: Adapter) -> bool:
        return super().takes_global_count(adapter) and self.has_one_count(adapter)

    def branches(self, adapter: Adapter) -> dict[str, Any]:
        return every_branch(adapter)

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
        o, found = case.options, [(POLICY.value(case.policy), POLICY.value_budget(case.policy, dtype))]
        for term, coef in (("value", o.value_coef), ("kl", o.kl_coef), ("entropy", o.entropy_coef)):
            if coef:
                found.append((coef * self.term(case, term), abs(coef) * self.term_budget(case, term, dtype)))
        return _together(found, dtype)

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
        parts = {"": self._of_log_probs, "values": self._of_values, "entropies": self._of_entropies}[leaf](case, dtype)
        gradient = self.gradient(case, leaf=leaf)
        return [
            [_together(parts(i, j), dtype) if x else 0.0 for j, x in enumerate(row)] for i, row in enumerate(gradient)
        ]

    def _of_log_probs(self, case: ObjectiveCase, dtype: Any) -> Parts:
        """The policy loss, and the KL where it has a coefficient."""
        o, policy, weights = case.options, case.policy, self._weights(case, "kl")
        gradient, errors = POLICY.gradient(policy), POLICY.gradient_budgets(policy, dtype)

        def parts(i: int, j: int) -> list[Number]:
            found = [(gradient[i][j], errors[i][j])]
            if o.kl_coef:
                slope, error = _kl_slope(case, i, j, dtype)
                weight = abs(o.kl_coef) * weights[i][j]
                found.append((weight * slope, weight * error))
                for at in _through_sequence(case, i):
                    share = abs(o.kl_coef) * weights[i][at] / sum(case.action_mask[i])
                    estimate, error = _kl_token(case, i, at, dtype)
                    found.append((share * estimate, share * error))
            return found

        return parts

    def _of_values(self, case: ObjectiveCase, dtype: Any) -> Parts:
        coef, weights, gradient = (
            case.options.value_coef,
            self._weights(case, "value"),
            self.gradient(case, leaf="values"),
        )

        def parts(i: int, j: int) -> list[Number]:
            error = VALUE.gradient_budget(case.value_token(i, j), _of_value(case), dtype)
            return [(gradient[i][j], coef * weights[i][j] * error)]

        return parts

    def _of_entropies(self, case: ObjectiveCase, dtype: Any) -> Parts:
        gradient = self.gradient(case, leaf="entropies")
        return lambda i, j: [(gradient[i][j], 0.0)]

    def _weights(self, case: ObjectiveCase, term: str) -> list[list[float]]:
        own = getattr(case.options, f"{term}_aggregation")
        return self.weights(case, aggregation=spec.mean_of(own, case.options.aggregation))


def _together(parts: list[Number], dtype: Any) -> float:
    """How far the sum of some numbers may be off."""
    return budgets.terms([x for x, _ in parts], [e for _, e in parts], dtype)


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


def _value_token(case: ObjectiveCase, i: int, j: int, dtype: Any) -> Number:
    token, options = case.value_token(i, j), _of_value(case)
    return token_value_loss(*token, options.clip_eps), VALUE.token_budget(token, options, dtype)


def _kl_token(case: ObjectiveCase, i: int, j: int, dtype: Any) -> Number:
    o, d = case.options, case.log_ratio(i, j)
    held = {"log_ratio_clamp": o.log_ratio_clamp, "clamp": o.clamp}
    estimate = token_kl(d, 0.0, o.estimator, o.log_ratio_clamp, o.clamp)
    return _corrected(case, i, j, (estimate, error_with(held, o.kl_gradient, o.estimator, d, dtype)), dtype)


def _kl_slope(case: ObjectiveCase, i: int, j: int, dtype: Any) -> Number:
    """What the KL of an action adds to the gradient of its own log-prob."""
    o, d = case.options, case.log_ratio(i, j)
    kind = "plain" if _through_sequence(case, i) else o.kl_gradient
    slope = token_kl_gradient(d, 0.0, o.estimator, o.log_ratio_clamp, o.clamp, kind)
    return _corrected(case, i, j, (slope, budgets.kl_slope(d, o.estimator, kind, dtype)), dtype)


def _through_sequence(case: ObjectiveCase, i: int) -> list[int]:
    """The actions whose KL adds to the gradients of all others of its row: the ratio of the row corrects it."""
    o = case.options
    through = (o.kl_correction, o.kl_gradient, o.surrogate) == ("ratio", "weighted", "gspo")
    return [j for j, marked in enumerate(case.action_mask[i]) if marked and through]


def _corrected(case: ObjectiveCase, i: int, j: int, number: Number, dtype: Any) -> Number:
    """Of an action, times its correction."""
    o = case.options
    if o.kl_correction == "none":
        return number
    rows = [case.log_probs[i]], [case.old_log_probs[i]], [case.action_mask[i]]
    ratio = spec.kl_corrections(*rows, kl_correction=o.kl_correction, surrogate=o.surrogate)[0][j]
    of_ratio = budgets.policy_token(ratio, math.log(ratio) if ratio else 0.0, 1.0, dtype)
    return ratio * number[0], budgets.weighted(*number, ratio, of_ratio, dtype)


def _entropy_token(case: ObjectiveCase, i: int, j: int, dtype: Any) -> Number:
    """A given number."""
    return case.entropies[i][j], 0.0


_TOKENS: dict[str, Callable[..., Number]] = {"value": _value_token, "kl": _kl_token, "entropy": _entropy_token}
OBJECTIVE = Objective()
