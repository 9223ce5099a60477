"""Files of the version before are read, or refused with a sentence that says what to do.

`before/` holds what that version wrote of some known bugs: a report of one or two clauses for each, a stored case, and
the known failures that `--accept` made.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import rlhf_conformance
from rlhf_conformance import check, cli
from rlhf_conformance.faults import faults
from rlhf_conformance.reporting import read, stored
from rlhf_conformance.reporting.replaying import SCHEMA, read_cases
from rlhf_conformance.results import FAIL, KNOWN_FAILURE, Report
from rlhf_conformance.run.known import read_known_failures
from rlhf_conformance.run.plan import Plan
from rlhf_conformance.run.suite import Suite

FOLDER = Path(__file__).with_name("before")
REPORTS = sorted(path for path in FOLDER.glob("*.json") if not path.name.startswith("case-"))
KNOWN = FOLDER / "known-failures.toml"
by_name = pytest.mark.parametrize("path", REPORTS, ids=lambda path: path.stem)


def replayed(path: Path) -> Report:
    """The cases of a report, tried again on the bug that it is a report of."""
    cases = read_cases(path)
    suite = Suite(Plan(profile="smoke", only=tuple(cases), cases=cases), faults()[path.stem].adapter())
    return Report(tuple(suite.run(slug) for slug in suite.slugs))


def test_there_are_reports_of_several_chapters():
    assert len({r.chapter for path in REPORTS for r in read(path).broken}) == 6


@by_name
def test_a_report_is_read(path):
    report = read(path)
    assert report.subject["adapter"] == f"fault:{path.stem}"
    assert all(r.failure is not None and r.failure.stored is not None for r in report.broken)


@by_name
def test_its_cases_still_break_the_clause_in_the_same_way(path):
    old, new = read(path), replayed(path)
    assert [r.clause for r in new.results] == [r.clause for r in old.broken]
    for result in new.results:
        failure, before = result.failure, old.result(result.clause).failure
        assert result.verdict == FAIL
        assert failure is not None
        assert before is not None
        assert failure.what == before.what
        for now, then in ((failure.expected, before.expected), (failure.actual, before.actual)):
            assert now == then or abs(float(now) - float(then)) <= failure.budget  # another CPU rounds otherwise


@by_name
def test_it_is_compared_with_a_report_of_this_version(path, tmp_path, capsys):
    adapter = faults()[path.stem].adapter()
    only = [r.clause for r in read(path).results]
    report = check(adapter, profile="smoke", only=only)
    (tmp_path / "report.json").write_text(stored.text(report, {}))
    assert cli.main(["diff", str(path), str(tmp_path)]) == 0
    assert "nothing regressed" in capsys.readouterr().out
    assert cli.main(["matrix", str(path), str(tmp_path)]) == 0
    assert f"fault:{path.stem}" in capsys.readouterr().out


@pytest.mark.parametrize("row", read_known_failures(KNOWN), ids=lambda row: row.clause)
def test_known_failures_still_excuse(row):
    name = next(path.stem for path in REPORTS if row.clause in {r.clause for r in read(path).broken})
    plan = Plan(profile="smoke", only=(row.clause,), known_failures=(row,))
    result = Suite(plan, faults()[name].adapter()).run(row.clause)
    if result.verdict != KNOWN_FAILURE:  # then another quantity is wrong as well, which was not told before
        assert result.reason.startswith(f"beside what is accepted ({row.reason})")
        assert any(row.excuses(other) for other in result.others)
    fixed = replace(plan, known_failures=(replace(row, fails="fail: something else"),))
    assert Suite(fixed, faults()[name].adapter()).run(row.clause).verdict == FAIL


def test_a_stored_case_is_read():
    path = FOLDER / "case-value-loss.half.json"
    assert read_cases(path) == {"value-loss.half": json.loads(path.read_text())["case"]}


def test_a_case_of_an_unknown_kind_is_refused_with_what_to_do(tmp_path, capsys):
    path = tmp_path / "case.json"
    path.write_text(json.dumps({"schema": SCHEMA, "clause": "value-loss.half", "case": {"type": "Sometime"}}))
    assert cli.main(["check", "reference", "--replay", str(path), "-n", "1", "--profile", "smoke"]) == 2
    assert "stores it anew" in capsys.readouterr().err


def test_a_report_of_another_schema_is_refused_with_what_to_do(tmp_path, capsys):
    path = tmp_path / "report.json"
    path.write_text(REPORTS[0].read_text().replace("report/2", "report/1", 1))
    assert cli.main(["matrix", str(path)]) == 2
    assert "rlhf-conformance check ADAPTER --report DIR" in capsys.readouterr().err


ADAPTER = """
from rlhf_conformance.adapter import Adapter, PackedSequences, PolicyLossOptions, PolicyLossResult, ProcessedSequences
from rlhf_conformance.adapter import ValueLossOptions
"""


def test_an_adapter_of_the_version_before_imports_what_it_imported():
    names: dict = {}
    exec(ADAPTER, names)
    for name in ("PackedSequences", "PolicyLossOptions", "PolicyLossResult", "ProcessedSequences", "ValueLossOptions"):
        assert names[name] is getattr(rlhf_conformance, name)


def test_what_was_never_there_is_not_found():
    with pytest.raises(ImportError, match="NoSuchClass"):
        exec("from rlhf_conformance.adapter import NoSuchClass", {})
