"""The chapters: one folder each, and the one door through which everything else finds them.

A folder bears the name of its chapter and holds what concerns that chapter alone: how cases are drawn, the checks, the
faults. What several share lies in folders whose names begin with an underscore. A plug-in's folder is a package that
it names in the entry-point group `rlhf_conformance.chapters`.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from collections.abc import Iterator
from functools import cache
from types import ModuleType

import rlhf_spec.clauses


class ChapterError(ImportError):
    """A chapter's folder and its Markdown file do not belong together, or it cannot be imported."""


@cache
def folders() -> tuple[str, ...]:
    """The packages of the chapters, the project's own and those of plug-ins, by their full names, in the order of the
    specification. Raises ChapterError where one of the two lacks what the other has."""
    own = [f"{__name__}.{m.name}" for m in pkgutil.iter_modules(__path__) if m.ispkg and not m.name.startswith("_")]
    by_slug = {name.rpartition(".")[2].replace("_", "-"): name for name in (*own, *rlhf_spec.clauses.plug_ins())}
    specified = [chapter.slug for chapter in rlhf_spec.clauses.chapters()]
    if set(by_slug) != set(specified):
        odd = ", ".join(sorted(set(by_slug) ^ set(specified)))
        raise ChapterError(f"{odd}: a chapter is a Markdown file of the specification and a folder of the suite")
    return tuple(by_slug[slug] for slug in specified)


def modules(name: str) -> Iterator[ModuleType]:
    """The modules of all chapters whose names begin with `name` ("checks", "faults"), imported: what registers itself
    is registered then."""
    for folder in folders():
        spec = importlib.util.find_spec(folder)
        for module in pkgutil.iter_modules(spec.submodule_search_locations if spec else []):
            if module.name.startswith(name):
                yield importlib.import_module(f"{folder}.{module.name}")


@cache
def interfaces() -> tuple[type, ...]:
    """The classes of all chapters that say what an adapter may have, in the order of the chapters: each is the one
    class that its module `interface` defines last."""
    found = []
    for module in modules("interface"):
        own = [v for v in vars(module).values() if isinstance(v, type) and v.__module__ == module.__name__]
        found.append(own[-1])
    return tuple(found)
