"""Facts about the specification as it is written: its clauses, the bugs that they name, and the decisions."""

from __future__ import annotations

import re
from collections import Counter
from importlib import resources

import pytest

from rlhf_spec.clauses import LEVELS, chapters, clause, clauses

SLUG = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*\.[a-z0-9]+(-[a-z0-9]+)*")

# Bugs of the chapters that exist. Those of later chapters (importance sampling, world size) are named when their
# chapters are written.
KNOWN_BUGS = [
    "weights-broadcast-along-the-wrong-axis",
    "sentinel-in-the-exponential",
    "kl-of-observations",
    "bonus-for-filtered-tokens",
    "entropy-metric-over-pads",
    "kl-sign",
    "kl-arguments-exchanged",
    "cispo-without-log-prob",
    "entropy-without-gradient",
    "no-grad-path-by-column",
    "checkpointing-over-frozen-embeddings",
    "output-layer-filtered",
    "stale-engine",
    "value-over-temperature",
    "temperature-ignored",
    "temperature-one-sided",
    "entropy-before-temperature",
    "entropy-after-inplace-log-prob",
    "low-precision-log-prob",
    "argmax-token",
    "first-candidate",
    "chunk-count-mismatch",
    "ignored-label-gather",
    "two-forward-paths",
    "gradient-in-half",
    "entropy-in-half",
    "entropy-without-graph",
    "entropy-of-ruled-out-ids",
    "eos-overwrites-truncated",
    "prompt-eos-holes",
    "row-for-column",
    "pad-count-is-zero-count",
    "pad-equals-eos",
    "sampled-pad",
    "one-eos-id",
    "eos-id-zero",
    "first-response-token-lost",
    "generated-padding-trained",
    "positions-ignore-left-pad",
    "forward-without-mask",
    "packed-positions-run-on",
    "packed-with-ones-mask",
    "packed-label-roll",
    "unscaled-neat-packing",
    "dynamic-batch-not-reordered",
    "critic-values-shifted",
    "critic-values-unshifted",
    "sft-mask-off-by-one",
    "double-shift",
    "inverted-guard",
    "critic-pads-unmasked",
    "value-head-width",
    "first-pad-minus-one",
    "reward-index-left-pad",
    "reward-clamped",
    "head-redrawn-on-load",
    "head-prefix-mismatch",
    "lora-head-lost",
    "norm-buffers-unset",
    "lora-merged-view",
    "magnitudes-left-out",
    "dual-clip-everywhere",
    "response-without-stop",
    "masked-row-nan",
    "nan-in-masked-slot",
    "overflow-ratio",
    "clip-after-mask-mean",
    "clip-fraction-definition",
    "kl-metric-of-ratio",
    "sequence-mean-as-token-mean",
    "aggregation-depends-on-packing",
    "masked-rows-in-denominator",
    "ratio-before-the-mask",
    "nan-in-metrics",
    "metrics-of-nothing",
    "old-log-prob-in-train-mode",
    "one-position-counter",
    "rollout-of-other-weights",
    "sampling-options-of-the-checkpoint",
    "softcap-of-the-logits",
    "softcap-of-the-attention",
    "mean-of-means",
    "half-dropped",
    "clip-around-return",
    "min-for-max",
    "value-loss-per-micro-batch",
    "reward-before-precedence",
    "whiten-wrong-axis",
    "whiten-unmasked-mean",
    "score-std-zero",
    "one-token-raises",
    "scale-modes-swapped",
    "lone-answer-lost",
    "std-near-zero",
    "kl-arguments-exchanged",
    "kl-square-without-half",
    "k3-direction",
    "k3-clamp-after-exp",
    "empty-response-index",
    "kl-over-retrieved-tokens",
    "kl-term-encourages",
    "score-behind-the-last-action",
    "values-behind-the-end",
    "gae-over-observations",
    "observations-unattended",
    "correction-always-clamped",
    "sequence-weights-broadcast",
    "sentinel-in-the-correction",
]


def decisions() -> str:
    return resources.files("rlhf_spec").joinpath("decisions.md").read_text(encoding="utf-8")


def test_the_chapters_are_read_in_their_order():
    """No two of them claim one place, and each says in a few words what it is about."""
    orders = [chapter.order for chapter in chapters()]
    assert orders == sorted(set(orders))
    assert orders[0] > 0
    assert all(chapter.about for chapter in chapters())


def test_there_are_enough_clauses():
    levels = Counter(clause.level for clause in clauses())
    assert len(clauses()) >= 50
    assert levels["MUST"] >= 35
    assert set(levels) == set(LEVELS)


def test_slugs_are_unique_well_formed_and_begin_with_their_chapter():
    slugs = [clause.slug for clause in clauses()]
    assert len(set(slugs)) == len(slugs)
    for rule in clauses():
        assert SLUG.fullmatch(rule.slug)
        assert rule.slug.partition(".")[0] == rule.chapter


def test_a_clause_is_found_by_its_slug():
    for rule in clauses():
        assert clause(rule.slug) is rule


def test_each_sentence_is_one_sentence_with_an_end():
    for rule in clauses():
        assert rule.sentence[0].isupper(), rule.slug
        assert rule.sentence.endswith("."), rule.slug
        assert ". " not in rule.sentence, rule.slug


def test_formulas_and_reasons_are_not_empty_and_reasons_are_sentences():
    for rule in clauses():
        assert rule.formula.strip()
        assert rule.why.endswith("."), rule.slug


def test_each_named_bug_is_known_and_has_evidence():
    for rule in clauses():
        assert len(rule.evidence) == len(rule.bugs)
        assert set(rule.bugs) <= set(KNOWN_BUGS), rule.slug
        assert len(set(rule.bugs)) == len(rule.bugs), rule.slug


@pytest.mark.parametrize("bug", KNOWN_BUGS)
def test_each_known_bug_of_these_chapters_would_have_been_stopped_by_a_clause(bug):
    assert any(bug in rule.bugs for rule in clauses())


def test_a_bug_that_several_clauses_name_has_one_evidence_but_for_a_condition():
    evidence: dict[str, set[str]] = {}
    for rule in clauses():
        for bug, text in zip(rule.bugs, rule.evidence, strict=True):
            evidence.setdefault(bug, set()).add(re.sub(r", w.*", "", text))
    assert {bug: texts for bug, texts in evidence.items() if len(texts) > 1} == {}


def test_each_decision_that_a_clause_refers_to_exists():
    headings = re.findall(r"^## (\S+)$", decisions(), re.MULTILINE)
    assert len(set(headings)) == len(headings)
    for rule in clauses():
        for name in re.findall(r"decisions? `([^`]+)`", rule.why):
            assert name in headings, rule.slug


def test_each_decision_names_the_clauses_that_it_is_for():
    for section in re.split(r"^## ", decisions(), flags=re.MULTILINE)[1:]:
        name, _, text = section.partition("\n")
        slugs = re.findall(r"`([a-z0-9-]+\.[a-z0-9-]+)`", text)
        assert slugs, name
        for slug in slugs:
            assert clause(slug).slug == slug


def test_the_tutorial_numbers_are_told_in_both_chapters():
    introductions = {chapter.slug: " ".join(chapter.introduction.split()) for chapter in chapters()}
    for slug in ("reward", "critic"):
        assert "0.1, 0.2, 0.3, 0.2, 0.4, 0.7, 0.5, 0.8" in introductions[slug]
    assert "The reward is 0.8" in introductions["reward"]
    assert "the values of the three actions are 0.4, 0.7, 0.5" in introductions["critic"]
