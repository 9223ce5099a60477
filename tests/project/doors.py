"""Every door of the package, opened once, in whatever environment this is run: `nox -s floors` runs it in two.

    python tests/project/doors.py

It needs no more than the package does. What goes wrong ends it with what was printed, and status 1.
"""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import tempfile
from pathlib import Path

from packaging.requirements import Requirement  # pytest needs it, too

from rlhf_conformance.run.plan import selected

COMMAND = ("-m", "rlhf_conformance")
ONLY = ("value-loss.", "actor.log-probs")
SUITE = f"""
from rlhf_conformance import conformance_suite
from rlhf_conformance.adapters.reference import Reference

test_conformance = conformance_suite(Reference(), profile="smoke", only={ONLY})
"""
IN_PYTHON = """
from rlhf_conformance import check

report = check("reference", profile="smoke", only=["value-loss.half"])
assert report.verdict == "CONFORMANT", report
from rlhf_conformance.adapters.reference import Reference

report = check(Reference(), profile="smoke", only=["value-loss.", "positions."])
assert report.verdict == "CONFORMANT", report
print(report.verdict)
"""


def run(*arguments: str, says: str, folder: Path, status: int = 0) -> None:
    """A Python command line that has to end with this status, and to say this."""
    done = subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True, timeout=600)
    said = done.stdout + done.stderr
    if done.returncode != status or says not in said:
        print(said)
        raise SystemExit(f"{' '.join(arguments)}: status {done.returncode}, wanted {status} and {says!r}")
    print("ok:", " ".join(arguments)[:100])


def needed() -> list[str]:
    """Names of the distributions that the installed package needs on this Python."""
    requirements = (Requirement(text) for text in importlib.metadata.requires("rlhf-conformance") or ())
    return [each.name for each in requirements if not each.marker or each.marker.evaluate({"extra": ""})]


def main() -> None:
    print(", ".join(f"{name} {importlib.metadata.version(name)}" for name in needed()))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run(*COMMAND, "list", "reference", says="value-loss.half", folder=folder)
        run(*COMMAND, "explain", "policy-loss.clip", says="clip(r", folder=folder)
        run(*COMMAND, "init", ".", says="conformance_adapter.py", folder=folder)
        run(*COMMAND, "check", "reference", "--profile", "smoke", "-n", "2", says="CONFORMANT", folder=folder)
        failing = ("check", "fault:half-dropped", "--only", "value-loss.half", "--report", "report")
        run(*COMMAND, *failing, says="NOT CONFORMANT", folder=folder, status=1)
        run(*COMMAND, "matrix", "report", says="fault:half-dropped", folder=folder)
        run("-c", IN_PYTHON, says="CONFORMANT", folder=folder)
        (folder / "test_suite.py").write_text(SUITE)
        every = f"{len(selected(ONLY))} passed"
        run("-m", "pytest", "-q", "test_suite.py", says=every, folder=folder)
        run("-m", "pytest", "-q", "-n", "2", "test_suite.py", says=every, folder=folder)


if __name__ == "__main__":
    main()
