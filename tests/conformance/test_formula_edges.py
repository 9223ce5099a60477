"""What the chapters of formulas draw at the edges, and what their budgets can tell apart there."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.faults import faults
from rlhf_conformance.judging.checks import checks
from rlhf_conformance.judging.subject import Subject
from rlhf_conformance.judging.trying import PROFILES, seed_of, try_clause
from rlhf_conformance.oracle.probes import ProbeStore
from rlhf_conformance.results import FAIL, PASS


@pytest.fixture
def asked(tmp_path):
    """The result of one clause for one adapter, as the gate has it."""

    def ask(adapter, slug, dtype="float32"):
        subject = Subject.make(adapter, device="cpu", dtype=dtype, store=ProbeStore(tmp_path))
        return try_clause(slug, subject, replace(PROFILES["gate"], shrinking=0.0), 0).result

    return ask


@pytest.fixture
def drawn(tmp_path):
    """The cases that the gate draws for a clause."""

    def draw(slug, adapter=None, dtype="float32"):
        subject = Subject.make(adapter or Reference(), device="cpu", dtype=dtype, store=ProbeStore(tmp_path))
        cases, count = checks()[slug].cases(subject), PROFILES["gate"].examples
        return [cases.case(data) for _, data in zip(range(count), cases.drawn(seed_of(slug, 0)))]

    return draw


MASK = ["ratio-before-the-mask", "product-before-the-mask", "square-before-the-mask", "weight-of-the-largest-square"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", MASK)
def test_numbers_that_overflow_under_the_mask_are_part_of_the_must(name, dtype, asked):
    fault = faults()[name]
    assert asked(fault.adapter(), fault.clause, dtype).verdict == FAIL
    assert asked(Reference(), fault.clause, dtype).verdict == PASS
