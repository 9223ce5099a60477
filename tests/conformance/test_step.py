"""A whole step: what is said of a wrong gradient, and what a declared mean of means is."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from proof.trying import attempt
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.chapters.step.relations import Share, relation
from rlhf_conformance.faults import faults
from rlhf_conformance.results import FAIL, NOT_PROVIDED, PASS

SAID = {
    "loss-halved": "the gradient is 0.5 times what is due",
    "gradient-ascended": "the gradient is minus what is due",
    "layers-cut-off": "no gradient reaches model.model.embed_tokens.weight, ",
    "mean-of-micro-batch-means": "each micro-batch is divided by its own count of actions, and then they are averaged",
    "micro-batch-means-added-up": "each micro-batch is divided by its own count of actions, and these means are added",
    "divided-once-more": "the gradient is 0.25 times what is due, one over the number of micro-batches, 4",
    "last-micro-batch-lost": "micro-batch 3 of 4 adds nothing",
    "last-dynamic-batch-lost": "sample 3 adds nothing",
    "step-entropy-without-graph": "the entropy has no gradient",
    "clipped-by-parameter": "each parameter's gradient is scaled by a factor of its own",
    "critic-mean-of-means": "each micro-batch is divided by its own count of actions, and then they are averaged",
    "critic-ascends": "the gradient is minus what is due",
    "schedule-stands-still": "the gradient is 1.333 times what is due",
    "optimizer-of-copies": "there is no gradient in any parameter",
}


@pytest.mark.parametrize("name", SAID)
def test_a_wrong_gradient_is_said_to_be_what_it_is(name):
    fault = faults()[name]
    failure = attempt(fault.adapter(), fault.clause).result.failure
    assert failure.note.startswith(SAID[name])


@pytest.mark.parametrize(
    "name", ["packed-advantages-shifted", "step-at-temperature-one", "ratio-always-one-in-the-step"]
)
def test_nothing_is_said_of_a_gradient_that_is_no_sum_of_what_is_due(name):
    fault = faults()[name]
    result = attempt(fault.adapter(), fault.clause).result
    assert result.verdict == FAIL
    assert result.failure.note == ""


def test_samples_that_are_alike_are_not_told_apart():
    """Two samples with one and the same gradient: that one of them is missing is as true of the other."""
    one = {"w": torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64)}
    other = {"w": torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64)}
    shares = [Share(0, "policy loss", 1, one), Share(1, "policy loss", 1, one), Share(2, "policy loss", 1, other)]
    due = {"w": 2 * one["w"] + other["w"]}
    mine = {"w": one["w"] + other["w"]}
    assert relation(mine, due, 1e-9, lambda: shares, [[0], [1], [2]]) == ""
    assert relation(mine, due, 1e-9, lambda: shares[1:], [[0, 1], [2]]) == ""


def test_a_gradient_of_a_missing_sample_is_one_of_the_others():
    rows = torch.eye(3, dtype=torch.float64)
    shares = [Share(i, "policy loss", 1, {"w": row}) for i, row in enumerate(rows)]
    due = {"w": rows.sum(0)}
    assert relation({"w": rows[0] + rows[2]}, due, 1e-9, lambda: shares, []) == "sample 1 adds nothing"
    assert relation({"w": due["w"] * float("nan")}, due, 1e-9, lambda: shares, []) == ""


def test_a_mean_of_means_is_right_where_it_is_declared():
    by_the_step, by_the_micro_batch = _OfTheStep(), Reference()
    by_the_step.step_denominators = by_the_micro_batch.step_denominators = "micro-batch"
    for slug in ("step.micro-batches", "step.metrics", "step.aggregations"):
        assert attempt(by_the_micro_batch, slug).result.verdict == PASS
        assert attempt(by_the_step, slug).result.verdict == FAIL
    assert attempt(by_the_micro_batch, "step.order").result.verdict == NOT_PROVIDED


class _OfTheStep(Reference):
    """Divides by the counts of the step, whatever it declares."""

    def load_trainer(self, checkpoint, options):
        return replace(super().load_trainer(checkpoint, options), denominators="step")


def test_without_adapters_nothing_is_frozen():
    assert attempt(Reference(), "step.frozen").result.verdict == NOT_PROVIDED
    assert attempt(Reference(lora=True), "step.frozen", profile="smoke").result.verdict == PASS
