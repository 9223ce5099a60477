"""The door for a repository of one's own: `test_conformance = conformance_suite(MyTrainer())`, then plain pytest."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from rlhf_conformance import LoadError, UsageError, conformance_suite
from rlhf_spec.clauses import clauses

from .conftest import Done, run

TRAINER = '''
from rlhf_conformance import Adapter, conformance_suite


class MyTrainer(Adapter):
    """Right positions, wrong packs, a pad numbered -1 (a broken SHOULD)."""

    def position_ids(self, attention_mask):
        return (attention_mask.cumsum(-1) - 1) * attention_mask - (1 - attention_mask)

    def pack_sequences(self, sequences):
        from rlhf_conformance import PackedSequences
        import torch

        return PackedSequences(torch.cat(sequences[::-1])[None])


class Nothing(Adapter):
    """Provides nothing."""

'''
SUITE = 'test_conformance = conformance_suite(MyTrainer(), profile="smoke", only=["positions", "packing"])\n'


@pytest.fixture
def project(tmp_path: Path):
    """A user's repository with one test file."""

    def make(suite: str = SUITE) -> Path:
        (tmp_path / "test_my_trainer.py").write_text(TRAINER + suite)
        (tmp_path / "pytest.ini").write_text("[pytest]\n")
        return tmp_path

    return make


def pytest_in(folder: Path, *arguments: str) -> Done:
    """pytest as a user types it; the plugin is named since the source tree is not installed."""
    return run("-m", "pytest", "-p", "rlhf_conformance.run.plugin", *arguments, cwd=folder)


@pytest.fixture(scope="module")
def run_once(tmp_path_factory) -> tuple[Done, Path]:
    """One run of the whole file, which several tests look at."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "test_my_trainer.py").write_text(TRAINER + SUITE)
    (folder / "pytest.ini").write_text("[pytest]\njunit_family = xunit2\n")
    return pytest_in(folder, "-rA", "--junit-xml", "junit.xml"), folder


def outcomes(done: Done) -> dict[str, set[str]]:
    """PASSED, FAILED, ... -> the items' names, from pytest's own summary (-rA)."""
    found: dict[str, set[str]] = {}
    for word, name in re.findall(r"^(PASSED|FAILED|XFAIL|XPASS|ERROR) \S+::test_conformance::(\S+)", done.stdout, re.M):
        found.setdefault(word, set()).add(name)
    return found


def test_items_are_named_after_clause_device_and_dtype(project):
    done = pytest_in(project(), "--collect-only", "-q")
    names = [line.partition("::test_conformance::")[2] for line in done.stdout.splitlines() if "::" in line]
    wanted = [c.slug for c in clauses() if c.chapter in ("positions", "packing")]
    assert names == [f"{slug}[cpu-float32]" for slug in wanted]


def test_each_verdict_becomes_an_outcome(run_once):
    done, _ = run_once
    found = outcomes(done)
    assert found["PASSED"] == {
        f"positions.{name}[cpu-float32]" for name in ("cumsum", "inputs-unwritten", "side-effects")
    }
    assert found["FAILED"] == {"packing.tokens[cpu-float32]"}
    assert found["XFAIL"] == {"positions.pads[cpu-float32]", "packing.empty-sequence[cpu-float32]"}
    assert done.status == 1
    assert re.search(r"1 failed, 3 passed, \d+ skipped, 2 xfailed", done.stdout)


def test_a_failure_is_told_as_by_the_command(run_once):
    done, _ = run_once
    assert "FAIL packing.tokens (MUST)" in done.stdout
    for label in ("the clause", "what", "expected", "actual", "where", "case"):
        assert re.search(rf"^  {label} +\S", done.stdout, re.M), label
    assert "rlhf_conformance/judging/trying.py" not in done.stdout, "frames of the suite are no help"


def test_a_clause_that_is_not_provided_is_skipped_with_its_reason(run_once):
    done, _ = run_once
    assert "not-provided: the adapter has no load_actor or action_log_probs" in done.stdout


def test_junit_has_the_items(run_once):
    _, folder = run_once
    cases = {case.get("name"): case for case in ElementTree.parse(folder / "junit.xml").iter("testcase")}
    assert set(cases) == {f"{c.slug}[cpu-float32]" for c in clauses() if c.chapter in ("positions", "packing")}
    assert cases["packing.tokens[cpu-float32]"].find("failure") is not None
    assert cases["positions.pads[cpu-float32]"].find("skipped").get("type") == "pytest.xfail"
    assert cases["positions.cumsum[cpu-float32]"].find("failure") is None


def test_dash_k_selects(project):
    done = pytest_in(project(), "-k", "positions.cumsum", "-q")
    assert done.status == 0
    assert re.search(r"1 passed, \d+ deselected", done.stdout)


def test_an_item_is_named_by_its_node_id(project):
    done = pytest_in(project(), "test_my_trainer.py::test_conformance::positions.cumsum[cpu-float32]", "-q")
    assert done.status == 0
    assert "1 passed" in done.stdout


def test_last_failed_repeats_the_failure_alone(run_once):
    _, folder = run_once
    done = pytest_in(folder, "--lf", "-rA")
    assert outcomes(done) == {"FAILED": {"packing.tokens[cpu-float32]"}}


def test_xdist_gives_the_same_outcomes(run_once, project):
    done = pytest_in(project(), "-p", "xdist", "-n", "2", "-rA")
    assert outcomes(done) == outcomes(run_once[0])
    assert done.status == 1


def test_strict_makes_a_broken_should_fail(project):
    suite = SUITE.replace("only=[", "strict=True, only=[")
    done = pytest_in(project(suite), "-k", "positions.pads", "-rA")
    assert outcomes(done) == {"FAILED": {"positions.pads[cpu-float32]"}}


def test_another_dtype_is_in_the_name(project):
    suite = 'test_half = conformance_suite(MyTrainer(), dtype="bfloat16", profile="smoke", only=["positions.cumsum"])\n'
    done = pytest_in(project(suite), "--collect-only", "-q")
    assert "test_half::positions.cumsum[cpu-bfloat16]" in done.stdout


def test_a_suite_that_provides_nothing_is_not_green(project):
    done = pytest_in(project('test_conformance = conformance_suite(Nothing(), profile="smoke")\n'))
    assert done.status != 0, "a run of skips alone tested nothing"


def test_importing_the_test_file_imports_no_torch(project):
    """Collecting the tests of a repository must not cost seconds."""
    folder = project()
    done = run("-c", "import sys, test_my_trainer; print('torch' in sys.modules)", cwd=folder)
    assert done.stdout.strip() == "False"


def test_what_cannot_be_run_is_refused_where_it_is_written():
    from rlhf_conformance.adapters.reference import Reference

    with pytest.raises(LoadError, match="not an adapter"):
        conformance_suite(object())
    with pytest.raises(LoadError, match=r"Reference\(\)"):
        conformance_suite(Reference)
    with pytest.raises(UsageError, match="no clause begins with 'polocy'"):
        conformance_suite(Reference(), only=["polocy"])


@pytest.mark.parametrize("wrong", [{"profile": "fast"}, {"dtype": "float13"}, {"device": "abacus"}], ids=str)
def test_a_setting_that_there_is_not_is_refused_where_it_is_written(wrong):
    from rlhf_conformance.adapters.reference import Reference

    with pytest.raises(UsageError, match=next(iter(wrong.values()))):
        conformance_suite(Reference(), **wrong)
