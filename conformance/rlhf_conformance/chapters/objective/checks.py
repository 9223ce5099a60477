"""The checks of the objective."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlhf_conformance.adapter import Adapter
from rlhf_conformance.chapters._losses import loss as losses
from rlhf_conformance.chapters._losses.cases import aggregations_of
from rlhf_conformance.chapters._masked import MaskedCase, Rows
from rlhf_conformance.chapters.objective.cases import TERMS, ObjectiveCase, beyond_clamps, offered
from rlhf_conformance.chapters.objective.terms import OBJECTIVE
from rlhf_conformance.judging.checks import Questions, Requirement, Template, check, use
from rlhf_conformance.judging.picks import Picked, Picks
from rlhf_conformance.judging.questions import Formula, NotReturned, Question, metric
from rlhf_conformance.judging.subject import Subject

ODD_COEFS = (3.0, 0.001, 1.5, 25.0, 0.25)
"""What nobody has for a default."""


def has(*terms: str) -> Requirement:
    """One of them is declared."""
    said = f"{' or '.join(terms)} is not among objective_terms"
    return lambda adapter: None if offered(adapter, terms) else said


def has_other_means(adapter: Adapter) -> str | None:
    several = len(aggregations_of("policy-loss", adapter)) > 1
    return None if several else "one aggregation is declared: there is no other"


def value_of(*requires: Requirement, **shape: Any) -> Template:
    """The objective on cases with a single row, in which all means agree: what is at stake are the terms."""
    return losses.value_of_tokens(OBJECTIVE, *requires, zones=("inside",), **shape)


def gradients_of(leaves: Sequence[str], *requires: Requirement, **shape: Any) -> Template:
    """Its gradients with respect to some leaves."""

    def function(subject: Subject, case: ObjectiveCase) -> Questions:
        known = OBJECTIVE.leaves(subject.adapter)
        yield from OBJECTIVE.asks_gradients(subject, case, leaves=[leaf for leaf in leaves if leaf in known])

    return OBJECTIVE.template(function, OBJECTIVE.cases(**shape), *requires)


# --- the terms ------------------------------------------------------------------------------------------------------

use("objective.policy-alone", losses.value_of(OBJECTIVE, gradient=True, terms=()))
use("objective.value-term", value_of(has("value"), terms=("value",)))
use("objective.kl-term", value_of(has("kl"), terms=("kl",)))
use(
    "objective.kl-correction",
    losses.value_of(
        OBJECTIVE,
        has("kl"),
        gradient=True,
        terms=("kl",),
        zones=("inside", "above", "below", "far"),
        unequal_eps=None,
    ),
)
use(
    "objective.kl-clamp",
    OBJECTIVE.template(
        OBJECTIVE.asks_whole,
        lambda s: beyond_clamps(OBJECTIVE.drawn(s, terms=("kl",), zones=("inside",)), s),
        has("kl"),
    ),
)
use("objective.entropy-term", value_of(has("entropy"), terms=("entropy",)))
use("objective.total", losses.value_of(OBJECTIVE, terms=TERMS, dual=None))


@check(
    "objective.coefficients",
    needs=OBJECTIVE.needs,
    cases=OBJECTIVE.cases(terms=TERMS, coefs=ODD_COEFS, zones=("inside",)),
    effort=2,
)
def coefficients(subject: Subject, case: ObjectiveCase) -> Questions:
    """What nobody has for a default, and then others, so that neither is remembered."""
    names = [f"{name}_coef" for name in offered(subject.adapter)]
    coefs = [getattr(case.options, name) for name in names]
    for i in range(2):
        turned = dict(zip(names, (*coefs[i:], *coefs[:i]), strict=True))
        asked = case.with_options(**{name: x * (1 + i) for name, x in turned.items()})
        call = OBJECTIVE.call(subject, asked)
        yield OBJECTIVE.asks_value(subject, asked, call, what="loss with other coefficients" if i else "loss")
        yield from OBJECTIVE.asks_gradients(subject, asked, call, how=" with other coefficients" if i else "")


@check(
    "objective.zero-coefficient",
    needs=OBJECTIVE.needs,
    cases=lambda s: without_numbers(OBJECTIVE.drawn(s), offered(s.adapter)),
)
def zero_coefficient(subject: Subject, case: ObjectiveCase) -> Questions:
    """One term has none, and neither has it numbers: NaN and infinities stand at the actions."""
    yield from OBJECTIVE.asks_whole(subject, case)


TABLES = {"value": ("values", "old_values", "returns"), "kl": ("ref_log_probs",), "entropy": ("entropies",)}
"""What each term is made of."""
NO_NUMBERS = (float("nan"), float("inf"), float("-inf"))


def without_numbers(cases: Picked[ObjectiveCase], terms: Sequence[str]) -> Picked[ObjectiveCase]:
    """One of the terms has no coefficient, and its tables hold no numbers at some actions."""

    def change(case: ObjectiveCase, picks: Picks) -> ObjectiveCase:
        term, filler, every = picks.of(terms), picks.of(NO_NUMBERS), 1 + picks.below(3)
        tables = {name: _every_other(case, getattr(case, name), filler, every) for name in TABLES[term]}
        return case.changed(**tables).with_options(**{f"{term}_coef": 0.0})

    return cases.with_more(3, change)


def _every_other(case: MaskedCase, table: Rows, filler: float, every: int) -> Rows:
    """The table with the filler at the first action and at every so manieth of the others."""
    chosen = set(case.actions[::every])
    return tuple(tuple(filler if (i, j) in chosen else x for j, x in enumerate(row)) for i, row in enumerate(table))


# --- gradients ------------------------------------------------------------------------------------------------------

use("objective.gradient", gradients_of(("log_probs",), terms=TERMS, zones=("inside",)))
use("objective.value-gradient", gradients_of(("values",), has("value"), terms=("value",)))
use("objective.kl-gradient", gradients_of(("log_probs",), has("kl"), terms=("kl",), zones=("inside",)))
use("objective.entropy-gradient", gradients_of(("entropies",), has("entropy"), terms=("entropy",)))
use(
    "objective.clipped-action",
    gradients_of(
        ("log_probs", "entropies"),
        has("kl", "entropy"),
        terms=("kl", "entropy"),
        zones=("above", "below", "far"),
        unequal_eps=None,
    ),
)

# --- means ----------------------------------------------------------------------------------------------------------
use("objective.aggregation", losses.value_of(OBJECTIVE, gradient=True, unequal_rows=True, terms=TERMS))


@check("objective.many-actions", needs=OBJECTIVE.needs, cases=OBJECTIVE.cases(unequal_rows=True, terms=TERMS), effort=4)
def many_actions(subject: Subject, case: ObjectiveCase) -> Questions:
    yield losses.asks_long(OBJECTIVE, subject, case)


def _others(names: str) -> Any:
    """Cases with each of what is declared, in turn."""
    declared = lambda s: (  # noqa: E731
        s.adapter.surrogates if names == "surrogates" else aggregations_of("policy-loss", s.adapter)
    )
    return lambda s: OBJECTIVE.drawn(s, unequal_rows=True, terms=TERMS, **{names: tuple(declared(s))})


use("objective.other-means", OBJECTIVE.template(OBJECTIVE.asks_whole, _others("aggregations"), has_other_means))
use(
    "objective.other-surrogates",
    OBJECTIVE.template(OBJECTIVE.asks_whole, _others("surrogates"), losses.has_other_surrogates),
)


def one_count(adapter: Adapter) -> str | None:
    said = "the terms are divided by counts of their own: one global count does not fit them"
    return None if OBJECTIVE.has_one_count(adapter) else said


use("objective.micro-batches", losses.micro_batches(OBJECTIVE, one_count, terms=TERMS))

# --- the mask -------------------------------------------------------------------------------------------------------

use("objective.mask", losses.mask(OBJECTIVE, terms=TERMS))
use("objective.nan-under-mask", losses.nan_under_mask(OBJECTIVE, terms=TERMS))
use("objective.empty-row", losses.empty_row(OBJECTIVE, terms=TERMS))
use("objective.empty-batch", losses.empty_batch(OBJECTIVE))
use("objective.mask-dtype", losses.mask_dtype(OBJECTIVE))
use("objective.square", losses.value_of(OBJECTIVE, gradient=True, square=True, min_rows=2, terms=TERMS))

# --- the graph, and what changes nothing ----------------------------------------------------------------------------

use("objective.scalar", losses.scalar(OBJECTIVE))
use("objective.padding-invariance", losses.padding_invariance(OBJECTIVE))
use("objective.batch-order", losses.batch_order(OBJECTIVE))
use("objective.inputs-unwritten", losses.inputs_unwritten(OBJECTIVE))
use("objective.side-effects", losses.side_effects(OBJECTIVE))

# --- what is logged -------------------------------------------------------------------------------------------------

PARTS = {
    "policy_loss": ("policy", "rlhf_spec.policy_loss.policy_loss"),
    "value_loss": ("value", "rlhf_spec.objective.value_term"),
    "kl": ("kl", "rlhf_spec.objective.kl_term"),
    "entropy": ("entropy", "rlhf_spec.objective.entropy_term"),
}


@check(
    "objective.parts",
    needs=OBJECTIVE.needs,
    cases=lambda s: OBJECTIVE.drawn(s, unequal_rows=True, **OBJECTIVE.branches(s.adapter)),
)
def parts(subject: Subject, case: ObjectiveCase) -> Questions:
    """Those that are returned, of terms that have a coefficient."""
    call = OBJECTIVE.call(subject, case)
    came = (yield call).value
    shown = [
        (name, term, formula)
        for name, (term, formula) in PARTS.items()
        if getattr(came, name) is not None and (term == "policy" or getattr(case.options, f"{term}_coef"))
    ]
    if not shown:
        raise NotReturned("objective returns none of its terms")
    for name, term, formula in shown:
        yield Question(
            f"{name}, as it is logged",
            call,
            OBJECTIVE.term(case, term),
            OBJECTIVE.term_budget(case, term, subject.dtype),
            reading=metric(name),
            formula=Formula(formula, {"count_empty_rows": False}),
        )
