"""What is held against generation: that a row depends on its company, and no habit that it has alone as well."""

from __future__ import annotations

import pytest

from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.chapters._models.cases import PromptCase
from rlhf_conformance.diagnosis.evidence import drawn
from rlhf_conformance.faults import faults
from rlhf_conformance.judging.checks import checks
from rlhf_conformance.judging.judge import Judge, SeveralFailures
from rlhf_conformance.judging.subject import Subject
from rlhf_conformance.oracle.probes import Probe
from rlhf_conformance.twins import twins

CLAUSES = ("actor.generate", "actor.generate-greedy", "actor.generate-layout")
PROMPTS = ((5, 6, 7), (8,), (1, 9, 1, 4))


def subject_of(adapter, store, dtype="float32") -> Subject:
    return Subject.make(adapter, device="cpu", dtype=dtype, store=store)


def hold(slug: str, adapter, store, case: PromptCase) -> Judge:
    judge = Judge()
    judge.try_case(checks()[slug], subject_of(adapter, store), case)
    return judge


def stopping_at_once(store) -> PromptCase:
    """Prompts of which the first is ended by its first token."""
    truth = subject_of(Reference(), store).truth
    return PromptCase(Probe(), PROMPTS, 4, (1, *truth.greedy(Probe(), PROMPTS[0], 1, ())))


@pytest.mark.parametrize("slug", CLAUSES)
def test_a_least_length_is_no_matter(slug, store):
    twin = twins()["least-length"]()
    case = stopping_at_once(store)
    reference, longer = (subject_of(a, store) for a in (Reference(), twin))
    rows = [
        s.call("generate", s.model("load_actor", case.probe), prompts_of(case)).tolist() for s in (reference, longer)
    ]
    assert rows[0] != rows[1], "the least length matters here"
    assert hold(slug, twin, store, case).numbers > 0


def prompts_of(case):
    from rlhf_conformance.oracle.layouts import present_prompts

    return present_prompts(
        case.prompts,
        max_new_tokens=case.max_new_tokens,
        stop_token_ids=case.stop_token_ids,
        pad_token_id=case.probe.pad_token_id,
    )


@pytest.mark.parametrize(
    "name", ["generate-overwrites-stop", "generate-from-other-weights", "generate-takes-the-second"]
)
def test_what_is_alike_in_company_and_alone_is_seen_beside_the_truth(name, store):
    case = stopping_at_once(store)
    hold("actor.generate", faults()[name].adapter(), store, case)
    with pytest.raises(SeveralFailures, match="logit of the token that was taken"):
        hold("actor.generate-greedy", faults()[name].adapter(), store, case)


def test_the_case_that_is_drawn_has_the_stop_that_is_met(store):
    subject = subject_of(Reference(), store)
    for case in drawn(checks()["actor.generate-layout"], subject, 12, 1):
        if not case.stop_token_ids:  # nothing is to stop it
            continue
        met = [subject.truth.greedy(case.probe, prompt, case.max_new_tokens, ()) for prompt in case.prompts]
        assert any(set(tokens) & set(case.stop_token_ids) for tokens in met)


@pytest.mark.parametrize("slug", [*CLAUSES, "actor.generate-config"])
def test_cases_are_drawn_alike_by_a_subject_that_has_answered_before(slug, store):
    fresh, used = (subject_of(Reference(), store) for _ in range(2))
    used.truth.logits(Probe(), [5, 6, 7])
    assert drawn(checks()[slug], fresh, 4, 3) == drawn(checks()[slug], used, 4, 3)
