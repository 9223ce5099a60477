"""The whole library. Facts about its entries are quick; trying all of them is `nox -s faults`, which leaves its rows in
docs/proof: they are read here, so that an entry without a measurement, or with a bad one, is red at once."""

from __future__ import annotations

import collections

import pytest

import rlhf_spec.clauses
from proof import faults as matrix
from proof.trying import touched
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.faults import faults
from rlhf_conformance.twins import twins

CLAUSES = {clause.slug: clause for clause in rlhf_spec.clauses.clauses()}


LATER = {"double-world-size", "reward-before-precedence", "kl-mean-unmasked"}
"""Known bugs of chapters to come that a fault re-enacts on a formula of ours."""


@pytest.mark.parametrize("name", list(faults()))
def test_a_fault_names_its_clause_its_bug_and_its_lie(name):
    fault = faults()[name]
    known_bugs = {bug for clause in CLAUSES.values() for bug in clause.bugs}
    assert fault.clause in CLAUSES
    assert not fault.bug or fault.bug in known_bugs | LATER
    assert fault.lie
    assert "\n" not in fault.lie
    assert issubclass(fault.adapter, Reference)
    assert fault.clause in touched(fault.adapter), "it overrides nothing that its clause needs"


def test_every_clause_has_a_fault_and_every_must_has_two():
    counts = collections.Counter(fault.clause for fault in faults().values())
    least = {slug: 2 if clause.level == "MUST" else 1 for slug, clause in CLAUSES.items()}
    assert {slug: counts[slug] for slug in CLAUSES if counts[slug] < least[slug]} == {}


def test_every_known_bug_of_the_specification_has_a_fault():
    bugs = {bug for clause in CLAUSES.values() for bug in clause.bugs}
    assert bugs - {fault.bug for fault in faults().values()} == set()


def test_there_are_enough_of_both():
    assert len(faults()) >= 100
    assert len(twins()) >= 25


def test_the_kill_matrix_is_that_of_this_library():
    """Measured anew by `nox -s faults -- NAME ...` for these, or `-- --missing` for new ones."""
    rows = matrix.read()
    assert set(rows) == set(faults())
    assert {name: row["clause"] for name, row in rows.items() if row["clause"] != faults()[name].clause} == {}
    assert matrix.complaints(rows) == []
    assert {len(row["found_after"]) for row in rows.values()} == {20}
