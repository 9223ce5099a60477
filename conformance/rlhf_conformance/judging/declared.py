"""Whether a stored case is a question to this adapter: modes of one trainer declare different layouts, backbones and
options. Options that say what they ask for have a method `offered_by`."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

from rlhf_conformance.adapter import Adapter
from rlhf_conformance.oracle.layouts import Presentation
from rlhf_conformance.oracle.probes import Probe


def is_declared(case: Any, adapter: Adapter) -> bool:
    """Whether all layouts, backbones and options that stand in a case are among those that an adapter declares."""
    if isinstance(case, tuple):
        return all(is_declared(part, adapter) for part in case)
    if isinstance(case, Presentation):
        return case.layout in adapter.layouts
    if isinstance(case, Probe) and case.architecture not in adapter.architectures:
        return False
    if hasattr(case, "offered_by") and not case.offered_by(adapter):
        return False
    return not is_dataclass(case) or all(is_declared(getattr(case, row.name), adapter) for row in fields(case))
