"""Honest variants pass everything that they provide, whatever the dtype: no false alarm."""

from __future__ import annotations

import pytest

import rlhf_spec.clauses
from proof.trying import attempt, touched
from rlhf_conformance.results import NOT_PROVIDED, PASS
from rlhf_conformance.twins import twins

FORMULAS = (
    "log-softmax-then-gather",
    "cross-entropy-log-probs",
    "rows-by-loop",
    "textbook-policy-loss",
    "value-loss-by-distance",
    "losses-backwards",
    "losses-in-micro-batches",
    "whitened-over-ranks",
    "groups-of-equal-size",
)
MODELS = ("textbook", "packs-inside", "repads-on-the-left")
CHAPTERS = [chapter.slug for chapter in rlhf_spec.clauses.chapters()]


def alarms(name: str, profile: str, dtype: str, chapter: str = "") -> dict[str, str]:
    """What the suite holds against a twin: nothing, one hopes."""
    twin = twins()[name]
    slugs = [slug for slug in touched(twin) if slug.startswith(chapter)]
    results = [attempt(twin(), slug, profile=profile, dtype=dtype, shrinking=None).result for slug in slugs]
    return {r.clause: f"{r.verdict}: {r.reason}" for r in results if r.verdict not in (PASS, NOT_PROVIDED)}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", FORMULAS)
def test_a_formula_done_otherwise_passes(name, dtype):
    assert alarms(name, "gate" if dtype == "float32" else "smoke", dtype) == {}


@pytest.mark.parametrize("chapter", ["positions", "packing", "actor", "reward", "critic"])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_run_otherwise_passes(name, chapter):
    assert alarms(name, "smoke", "float32", f"{chapter}.") == {}
