"""The wheel holds what the source tree holds, and what `pyproject.toml` names is there."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from rlhf_spec.clauses import chapters


@pytest.fixture(scope="module")
def wheel(root, tmp_path_factory) -> Path:
    """The project's wheel, built without a network by the build backend that pyproject.toml names."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def wheel_names(wheel) -> set[str]:
    """Paths inside the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_has_the_three_packages_and_nothing_else(wheel_names, floors):
    packages = {name.partition("/")[0] for name in wheel_names if ".dist-info/" not in name}
    assert packages == set(floors)


def test_the_wheel_has_every_file_of_the_floors(wheel_names, floors):
    sources = {
        file.relative_to(folder.parent).as_posix()
        for folder in floors.values()
        for file in folder.rglob("*")
        if file.is_file()
        and not {part for part in file.relative_to(folder).parts if part[0] == "." or part == "__pycache__"}
    }
    assert sources - wheel_names == set()


@pytest.mark.parametrize("chapter", [chapter.slug for chapter in chapters()])
def test_the_wheel_has_the_chapter_and_its_formulas(wheel_names, chapter):
    stem = chapter.replace("-", "_")
    assert {f"rlhf_spec/{stem}.md", f"rlhf_spec/{stem}.py"} <= wheel_names


def test_the_wheel_is_typed(wheel_names, floors):
    assert {f"{name}/py.typed" for name in floors} <= wheel_names


def test_the_clauses_are_read_from_an_unpacked_wheel(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\nimport rlhf_spec.clauses as c\nprint(len(c.clauses()))"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 50


def test_every_entry_point_resolves(pyproject, modules):
    project = pyproject["project"]
    groups = {"scripts": project["scripts"], **project["entry-points"]}
    targets = {f"{group}: {name}": target for group, entries in groups.items() for name, target in entries.items()}
    missing = {entry: target for entry, target in targets.items() if not is_defined(target, modules)}
    assert missing == {}


def is_defined(target: str, modules: dict[str, Path]) -> bool:
    """Whether `module` or `module:Name` exists, by reading: a trainer's adapter imports only where its trainer is."""
    module, _, attribute = target.partition(":")
    if module not in modules:
        return False
    body = ast.parse(modules[module].read_text(encoding="utf-8")).body
    return not attribute or any(getattr(node, "name", None) == attribute for node in body)


def test_every_direct_dependency_is_pinned(pyproject, root):
    project = pyproject["project"]
    wanted = {name_of(line) for line in project["dependencies"]}
    wanted |= {name_of(line) for lines in project["optional-dependencies"].values() for line in lines}
    pins = (root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {name_of(line) for line in pins if "==" in line}
    # tomli is the standard library's own parser from Python 3.11 on.
    assert wanted - pinned == {"tomli"}


def name_of(requirement: str) -> str:
    """The distribution's name at the head of a requirement."""
    return requirement.split(";")[0].split("=")[0].rstrip("<>!~= 0123456789.").partition("[")[0].strip().lower()


def test_every_dependency_has_a_lower_bound_to_try(pyproject):
    """What `nox -s floors` installs; a bound by another operator could not be installed as a version."""
    for text in pyproject["project"]["dependencies"]:
        operators = [part.operator for part in Requirement(text).specifier]
        assert operators.count(">=") == 1, text


def test_the_lowest_torch_is_the_one_that_was_tried_by_hand(pyproject, root):
    (lowest,) = (text for text in pyproject["project"]["dependencies"] if name_of(text) == "torch")
    (tried,) = re.findall(r"all doors opened with torch ([\d.]+)\.\n", (root / "CONTRIBUTING.md").read_text())
    assert tried.startswith(lowest.partition(">=")[2])


def test_ci_tries_the_lowest_and_the_newest(root):
    command = (root / ".ci" / "run").read_text()
    assert re.search(r"--sessions\b.*\bfloors\b", command)


def test_ci_runs_on_every_python_that_is_promised(pyproject, root):
    project = pyproject["project"]
    promised = [text.rpartition(" ")[2] for text in project["classifiers"] if re.search(r":: 3\.\d+$", text)]
    workflow = yaml.safe_load((root / ".github" / "workflows" / "ci.yml").read_text())
    assert workflow["jobs"]["check"]["strategy"]["matrix"]["python"] == promised
    assert project["requires-python"] == f">={promised[0]}"
