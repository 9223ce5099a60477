"""A floor stands on those below it and on nothing else, whether one reads its imports or runs them."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

FORBIDDEN = {
    "rlhf_spec": {"rlhf_reference", "rlhf_conformance"},
    # Not the spec either: the spec judges the reference, so they share no code.
    "rlhf_reference": {"rlhf_spec", "rlhf_conformance", "hypothesis", "pytest", "_pytest", "xdist"},
    "rlhf_conformance": set(),
}
# What decides whether an answer is right. The reference is one of the subjects, so none of this may stand on it.
ORACLE = ("oracle.truth", "oracle.layouts", "oracle.batch", "oracle.budgets")


def imported_names(file: Path, module: str) -> set[str]:
    """Dotted names of the modules (or members of modules) that `file` imports, at its top or inside functions."""
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, *([base] if base else [])])
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return names


def run_python(code: str, *options: str) -> str:
    """Standard output of a fresh interpreter."""
    done = subprocess.run([sys.executable, *options, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def loaded_after(code: str, folders: list[Path], *options: str) -> set[str]:
    """Top-level modules that are loaded once `code` has run in a fresh interpreter that sees `folders`."""
    paths = [str(folder) for folder in folders]
    report = "print(*{name.partition('.')[0] for name in sys.modules}, sep='\\n')"
    return set(run_python(f"import sys; sys.path[:0] = {paths!r}\n{code}\n{report}", *options).split())


@pytest.mark.parametrize("floor", FORBIDDEN)
def test_no_import_goes_upwards(floor, floors, modules):
    own = {name: file for name, file in modules.items() if name.partition(".")[0] == floor}
    assert floor in own, f"{floors[floor]} has no __init__.py"
    upwards = {
        name: wrong
        for name, file in own.items()
        if (wrong := {target.partition(".")[0] for target in imported_names(file, name)} & FORBIDDEN[floor])
    }
    assert upwards == {}


def test_the_oracle_never_reaches_the_reference(modules):
    roots = {f"rlhf_conformance.{name}" for name in ORACLE}
    assert roots <= modules.keys(), "an oracle module was renamed: name it here, so that it stays guarded"
    reached, waiting = set(), set(roots)
    while waiting:
        name = waiting.pop()
        reached.add(name)
        targets = imported_names(modules[name], name)
        assert not {target for target in targets if target.startswith("rlhf_reference")}, name
        waiting |= {target for target in targets if target in modules} - reached


def test_the_spec_needs_nothing_but_the_standard_library(floors, modules):
    names = [name for name in modules if name.partition(".")[0] == "rlhf_spec"]
    # -I -S: no site-packages at all, so an import of anything else fails.
    loaded = loaded_after(f"import {', '.join(names)}", [floors["rlhf_spec"].parent], "-I", "-S")
    assert loaded - set(sys.stdlib_module_names) - {"__main__"} <= {"rlhf_spec"}


def test_the_reference_runs_without_the_suite(floors, modules):
    names = [name for name in modules if name.partition(".")[0] == "rlhf_reference"]
    folders = [floors["rlhf_spec"].parent, floors["rlhf_reference"].parent]
    assert not loaded_after(f"import {', '.join(names)}", folders) & FORBIDDEN["rlhf_reference"]


# pytest imports the plugin at every start in an environment that has the suite, also where nothing is checked.
@pytest.mark.parametrize("name", ["rlhf_spec", "rlhf_reference", "rlhf_conformance", "rlhf_conformance.run.plugin"])
def test_importing_it_does_not_load_torch(name, floors):
    loaded = loaded_after(f"import {name}", [folder.parent for folder in floors.values()])
    assert not loaded & {"torch", "transformers", "peft"}
