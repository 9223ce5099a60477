"""The checks of the actor: log-probs of the actions, entropy, raw output, dropout."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rlhf_conformance._lazy import torch
from rlhf_conformance.chapters._models import templates
from rlhf_conformance.chapters._models.cases import Asked, ModelCase, model_cases
from rlhf_conformance.chapters._models.roles import ACTOR, ENTROPY, asks_model
from rlhf_conformance.chapters._temperatures import TEMPERATURES, temperature_declared
from rlhf_conformance.chapters.log_probs.checks import is_more_than_logged
from rlhf_conformance.judging.checks import Questions, check, use
from rlhf_conformance.judging.questions import (
    Against,
    Fact,
    Question,
    sample_action,
    sample_position,
    selected,
)
from rlhf_conformance.judging.subject import Subject
from rlhf_conformance.oracle import budgets
from rlhf_conformance.oracle.probes import Probe

use("actor.log-probs", templates.truth_of(ACTOR, lambda s: model_cases(s.adapter)))
use("actor.temperature", templates.truth(ACTOR, temperature_declared, temperatures=TEMPERATURES))
use("actor.backbones", templates.backbones(ACTOR))
use("actor.turns", templates.turns(ACTOR))
use("actor.turns-gradient", templates.turns_gradient(ACTOR))
use("actor.padding-invariance", templates.padding_invariance(ACTOR))
use("actor.garbage-under-mask", templates.garbage(ACTOR))
use("actor.batch-independence", templates.batch_independence(ACTOR))
use("actor.gradient", templates.gradient(ACTOR))
use("actor.entropy-gradient", templates.gradient(ENTROPY, effort=8), is_more_than_logged)
use("actor.no-grad", templates.no_grad(ACTOR))
use("actor.train-mode", templates.train_mode(ACTOR))
use("actor.round-trip", templates.round_trip(ACTOR))
use("actor.inputs-unwritten", templates.inputs_unwritten(ACTOR))
use("actor.side-effects", templates.side_effects(ACTOR))


def any_known_temperature(subject: Subject) -> Any:
    return model_cases(subject.adapter, ACTOR.any_temperature(subject.adapter))


use("actor.entropy", templates.truth_of(ENTROPY, any_known_temperature))


@check("actor.raw-output", needs=("load_actor", "logits"), cases=any_known_temperature, effort=2 * ACTOR.effort)
def raw_output(subject: Subject, case: ModelCase) -> Questions:
    truth, plain = ([subject.truth.logits(case.probe, s.tokens, plain=p) for s in case.samples] for p in (False, True))
    flat, flat_plain = ([x for sample in rows for row in sample for x in row] for rows in (truth, plain))
    yield Question(
        "logit",
        asks_model("logits", subject, case, ACTOR.loaded(case)),
        truth,
        budgets.model_output(flat, flat_plain, ACTOR.scale(subject, case), subject.dtype),
        place=sample_position,
    )


@check(
    "actor.dropout-off",
    needs=ACTOR.needs,
    cases=lambda s: model_cases(s.adapter, Asked(probe=Probe(dropout=True))),
    effort=3,
)
def dropout_off(subject: Subject, case: ModelCase) -> Questions:
    """The checkpoint's config asks for dropout; log-probs asked twice under different seeds agree."""
    first, second = (ACTOR.call(subject, case, seed=seed) for seed in (1, 2))
    yield first
    yield Question(
        "log-prob asked for a second time (the ratio before any step is the exponential of the difference)",
        second,
        Against((first,)),
        ACTOR.budget(subject, case),
        place=sample_action,
    )
    # One sample has no padding that could be to blame.
    yield ACTOR.asks_truth(subject, replace(case, samples=case.samples[:1]))


@check(
    "actor.float32",
    needs=ACTOR.needs,
    also=("action_entropy",),
    cases=lambda s: model_cases(s.adapter, Asked(min_samples=3)),
    effort=20,
)
def float32(subject: Subject, case: ModelCase) -> Questions:
    """The model is loaded in bfloat16, whatever the run's dtype."""
    model, half = ACTOR.loaded(case, dtype="bfloat16"), subject.truth.in_dtype(torch.bfloat16)
    right, plain = ACTOR.expected(subject, case), [ACTOR.truth(half, case, s, True) for s in case.samples]
    for method, what in (("action_log_probs", "log-probs"), ("action_entropy", "entropies")):
        if method not in subject.provided:
            continue
        call = asks_model(method, subject, case, model)
        answer = (yield call).value
        dtypes = sorted({str(row.dtype).removeprefix("torch.") for row in answer})
        yield Fact(
            set(dtypes) <= {"float32", "float64"},
            f"dtype of the {what} of an actor in bfloat16",
            expected="float32",
            actual=", ".join(dtypes),
        )
        yield Question(
            f"share of the {what} of an actor in bfloat16 that are rounded as a half is",
            call,
            0.0,
            budgets.COARSE_SHARE,
            reading=selected(_share_of_coarse),
        )
    yield Question(
        "log-prob of the action, by an actor in bfloat16",
        asks_model("action_log_probs", subject, case, model),
        right,
        budgets.model_output(
            sum(right, []), sum(plain, []), ACTOR.scale(subject, case), torch.bfloat16, case.temperature
        ),
        place=sample_action,
    )


def _share_of_coarse(rows: Any) -> float:
    numbers = [x for row in rows for x in row.tolist()]
    return sum(map(budgets.is_coarse, numbers)) / len(numbers)
