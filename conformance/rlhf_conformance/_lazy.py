"""Modules that are expensive to import, loaded at their first use, so that `--help` and `list` stay instant."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    import transformers
else:

    class _Lazy(ModuleType):
        def __getattr__(self, name: str) -> Any:
            value = getattr(importlib.import_module(self.__name__), name)
            setattr(self, name, value)  # found at once the next time
            return value

    torch = _Lazy("torch")
    transformers = _Lazy("transformers")

__all__ = ["torch", "transformers"]
