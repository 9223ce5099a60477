"""What a worker inherits of the environment: what a trainer needs, and nothing that opens a door."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_conformance.results import PASS
from rlhf_conformance.run import inheriting
from rlhf_conformance.run.command import run_plan
from rlhf_conformance.run.plan import Plan

DOORS = {
    "GITHUB_TOKEN": "x",
    "GH_TOKEN": "x",
    "ACTIONS_RUNTIME_TOKEN": "x",
    "ACTIONS_ID_TOKEN_REQUEST_URL": "https://pipelines.example/token",
    "ACTIONS_CACHE_URL": "https://cache.example",
    "INPUT_GITHUB-TOKEN": "x",
    "CI_JOB_TOKEN": "x",
    "CI_JOB_JWT": "x",
    "CI_REGISTRY_PASSWORD": "x",
    "CI_REPOSITORY_URL": "https://gitlab-ci-token:x@gitlab.example/a/b.git",
    "SYSTEM_ACCESSTOKEN": "x",
    "BUILDKITE_AGENT_ACCESS_TOKEN": "x",
    "FORGEJO_TOKEN": "x",
    "CIRCLE_OIDC_TOKEN_V2": "x",
    "AWS_ACCESS_KEY_ID": "x",
    "AWS_SECRET_ACCESS_KEY": "x",
    "AWS_SESSION_TOKEN": "x",
    "GOOGLE_APPLICATION_CREDENTIALS": "/tmp/x.json",
    "SSH_AUTH_SOCK": "/tmp/agent",
    "HF_TOKEN": "x",
    "HUGGING_FACE_HUB_TOKEN": "x",
    "WANDB_API_KEY": "x",
    "OPENAI_APIKEY": "x",
    "PGPASSWORD": "x",
    "MYSQL_PWD": "x",
    "npm_config__authToken": "x",
    "DATABASE_URL": "postgres://me:x@db/prod",
    "PIP_INDEX_URL": "https://me:x@index.example/simple",
    "SLACK_WEBHOOK": "https://hooks.example/x",
}
FILES = ("GITHUB_ENV", "GITHUB_OUTPUT", "GITHUB_PATH", "GITHUB_STATE", "GITHUB_STEP_SUMMARY", "GITHUB_EVENT_PATH")
FILES += ("BUILDKITE_ENV_FILE", "BASH_ENV", "GITEA_OUTPUT", "BITBUCKET_PIPELINES_VARIABLES_PATH")
NEEDED = {
    "PATH": "/usr/bin:/bin",
    "PWD": "/home/me",
    "OLDPWD": "/home",
    "HOME": "/home/me",
    "LD_LIBRARY_PATH": "/usr/lib",
    "PYTHONPATH": "/home/me/trainer",
    "CUDA_VISIBLE_DEVICES": "0",
    "HF_HOME": "/data/hf",
    "MAX_TOKENS": "512",
    "TOKENIZERS_PARALLELISM": "true",
    "CI": "true",
    "GITHUB_ACTIONS": "true",
    "GITHUB_REF": "refs/heads/main",
    "RUNNER_OS": "Linux",
    "MASTER_ADDR": "tcp://10.0.0.1:29500",
    "KEYBOARD": "us",
    "MONKEY": "x",
    "AUTHOR": "me",
    "PATTERN": "x",
    "XAUTHORITY": "/home/me/.Xauthority",
    "http_proxy": "http://proxy.example:3128",
    "MY_CONFIG": "/home/me/config.yaml",
}


@pytest.mark.parametrize("name", DOORS)
def test_what_opens_a_door_is_withheld(name):
    assert inheriting.withheld({name: DOORS[name]}) == (name,)


@pytest.mark.parametrize("name", FILES)
def test_files_of_commands_are_withheld(name, tmp_path):
    (tmp_path / "there").touch()
    for file in ("there", "not yet"):
        assert inheriting.withheld({name: str(tmp_path / file)}) == (name,)


def test_a_folder_of_ci_is_not(tmp_path):
    assert inheriting.withheld({"GITHUB_WORKSPACE": str(tmp_path), "CI_PROJECT_DIR": str(tmp_path)}) == ()


@pytest.mark.parametrize("name", NEEDED)
def test_what_a_trainer_needs_stays(name):
    assert inheriting.withheld({name: NEEDED[name]}) == ()


def test_what_is_asked_for_by_name_stays():
    assert inheriting.withheld(DOORS, passed=("HF_TOKEN",)) == tuple(name for name in DOORS if name != "HF_TOKEN")


def test_a_worker_is_told_apart_from_the_command(hostile, tmp_path, monkeypatch):
    """The command has them still."""
    summary = str(tmp_path / "summary")
    given = {"GITHUB_STEP_SUMMARY": summary, "GITHUB_REF": "refs/heads/main", "MY_TRAINER_HOME": "/opt/trainer"}
    given |= {"MY_MAX_TOKENS": "512", **{name: value for name, value in DOORS.items() if "-" not in name}}
    for name in [name for name in os.environ if name.startswith(("GITHUB", "ACTIONS", "MY_", "HF_", "SECRET"))]:
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    options = {"token_log_probs": "reads_environment"}
    only = ("log-probs.definition",)
    plan = Plan(adapter=hostile("harms.py:Harmful"), options=options, profile="smoke", only=only)
    (result,) = run_plan(plan, 1).results
    assert result.verdict == PASS, result.reason
    assert os.environ["GITHUB_STEP_SUMMARY"] == summary


def test_no_value_of_a_variable_is_on_the_command_line_of_a_worker(tmp_path, monkeypatch):
    monkeypatch.setenv("GITHUB_TOKEN", "swordfish")
    words = shlex.split(inheriting.command(tmp_path, ()))
    assert "GITHUB_TOKEN" in words
    assert not any("swordfish" in word for word in words)


def test_a_variable_is_passed_on_that_is_asked_for(command, tmp_path):
    (tmp_path / "needs.py").write_text(
        "import os\nfrom processes import Survivor\n\n\nclass Needs(Survivor):\n"
        "    def __init__(self):\n        self.key = os.environ['TRAINER_KEY']\n"
    )
    path = os.pathsep.join([os.environ.get("PYTHONPATH", ""), os.path.join(os.path.dirname(__file__), "hostile")])
    arguments = ("check", "needs.py:Needs", "--only", "positions.pads", "--profile", "smoke")
    environment = {"TRAINER_KEY": "x", "PYTHONPATH": path}
    refused = command(*arguments, **environment)
    assert refused.status == 2
    assert "TRAINER_KEY looks like a secret and was not passed on: --pass-env TRAINER_KEY does" in refused.said
    assert command(*arguments, "--pass-env", "TRAINER_KEY", **environment).status == 0


def test_a_worker_collects_no_garbage_of_imports(tmp_path: Path):
    """What was imported is out of the collector's sight, which is on as before."""
    adapter = tmp_path / "adapter.py"
    adapter.write_text(
        "import gc\n"
        "from rlhf_conformance.adapter import Adapter\n\n\n"
        "class Telling(Adapter):\n"
        "    def kl(self, *given):\n"
        "        raise RuntimeError(f'on: {gc.isenabled()}, kept: {gc.get_freeze_count() > 10_000}')\n"
    )
    report = run_plan(Plan(f"{adapter}:Telling", profile="smoke", only=("kl.k1",)), 1)
    assert "on: True, kept: True" in report.results[0].reason


def test_the_collector_of_the_callers_process_is_left_alone():
    code = (
        "import gc\n"
        "from rlhf_conformance.run.command import check\n"
        "from rlhf_conformance.adapters.reference import Reference\n"
        "before = gc.get_freeze_count()\n"
        "report = check(Reference(), profile='smoke', only=['kl.k1'])\n"
        "print(report.results[0].verdict, gc.isenabled(), gc.get_freeze_count() == before)\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.split() == ["pass", "True", "True"]
