"""`rlhf-conformance init`: the files that a repository begins with."""

from __future__ import annotations

import shlex
from importlib import resources
from pathlib import Path

from rlhf_conformance.run.loading import UsageError

FILES = {
    "conformance_adapter.py": "conformance_adapter.py.txt",
    "test_conformance.py": "test_conformance.py.txt",
    "known-failures.toml": "known-failures.toml",
    ".github/workflows/rlhf-conformance.yml": "workflow.yml",
}
"""What is written, and the template that it is written from. Templates in Python do not end in .py: they are none of
this package's modules."""


def write(folder: Path) -> list[Path]:
    """Write the files into `folder`, which is made if need be, and return their paths.

    Raises UsageError, with nothing written, where one of them is there already or `folder` is no folder.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"init {folder}: wanted a folder, this is a file")
    there = [name for name in FILES if (folder / name).exists()]
    if there:
        raise UsageError(f"init overwrites nothing, and there is already: {', '.join(there)}")
    templates = resources.files("rlhf_conformance").joinpath("templates", "init")
    written = []
    for name, template in FILES.items():
        path = folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(templates.joinpath(template).read_text(encoding="utf-8"), encoding="utf-8")
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror}") from error
        written.append(path)
    return written


def next_steps(folder: Path) -> str:
    """What to do with the files that were written."""
    adapter, test = (shlex.quote(str(folder / name)) for name in ("conformance_adapter.py", "test_conformance.py"))
    return (
        f"\nNow show your trainer in {adapter}, for a start its losses, and run\n\n"
        f"  rlhf-conformance check {adapter}:MyTrainer --profile smoke\n"
        f"  pytest {test}\n"
    )
