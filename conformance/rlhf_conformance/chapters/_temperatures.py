"""The temperatures that adapters are asked for, in all chapters that know one."""

from __future__ import annotations

from rlhf_conformance.adapter import Adapter
from rlhf_conformance.judging.checks import declares

TEMPERATURES = (0.5, 0.7, 1.3, 2.0)

temperature_declared = declares("temperature", "temperature = False: the adapter knows no temperature")


def known_temperatures(adapter: Adapter) -> tuple[float, ...]:
    """Those that the adapter may be asked for."""
    return (1.0, *TEMPERATURES) if adapter.temperature else (1.0,)
