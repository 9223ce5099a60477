"""Faults and twins are tried in this process, clause by clause, on probes that are made once a session."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from rlhf_conformance.adapter import METHODS, Adapter
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.checks import Check, checks
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


def touched(kind: type[Adapter]) -> list[str]:
    """The clauses that can tell this adapter from the reference's: those that need a method that it changes.

    The other clauses see the reference itself. A change to something that several methods use counts for all of them:
    for every formula, or for every model.
    """
    bases = kind.__mro__[: kind.__mro__.index(Reference)] if issubclass(kind, Reference) else kind.__mro__[:-1]
    own = {name for base in bases for name in vars(base) if not name.startswith("__")} - {"name"}
    changed = own & set(METHODS)
    if own - set(METHODS):
        models = {name for slug, check in checks().items() if _is_of_models(check) for name in check.needs}
        of_models = not changed or bool(changed & models)
        changed |= {name for check in checks().values() if _is_of_models(check) == of_models for name in check.needs}
    return [slug for slug, check in checks().items() if changed & set(check.needs)]


def _is_of_models(check: Check) -> bool:
    return any(name.startswith("load_") for name in check.needs)
