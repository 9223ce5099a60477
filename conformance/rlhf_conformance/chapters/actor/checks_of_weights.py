"""The checks of weights that move: what the actor says and what it generates follows them."""

from __future__ import annotations

from rlhf_conformance.chapters._models import templates
from rlhf_conformance.chapters._models.cases import PromptCase, prompts
from rlhf_conformance.chapters._models.roles import ACTOR
from rlhf_conformance.chapters._models.weights import Weights
from rlhf_conformance.chapters.actor.checks import GENERATE, _decided_steps, generated
from rlhf_conformance.judging.checks import Questions, check, use
from rlhf_conformance.judging.questions import Loaded, Question, selected
from rlhf_conformance.judging.subject import Subject

use("actor.follows-weights", templates.follows_weights(ACTOR))


@check("actor.generate-follows-weights", needs=GENERATE, cases=lambda s: prompts(s.adapter), effort=8)
def generate_follows_weights(subject: Subject, case: PromptCase) -> Questions:
    """Each row is compared up to the first step at which two tokens are so near that rounding decides."""
    yield generated(subject, case)  # an engine, where there is one, now holds the weights as they were loaded
    weights = Weights.of(subject, Loaded("load_actor", case.probe))
    start = weights.leaves()
    yield weights.covered(weights.found(start))
    width = max(len(prompt) for prompt in case.prompts)
    with weights.moved():
        now, call = weights.now(weights.found(weights.leaves())), generated(subject, case)
        for row, prompt in enumerate(case.prompts):
            truth = now.truth.greedy(case.probe, prompt, case.max_new_tokens, case.stop_token_ids)
            truth = truth[: _decided_steps(now, case.probe, prompt, truth)]
            end = width + len(truth)
            yield Question(
                f"greedy continuation of prompt {row} after the weights moved",
                call,
                truth,
                reading=selected(lambda rows, row=row, end=end: rows[row].tolist()[width:end]),  # type: ignore[misc]
                place=lambda index: f"generated token {index[0]}",
                hint=lambda _: weights.misplaced(start),
            )
