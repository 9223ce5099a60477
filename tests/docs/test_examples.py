"""The examples are right, but for the one that is meant to be wrong; and documents name files that are there."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

import rlhf_spec.clauses
from rlhf_conformance import check

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "conformance" / "rlhf_conformance"
DOCUMENTS = ("README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in sorted((ROOT / "docs").glob("*.md"))))
CHAPTERS = [chapter.slug for chapter in rlhf_spec.clauses.chapters()]
EXAMPLES = {
    "ppo_only": ("kl", "token-rewards", "advantages"),
    "grpo_only": ("group-advantages",),
    "correction_only": ("off-policy-correction", "corrected-loss"),
    "objective_only": ("objective",),
    "step_only": ("step",),
}
"""Who shows the chapters that the whole trainer does not."""
NOWHERE = ("packing", "whitening", "credit")


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_of_credit_are_green(name):
    adapter = importlib.import_module(name).InHouse()
    report = check(adapter, profile="smoke", only=[f"{chapter}." for chapter in EXAMPLES[name]])
    assert report.verdict == "CONFORMANT"
    assert report.warnings == ()


@pytest.mark.parametrize("chapter", sorted({*CHAPTERS} - {*NOWHERE, *sum(EXAMPLES.values(), ())}))
def test_the_whole_trainer_is_green(chapter):
    import whole_trainer

    report = check(whole_trainer.PlainTrainer(), profile="smoke", only=[f"{chapter}."])
    assert report.verdict == "CONFORMANT"
    assert report.warnings == ()


def test_the_whole_trainer_is_green_in_its_other_mode():
    import whole_trainer

    trainer = whole_trainer.PlainTrainer(attention="eager")
    assert check(trainer, profile="smoke", only=["actor.log-probs", "critic.state-before"]).verdict == "CONFORMANT"


def test_the_dual_clip_bug_breaks_the_clause_of_its_sign():
    import dual_clip_bug

    report = check(dual_clip_bug.InHouse(), profile="smoke", only=["policy-loss.dual"])
    assert [result.clause for result in report.broken] == ["policy-loss.dual-clip-sign"]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_files_that_a_document_names_exist(text, document):
    named = set(
        re.findall(r"`((?:spec|reference|conformance|tests|examples|docs|rlhf_conformance)/[\w./-]+)`", text(document))
    )
    missing = [name for name in named if not (ROOT / name).exists() and not (PACKAGE.parent / name).exists()]
    assert missing == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_clauses_that_a_document_names_exist(text, document):
    chapters = "|".join(CHAPTERS)
    named = set(re.findall(rf"(?<![\w./-])((?:{chapters})\.[a-z][a-z-]+)(?![\w.*/(-])", text(document)))
    assert named <= {clause.slug for clause in rlhf_spec.clauses.clauses()}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_a_document_names_no_machine(text, document):
    assert not re.search(r"/(?:home|root|tmp|work)/", text(document))


def test_a_mean_of_means_in_a_trainer_of_ones_own_is_found():
    import step_only as example

    class Averaged(example.GrpoTrainer):
        def loss(self, samples, actions):
            own = max(1, sum(int(sample.action_mask.sum()) for sample in samples))
            return super().loss(samples, own) / self.parts

        def accumulate(self, samples):
            self.parts = -(-len(samples) // self.options.micro_batch_size)
            return super().accumulate(samples)

    class InHouse(example.InHouse):
        def load_trainer(self, checkpoint, options):
            return Averaged(checkpoint.path, checkpoint.dtype, checkpoint.device, checkpoint.temperature, options)

    report = check(InHouse(), profile="smoke", only=["step.micro-batches"])
    assert [result.verdict for result in report.results] == ["fail"]
    assert "a mean of means" in report.results[0].failure.note
