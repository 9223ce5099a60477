"""rlhf-conformance: is your RLHF trainer right?

    from rlhf_conformance import Adapter, check, conformance_suite

Write an adapter (`Adapter`), then run `rlhf-conformance check`, `check(adapter)`, or put
`test_conformance = conformance_suite(MyTrainer())` into a test file. Importing this package imports no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlhf_conformance.adapter import Adapter as Adapter
    from rlhf_conformance.adapter import PackedSequences as PackedSequences
    from rlhf_conformance.adapter import PolicyLossOptions as PolicyLossOptions
    from rlhf_conformance.adapter import PolicyLossResult as PolicyLossResult
    from rlhf_conformance.adapter import ProcessedSequences as ProcessedSequences
    from rlhf_conformance.adapter import ValueLossOptions as ValueLossOptions
    from rlhf_conformance.batch import Batch as Batch
    from rlhf_conformance.batch import Prompts as Prompts
    from rlhf_conformance.command import check as check
    from rlhf_conformance.loading import LoadError as LoadError
    from rlhf_conformance.probes import Checkpoint as Checkpoint
    from rlhf_conformance.results import Report as Report
    from rlhf_conformance.suite import UsageError as UsageError
    from rlhf_conformance.suite import conformance_suite as conformance_suite

_HOMES = {
    "adapter": (
        "Adapter",
        "PackedSequences",
        "PolicyLossOptions",
        "PolicyLossResult",
        "ProcessedSequences",
        "ValueLossOptions",
    ),
    "batch": ("Batch", "Prompts"),
    "command": ("check",),
    "loading": ("LoadError",),
    "probes": ("Checkpoint",),
    "results": ("Report",),
    "suite": ("UsageError", "conformance_suite"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
