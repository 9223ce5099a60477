"""How the tests of the suite ask it: through the command in a process of its own, or in this process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
HOSTILE = Path(__file__).with_name("hostile")
FLOORS = os.pathsep.join(str(ROOT / floor) for floor in ("spec", "reference", "conformance"))


@dataclass(frozen=True)
class Done:
    """A finished command: its exit status, what it printed, and the same in one line, to compare with sentences."""

    status: int
    stdout: str
    stderr: str

    @property
    def said(self) -> str:
        return " ".join(re.sub(r"[│┃┏┓└┘├┤━─┳┻╇┡┩┼┴]", " ", self.stdout + " " + self.stderr).split())


def run(*command: str, cwd: Path, timeout: float = 150, **environment: str) -> Done:
    """Run a Python command line with the three floors importable, from `cwd`."""
    env = {**os.environ, "PYTHONPATH": FLOORS, "COLUMNS": "160", "NO_COLOR": "1", **environment}
    env.pop("PYTEST_ADDOPTS", None)
    done = subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
    )
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., Done]:
    """`command("check", "reference", ...)`: the command in a process of its own, in an empty folder."""

    def call(*arguments: str, cwd: Path = tmp_path, **options: Any) -> Done:
        return run("-m", "rlhf_conformance", *arguments, cwd=cwd, **options)

    return call


@pytest.fixture(scope="session")
def hostile() -> Callable[[str], str]:
    """`hostile("answers.py:Raises")`: that adapter as it is named on the command line."""
    return lambda name: str(HOSTILE / name)


@pytest.fixture(scope="session")
def in_process() -> Callable[..., Done]:
    """The same as the command for an adapter that leaves its process alone, in this process: much faster."""

    def call(adapter: str, *only: str, **options: Any) -> Done:
        from rich.console import Console

        from rlhf_conformance import check
        from rlhf_conformance.reporting.terminal import show_report
        from rlhf_conformance.run.loading import load_adapter

        report = check(load_adapter(adapter), only=only, profile="smoke", **options)
        out = StringIO()
        show_report(Console(file=out, width=160), report)
        return Done(report.exit_status, out.getvalue(), "")

    return call


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Probe checkpoints, made once for all tests of a worker."""
    from rlhf_conformance.oracle.probes import ProbeStore

    return ProbeStore(tmp_path_factory.mktemp("probes"))


@pytest.fixture
def strategy_subject(store: Any) -> Callable[..., Any]:
    """A subject whose adapter declares everything unless told otherwise, of which strategies draw."""
    from rlhf_conformance.adapters.reference import Reference
    from rlhf_conformance.judging.subject import Subject

    def make(dtype: str = "float32", **declared: Any) -> Any:
        adapter = Reference()
        for name, value in declared.items():
            setattr(adapter, name, value)
        return Subject.make(adapter, device="cpu", dtype=dtype, store=store)

    return make


@pytest.fixture(autouse=True)
def _leave_the_process_as_it_was() -> Iterator[None]:
    """Loading an adapter from a file puts its folder on sys.path."""
    before = list(sys.path)
    yield
    sys.path[:] = before
