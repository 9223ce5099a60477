"""The spec needs nothing but the standard library."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import rlhf_spec

PROGRAM = """
import sys
sys.path.insert(0, {root!r})
import importlib, pkgutil, rlhf_spec
for module in pkgutil.iter_modules(rlhf_spec.__path__, prefix="rlhf_spec."):
    importlib.import_module(module.name)
from rlhf_spec.clauses import clauses
assert clauses()
loaded = {{name.partition(".")[0] for name in sys.modules}}
print(sorted(loaded - sys.stdlib_module_names - {{"__main__", "rlhf_spec"}}))
"""


def test_every_module_is_imported_and_every_clause_read_without_another_package():
    program = PROGRAM.format(root=str(Path(rlhf_spec.__file__).parents[1]))
    command = [sys.executable, "-I", "-S", "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"


def test_importing_the_package_reads_no_chapter():
    program = f"import sys; sys.path.insert(0, {str(Path(rlhf_spec.__file__).parents[1])!r}); import rlhf_spec\n"
    program += "print([name for name in sys.modules if name.startswith('rlhf_spec.')])"
    command = [sys.executable, "-I", "-S", "-c", program]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "[]"
