"""What an adapter imports: which files were judged, and which of our own formulas it borrows. What it answers from
those is this project's code, not a trainer's."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from rlhf_conformance.adapter import Adapter

_OURS = re.compile(r"(rlhf_reference|rlhf_spec(?!\.clauses)|rlhf_conformance\.adapters\.reference)\b[\w.]*")
_MOST = 200


def borrowed(adapter: Adapter) -> tuple[str, ...]:
    """The modules of the specification and of the reference that are imported by the files of an adapter: those of its
    classes, and those of the user's that they import, wherever these lie. Installed packages are a trainer's own, and
    are not looked into, but for the one that the adapter is in. Empty for the adapters of this package."""
    kind = type(adapter)
    if kind.__module__.startswith("rlhf_conformance."):
        return ()
    waiting = [c.__module__ for c in kind.__mro__ if not c.__module__.startswith(("rlhf_conformance", "builtins"))]
    found: set[str] = set()
    seen: set[str] = set()
    while waiting and len(seen) < _MOST:
        module = sys.modules.get(waiting.pop())
        if module is None or module.__name__ in seen:
            continue
        seen.add(module.__name__)
        names = list(_imported(module))
        found |= {name for name in names if _OURS.fullmatch(name)}
        waiting += [name for name in names if _is_users(sys.modules.get(name)) or _root(name) == _root(module.__name__)]
    return tuple(sorted(found))


def imported_files(adapter: Adapter) -> dict[str, str]:
    """Which files were judged: that of the adapter, and the packages outside of the standard library that its module
    imports, as they were found. Of torch, transformers and this package only the versions are told."""
    module = sys.modules.get(type(adapter).__module__)
    if module is None or type(adapter).__module__.startswith("rlhf_conformance."):
        return {}
    names = {name.partition(".")[0] for name in (module.__name__, *_imported(module))}
    told = {*sys.stdlib_module_names, "torch", "transformers", "rlhf_conformance", "rlhf_spec", "rlhf_reference"}
    found = {name: getattr(sys.modules.get(name), "__file__", None) for name in sorted(names - told)}
    found[module.__name__] = getattr(module, "__file__", None)
    return {name: file for name, file in found.items() if file}


def _imported(module: ModuleType) -> Iterator[str]:
    """Full names of what a module imports anywhere, also by name (`importlib.import_module("...")`)."""
    try:
        tree = ast.parse(Path(getattr(module, "__file__", None) or "").read_text())
    except (OSError, SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = ".".join((module.__package__ or "").split(".")[: 1 - node.level or None]) if node.level else ""
            name = ".".join(part for part in (package, node.module) if part)
            inner = [f"{name}.{alias.name}" for alias in node.names]
            yield from (name, *(n for n in inner if n in sys.modules))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _OURS.fullmatch(node.value):
            yield node.value


def _root(name: str) -> str:
    return name.partition(".")[0]


_INSTALLED = ("site-packages", "dist-packages")


def _is_users(module: ModuleType | None) -> bool:
    """Whether a module is source of the user's: neither of Python, nor installed, nor this project's own."""
    file = getattr(module, "__file__", None)
    if module is None or file is None:
        return False
    root = _root(module.__name__)
    standard = root in sys.stdlib_module_names or root in ("rlhf_conformance", "rlhf_spec", "rlhf_reference")
    return not standard and not set(_INSTALLED) & set(Path(file).parts)
