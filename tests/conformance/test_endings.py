"""What is left of a run that came to its end, or was ended: nothing, whatever ended it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rlhf_conformance.reporting import read
from rlhf_conformance.results import LOST, PASS

from .conftest import FLOORS, HOSTILE, ROOT

pytestmark = pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")

ORDERLY = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT")
CLAUSES = ("positions.pads", "packing.tokens")
IN_PYTHON = """
import sys
from rlhf_conformance import check
from rlhf_conformance.run.loading import load_adapter
adapter = load_adapter(sys.argv[1]) if sys.argv[2] == "object" else sys.argv[1]
check(adapter, only={clauses}, profile="smoke")
print("went on")
"""
IN_PYTEST = """
from rlhf_conformance import conformance_suite
from processes import Waits
test_conformance = conformance_suite(Waits(), only={clauses}, profile="smoke")
"""
IN_A_POOL = """
from processes import notes_and_waits
from proof.trying import each
if __name__ == "__main__":
    list(each(notes_and_waits, [(1,), (2,)], workers=2))
"""


def _by_default() -> None:
    """Signals that whoever started the tests ignores are not ignored in what is tested."""
    for one in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(one, signal.SIG_DFL)


class Run:
    """A command that is under way, with a temporary folder of its own, by which its processes are known."""

    def __init__(self, arguments: tuple[str, ...], folder: Path) -> None:
        self.folder, self.temporary, self.notes = folder, folder / "temporary", folder / "notes"
        self.temporary.mkdir()
        self.environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([FLOORS, str(ROOT / "tests"), str(HOSTILE)]),
            "TMPDIR": str(self.temporary),
            "HOSTILE_NOTES": str(self.notes),
            "PYTEST_ADDOPTS": "",
        }
        with (folder / "said").open("w") as said:
            self.process = subprocess.Popen(
                [sys.executable, *arguments],
                preexec_fn=_by_default,
                cwd=folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def said(self) -> str:
        return " ".join((self.folder / "said").read_text().split())

    def waits(self) -> None:
        """Until the adapter does."""
        assert wait_for(self.notes.exists, 90), self.said

    def ends(self, seconds: float = 20) -> int:
        return self.process.wait(timeout=seconds)

    @property
    def left(self) -> list[str]:
        """The processes that have come of it, and what lies in its temporary folder, but for torch's own cache."""
        mark, found = f"HOSTILE_NOTES={self.notes}".encode(), []
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark in (path / "environ").read_bytes().split(b"\0"):
                    found.append((path / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        names = sorted(path.name for path in self.temporary.iterdir())
        return found + [name for name in names if not name.startswith("torchinductor_")]


def wait_for(condition: Callable[[], bool], seconds: float) -> bool:
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    runs: list[Run] = []

    def call(*arguments: str) -> Run:
        runs.append(Run(arguments, tmp_path))
        return runs[-1]

    yield call
    for run in runs:
        run.process.kill()
        run.process.wait()


def checked(hostile: Callable[[str], str], name: str, *options: str) -> tuple[str, ...]:
    only = (argument for slug in CLAUSES for argument in ("--only", slug))
    return ("-m", "rlhf_conformance", "check", hostile(f"processes.py:{name}"), "--profile", "smoke", *only, *options)


@pytest.mark.parametrize("name", ORDERLY)
def test_a_signal_ends_a_run_in_order(name, start, hostile):
    """What was found stays, what was not tried is named, and nothing is left, in whatever session it is."""
    run = start(*checked(hostile, "Waits", "-n", "1", "--report", "report"))
    run.waits()
    run.process.send_signal(signal.Signals[name])
    assert run.ends() == 3, run.said
    assert run.left == []
    report = read(run.folder / "report" / "report.json")
    assert {slug: report.result(slug).verdict for slug in CLAUSES} == {CLAUSES[0]: PASS, CLAUSES[1]: LOST}
    assert report.run["ended_by"] == name
    assert f"the run was ended by {name}: 1 of 2 clauses were not tried to the end" in run.said
    assert "Traceback" not in run.said


def test_a_run_whose_command_is_killed_leaves_nothing(start, hostile):
    run = start(*checked(hostile, "Waits", "-n", "2"))
    run.waits()
    run.process.kill()
    run.ends()
    assert wait_for(lambda: not run.left, 15), run.left


def test_a_second_signal_does_not_leave_half_of_it(start, hostile):
    run = start(*checked(hostile, "Waits", "-n", "1"))
    run.waits()
    for _ in range(3):
        run.process.send_signal(signal.SIGTERM)
        run.process.send_signal(signal.SIGINT)
    assert run.ends() == 3, run.said
    assert run.left == []


def test_a_signal_that_is_ignored_stays_so(start, hostile):
    """As under nohup."""
    code = "import signal, sys, runpy; signal.signal(signal.SIGHUP, signal.SIG_IGN); sys.argv = sys.argv[1:]; "
    code += "runpy.run_module('rlhf_conformance', run_name='__main__', alter_sys=False)"
    run = start("-c", code, *checked(hostile, "Waits", "-n", "1", "--time-limit", "4")[1:])
    run.waits()
    run.process.send_signal(signal.SIGHUP)
    assert run.ends(60) == 3
    assert "the adapter took longer than 4 s" in run.said


@pytest.mark.parametrize("name", [*ORDERLY, "SIGKILL"])
def test_a_signal_to_python_ends_a_named_adapter_too(name, start, hostile):
    run = start("-c", IN_PYTHON.format(clauses=CLAUSES), hostile("processes.py:Waits"), "name")
    run.waits()
    run.process.send_signal(signal.Signals[name])
    if name == "SIGINT":  # Python may handle it, and gets the report
        assert run.ends() == 0
        assert run.said.endswith("went on")
    else:
        assert run.ends() == -signal.Signals[name]
    assert wait_for(lambda: not run.left, 15), run.left


@pytest.mark.parametrize("name", [*ORDERLY, "SIGKILL"])
@pytest.mark.parametrize("door", ["object", "pytest"])
def test_a_signal_to_python_leaves_no_folder_of_ours(door, name, start, hostile, tmp_path):
    """In the caller's own process, what the adapter starts belongs to the caller: what is ours goes."""
    (tmp_path / "test_it.py").write_text(IN_PYTEST.format(clauses=CLAUSES))
    if door == "object":
        run = start("-c", IN_PYTHON.format(clauses=CLAUSES), hostile("processes.py:Waits"), door)
    else:
        run = start("-m", "pytest", "-p", "rlhf_conformance.run.plugin", "-p", "no:cacheprovider", "test_it.py")
    run.waits()
    program = int(run.notes.read_text().split()[1])
    run.process.send_signal(signal.Signals[name])
    run.ends()
    os.kill(program, signal.SIGKILL)
    assert wait_for(lambda: not [name for name in run.left if "conformance" in name], 15), run.left


@pytest.mark.parametrize("name", [*ORDERLY, "SIGKILL"])
def test_a_signal_to_a_measurement_leaves_none_of_its_workers(name, start, tmp_path):
    (tmp_path / "measure.py").write_text(IN_A_POOL)
    run = start("measure.py")
    run.waits()
    run.process.send_signal(signal.Signals[name])
    assert run.ends() != 0
    assert wait_for(lambda: not run.left, 15), run.left


def test_a_check_in_this_process_leaves_neither_folder_nor_process(hostile, tmp_path, monkeypatch):
    import tempfile

    from rlhf_conformance import check
    from rlhf_conformance.run.loading import load_adapter

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = _children()
    assert check(load_adapter(hostile("processes.py:Survivor")), only=CLAUSES, profile="smoke").exit_status == 0
    assert list(tmp_path.iterdir()) == []
    assert _children() == before


def test_a_run_leaves_no_descriptor_no_thread_and_no_child(hostile, tmp_path, monkeypatch):
    import tempfile

    from rlhf_conformance.run.command import run_plan
    from rlhf_conformance.run.plan import Plan

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("HOSTILE_NOTES", str(tmp_path / "notes"))

    def now() -> tuple[set[str], set[str], list[int]]:
        return set(os.listdir("/proc/self/fd")), set(os.listdir("/proc/self/task")), _children()

    before = now()
    report = run_plan(Plan(adapter=hostile("processes.py:Waits"), only=CLAUSES, profile="smoke", time_limit=4), 2)
    assert [result.verdict for result in report.results] == [PASS, LOST]
    assert now() == before
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]


def _children() -> list[int]:
    from rlhf_conformance.run.keeper import descendants

    return descendants(os.getpid())
