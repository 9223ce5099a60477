"""Backbones with outputs of their own, and actors in half precision: what is seen, and what it says."""

from __future__ import annotations

import pytest
import torch

from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.chapters._models.cases import BackboneCase, ModelCase
from rlhf_conformance.diagnosis.evidence import drawn
from rlhf_conformance.faults import faults
from rlhf_conformance.judging.checks import checks
from rlhf_conformance.judging.judge import Judge, SeveralFailures
from rlhf_conformance.judging.subject import Subject
from rlhf_conformance.oracle import budgets
from rlhf_conformance.oracle.layouts import Presentation, Sample
from rlhf_conformance.oracle.probes import Probe

SAMPLES = (Sample((5, 6, 7, 40), (9, 3, 12)), Sample((8,), (4, 20)), Sample((11, 12), (13, 5, 6, 7)))


def hold(slug: str, adapter, store, case) -> Judge:
    judge = Judge()
    judge.try_case(checks()[slug], Subject.make(adapter, device="cpu", dtype="float32", store=store), case)
    return judge


def on(*probes: Probe) -> BackboneCase:
    return BackboneCase(ModelCase(probes[0], SAMPLES, Presentation("padded")), probes)


@pytest.mark.parametrize(
    "name, architecture",
    [
        ("softcap-ignored", "gemma3_text"),
        ("softcap-of-the-wrong-form", "gemma3_text"),
        ("logits-scaling-ignored", "granite"),
        ("output-bias-dropped", "phi"),
        ("actor-biases-of-queries-lost", "qwen2"),
        ("actor-window-ignored", "mistral"),
        ("actor-attention-cap-ignored", "gemma2"),
    ],
)
def test_what_is_forgotten_is_seen_on_the_backbone_that_has_it_and_named(name, architecture, store):
    hold("actor.backbones", faults()[name].adapter(), store, on(Probe(), Probe("gpt2")))
    with pytest.raises(SeveralFailures, match=f"log-prob of the action of {architecture}"):
        hold("actor.backbones", faults()[name].adapter(), store, on(Probe(), Probe(architecture)))


def test_only_what_is_declared_is_drawn(store):
    adapter = Reference()
    adapter.architectures = ("llama", "granite")
    subject = Subject.make(adapter, device="cpu", dtype="float32", store=store)
    for slug, wanted in (("actor.backbones", {"llama", "granite"}), ("reward.backbones", {"llama"})):
        cases = drawn(checks()[slug], subject, 20, 1)
        assert {probe.architecture for case in cases for probe in case.probes} == wanted


def test_a_head_is_put_only_on_backbones_that_are_declared_for_it(store):
    adapter = Reference()
    adapter.architectures, adapter.head_architectures = ("llama", "gpt2", "qwen2"), ("gpt2",)
    subject = Subject.make(adapter, device="cpu", dtype="float32", store=store)
    of = lambda slug: drawn(checks()[slug], subject, 20, 1)  # noqa: E731
    assert {probe.architecture for case in of("critic.backbones") for probe in case.probes} == {"gpt2"}
    assert {case.probe.architecture for case in of("reward.last-attended")} == {"gpt2"}
    assert {case.probe.architecture for case in of("actor.log-probs")} == {"llama", "gpt2"}


def test_the_other_clauses_keep_to_two_backbones(store):
    subject = Subject.make(Reference(), device="cpu", dtype="float32", store=store)
    cases = drawn(checks()["actor.log-probs"], subject, 40, 1)
    assert {case.probe.architecture for case in cases} == {"llama", "gpt2"}


HALF = ModelCase(Probe(), SAMPLES, Presentation("padded"))


def test_a_log_prob_in_bfloat16_is_seen_in_a_run_in_float32(store):
    assert hold("actor.float32", Reference(), store, HALF).numbers > len(SAMPLES)
    with pytest.raises(SeveralFailures, match="expected float32, got bfloat16"):
        hold("actor.float32", faults()["log-probs-stored-in-bfloat"].adapter(), store, HALF)


@pytest.mark.parametrize("name", ["softmax-in-the-models-dtype", "normalizer-in-the-models-dtype"])
def test_a_softmax_in_bfloat16_is_seen_though_its_answer_is_float32(name, store):
    with pytest.raises(SeveralFailures, match="rounded as a half is"):
        hold("actor.float32", faults()[name].adapter(), store, HALF)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_numbers_of_a_half_are_coarse_and_others_are_not(dtype):
    numbers = torch.randn(4000, generator=torch.Generator().manual_seed(0)) * 5
    assert all(map(budgets.is_coarse, numbers.to(dtype).tolist()))
    assert sum(map(budgets.is_coarse, numbers.tolist())) < 8
