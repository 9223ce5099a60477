"""One slip at a time, by mutmut, in the reference and in the suite itself, and which of them no test sees.

    python -m tests.proof mutation [TARGET ...] [--left]

writes docs/proof/mutation.json: for each function how many mutants there are, which tests killed how many of them, and
the edits that none did. Why each of those is harmless, or that it is not, stands in `survivors.py`.

A project of its own is laid out for each trial in build/mutation, since mutmut derives a module's name from its path,
and kept: what was tried is not tried again unless the source has changed.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import survivors
from .files import MEASURED, ROOT, by_line

NUMBERS = MEASURED / "mutation.json"
PROJECTS = ROOT / "build" / "mutation"

GATE = """\
from dataclasses import replace

from rlhf_conformance import conformance_suite, runner
from rlhf_conformance.adapters.reference import Reference

# The cases of the gate, but a failing one is not made smaller: that it fails is all that is asked.
runner.PROFILES["gate"] = replace(runner.PROFILES["gate"], shrinking=0)
test_conformance = conformance_suite(Reference(), strict=True)
"""


@dataclass(frozen=True)
class Trial:
    """Tests that are asked about mutants: files of the repository, or the text of a test file.

    skipped     kinds of `survivors.KINDS` that they are not asked about, since they could not tell
    """

    name: str
    tests: tuple[str, ...] = ()
    text: str = ""
    skipped: tuple[str, ...] = ("CPU",)

    @property
    def folder(self) -> Path:
        return PROJECTS / self.name.replace("/", "-").replace(" ", "-")


@dataclass(frozen=True)
class Target:
    """A package, those of its files that are mutated, and the trials: each tries what survived the one before."""

    package: str
    files: tuple[str, ...]
    trials: tuple[Trial, ...]

    @property
    def name(self) -> str:
        return Path(self.package).name


# The suite's own tests that take seconds; those that ask a process of its own see the unmutated sources.
OWN_TESTS = ("judge", "budgets", "picks", "layouts", "verdicts", "reports", "subject", "probes")
TARGETS = {
    "reference": Target(
        "reference/rlhf_reference",
        ("*",),
        (
            Trial("the gate", text=GATE, skipped=("CPU", "message")),
            Trial("tests/reference", ("tests/conftest.py", "tests/reference")),
        ),
    ),
    "suite": Target(
        "conformance/rlhf_conformance",
        (
            *("judging/judge.py", "judging/picks.py", "results.py"),
            *("oracle/budgets.py", "oracle/layouts.py", "oracle/batch.py", "oracle/truth.py"),
        ),
        (
            Trial(
                "tests/conformance",
                (
                    "tests/conftest.py",
                    "tests/conformance/conftest.py",
                    "tests/conformance/plain_models.py",
                    "tests/conformance/hostile",
                    "tests/samples.py",
                    *(f"tests/conformance/test_{name}.py" for name in OWN_TESTS),
                ),
            ),
        ),
    ),
}

# pytest would else find the project's own pyproject.toml, whose `pythonpath` puts the unmutated sources first.
SETTINGS = """\
[mutmut]
source_paths={package}/
only_mutate={files}
also_copy=mutation_rules.py
pytest_add_cli_args_test_selection=tests/
timeout_multiplier=3
timeout_constant=10
use_git_change_detection=false

[tool:pytest]
addopts=-p rlhf_conformance.run.plugin -p mutation_rules --import-mode=importlib
pythonpath=tests
markers=cuda: needs a CUDA device
"""
MAKE_MUTANTS = """\
from mutmut.__main__ import copy_src_dir, create_mutants

copy_src_dir()
create_mutants(1)
"""
PLUGIN = """\
import json
from pathlib import Path

import pytest


def pytest_collection_modifyitems(config, items):
    \"""Tests through the command have a process of their own, with the unmutated sources, so they can kill nothing.

    The others run the shortest first, since the first failure ends the trial of a mutant.
    \"""
    config.hook.pytest_deselected(items=[item for item in items if "command" in getattr(item, "fixturenames", ())])
    items[:] = [item for item in items if "command" not in getattr(item, "fixturenames", ())]
    stats = Path("mutmut-stats.json")
    seconds = json.loads(stats.read_text())["duration_by_test"] if stats.exists() else {}
    items.sort(key=lambda item: seconds.get(item.nodeid, 0.0))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    \"""A clause that is not provided any more is a difference: of the gate only a pass is a pass.\"""
    report = yield
    if report.skipped and type(item).__name__ == "ClauseItem":
        report.outcome = "failed"
    return report
"""


def run(names: Iterable[str], *, workers: int, left: bool) -> int:
    known = json.loads(NUMBERS.read_text()) if NUMBERS.exists() else {}
    for target in [TARGETS[name] for name in names or TARGETS]:
        outcomes: list[dict[str, str]] = []
        for trial in target.trials:
            folder = lay_out(target, trial)
            again = ("not checked", "survived", "no tests") if left else ("not checked",)
            wanted = [name for name, said in statuses(folder).items() if said in again]
            if outcomes:
                wanted = [name for name in wanted if outcomes[-1][name] != "killed"]
            mutmut(folder, workers, [name for name in wanted if not is_skipped(trial, name)])
            outcomes.append(statuses(folder))
        known = {name: row for name, row in known.items() if not name.startswith(target.name + ".")}
        known |= rows(target, outcomes)
        NUMBERS.write_text(by_line(dict(sorted(known.items()))) + "\n")
        print(summary(target, known))
    return 0


def is_skipped(trial: Trial, mutant: str) -> bool:
    reason = survivors.find(function_of(mutant), edit_of(trial.folder, mutant))
    return reason is not None and reason.kind in trial.skipped


def lay_out(target: Target, trial: Trial) -> Path:
    """The trial's project: the package at its root, and the tests."""
    folder = trial.folder
    skip = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / target.package, folder / target.name, dirs_exist_ok=True, ignore=skip)
    (folder / "tests").mkdir(exist_ok=True)
    for test in trial.tests:
        (folder / test).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / test).is_dir():
            shutil.copytree(ROOT / test, folder / test, dirs_exist_ok=True, ignore=skip)
        else:
            shutil.copy2(ROOT / test, folder / test)
    if trial.text:
        (folder / "tests" / "test_reference.py").write_text(trial.text)
    (folder / "mutation_rules.py").write_text(PLUGIN)
    files = "\n  ".join(f"{target.name}/{file}" for file in target.files)
    (folder / "setup.cfg").write_text(SETTINGS.format(package=target.name, files=files))
    subprocess.run([sys.executable, "-c", MAKE_MUTANTS], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return folder


def mutmut(folder: Path, workers: int, mutants: Sequence[str]) -> None:
    if mutants:
        paths = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
        command = [str(Path(sys.executable).with_name("mutmut")), "run", "--max-children", str(workers), *mutants]
        subprocess.run(command, cwd=folder, env={**os.environ, "CI": "true", "PYTHONPATH": paths}, check=True)


def statuses(folder: Path) -> dict[str, str]:
    """Mutant -> "killed" (a test failed, or none came to an end), "survived", or "no tests" that reach it."""
    from mutmut.stats import status_by_exit_code

    found = {}
    for meta in sorted(folder.glob("mutants/**/*.meta")):
        for name, code in json.loads(meta.read_text())["exit_code_by_key"].items():
            said = status_by_exit_code[code]
            found[name] = "killed" if said in ("timeout", "segfault") else said
    return found


def rows(target: Target, outcomes: list[dict[str, str]]) -> dict[str, Any]:
    """For each function its mutants: how many each trial killed, and the edits that are left.

    unreached, unasked     by or with the first trial
    untried                with no trial at all, though one might have seen them: the run was not finished
    """
    found: dict[str, Any] = {}
    for name in outcomes[0]:
        said = [outcome[name] for outcome in outcomes]
        row = found.setdefault(
            function_of(name),
            {"mutants": 0, "killed": {}, "unreached": 0, "unasked": 0, "untried": 0, "left": []},
        )
        row["mutants"] += 1
        row["unreached"] += said[0] == "no tests"
        row["unasked"] += said[0] == "not checked"
        killer = next((trial.name for trial, what in zip(target.trials, said, strict=True) if what == "killed"), None)
        if killer:
            row["killed"][killer] = row["killed"].get(killer, 0) + 1
        elif said[-1] == "not checked" and not is_skipped(target.trials[-1], name):
            row["untried"] += 1
        else:
            row["left"].append(edit_of(target.trials[0].folder, name))
    return found


def function_of(mutant: str) -> str:
    """
    >>> function_of("rlhf_reference.actor.xǁActorǁsave__mutmut_2")
    'rlhf_reference.actor.Actor.save'
    >>> function_of("rlhf_reference.lora.x_with_lora__mutmut_1")
    'rlhf_reference.lora.with_lora'
    """
    module, _, name = mutant.partition("__mutmut_")[0].rpartition(".")
    return f"{module}.{name[1:].strip('ǁ').replace('ǁ', '.') if 'ǁ' in name else name.removeprefix('x_')}"


def edit_of(folder: Path, mutant: str) -> str:
    """The lines that differ: "old -> new"."""
    from mutmut.mutation.diff_apply import get_diff_for_mutant
    from mutmut.utils.file_utils import change_cwd

    path = Path(*mutant.rpartition(".")[0].split("."))
    path = path / "__init__.py" if (folder / path).is_dir() else path.with_suffix(".py")
    with change_cwd(folder):
        lines = get_diff_for_mutant(mutant, path=path).splitlines()[2:]
    old, new = (" ".join(line[1:].strip() for line in lines if line.startswith(sign)) for sign in "-+")
    return f"{old} -> {new}"


def untouched(target: Target) -> list[str]:
    """Functions that mutmut leaves alone: those with a decorator, but for static methods and class methods."""
    found = []
    for pattern in target.files:
        for path in sorted((ROOT / target.package).glob(pattern)):
            if path.suffix == ".py":
                found += [f"{path.stem}.{name}" for name in _decorated(ast.parse(path.read_text()).body)]
    return found


def _decorated(body: list[ast.stmt], prefix: str = "") -> Iterable[str]:
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield from _decorated(node.body, f"{prefix}{node.name}.")
        elif isinstance(node, ast.FunctionDef) and node.decorator_list:
            if [ast.unparse(d) for d in node.decorator_list] not in (["staticmethod"], ["classmethod"]):
                yield prefix + node.name


def summary(target: Target, known: dict[str, Any]) -> str:
    own = [row for name, row in known.items() if name.startswith(target.name + ".")]
    killed = sum(sum(row["killed"].values()) for row in own)
    left = sum(len(row["left"]) for row in own)
    return f"{target.name}: {sum(row['mutants'] for row in own)} mutants, {killed} killed, {left} left"
