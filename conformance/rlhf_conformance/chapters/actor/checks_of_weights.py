"""The checks of weights that move: what the actor says and what it generates follows them."""

from __future__ import annotations

from dataclasses import replace

from rlhf_conformance.chapters._models import templates
from rlhf_conformance.chapters._models.cases import PromptCase, prompts
from rlhf_conformance.chapters._models.roles import ACTOR
from rlhf_conformance.chapters._models.weights import Weights
from rlhf_conformance.chapters.actor.checks_of_generation import GENERATE, generated, greedily
from rlhf_conformance.judging.checks import Questions, check, use
from rlhf_conformance.judging.questions import Loaded
from rlhf_conformance.judging.subject import Subject

use("actor.follows-weights", templates.follows_weights(ACTOR))


@check("actor.generate-follows-weights", needs=GENERATE, cases=lambda s: prompts(s), effort=8)
def generate_follows_weights(subject: Subject, case: PromptCase) -> Questions:
    yield generated(subject, case)  # an engine, where there is one, now holds the weights as they were loaded
    weights = Weights.of(subject, Loaded("load_actor", case.probe))
    start = weights.leaves()
    yield weights.covered(weights.found(start))
    with weights.moved():
        now = weights.now(weights.found(weights.leaves()))
        hint = lambda _: weights.misplaced(start)  # noqa: E731
        others = replace(case, prompts=tuple((*prompt, prompt[-1]) for prompt in case.prompts))
        for when, asked in (("", case), (", of prompts that were not asked about before", others)):
            call = generated(subject, asked)
            yield from greedily(now, asked, call, f" after the weights moved{when}", hint=hint)
