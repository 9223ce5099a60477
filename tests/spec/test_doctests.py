"""The worked numbers in the docstrings of the spec are right, and every module has some."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import rlhf_spec

MODULES = sorted(module.name for module in pkgutil.iter_modules(rlhf_spec.__path__, prefix="rlhf_spec."))


@pytest.mark.parametrize("name", MODULES)
def test_every_worked_number_is_right(name):
    results = doctest.testmod(importlib.import_module(name))
    assert results.attempted > 0, f"{name} has no worked number"
    assert results.failed == 0


def test_every_chapter_with_clauses_has_its_formulas_beside_it():
    from rlhf_spec.clauses import chapters

    assert {f"rlhf_spec.{chapter.slug.replace('-', '_')}" for chapter in chapters()} <= set(MODULES)
