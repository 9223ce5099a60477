"""The checks of the reward model: where the score is read, the head, the normalization."""

from __future__ import annotations

from dataclasses import replace

from rlhf_conformance.chapters._models import regression, templates
from rlhf_conformance.chapters._models.cases import ModelCase, model_cases
from rlhf_conformance.chapters._models.roles import REWARD
from rlhf_conformance.chapters._temperatures import temperature_declared
from rlhf_conformance.judging.checks import Questions, check, use
from rlhf_conformance.judging.questions import Question, Reading, Shaped
from rlhf_conformance.judging.subject import Subject
from rlhf_conformance.oracle.probes import Probe

use("reward.last-attended", templates.truth(REWARD))
use("reward.pad-equals-eos", templates.truth(REWARD, pad_is_eos=True, prompt_eos=True))
use(
    "reward.unclamped",
    templates.truth(REWARD, probe=Probe(head_scale=64.0), pad_is_eos=False, specials=False),
)
use("reward.backbones", templates.backbones(REWARD))
use("reward.turns", templates.turns(REWARD))
use("reward.padding-invariance", templates.padding_invariance(REWARD))
use("reward.garbage-under-mask", templates.garbage(REWARD))
use("reward.batch-independence", templates.batch_independence(REWARD))
use("reward.gradient", templates.gradient(REWARD))
use("reward.temperature", templates.truth(REWARD, temperature_declared, temperatures=(0.5, 2.0), effort=4))
use("reward.no-grad", templates.no_grad(REWARD))
use("reward.train-mode", templates.train_mode(REWARD))
use("reward.follows-weights", templates.follows_weights(REWARD))
use("reward.round-trip", templates.round_trip(REWARD))
use("reward.inputs-unwritten", templates.inputs_unwritten(REWARD))
use("reward.side-effects", templates.side_effects(REWARD))
use("reward.normalization", regression.normalization(REWARD, False))
use("reward.normalization-train", regression.normalization(REWARD, True, normalized=False))
use("reward.head-name", regression.head_name(REWARD))
use("reward.head-bias", regression.head_bias(REWARD))
use("reward.missing-head", regression.missing_head(REWARD))
use("reward.new-head", regression.new_head(REWARD))


def without_padding(case: ModelCase) -> ModelCase:
    """The samples cut to one shape, so that no cell is padded."""
    prompt, response = min(len(s.prompt) for s in case.samples), min(len(s.response) for s in case.samples)
    samples = tuple(replace(s, prompt=s.prompt[-prompt:], response=s.response[:response]) for s in case.samples)
    return replace(case, samples=samples)


use(
    "reward.truncated",
    templates.truth_of(
        REWARD,
        lambda s: model_cases(s.adapter, REWARD.asked(ends="cut", prompt_eos=False, specials=False)).map(
            without_padding
        ),
    ),
)


@check(
    "reward.one-per-sequence",
    needs=REWARD.needs,
    cases=lambda s: model_cases(s.adapter, REWARD.asked()),
    effort=REWARD.effort,
)
def one_per_sequence(subject: Subject, case: ModelCase) -> Questions:
    """The shape is checked before anything else sees the answer; here it is the clause."""
    call, count = REWARD.call(subject, case), len(case.samples)
    yield Shaped(call, "shape of the rewards", expected=f"({count},)")
    yield Question(
        "shape of the rewards", call, [count], reading=Reading(lambda _, answers: list(answers[-1].raw.shape))
    )
