"""action.yml, and the workflow that `init` writes: their scripts run, and what they call exists.

Of GitHub there is nothing here but its files; `rlhf-conformance` and `gh` are stand-ins that write down how they were
called.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
ACTION = ROOT / "action.yml"
WORKFLOW = ROOT / "conformance/rlhf_conformance/templates/init/workflow.yml"
BASH = shutil.which("bash")

# What a report folder and an exit status are made of, from the environment of the test.
CONFORMANCE = """#!/usr/bin/env bash
printf '%s\\n' "$@" > "$CALLS/conformance"
echo "the log of the run"
if [ -n "$SUMMARY" ]; then printf '%s' "$SUMMARY" > reports/summary.md; fi
exit "$EXIT"
"""
GH = """#!/usr/bin/env bash
printf '%s\\n' "$*" >> "$CALLS/gh"
if [ -n "$FORBIDDEN" ]; then exit 1; fi
for argument in "$@"; do
  case "$argument" in body=@*) cp "${argument#body=@}" "$CALLS/body" ;; esac
  if [ "$argument" = --jq ]; then
    echo "$MARKER" > "$CALLS/marker"
    if [ -n "$EARLIER" ]; then echo "$EARLIER"; fi
  fi
done
"""


def steps(path: Path) -> dict[str, dict[str, Any]]:
    """The named steps of the action or of the workflow's job."""
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    found = data["runs"]["steps"] if "runs" in data else data["jobs"]["gate"]["steps"]
    return {step["name"]: step for step in found if "name" in step}


@pytest.fixture(params=[ACTION, WORKFLOW], ids=["action", "workflow"])
def file(request) -> Path:
    return request.param


INPUTS = {
    "ADAPTER": "a.py:A",
    "OPTIONS": "",
    "PROFILE": "gate",
    "DEVICE": "cpu",
    "DTYPE": "float32",
    "KNOWN_FAILURES": "",
    "STRICT": "false",
    "BUDGET": "",
    "PASS_ENV": "",
    "REPORT": "reports",
}


@dataclass(frozen=True)
class Ran:
    """A script that has run: its exit status, its output, and a folder with what it called and wrote."""

    status: int
    said: str
    folder: Path

    def file(self, name: str) -> str:
        path = self.folder / name
        return path.read_text() if path.exists() else ""


@pytest.fixture
def script(tmp_path: Path, file: Path) -> Callable[..., Ran]:
    """`script("Run the clauses", STRICT="true")`: the script of a step, run as GitHub runs it."""
    for name, text in (("rlhf-conformance", CONFORMANCE), ("gh", GH)):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def call(step: str, **environment: str) -> Ran:
        settings = {
            **os.environ,
            **INPUTS,
            "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "CALLS": str(tmp_path),
            "GITHUB_OUTPUT": str(tmp_path / "output"),
            "GITHUB_STEP_SUMMARY": str(tmp_path / "step-summary"),
            "GITHUB_REPOSITORY": "someone/trainer",
            "PULL_REQUEST": "7",
            "EXIT": "0",
            "SUMMARY": "",
            **environment,
        }
        source = tmp_path / "script.sh"
        source.write_text(steps(file)[step]["run"])
        command = [BASH, "--noprofile", "--norc", "-eo", "pipefail", str(source)]
        done = subprocess.run(command, cwd=tmp_path, env=settings, capture_output=True, text=True, timeout=60)
        return Ran(done.returncode, done.stdout + done.stderr, tmp_path)

    return call


def test_no_input_becomes_a_piece_of_a_script(file):
    for name, step in steps(file).items():
        assert "${{" not in step.get("run", ""), name


def test_every_script_says_its_shell_and_is_valid(file, tmp_path):
    for name, step in steps(file).items():
        if "run" in step:
            assert step["shell"] == "bash", name
            done = subprocess.run([BASH, "-n"], input=step["run"], text=True, capture_output=True)
            assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("step", ["Run the clauses", "Comment on the pull request", "Verdict"])
def test_the_action_and_the_workflow_do_the_same(step):
    assert steps(ACTION)[step]["run"] == steps(WORKFLOW)[step]["run"]


def test_every_input_of_the_action_is_used_and_described():
    text = ACTION.read_text(encoding="utf-8")
    inputs = yaml.safe_load(text)["inputs"]
    assert set(re.findall(r"inputs\.([\w-]+)", text)) == set(inputs)
    assert all(row["description"] for row in inputs.values())
    assert [name for name, row in inputs.items() if row.get("required")] == ["adapter"]


def test_the_defaults_of_the_action_are_those_of_the_command():
    from rlhf_conformance.cli import build_parser

    command = vars(build_parser().parse_args(["check", "a.py:A"]))
    inputs = yaml.safe_load(ACTION.read_text(encoding="utf-8"))["inputs"]
    for name in ("profile", "device", "dtype"):
        assert inputs[name]["default"] == command[name]


def test_the_environment_of_each_script_is_set(file):
    """A variable that is only spelled once is a variable that is always empty."""
    given = {"GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY", "GITHUB_REPOSITORY", "GITHUB_ACTION_PATH"}
    data = yaml.safe_load(file.read_text(encoding="utf-8"))
    common = set(data["jobs"]["gate"]["env"]) if "jobs" in data else set()
    for name, step in steps(file).items():
        used = set(re.findall(r"\$\{?([A-Z_]{2,})", step.get("run", "")))
        set_here = set(re.findall(r"(?:export )?([A-Z_]{2,})=", step.get("run", "")))
        assert used <= given | common | set(step.get("env", {})) | set_here | {"PIPESTATUS"}, name


@pytest.mark.parametrize(
    "inputs, words",
    [
        ({}, []),
        ({"STRICT": "true"}, ["--strict"]),
        ({"BUDGET": "600"}, ["--budget", "600"]),
        ({"PASS_ENV": "LICENSE_KEY\nHF_TOKEN\n"}, ["--pass-env", "LICENSE_KEY", "--pass-env", "HF_TOKEN"]),
        ({"KNOWN_FAILURES": "my known.toml"}, ["--known-failures", "my known.toml"]),
        ({"OPTIONS": "packing=true\n\nattention=eager\n"}, ["-o", "packing=true", "-o", "attention=eager"]),
        ({"ADAPTER": "$(touch hacked)`touch hacked`; touch hacked"}, []),
    ],
)
def test_the_command_that_is_run(script, inputs, words):
    from rlhf_conformance.cli import build_parser

    ran = script("Run the clauses", SUMMARY="# green", **inputs)
    assert ran.status == 0, ran.said
    called = ran.file("conformance").splitlines()
    adapter = inputs.get("ADAPTER", "a.py:A")
    basic = ["--profile", "gate", "--device", "cpu", "--dtype", "float32", "--report", "reports"]
    assert called[:2] == ["check", adapter]
    assert called[2:10] == basic
    assert sorted(called[10:]) == sorted(words)
    assert not (ran.folder / "hacked").exists()
    build_parser().parse_args(called)


@pytest.mark.parametrize("status", [0, 1, 2, 3])
def test_the_exit_status_comes_after_the_summary(script, status):
    ran = script("Run the clauses", SUMMARY="# the summary", EXIT=str(status))
    assert ran.status == 0
    assert ran.file("output") == f"status={status}\n"
    assert ran.file("step-summary") == "# the summary"
    assert "the log of the run" in ran.said
    assert script("Verdict", STATUS=str(status)).status == status


def test_a_run_that_never_came_to_a_status_is_red(script):
    assert script("Verdict", STATUS="").status != 0


def test_without_a_summary_the_log_is_shown(script):
    """Bad usage, say; and a summary of an earlier run does not stand in for it."""
    script("Run the clauses", SUMMARY="# an earlier run")
    shown = script("Run the clauses", EXIT="2").file("reports/summary.md")
    assert "ended with exit status 2 and without a summary" in shown
    assert "the log of the run" in shown
    assert "an earlier run" not in shown


def test_the_first_comment_is_made(script):
    script("Run the clauses", SUMMARY="# the summary")
    ran = script("Comment on the pull request", OPTIONS="packing=true\n")
    assert ran.status == 0
    asked, posted = ran.file("gh").splitlines()
    assert asked.startswith("api repos/someone/trainer/issues/7/comments --paginate --jq")
    assert posted.startswith("api --silent --method POST repos/someone/trainer/issues/7/comments -F body=@")
    first, rest = ran.file("body").split("\n", 1)
    assert re.fullmatch(r"<!-- rlhf-conformance: a.py:A packing=true +cpu float32 -->", first)
    assert rest == "# the summary"
    assert ran.file("marker").strip() == first, "what is looked for is what the comment begins with"


def test_a_later_run_brings_the_comment_up_to_date(script):
    script("Run the clauses", SUMMARY="# the summary")
    ran = script("Comment on the pull request", EARLIER="4711\n4712")
    assert ran.status == 0
    (_, posted) = ran.file("gh").splitlines()
    assert posted.startswith("api --silent --method PATCH repos/someone/trainer/issues/comments/4711 -F body=@")


def test_a_pull_request_that_may_not_be_commented_is_judged_all_the_same(script):
    """From a fork, the token can only read."""
    script("Run the clauses", SUMMARY="# the summary")
    ran = script("Comment on the pull request", FORBIDDEN="yes")
    assert ran.status == 0
    assert "::warning::no comment on the pull request" in ran.said


def test_a_long_summary_is_cut_to_what_a_comment_holds(script):
    """Also where the cut goes through a character."""
    script("Run the clauses", SUMMARY="x" + "ü" * 50_000)
    ran = script("Comment on the pull request")
    assert ran.status == 0
    assert 55_000 < len(ran.file("body").encode()) < 65_536
    assert set(ran.file("body").split("\n", 1)[1]) == {"x", "ü"}


def test_every_step_after_the_check_runs_also_when_it_is_red(file):
    names = list(steps(file))
    for name in names[names.index("Run the clauses") + 1 :]:
        assert steps(file)[name]["if"].startswith("always()"), name
