"""README.md: its numbers are the specification's, its code runs, its output is the command's."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import types

import pytest

from proof import faults as matrix
from rlhf_conformance import check
from rlhf_conformance.results import BROKEN_STATUS, CONFORMANT_STATUS, FAILED_STATUS, INCOMPLETE_STATUS, USAGE_STATUS
from rlhf_conformance.twins import twins

README = "README.md"


@pytest.fixture(scope="module")
def failure(blocks, examples) -> tuple[str, str]:
    """(what the README shows, what the command says), from the first failure on, without times."""
    (block,) = blocks(README, "console")
    command, _, shown = block.partition("\n...\n")
    root = examples.parent
    floors = os.pathsep.join(str(root / floor) for floor in ("spec", "reference", "conformance"))
    arguments = command.removeprefix("$ rlhf-conformance ").split()
    done = subprocess.run(
        [sys.executable, "-m", "rlhf_conformance", *arguments, "-n", "1"],
        cwd=root,
        env={**os.environ, "PYTHONPATH": floors, "COLUMNS": "200", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == FAILED_STATUS, done.stdout + done.stderr
    said = "".join(done.stdout.partition("FAIL ")[1:])
    return _without_times(shown), _without_times(said)


def _without_times(output: str) -> str:
    lines = [line.rstrip() for line in output.strip().splitlines()]
    return re.sub(r"\d+\.\d+ s\b", "0.0 s", "\n".join(lines))


def test_the_failure_reads_as_the_command_prints_it(failure):
    shown, said = failure
    assert shown == said


def test_the_adapter_has_ten_lines_and_is_green(blocks, monkeypatch):
    import losses_only

    (code,) = (block for block in blocks(README, "python") if "class MyTrainer" in block)
    assert len([line for line in code.splitlines() if line and not line.startswith("#")]) <= 10
    monkeypatch.setitem(sys.modules, "my_trainer", types.ModuleType("my_trainer"))
    monkeypatch.setitem(sys.modules, "my_trainer.losses", losses_only)
    names: dict = {}
    exec(code, names)
    report = check(names["MyTrainer"](), profile="smoke", only=["policy-loss.c", "value-loss.c"])
    assert report.verdict == "CONFORMANT"


def test_the_test_file_runs_under_pytest(blocks, tmp_path, examples):
    """The adapter and the test file are written out as they stand, for a trainer that has the losses of the example."""
    adapter, test_file = blocks(README, "python")
    (tmp_path / "adapter.py").write_text(adapter)
    (tmp_path / "test_conformance.py").write_text(test_file)
    (tmp_path / "my_trainer").mkdir()
    (tmp_path / "my_trainer" / "losses.py").write_text((examples / "losses_only.py").read_text())
    root = examples.parent
    paths = [*(str(root / floor) for floor in ("spec", "reference", "conformance")), str(tmp_path)]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "rlhf_conformance.run.plugin",
            "-q",
            "-k",
            "value-loss.half or critic.shape",
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "1 passed, 1 skipped" in done.stdout, done.stdout + done.stderr


def test_the_numbers_of_faults_and_twins_are_those_that_were_measured(text):
    """That each fault is caught with each of 20 seeds is in tests/faults/test_library.py."""
    said = text(README).replace("\n", " ")
    assert f"[{len(matrix.read())} faults](docs/faults.md), all caught by their clause with each of 20 seeds." in said
    assert f"[{len(twins())} honest variants](docs/twins.md)" in said


def test_the_exit_codes_are_those_of_the_code(table):
    rows = {int(row[0]): row[1] for row in table(README, "exit status")}
    assert rows == {
        CONFORMANT_STATUS: "CONFORMANT",
        FAILED_STATUS: "NOT CONFORMANT",
        USAGE_STATUS: "",
        INCOMPLETE_STATUS: "INCOMPLETE",
        BROKEN_STATUS: "",
    }


def test_the_first_lines_say_what_it_is_in_three_sentences(text):
    paragraph = text(README).split("\n\n")[1].replace("\n", " ")
    assert 3 <= len(re.findall(r"[.;](?: |$)", paragraph)) <= 4
