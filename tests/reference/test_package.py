"""The package as it is imported."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

import rlhf_reference as ref


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import rlhf_reference, sys; sys.exit('torch' in sys.modules)"
    environment = {"PYTHONPATH": ":".join(path for path in sys.path if path)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0


@pytest.mark.parametrize("name", ref.__all__)
def test_a_public_name_is_that_of_its_module_and_is_documented(name: str) -> None:
    value = getattr(ref, name)
    assert value is getattr(import_module(value.__module__), name)
    assert value.__doc__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="Critik"):
        _ = ref.Critik


def test_the_names_of_the_package_are_listed() -> None:
    assert set(ref.__all__) <= set(dir(ref))
