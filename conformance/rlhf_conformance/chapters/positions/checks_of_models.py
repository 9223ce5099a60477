"""The checks of positions that a model with learned positions shows."""

from __future__ import annotations

from dataclasses import replace

from rlhf_conformance.chapters._models.cases import Asked, ModelCase, model_cases, padded_more
from rlhf_conformance.chapters._models.roles import ACTOR
from rlhf_conformance.judging.checks import Questions, check, offers_architecture, offers_layout
from rlhf_conformance.judging.questions import Against, Question
from rlhf_conformance.judging.subject import Subject

GPT2 = ("gpt2",)
learned = offers_architecture("gpt2")
rectangle = offers_layout(("padded", "left"))


@check(
    "positions.left-padding",
    needs=ACTOR.needs,
    requires=(learned, rectangle),
    cases=lambda s: padded_more(s.adapter, Asked(layouts=("padded", "left"), architectures=GPT2)),
    effort=ACTOR.effort,
)
def left_padding(subject: Subject, case: ModelCase) -> Questions:
    """Each sample alone, without and with pad columns on its left."""
    for sample in case.samples:
        bare = replace(case, samples=(sample,), how=case.how.plain())
        padded = replace(bare, how=replace(bare.how, extra_left=max(1, case.how.extra_left)))
        without, with_pads = ACTOR.call(subject, bare), ACTOR.call(subject, padded)
        yield without
        yield Question(
            f"log-probs with {padded.how.extra_left} pads on the left",
            with_pads,
            Against((without,)),
            [2 * b for b in ACTOR.budget(subject, bare)],
            place=ACTOR.place,
        )
    yield ACTOR.asks_truth(subject, case)


@check(
    "positions.start-at-zero",
    needs=ACTOR.needs,
    requires=(learned,),
    cases=lambda s: model_cases(s.adapter, Asked(architectures=GPT2)),
    effort=ACTOR.effort,
)
def start_at_zero(subject: Subject, case: ModelCase) -> Questions:
    for sample in case.samples:
        yield ACTOR.asks_truth(subject, replace(case, samples=(sample,)))
