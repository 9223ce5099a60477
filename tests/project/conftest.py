"""The project seen as files: its floors, its modules, its `pyproject.toml`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root."""
    return Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def pyproject(root: Path) -> dict[str, Any]:
    """`pyproject.toml`, parsed."""
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def floors(root: Path) -> dict[str, Path]:
    """Import package -> its folder, from the lowest floor to the highest."""
    return {
        "rlhf_spec": root / "spec" / "rlhf_spec",
        "rlhf_reference": root / "reference" / "rlhf_reference",
        "rlhf_conformance": root / "conformance" / "rlhf_conformance",
    }


@pytest.fixture(scope="session")
def modules(floors: dict[str, Path]) -> dict[str, Path]:
    """Dotted name -> source file, for every module of the three floors; a package stands under its own name."""
    found = {}
    for folder in floors.values():
        for file in sorted(folder.rglob("*.py")):
            parts = file.relative_to(folder.parent).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found
