"""Faults and twins are tried in this process, clause by clause, on probes that are made once a session."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from rlhf_conformance.adapter import Adapter
from rlhf_conformance.probes import ProbeStore
from rlhf_conformance.results import Result
from rlhf_conformance.runner import PROFILES, run_clause
from rlhf_conformance.subject import Subject

Try = Callable[..., Result]
GLANCE = replace(PROFILES["smoke"], shrinking=0)
"""Smoke, where only the verdict matters."""


@pytest.fixture(scope="session")
def store(tmp_path_factory) -> ProbeStore:
    return ProbeStore(tmp_path_factory.mktemp("probes"))


@pytest.fixture(scope="session")
def try_clause(store) -> Try:
    """try_clause(adapter, slug, profile, dtype) -> Result"""

    def run(adapter: Adapter, slug: str, profile: str = "gate", dtype: str = "float32", seed: int = 0) -> Result:
        subject = Subject.make(adapter, device="cpu", dtype=dtype, store=store)
        return run_clause(slug, subject, GLANCE if profile == "glance" else PROFILES[profile], seed)

    return run
