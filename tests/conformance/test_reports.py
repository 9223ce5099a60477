"""The JSON report and the text of a failure: what is in them, and which files are no reports."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from importlib import resources
from types import SimpleNamespace
from typing import Any

import pytest

from rlhf_conformance import check
from rlhf_conformance.reporting import FILE_NAME, ReportError, read, to_json, write
from rlhf_conformance.reporting.stored import checksum
from rlhf_conformance.reporting.terminal import describe
from rlhf_conformance.results import LOST, Failure, Report, Result
from rlhf_conformance.run.known import KnownFailure
from rlhf_conformance.run.loading import load_adapter
from rlhf_conformance.run.plugin import ClauseFailed, ClauseItem
from rlhf_spec.clauses import clause
from samples import SHIFTED_VALUES

jsonschema = pytest.importorskip("jsonschema")


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return json.loads(resources.files("rlhf_conformance").joinpath("report.schema.json").read_text())


@pytest.fixture(scope="module")
def report(hostile) -> Report:
    """Passes, failures with a place, an error, an accepted failure, clauses not provided, a lost one."""
    only = ("log-probs", "positions.cumsum", "policy-loss.gradient", "policy-loss.ratio", "value-loss.clip")
    known = (KnownFailure("log-probs.temperature", "no temperature here"),)
    adapter = load_adapter(hostile("answers.py:Mixed"))
    found = check(adapter, only=only, profile="smoke", seed=3, known_failures=known)
    lost = Result("sequences.truncation", "MUST", LOST, reason="the process ended")
    return replace(found, results=(*found.results, lost))


def test_the_report_has_what_the_tests_below_need(report):
    verdicts = {result.verdict for result in report.results}
    assert verdicts == {"pass", "fail", "error", "known-failure", "not-provided", "lost"}
    assert report.exit_status == 1


def test_a_report_comes_back_as_it_was_written(report, tmp_path):
    again = read(write(report, tmp_path / "new" / "folder"))
    assert again.results == report.results
    assert to_json(again) == json.loads(json.dumps(to_json(report)))


@pytest.mark.parametrize("error", [math.nan, math.inf, -math.inf])
def test_a_report_with_numbers_that_are_not_finite_is_still_json(error, report, tmp_path, schema):
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    failure = Failure("loss", "", "0", str(error), error, 1e-6)
    broken = Result("policy-loss.clip", "MUST", "fail", "nan", margin=None, failure=failure)
    path = write(replace(report, results=(broken,)), tmp_path)
    jsonschema.validate(json.loads(path.read_text(), parse_constant=refuse), schema)
    assert read(path).result("policy-loss.clip").verdict == "fail"


def test_a_report_fits_its_schema(report, schema):
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(json.loads(json.dumps(to_json(report))), schema)


def test_a_report_of_nothing_fits_its_schema(report, schema):
    jsonschema.validate(to_json(replace(report, results=())), schema)


def edited(change: Callable[[dict[str, Any]], None]) -> Callable[[str], str]:
    def edit(text: str) -> str:
        data = json.loads(text)
        change(data)
        return json.dumps(data)

    return edit


def first(data: dict[str, Any], verdict: str) -> dict[str, Any]:
    return next(row for row in data["results"] if row["verdict"] == verdict)


def footed(data: dict[str, Any]) -> None:
    data["footer"].update(results=len(data["results"]))


def signed(data: dict[str, Any]) -> None:
    data["footer"].update(sha256=checksum(data))


def twice(text: str) -> str:
    """One key of an object a second time, with another value, which `json.loads` alone would take for the only one."""
    return text.replace('"exit_status": 1', '"exit_status": 1, "exit_status": 0', 1)


# What was done to the file, and what the refusal must say.
SPOILED = {
    "half of it": (lambda text: text[: len(text) // 2], "not the whole of it"),
    "all but the end": (lambda text: text.rstrip()[:-1], "not the whole of it"),
    "empty": (lambda text: "", "not JSON"),
    "two reports in one file": (lambda text: text + text, "is it there twice?"),
    "a list": (lambda text: "[]", "not a report"),
    "nested without an end": (lambda text: "[" * 100_000, "nested too deeply"),
    "a key twice": (twice, "'exit_status' twice"),
    "a number that is none": (lambda text: text.replace('"seconds": ', '"seconds": NaN, "x": ', 1), "NaN"),
    "another schema": (lambda text: text.replace("report/2", "report/1", 1), "not a report of schema"),
    "no footer": (edited(lambda d: d.pop("footer")), "cut short"),
    "a footer that is a list": (edited(lambda d: d.update(footer=[1])), "changed by hand"),
    "a result less": (edited(lambda d: d["results"].pop()), "cut short"),
    "a result less, and the footer mended": (edited(lambda d: (d["results"].pop(), footed(d))), "summary"),
    "a clause twice": (edited(lambda d: (d["results"].append(d["results"][0]), footed(d))), "twice"),
    "a failure made a pass": (edited(lambda d: first(d, "fail").update(verdict="pass")), "summary"),
    "the verdict made green": (edited(lambda d: d["summary"].update(verdict="CONFORMANT", exit_status=0)), "summary"),
    "the exit status alone": (edited(lambda d: d["summary"].update(exit_status=0)), "summary"),
    "a count": (edited(lambda d: d["summary"]["counts"].update(fail=0)), "summary"),
    "no summary": (edited(lambda d: d.pop("summary")), "summary"),
    "no run": (edited(lambda d: d.pop("run")), "run"),
    "a verdict that there is not": (edited(lambda d: first(d, "pass").update(verdict="passed")), "passed"),
    "a clause that there is not": (edited(lambda d: first(d, "pass").update(clause="log-probs.nothing")), "nothing"),
    "a result without a clause": (edited(lambda d: d["results"][0].pop("clause")), "clause"),
    "a result with a key too many": (edited(lambda d: d["results"][0].update(color="green")), "color"),
    "a margin": (edited(lambda d: first(d, "pass").update(margin=0.125)), "after it was written"),
    "a number of examples": (edited(lambda d: first(d, "pass").update(examples=1000)), "after it was written"),
    "what a failure expected": (
        edited(lambda d: first(d, "fail")["failure"].update(expected="0")),
        "after it was written",
    ),
    "a failure's case": (edited(lambda d: first(d, "fail")["failure"].update(stored=None)), "after it was written"),
    "a sentence": (edited(lambda d: d["results"][0].update(sentence="Anything goes.")), "after it was written"),
    "the version of torch": (edited(lambda d: d["environment"].update(torch="1.0")), "after it was written"),
    "the seed": (edited(lambda d: d["run"].update(seed=4)), "after it was written"),
    "the checksum": (edited(lambda d: d["footer"].update(sha256="0" * 64)), "after it was written"),
    "no checksum": (edited(lambda d: d["footer"].pop("sha256")), "after it was written"),
    "a device that is a number, and the checksum mended": (
        edited(lambda d: (d["environment"].update(device=3), signed(d))),
        "does not fit report.schema.json: environment.device: 3 is not of type 'string'",
    ),
    "a seed that is a word, and the checksum mended": (
        edited(lambda d: (d["run"].update(seed="four"), signed(d))),
        "run.seed: 'four' is not of type 'integer'",
    ),
    "a chapter, and the checksum mended": (
        edited(lambda d: (d["results"][0].update(chapter="critic"), signed(d))),
        "do not follow from each other",
    ),
}


@pytest.mark.parametrize("name", SPOILED)
def test_a_spoiled_report_is_refused_with_a_message(name, report, tmp_path):
    spoil, says = SPOILED[name]
    path = write(report, tmp_path)
    path.write_text(spoil(path.read_text()))
    with pytest.raises(ReportError) as error:
        read(path)
    assert str(path) in str(error.value)
    assert says in str(error.value)


def test_a_report_whose_clauses_now_read_otherwise_is_still_read(report, tmp_path):
    """The specification may put a clause into other words; reports from before stay readable."""
    path = write(report, tmp_path)
    path.write_text(edited(lambda d: (d["results"][0].update(sentence="In other words."), signed(d)))(path.read_text()))
    assert read(path).results == report.results


def test_a_report_that_is_not_utf8_is_refused(report, tmp_path):
    path = write(report, tmp_path)
    path.write_bytes(path.read_bytes().replace(b"Mixed", b"Mix\xe9d", 1))
    with pytest.raises(ReportError, match="UTF-8"):
        read(path)


def test_a_report_that_is_not_there_is_refused(tmp_path):
    with pytest.raises((ReportError, FileNotFoundError), match=FILE_NAME):
        read(tmp_path / FILE_NAME)


@pytest.mark.parametrize("change", [{"verdict": "passed"}, {"reason": ""}, {"failure": None}, {"examples": -1}])
def test_the_schema_refuses_a_failure_that_lacks_something(change, report, schema):
    data = json.loads(json.dumps(to_json(report)))
    first(data, "fail").update(change)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(data, schema)


# --- the text of a failure ----------------------------------------------------------------------------------------

COMMAND = "rlhf-conformance check my_trainer.py:Mine --seed 3"


def line(text: str, label: str) -> str:
    """What stands behind a label of a failure's text."""
    (found,) = re.findall(rf"^  {label} +(.*)$", text, re.MULTILINE)
    return found


def test_the_text_of_a_failure_has_everything(report):
    result = report.result("policy-loss.gradient")
    text = describe(result, COMMAND)
    assert text.splitlines()[0] == "FAIL policy-loss.gradient (MUST)"
    assert line(text, "the clause") == clause("policy-loss.gradient").sentence
    assert line(text, "what") == "gradient with respect to the new log-prob"
    assert line(text, "where").startswith("row 0, column 0")
    assert line(text, "repeat with") == COMMAND
    assert line(text, "case").startswith("PolicyLossCase(log_probs=")
    expected, actual = float(line(text, "expected")), float(line(text, "actual"))
    assert actual == pytest.approx(2 * expected)
    difference, allowed = re.fullmatch(r"(\S+), allowed (\S+)", line(text, "difference")).groups()
    assert float(difference) == pytest.approx(abs(expected), rel=1e-2)
    assert 0 < float(allowed) < float(difference)


def test_the_text_of_an_error_names_the_method_and_the_line(report):
    text = describe(report.result("value-loss.clip"), COMMAND)
    assert text.splitlines()[0] == "ERROR value-loss.clip (MUST)"
    assert line(text, "the clause") == clause("value-loss.clip").sentence
    assert re.fullmatch(
        r"value_loss raised RuntimeError: .*shape.* \(answers\.py:\d+ in value_loss\)", line(text, "what")
    )
    assert line(text, "case").startswith("ValueLossCase(values=")


def test_a_model_failure_names_the_sample_and_the_action(hostile):
    adapter = load_adapter(hostile("answers.py:OneActionOff"))
    found = check(adapter, only=["actor.log-probs"], profile="smoke").result("actor.log-probs")
    assert found.verdict == "fail"
    assert found.failure.place == "sample 0, action 0"
    assert "ModelCase(probe=Probe(" in found.failure.case
    assert "prompt=(" in found.failure.case


def test_a_failing_case_is_made_small(hostile):
    """One row, one action: nothing in the case is there that the failure does not need."""
    adapter = load_adapter(hostile("answers.py:Mixed"))
    case = check(adapter, only=["policy-loss.gradient"], profile="smoke").result("policy-loss.gradient").failure.case
    assert "mask=((1,),)" in case


def test_the_text_of_a_failure_says_what_is_wrong():
    text = describe(SHIFTED_VALUES)
    failure = SHIFTED_VALUES.failure
    assert re.findall(r"^  diagnosis    (.*)$", text, re.MULTILINE) == [d.sentence for d in failure.diagnoses]
    (parted,) = re.findall(r"^  -> (.*)$", text, re.MULTILINE)
    assert parted.split("  ")[0] == "value at the state before action 0"


def test_pytest_shows_a_failure_as_the_terminal_does():
    shown = ClauseItem.repr_failure(None, SimpleNamespace(value=ClauseFailed(SHIFTED_VALUES)))
    assert shown == describe(SHIFTED_VALUES)


# --- through the command ------------------------------------------------------------------------------------------


def test_the_command_writes_a_report_and_repeats_its_failure(command, hostile, tmp_path, schema):
    """Run it, type what it says under "repeat with", and get the same failure on the same case."""
    once = command(
        *("check", hostile("answers.py:Mixed"), "-o", "factor=3", "--profile", "smoke", "--seed", "7", "-n", "1"),
        *("--dtype", "float64", "--only", "policy-loss.gradient", "--only", "policy-loss.ratio", "--report", "out"),
    )
    assert once.status == 1
    report = read(tmp_path / "out" / FILE_NAME)
    jsonschema.validate(json.loads((tmp_path / "out" / FILE_NAME).read_text()), schema)
    assert report.subject["options"] == {"factor": 3}
    assert (report.run["seed"], report.environment["dtype"]) == (7, "float64")
    assert describe(report.result("policy-loss.gradient")) in once.stdout
    assert line(once.stdout, "repeat with").endswith("--only policy-loss.gradient --replay out/report.json")
    words = shlex.split(line(once.stdout, "repeat with"))
    assert words[:2] == ["rlhf-conformance", "check"]
    again = command(*words[1:])
    assert again.status == 1
    for label in ("expected", "actual", "where", "difference", "case"):
        assert line(again.stdout, label) == line(once.stdout, label)


def test_the_report_of_an_adapter_that_never_lived_fits_the_schema(command, hostile, tmp_path, schema):
    """And on GitHub the run says so there."""
    done = command(
        *("check", hostile("processes.py:Exits"), "--profile", "smoke", "-n", "1"),
        *("--only", "packing.tokens", "--report", "out"),
        GITHUB_ACTIONS="true",
        GITHUB_STEP_SUMMARY=str(tmp_path / "step"),
    )
    assert done.status == 3
    assert "::error title=lost packing.tokens (" in done.stdout
    assert (tmp_path / "step").read_text().strip() == (tmp_path / "out" / "summary.md").read_text().strip()
    jsonschema.validate(json.loads((tmp_path / "out" / FILE_NAME).read_text()), schema)
    assert read(tmp_path / "out" / FILE_NAME).verdict == "INCOMPLETE"


def test_the_schema_lists_the_verdicts_of_the_suite(schema):
    from rlhf_conformance.results import VERDICTS

    assert tuple(schema["$defs"]["verdict"]["enum"]) == VERDICTS


def test_the_schema_has_the_name_that_reports_carry(schema, report):
    assert schema["$id"] == to_json(report)["schema"]
