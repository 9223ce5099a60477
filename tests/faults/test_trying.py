"""What the measurements stand on."""

from __future__ import annotations

from dataclasses import replace

import pytest

from proof.trying import size_of, touched
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.faults import faults
from rlhf_conformance.judging.checks import checks
from rlhf_conformance.judging.subject import Subject
from rlhf_conformance.judging.trying import PROFILES, _explore, _Trial, seed_of
from rlhf_conformance.oracle.probes import ProbeStore
from rlhf_conformance.twins import twins


@pytest.mark.parametrize("slug", checks())
def test_the_size_of_every_case_is_known(slug, tmp_path):
    """Samples and tokens; nothing of either where the case is a checkpoint alone."""
    subject, sizes = Subject.make(Reference(), device="cpu", dtype="float32", store=ProbeStore(tmp_path)), []

    def record(subject, case):
        sizes.append(size_of(case))
        yield from ()

    recording = replace(checks()[slug], function=record)
    assert _explore(_Trial(recording, subject, 1), PROFILES["smoke"], seed_of(slug, 0), None) is None
    assert sizes
    for samples, tokens in sizes:
        assert samples >= (0 if slug.endswith(("missing-head", "new-head")) else 1)
        assert tokens >= samples or slug == "packing.empty-sequence"


def test_what_a_fault_touches():
    loss, model = faults()["half-dropped"].adapter, faults()["critic-values-shifted"].adapter
    assert {slug.split(".")[0] for slug in touched(loss)} == {"value-loss"}
    assert {slug.split(".")[0] for slug in touched(model)} <= {"critic", "packing", "positions"}
    assert "critic.state-before" in touched(model)
    assert touched(Reference) == []


@pytest.mark.parametrize("name", twins())
def test_a_twin_is_asked_what_it_does_otherwise(name):
    """A variant that changes only how it is made changes all that is made so."""
    kind = twins()[name]
    asked = [checks()[slug] for slug in touched(kind)]
    assert [check.slug for check in asked if check.not_provided(kind()) is None] != []
