"""Weights that correct for the engine: what is asked of whom, and which answers fit."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.chapters.off_policy_correction.cases import exponents, kinds, off_policy_cases
from rlhf_conformance.judging.checks import checks
from rlhf_conformance.judging.subject import Subject
from rlhf_conformance.judging.trying import PROFILES, try_clause
from rlhf_conformance.oracle import budgets
from rlhf_conformance.oracle.probes import ProbeStore
from rlhf_conformance.results import ERROR, FAIL, PASS
from rlhf_conformance.twins import twins


@pytest.fixture
def subject(tmp_path):
    def make(dtype="float32", **attributes) -> Subject:
        adapter = type("Declared", (Reference,), attributes)()
        return Subject.make(adapter, device="cpu", dtype=dtype, store=ProbeStore(tmp_path))

    return make


def result(slug, subject):
    return try_clause(f"off-policy-correction.{slug}", subject, replace(PROFILES["gate"], shrinking=0.0), 0).result


def reshaped(change):
    """The reference, with something else made of the weights of rows."""

    def off_policy_weights(self, old, rollout, mask, options):
        right = Reference.off_policy_weights(self, old, rollout, mask, options)
        return change(right.amax(1)) if options.level == "sequence" else right

    return off_policy_weights


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        (lambda x: x, PASS),
        (lambda x: x[:, None], PASS),
        (lambda x: x.flip(0), FAIL),
        (lambda x: x[None, :, None], ERROR),
        (lambda x: x.long(), ERROR),
    ],
    ids=["(B,)", "(B, 1)", "other rows", "another shape", "whole numbers"],
)
def test_a_weight_for_each_row_is_judged_at_its_actions(subject, change, verdict):
    shown = subject(off_policy_weights=reshaped(change), correction_masked=None)
    assert result("sequence-product", shown).verdict == verdict
    assert result("square", shown).verdict == verdict


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("shape", [{}, {"everything": True}, {"zone": "huge"}, {"equal": True, "uppers": (1.0, 0.75)}])
def test_no_weight_lies_within_a_rounding_of_a_bound(subject, dtype, shape):
    """But for one that is exactly 1, and is compared with 1."""
    shown = subject(dtype)
    cases = off_policy_cases(shown, **shape)
    for _, data in zip(range(150), cases.drawn(5)):
        case = cases.case(data)
        own = (case.options.level, case.options.mode, case.options.sequence_weight)
        for kind in kinds(shown.adapter) if shape.get("everything") else [own]:
            for bound in filter(None, (case.options.upper, case.options.lower)):
                for i in range(case.shape[0]):
                    for x, error in exponents(shown.adapter, case.log_ratios(i), kind, shown.dtype):
                        far = abs(x - math.log(bound)) > budgets.correction_guard(error)
                        assert far or (x, error, bound) == (0.0, 0.0, 1.0)


LEFT_OUT = {
    "rejection-alone": {"token", "sequence-product", "sequence-geometric", "truncation", "truncation-below"},
    "weights-as-in-openrlhf": {"sequence-product", "sequence-geometric", "nan-of-the-engine", "masked-cells"},
    "weights-as-in-verl": {"sequence-geometric", "truncation-below", "nan-of-the-engine"},
    "tokens-truncated": {
        *("sequence-product", "sequence-geometric", "truncation-below", "band", "kept", "options"),
    },
}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_who_declares_less_is_asked_less(name):
    adapter = twins()[name]()
    own = {slug.partition(".")[2]: c for slug, c in checks().items() if slug.startswith("off-policy-correction.")}
    assert {slug for slug, c in own.items() if c.not_provided(adapter)} == LEFT_OUT[name]


def test_a_mode_without_a_lower_bound_is_given_none(subject):
    for lower, modes in ((None, set()), ("mask", {"mask"}), ("both", {"mask", "truncate"})):
        cases = off_policy_cases(subject(correction_lower=lower))
        drawn = [cases.case(data).options for _, data in zip(range(60), cases.drawn(3))]
        assert {o.mode for o in drawn if o.lower is not None} == modes
