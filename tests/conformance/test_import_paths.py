"""What is judged is what the user's own Python would import, through every door; and the report says which files."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from .conftest import FLOORS, run

WRONG = "def half(values, returns, mask):\n    return ((values - returns) ** 2 * mask).sum() / mask.sum()\n"
RIGHT = "def half(values, returns, mask):\n    return (0.5 * (values - returns) ** 2 * mask).sum() / mask.sum()\n"
ADAPTER = """
import trainer_x
from rlhf_conformance import Adapter


class Trainer(Adapter):
    value_clip = False

    def value_loss(self, values, old_values, returns, action_mask, options):
        return trainer_x.half(values, returns, action_mask)
"""
ONLY = ("--only", "value-loss.half", "--profile", "smoke", "-n", "1")


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path, Path]:
    """(where the user is, a trainer that is right where packages are installed, one that is wrong on PYTHONPATH)"""
    here, installed, mine = tmp_path / "here", tmp_path / "installed", tmp_path / "mine"
    here.mkdir()
    (here / "adapter.py").write_text(ADAPTER)
    for folder, text in ((installed, RIGHT), (mine, WRONG)):
        (folder / "trainer_x").mkdir(parents=True)
        (folder / "trainer_x" / "__init__.py").write_text(text)
    return here, installed, mine


def path(mine: Path, installed: Path) -> str:
    """The user's own comes first; what is installed comes with the suite, as site-packages would."""
    return os.pathsep.join((str(mine), FLOORS, str(installed)))


@pytest.mark.parametrize("name", ["adapter.py:Trainer", "adapter:Trainer"])
def test_the_command_judges_what_comes_first_on_the_path(name, folders, tmp_path):
    here, installed, mine = folders
    report = tmp_path / "report"
    command = ("-m", "rlhf_conformance", "check", name, *ONLY)
    done = run(*command, "--report", str(report), cwd=here, PYTHONPATH=path(mine, installed))
    assert done.status == 1, done.said
    files = json.loads((report / "report.json").read_text())["subject"]["files"]
    assert files == {"adapter": str(here / "adapter.py"), "trainer_x": str(mine / "trainer_x" / "__init__.py")}
    assert str(mine) in done.said
    done = run(*command, cwd=here, PYTHONPATH=path(installed, mine))
    assert done.status == 0, done.said


def test_a_copy_beside_the_suite_does_not_come_first(folders, tmp_path):
    """The folder that the suite itself is installed in holds a trainer of the same name."""
    here, _, mine = folders
    beside = tmp_path / "beside"
    (beside / "trainer_x").mkdir(parents=True)
    (beside / "trainer_x" / "__init__.py").write_text(RIGHT)
    floors = FLOORS.split(os.pathsep)
    (beside / "rlhf_conformance").symlink_to(Path(floors[2]) / "rlhf_conformance")
    search = os.pathsep.join((str(mine), str(beside), *floors[:2]))
    done = run("-m", "rlhf_conformance", "check", "adapter.py:Trainer", *ONLY, cwd=here, PYTHONPATH=search)
    assert done.status == 1, done.said


IN_PYTHON = """
import sys
import xdist.plugin  # which keeps the path as it is now
sys.path.insert(0, sys.argv[1])
from rlhf_conformance import check

for workers in (1, 2):
    report = check("adapter.py:Trainer", only=["value-loss.half"], profile="smoke", workers=workers)
    print(report.verdict, sorted(report.subject["files"]))
from adapter import Trainer

print(check(Trainer(), only=["value-loss.half"], profile="smoke").verdict)
"""


def test_a_path_that_the_caller_has_changed_is_heeded(folders):
    here, installed, mine = folders
    done = run("-c", IN_PYTHON, str(mine), cwd=here, PYTHONPATH=os.pathsep.join((FLOORS, str(installed))))
    assert done.stdout.splitlines() == ["NOT CONFORMANT ['adapter', 'trainer_x']"] * 2 + ["NOT CONFORMANT"], done.stderr


SUITE = """
import sys

sys.path.insert(0, {here!r})
from adapter import Trainer
from rlhf_conformance import conformance_suite

test_conformance = conformance_suite(Trainer(), only=["value-loss.half"], profile="smoke")
"""


@pytest.mark.parametrize("options", [(), ("-p", "xdist", "-n", "1")], ids=["alone", "xdist"])
def test_pytest_judges_what_comes_first_on_the_path(options, folders):
    here, installed, mine = folders
    (here / "test_it.py").write_text(SUITE.format(here=str(here)))
    more = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = ("-m", "pytest", "-q", "-p", "rlhf_conformance.run.plugin", *options, "test_it.py")
    assert run(*command, cwd=here, PYTHONPATH=path(mine, installed), **more).status == 1
    done = run(*command, cwd=here, PYTHONPATH=path(installed, mine), **more)
    assert done.status == 0, done.said


def test_the_folder_of_an_adapter_is_put_on_the_path_once(folders):
    from rlhf_conformance.run.loading import load_adapter

    here, _, mine = folders
    before = list(sys.path)
    sys.path.insert(0, str(mine))
    try:
        for _ in range(3):
            load_adapter(str(here / "adapter.py") + ":Trainer")
        assert sys.path.count(str(here)) == 1
    finally:
        sys.path[:] = before
        sys.modules.pop("trainer_x", None)
        sys.modules.pop("adapter", None)
