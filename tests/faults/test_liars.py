"""Two dozen liars from the list of known bugs: each is caught at its clause, and nothing unrelated turns red."""

from __future__ import annotations

import pytest

import rlhf_spec.clauses
from proof.trying import attempt, touched
from rlhf_conformance.faults import faults
from rlhf_conformance.results import ERROR, FAIL, NOT_PROVIDED, PASS

LIARS = {
    "argmax-token": "log-probs.definition",
    "log-prob-temperature-ignored": "log-probs.temperature",
    "chunk-count-mismatch": "log-probs.every-position",
    "eos-overwrites-truncated": "sequences.truncation",
    "row-for-column": "sequences.prompt-ending-in-eos",
    "one-eos-id": "sequences.stop-set",
    "positions-count-columns": "positions.cumsum",
    "positions-ignore-left-pad": "positions.left-padding",
    "packed-positions-run-on": "packing.equivalence",
    "packed-with-ones-mask": "packing.isolation",
    "pack-labels-rolled": "packing.boundary",
    "first-response-token-lost": "actor.log-probs",
    "old-log-prob-in-train-mode": "actor.dropout-off",
    "first-pad-minus-one": "reward.pad-equals-eos",
    "rewards-clamped": "reward.unclamped",
    "reward-head-named-score-only": "reward.head-name",
    "critic-values-shifted": "critic.state-before",
    "critic-values-unshifted": "critic.state-before",
    "dual-clip-everywhere": "policy-loss.dual-clip-sign",
    "clip-after-mask-mean": "policy-loss.clip",
    "mean-of-means": "policy-loss.micro-batches",
    "half-dropped": "value-loss.half",
    "clip-around-return": "value-loss.clip",
    "min-for-max": "value-loss.clip",
    "whiten-unmasked-mean": "whitening.mask",
    "observations-counted": "whitening.holes",
    "consecutive-rows-are-groups": "group-advantages.interleaved",
    "deviation-of-others": "group-advantages.nearly-unanimous",
    "k3-direction": "kl.k3",
    "score-behind-the-last-action": "token-rewards.sum",
    "gae-over-observations": "advantages.observations",
    "path-penalty-added": "credit.penalty",
    "sequence-weights-broadcast": "off-policy-correction.square",
    "sentinel-in-the-correction": "off-policy-correction.mask",
    "weight-inside-of-the-clip": "corrected-loss.after-the-clip",
    "kl-term-detached": "objective.kl-gradient",
    "entropy-term-added": "objective.entropy-term",
    "mean-of-micro-batch-means": "step.micro-batches",
    "clipped-by-parameter": "step.max-norm",
    "critic-mean-of-means": "step.critic-micro-batches",
    "resumed-without-momentum": "step.resumed",
}


def test_every_chapter_has_a_liar():
    chapters = {chapter.slug for chapter in rlhf_spec.clauses.chapters()}
    assert {clause.split(".")[0] for clause in LIARS.values()} == chapters


@pytest.mark.parametrize("name", LIARS)
def test_a_liar_is_caught_at_its_clause(name):
    fault = faults()[name]
    assert fault.clause == LIARS[name]
    result = attempt(fault.adapter(), fault.clause, shrinking=None).result
    assert result.verdict == FAIL, result


@pytest.mark.parametrize("name", LIARS)
def test_nothing_unrelated_turns_red(name):
    fault = faults()[name]
    slugs = touched(fault.adapter)
    verdicts = {slug: attempt(fault.adapter(), slug, profile="smoke").result.verdict for slug in slugs}
    red = {slug for slug, verdict in verdicts.items() if verdict in (FAIL, ERROR)}
    assert {slug for slug in red if not fault.may_fail(slug)} == set()
    assert set(verdicts.values()) <= {PASS, FAIL, ERROR, NOT_PROVIDED}


@pytest.mark.parametrize("name", ["critic-values-shifted", "dual-clip-everywhere"])
def test_a_failure_is_shrunk_to_a_glance(name):
    """At most two samples, or rows, of a few tokens."""
    fault = faults()[name]
    case = attempt(fault.adapter(), fault.clause, shrinking=None).result.failure.case
    assert case.count("Sample(") <= 2
    assert len(case) < 500
