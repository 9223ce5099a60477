"""The checks of the critic: the state before each action, the head, the normalization."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlhf_conformance._lazy import torch
from rlhf_conformance.chapters._models import regression, templates
from rlhf_conformance.chapters._models.cases import ModelCase, model_cases
from rlhf_conformance.chapters._models.roles import CRITIC, asks_model
from rlhf_conformance.chapters._temperatures import temperature_declared
from rlhf_conformance.judging.checks import Questions, check, offers_layout, use
from rlhf_conformance.judging.questions import (
    Answered,
    NotReturned,
    Question,
    Reading,
    Shaped,
    sample_position,
    selected,
)
from rlhf_conformance.judging.subject import Subject
from rlhf_conformance.oracle import budgets

use("critic.state-before", templates.truth(CRITIC))
use("critic.backbones", templates.backbones(CRITIC))
use("critic.turns", templates.turns(CRITIC))
use("critic.padding-invariance", templates.padding_invariance(CRITIC))
use("critic.garbage-under-mask", templates.garbage(CRITIC))
use("critic.batch-independence", templates.batch_independence(CRITIC))
use("critic.gradient", templates.gradient(CRITIC))
use("critic.temperature", templates.truth(CRITIC, temperature_declared, temperatures=(0.5, 2.0), effort=4))
use("critic.no-grad", templates.no_grad(CRITIC))
use("critic.train-mode", templates.train_mode(CRITIC))
use("critic.follows-weights", templates.follows_weights(CRITIC))
use("critic.round-trip", templates.round_trip(CRITIC))
use("critic.inputs-unwritten", templates.inputs_unwritten(CRITIC))
use("critic.side-effects", templates.side_effects(CRITIC))
use("critic.normalization", regression.normalization(CRITIC, False, True))
use("critic.head-name", regression.head_name(CRITIC))
use("critic.head-bias", regression.head_bias(CRITIC))
use("critic.missing-head", regression.missing_head(CRITIC))
use("critic.new-head", regression.new_head(CRITIC))


def critic_cases(subject: Subject) -> Any:
    return model_cases(subject.adapter, CRITIC.asked())


@check("critic.shape", needs=CRITIC.needs, cases=critic_cases, effort=CRITIC.effort)
def shape(subject: Subject, case: ModelCase) -> Questions:
    call, counts = CRITIC.call(subject, case), [[len(s.response)] for s in case.samples]
    yield Shaped(call, "shape of the values", expected="one number for each action")
    yield Question("shape of the values", call, counts, reading=selected(lambda rows: [list(r.shape) for r in rows]))


@check("critic.raw-output", needs=("load_critic", "values"), cases=critic_cases, effort=2 * CRITIC.effort)
def raw_output(subject: Subject, case: ModelCase) -> Questions:
    truth, plain = ([subject.truth.scores(case.probe, s.tokens, plain=p) for s in case.samples] for p in (False, True))
    yield Question(
        "value",
        asks_model("values", subject, case, CRITIC.loaded(case)),
        truth,
        budgets.model_output(sum(truth, []), sum(plain, []), CRITIC.scale(subject, case), subject.dtype),
        place=sample_position,
    )


@check(
    "critic.pads-zero",
    needs=CRITIC.needs,
    requires=(offers_layout(("padded",)),),
    cases=lambda s: model_cases(s.adapter, CRITIC.asked(layouts=("padded",))),
    effort=CRITIC.effort,
)
def pads_zero(subject: Subject, case: ModelCase) -> Questions:
    call = CRITIC.call(subject, case)
    mask = call.argument("batch").action_mask
    yield Question("value on a pad", call, torch.zeros(mask.shape), reading=Reading(_outside))


def _outside(subject: Subject, answers: Sequence[Answered]) -> Any:
    """What the adapter returned outside the actions, 0 on them."""
    raw = answers[-1].raw
    if not isinstance(raw, torch.Tensor):
        raise NotReturned("action_values returns a list, which has no pads")
    return raw.masked_fill(answers[-1].argument("batch").action_mask.bool(), 0.0)
