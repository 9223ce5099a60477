"""Faults and twins are tried in this process, clause by clause, on probes that are made once a session."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from rlhf_conformance.adapter import METHODS, Adapter
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.checks import checks
from rlhf_conformance.probes import ProbeStore
from rlhf_conformance.results import Result
from rlhf_conformance.runner import PROFILES, run_clause
from rlhf_conformance.subject import Subject

Try = Callable[..., Result]


@pytest.fixture(scope="session")
def store(tmp_path_factory) -> ProbeStore:
    return ProbeStore(tmp_path_factory.mktemp("probes"))


@pytest.fixture(scope="session")
def try_clause(store) -> Try:
    """try_clause(adapter, slug, profile, dtype) -> Result"""

    def run(adapter: Adapter, slug: str, profile: str = "gate", dtype: str = "float32", seed: int = 0) -> Result:
        subject = Subject.make(adapter, device="cpu", dtype=dtype, store=store)
        return run_clause(slug, subject, PROFILES[profile], seed)

    return run


def touched(kind: type[Adapter]) -> list[str]:
    """The clauses that can tell this adapter from the reference's: those that need a method that it overrides, or all
    where it changes something that several methods use. The other clauses see the reference itself."""
    own = {name for base in kind.__mro__[: kind.__mro__.index(Reference)] for name in vars(base)} - {"name"}
    own = {name for name in own if not name.startswith("__")}
    if not own <= set(METHODS):
        return list(checks())
    return [slug for slug, check in checks().items() if own & set(check.needs)]
