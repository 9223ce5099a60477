"""Twins: adapters that are honest but different. Whatever the suite says against one of them is a false alarm.

A twin does what the reference does by another way: another order of summation, another layout, chunks, a fused
kernel, half precision with float32 accumulation. `rlhf-conformance check twin:losses-backwards`. Here are those that
concern several chapters; a chapter's own are in its folder.
"""

from __future__ import annotations

import collections
import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from typing import TypeVar

from rlhf_conformance import chapters
from rlhf_conformance.adapter import Adapter
from rlhf_conformance.faults import kebab

Kind = TypeVar("Kind", bound=type[Adapter])

_REGISTRY: dict[str, type[Adapter]] = {}


def twin(adapter: Kind) -> Kind:
    """Register an honest variant, under its class name in kebab-case."""
    name = kebab(adapter.__name__)
    if name in _REGISTRY:
        raise ValueError(f"two twins are called {name}")
    adapter.name = f"twin:{name}"
    _REGISTRY[name] = adapter
    return adapter


@cache
def twins() -> Mapping[str, type[Adapter]]:
    """All twins by name."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    collections.deque(chapters.modules("twins"), maxlen=0)
    return dict(_REGISTRY)
