"""Nothing is green that compared no number: in no mode of the reference, and in no dtype."""

from __future__ import annotations

import pytest

from rlhf_conformance import check
from rlhf_conformance.adapter import METHODS
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.judging.checks import checks
from rlhf_conformance.results import NOT_PROVIDED, PASS

OF_MODELS = sorted(
    {
        slug.split(".")[0]
        for slug, check in checks().items()
        if any(METHODS[name].concerns_models for name in check.needs)
    }
)
MODES = [
    {"attention": "eager"},
    {"lora": True},
    {"dora": True},
    {"checkpointing": True},
    {"lora": True, "checkpointing": True},
]


def evidence(adapter: Reference, only=(), **options) -> dict[str, float | None]:
    """The margin of each clause that passed, where all that was asked did."""
    report = check(adapter, only=only, profile="smoke", **options)
    assert {r.clause: r.reason for r in report.results if r.verdict not in (PASS, NOT_PROVIDED)} == {}
    return {r.clause: r.margin for r in report.results if r.verdict == PASS}


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: " ".join(f"{k}={v}" for k, v in mode.items()))
def test_every_pass_of_a_mode_has_compared_numbers(mode):
    found = evidence(Reference(**mode), OF_MODELS)
    assert [clause for clause, margin in found.items() if margin is None] == []
    assert {f"{chapter}.gradient" for chapter in ("actor", "reward", "critic", "packing")} <= set(found)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_every_pass_in_a_dtype_has_compared_numbers(dtype):
    found = evidence(Reference(), dtype=dtype)
    assert [clause for clause, margin in found.items() if margin is None] == []
    assert set(checks()) - set(found) == {"step.frozen"}  # without adapters nothing is frozen
