"""A chapter is a folder: the toy chapter of a plug-in (`tests/toy`) goes through everything that the project's own go
through, and nothing outside of its folder knows of it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import rlhf_spec.clauses

from .conftest import FLOORS, ROOT, Done, run

TOY = ROOT / "tests" / "toy"
CLAUSES = ("toy-advantages.definition", "toy-advantages.mask", "toy-advantages.gradient", "toy-advantages.mean")
FAULTS = {
    "advantage-undiscounted": "toy-advantages.definition",
    "advantage-detached": "toy-advantages.gradient",
    "mean-over-cells": "toy-advantages.mean",
}
ARGUMENTS = {
    "toy_advantages": ("rewards", "values", "action_mask", "gamma", "lam"),
    "mean_toy_advantage": ("rewards", "values", "action_mask", "gamma", "lam"),
}
PATH = os.pathsep.join((str(TOY), FLOORS))


def toy(*arguments: str, cwd: Path, **more: str) -> Done:
    """The command where the plug-in is installed."""
    return run("-m", "rlhf_conformance", *arguments, cwd=cwd, **{"PYTHONPATH": PATH, **more})


def python(code: str, cwd: Path) -> Done:
    return run("-c", code, cwd=cwd, PYTHONPATH=PATH)


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A report of the clause that each fault breaks, by the name of the fault."""
    found = {}
    for name, clause in FAULTS.items():
        folder = tmp_path_factory.mktemp(name)
        done = toy("check", f"fault:{name}", "--only", clause, "--strict", "--report", "report", cwd=folder)
        assert done.status == 1, done.said
        found[name] = folder / "report"
    return found


def failure(reports: dict[str, Path], name: str) -> dict:
    (row,) = (r for r in json.loads((reports[name] / "report.json").read_text())["results"] if r["failure"])
    assert row["clause"] == FAULTS[name]
    return row["failure"]


# --- found ---------------------------------------------------------------------------------------------------------


def test_nothing_outside_of_its_folder_knows_of_it():
    """But for this test."""
    kinds = (".py", ".md", ".json", ".toml", ".j2")
    folders = [ROOT / folder for folder in ("spec", "reference", "conformance", "tests", "docs")]
    files = [path for folder in folders for path in folder.rglob("*") if path.suffix in kinds]
    known = [path.relative_to(ROOT).as_posix() for path in files if "toy_chapters" in path.read_text("utf-8")]
    assert known
    assert [name for name in known if not name.startswith("tests/toy/")] == ["tests/conformance/test_toy_chapter.py"]


def test_it_is_listed(tmp_path: Path):
    done = toy("list", "toy", cwd=tmp_path)
    assert done.status == 0
    assert all(clause in done.said for clause in CLAUSES)
    assert f"{len(rlhf_spec.clauses.chapters()) + 1} chapters" in done.said


def test_its_clauses_are_explained(tmp_path: Path):
    done = toy("explain", "toy-advantages.definition", cwd=tmp_path)
    assert done.status == 0
    assert "its error plus" in done.said
    assert "A[t] = r[t] + gamma * V[t + 1]" in done.said


def test_without_the_plug_in_there_is_no_such_clause(tmp_path: Path):
    assert run("-m", "rlhf_conformance", "explain", "toy-advantages.definition", cwd=tmp_path).status == 2


def test_an_adapter_written_before_still_runs(tmp_path: Path):
    done = toy("check", "reference", "--only", "toy-advantages", "--only", "value-loss.half", cwd=tmp_path)
    assert done.status == 0
    assert "4 not provided" in done.said


# --- checked -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["toy", "twin:advantages-by-matrix"])
def test_the_honest_pass(name: str, tmp_path: Path):
    done = toy("check", name, "--only", "toy-advantages", "--strict", cwd=tmp_path)
    assert (done.status, "CONFORMANT: 4 of 4" in done.said) == (0, True), done.said


def test_its_declaration_is_heeded_and_checked(tmp_path: Path):
    (tmp_path / "mine.py").write_text(
        "from toy_chapters.adapter import ToyReference\n"
        "class Bootstraps(ToyReference):\n    bootstrap = True\n"
        "class Wrong(ToyReference):\n    bootstrap = 'yes'\n"
    )
    only = ("--only", "toy-advantages.definition", "--profile", "smoke")
    assert toy("check", "mine.py:Bootstraps", *only, cwd=tmp_path).status == 1
    done = toy("check", "mine.py:Wrong", *only, cwd=tmp_path)
    assert done.status == 2
    assert "Wrong.bootstrap = 'yes': wanted True or False" in done.said


def test_a_wrong_kind_of_answer_is_an_error_with_a_sentence(tmp_path: Path):
    """A scalar answer, too: it was a crash of the suite once."""
    (tmp_path / "mine.py").write_text(
        "from toy_chapters.adapter import ToyReference\n"
        "class Nothing(ToyReference):\n"
        "    def toy_advantages(self, *args):\n        return None\n"
        "    def mean_toy_advantage(self, *args):\n        return 'zero'\n"
    )
    done = toy("check", "mine.py:Nothing", "--only", "toy-advantages", "--strict", cwd=tmp_path)
    assert done.status == 1
    assert "toy_advantages returned None" in done.said
    assert "mean_toy_advantage returned a str; wanted the mean, a tensor with one number" in done.said
    assert "the suite itself failed" not in done.said


# --- what stands behind a failure ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAULTS)
def test_its_case_is_stored(name: str, reports):
    stored = failure(reports, name)["stored"]
    assert stored["type"] == "ToyAdvantageCase"
    assert stored["options"]["type"] == "ToyAdvantageOptions"


@pytest.mark.parametrize("name", FAULTS)
def test_it_is_replayed(name: str, reports, tmp_path: Path):
    report = str(reports[name] / "report.json")
    assert (
        toy("check", f"fault:{name}", "--only", FAULTS[name], "--strict", "--replay", report, cwd=tmp_path).status == 1
    )
    assert toy("check", "toy", "--only", FAULTS[name], "--strict", "--replay", report, cwd=tmp_path).status == 0


@pytest.mark.parametrize("name", FAULTS)
def test_it_may_be_a_known_failure(name: str, tmp_path: Path):
    command = ("check", f"fault:{name}", "--only", "toy-advantages", "--strict", "--known-failures", "known.toml")
    assert toy(*command, "--accept", cwd=tmp_path).status == 0
    assert "counterexample" in (tmp_path / "known.toml").read_text()
    assert toy(*command, cwd=tmp_path).status == 0


@pytest.mark.parametrize("name", FAULTS)
def test_it_is_diagnosed_by_the_nearest_fault(name: str, reports):
    named = [row["name"] for row in failure(reports, name)["diagnoses"]]
    assert name in named


@pytest.mark.parametrize("name", FAULTS)
def test_it_is_shown_step_by_step(name: str, reports):
    steps = failure(reports, name)["steps"]
    assert any(step["parted"] for step in steps)


def script_of(reports, name: str) -> Path:
    (script,) = reports[name].rglob("*.py")
    return script


@pytest.mark.parametrize("name", FAULTS)
def test_its_script_holds_every_argument_and_shows_the_failure(name: str, reports, tmp_path: Path):
    script = script_of(reports, name)
    text = script.read_text()
    method = "mean_toy_advantage" if name == "mean-over-cells" else "toy_advantages"
    assert [argument for argument in ARGUMENTS[method] if f'"{argument}":' not in text] == []
    done = subprocess.run(
        [sys.executable, "-I", str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1, done.stderr
    assert "differs" in done.stdout


def test_the_script_says_the_formula_of_the_plug_in(reports):
    assert "def advantages(" in script_of(reports, "advantage-undiscounted").read_text()


# --- each way in which it failed once, with the list that made it fail put back -------------------------------------

LISTS_PUT_BACK = {
    "kinds of cases by name": (
        "from rlhf_conformance.judging import storing\n"
        "known = dict(storing.kinds())\n"
        "for name in ('ToyAdvantageCase', 'ToyAdvantageOptions'):\n    known.pop(name)\n"
        "storing.kinds = lambda: known\n",
        "which has no place in JSON",
    ),
    "methods by name": (
        "from rlhf_conformance import adapter\nfrom rlhf_conformance.judging import subject\n"
        "rows = {k: v for k, v in adapter.METHODS.items() if not k.endswith(('toy_advantages', 'toy_advantage'))}\n"
        "subject.METHODS = rows\n",
        "KeyError: 'toy_advantages'",
    ),
    "options of a call by name": (
        "from rlhf_conformance.diagnosis import exchange\n"
        "plain = exchange._plain\n"
        "def known(value, recipe=None):\n"
        "    odd = type(value).__name__ in ('ToyAdvantageOptions',)\n"
        "    return exchange._NOT_DATA if odd else plain(value, recipe)\n"
        "exchange._plain = known\n",
        "without options",
    ),
    "kinds of answers by name": (
        "import dataclasses\nfrom rlhf_conformance import adapter\nfrom rlhf_conformance.judging import subject\n"
        "row = dataclasses.replace(adapter.METHODS['mean_toy_advantage'], answer=None)\n"
        "subject.METHODS = {**adapter.METHODS, 'mean_toy_advantage': row}\n",
        "the suite itself failed",
    ),
    "steps by kind of case": (
        "from rlhf_conformance.diagnosis import steps\nsteps._REGISTRY.pop('toy_advantages', None)\n"
        "steps.shown_for = lambda: {}\n",
        "no steps",
    ),
}

RUN_IT = """
import collections
from toy_chapters.adapter import ToyReference
from rlhf_conformance import chapters
collections.deque(chapters.modules("steps"), maxlen=0)
{put_back}
from rlhf_conformance import check
from rlhf_conformance.faults import faults
report = check(faults()["advantage-undiscounted"].adapter(), only=["toy-advantages.definition"])
result = report.results[0]
print(result.verdict, result.reason)
if result.failure is not None:
    print(result.failure.stored is not None, "steps" if result.failure.steps else "no steps")
    for call in result.failure.exchange.calls:
        print("without options" if "options" not in call.arguments else "with options")


class Worded(ToyReference):
    def mean_toy_advantage(self, *args):
        return "zero"


print(check(Worded(), only=["toy-advantages.mean"]).results[0].reason[:160])
"""


def test_as_it_is_nothing_of_this_happens(tmp_path: Path):
    done = python(RUN_IT.format(put_back=""), tmp_path)
    assert done.status == 0, done.stderr
    verdict, looked, call, scalar = done.stdout.splitlines()
    assert verdict.startswith("fail")
    assert (looked, call) == ("True steps", "with options")
    assert scalar.startswith("mean_toy_advantage returned a str; wanted")
    assert [name for name, (_, sign) in LISTS_PUT_BACK.items() if sign in done.stdout + done.stderr] == []


@pytest.mark.parametrize("name", LISTS_PUT_BACK)
def test_a_list_put_back_is_seen(name: str, tmp_path: Path):
    put_back, sign = LISTS_PUT_BACK[name]
    done = python(RUN_IT.format(put_back=put_back), tmp_path)
    assert re.search(re.escape(sign), done.stdout + done.stderr), done.stdout + done.stderr


def test_its_methods_are_none_of_a_model(tmp_path: Path):
    """They were, when a slice of the list of methods said which are."""
    code = (
        "from rlhf_conformance.adapter import METHODS\n"
        "print([n for n, row in METHODS.items() if row.concerns_models and 'toy' in n])\n"
        "names = list(METHODS)\n"
        "print([n for n in names[names.index('load_actor'):] if 'toy' in n])\n"
    )
    assert python(code, tmp_path).stdout.splitlines() == ["[]", "['toy_advantages', 'mean_toy_advantage']"]
