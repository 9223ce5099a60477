"""What is made of a report: JUnit XML, Markdown, GitHub's annotations and the page, of one of everything."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from rlhf_conformance import reporting
from rlhf_conformance.reporting import github, junit, markdown, page, scripts
from rlhf_conformance.reporting.replaying import read_cases
from samples import HOSTILE, RESULTS, RUN, SHIFTED_VALUES, passed, sample_report

ROOT = Path(__file__).resolve().parents[2]
COMMAND = RUN["command"]
SHIFTED = SHIFTED_VALUES.clause
REPLAY = f"{COMMAND} --only {SHIFTED} --replay out/report.json"


@pytest.fixture(scope="module")
def report():
    return sample_report()


# --- the folder ---------------------------------------------------------------------------------------------------


def test_a_report_is_a_folder_of_files(report, tmp_path):
    assert reporting.write(report, tmp_path / "out") == tmp_path / "out" / "report.json"
    written = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*")}
    assert written >= {"report.json", "report.html", "junit.xml", "summary.md", f"cases/{SHIFTED}.json"}


def test_the_case_beside_a_report_is_that_of_the_failure(report, tmp_path):
    reporting.write(report, tmp_path)
    assert read_cases(tmp_path / "cases" / f"{SHIFTED}.json") == {SHIFTED: SHIFTED_VALUES.failure.stored}
    assert read_cases(tmp_path / "report.json") == {SHIFTED: SHIFTED_VALUES.failure.stored}


def test_a_second_report_leaves_no_case_of_the_first(report, tmp_path):
    (tmp_path / "cases").mkdir()
    (tmp_path / "cases" / "mine.json").write_text("{}")
    reporting.write(report, tmp_path)
    reporting.write(sample_report(passed("policy-loss.clip")), tmp_path)
    assert [path.name for path in (tmp_path / "cases").iterdir()] == ["mine.json"]


def test_a_script_that_cannot_be_made_costs_no_report(report, tmp_path, monkeypatch):
    def broken(result, report):
        raise ValueError("no such case")

    monkeypatch.setattr(scripts, "script", broken)
    reporting.write(report, tmp_path)
    assert "ValueError" in (tmp_path / "scripts" / f"{SHIFTED}.py").read_text()
    assert (tmp_path / "report.html").exists()


def test_the_script_of_a_failure_is_beside_the_report_and_on_the_page(report, tmp_path, monkeypatch):
    monkeypatch.setattr(scripts, "script", lambda result, report: SCRIPT if result.clause == SHIFTED else None)
    reporting.write(report, tmp_path)
    assert [path.name for path in (tmp_path / "scripts").iterdir()] == [f"{SHIFTED}.py"]
    assert SCRIPT in Page((tmp_path / "report.html").read_text()).text


def test_writing_reports_needs_no_torch(tmp_path):
    code = (
        "import sys; from pathlib import Path\n"
        "from samples import sample_report; from rlhf_conformance import reporting\n"
        f"reporting.read(reporting.write(sample_report(), Path({str(tmp_path)!r})))\n"
        "print('torch' in sys.modules)"
    )
    folders = os.pathsep.join(str(ROOT / name) for name in ("spec", "reference", "conformance", "tests"))
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": folders},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.strip() == "False", done.stderr


# --- the command in a report --------------------------------------------------------------------------------------


def test_a_failure_is_repeated_on_its_stored_case(report):
    assert report.command(SHIFTED_VALUES) == REPLAY


def test_what_has_no_stored_case_is_repeated_by_its_seed(report):
    assert report.command(report.result("critic.head-name")) == f"{COMMAND} --only critic.head-name"


def test_without_a_written_report_a_failure_is_repeated_by_its_seed():
    assert sample_report(run={"report": ""}).command(SHIFTED_VALUES) == f"{COMMAND} --only {SHIFTED}"


def test_the_path_of_a_report_is_quoted():
    assert (
        sample_report(run={"report": "my out/report.json"})
        .command(SHIFTED_VALUES)
        .endswith(" --replay 'my out/report.json'")
    )


def test_an_object_that_was_checked_in_python_has_no_command():
    assert sample_report(run={"command": ""}).command(SHIFTED_VALUES) == ""


# --- JUnit --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tree(report):
    return ET.fromstring(junit.text(report, {}))


def case(tree, clause):
    (found,) = [case for case in tree.iter("testcase") if case.get("name") == f"{clause}[cpu-float32]"]
    return found


def test_junit_has_a_test_for_each_clause(tree):
    assert [case.get("name") for case in tree.iter("testcase")] == [f"{r.clause}[cpu-float32]" for r in RESULTS]


KINDS = {
    "log-probs.temperature": [],
    "positions.pads": ["skipped"],
    SHIFTED: ["failure"],
    "critic.head-name": ["error"],
    "policy-loss.overflow": ["skipped"],
    "policy-loss.mask": ["skipped"],
    "value-loss.clip": ["error"],
    "value-loss.half": ["error"],
}


@pytest.mark.parametrize("clause", KINDS)
def test_what_a_verdict_is_in_junit(clause, tree):
    assert [child.tag for child in case(tree, clause)] == KINDS[clause]


def test_a_broken_should_of_a_strict_run_is_a_failure_in_junit():
    tree = ET.fromstring(junit.text(sample_report(run={"strict": True}), {}))
    assert case(tree, "policy-loss.overflow").find("failure") is not None


def test_the_totals_of_junit_are_those_of_its_suites(tree):
    for key, tag in (("tests", "testcase"), ("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        count = len(list(tree.iter(tag)))
        assert int(tree.get(key)) == count
        assert sum(int(suite.get(key)) for suite in tree.iter("testsuite")) == count


def test_a_failure_in_junit_says_what_it_says_on_the_terminal(tree):
    text = case(tree, SHIFTED).find("failure").text
    assert SHIFTED_VALUES.failure.diagnoses[0].sentence in text
    assert f"repeat with  {REPLAY}" in text


def test_junit_says_what_it_ran_with(tree):
    properties = {p.get("name"): p.get("value") for p in next(tree.iter("properties"))}
    assert properties["options"] == "packing=true"
    assert properties["dtype"] == "float32"
    assert "torch 2.13.0" in properties["versions"]


def test_characters_that_xml_has_not_are_spelled_out():
    tree = ET.fromstring(junit.text(sample_report(run={"strict": True}), {}))
    said = case(tree, "policy-loss.overflow").find("failure").text
    assert r"\x1b[31m \x00 ]]> é" in said
    assert '<script>alert("&amp;")</script>' in said


# --- Markdown -----------------------------------------------------------------------------------------------------


def test_the_summary_begins_with_the_verdict(report):
    assert markdown.summary(report, {}).splitlines()[0] == "## ❌ Mine packing=true: NOT CONFORMANT"


def test_a_summary_with_room_has_every_failure_with_its_diagnosis_and_command(report, monkeypatch):
    monkeypatch.setattr(markdown, "LONGEST_SUMMARY", 100_000)
    text = markdown.summary(report, {})
    for said in (SHIFTED_VALUES.failure.diagnoses[0].sentence, REPLAY, "sample 0, action 0", "0.4171", "-1.2039"):
        assert said in text
    assert text.count("<details>") == text.count("</details>") == 5


def test_errors_of_one_cause_stand_in_the_summary_once(report):
    assert "The same for 1 more: critic.gradient." in markdown.summary(report, {})


def test_the_tables_of_the_summary_have_rows_of_one_length(report):
    tables = re.findall(r"(?:^\|.*\n)+", markdown.summary(report, {}), re.M)
    assert len(tables) >= 2
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


def test_text_of_an_adapter_is_no_markup_in_the_summary(report):
    outside = re.sub(r"^(`{3,})\w*\n.*?^\1$", "", markdown.summary(report, {}), flags=re.M | re.S)
    assert "<script>" not in outside
    assert "&lt;script&gt;" in outside


def test_a_case_cannot_end_its_block():
    assert markdown.fenced("a\n```\nb").startswith("````\n")


def test_a_long_summary_ends_with_how_much_is_left_out(monkeypatch, report):
    monkeypatch.setattr(markdown, "LONGEST_SUMMARY", 3000)
    text = markdown.summary(report, {})
    assert re.search(r"^(\d) more are in report\.html\.$", text, re.M)[1] == str(5 - text.count("<details>"))


# --- GitHub -------------------------------------------------------------------------------------------------------


@pytest.fixture
def annotations(report):
    said: list[str] = []
    github.annotate(report, {"GITHUB_ACTIONS": "true"}, said.append)
    return said


def test_every_failure_is_an_annotation(annotations):
    levels = [re.match(r"::(\w+) title=(\S+) (\S+) ", text).groups() for text in annotations]
    assert levels == [
        ("error", "1", "cause%2C"),
        ("error", "fail", SHIFTED),
        ("warning", "fail", "policy-loss.overflow"),
        ("error", "lost", "value-loss.clip"),
        ("error", "inconclusive", "value-loss.half"),
    ]


def test_an_annotation_is_one_line_with_the_diagnosis_and_the_command(annotations):
    assert "\n" not in annotations[1]
    message = annotations[1].split("::", 2)[2]
    assert SHIFTED_VALUES.failure.diagnoses[0].sentence in message
    assert message.endswith(f"%0A{REPLAY}")


def test_an_annotation_is_escaped():
    odd = sample_report(run={"command": "50%\r\n"}, subject={"name": "a:b,c%"})
    said: list[str] = []
    github.annotate(odd, {"GITHUB_ACTIONS": "true"}, said.append)
    assert "(a%3Ab%2Cc%25 packing=true)::" in said[1]
    assert "%0A50%25%0D%0A --only" in said[1]


def test_the_summary_is_added_to_that_of_the_step(report, tmp_path):
    path = tmp_path / "summary"
    path.write_text("what was there\n")
    environ = {"GITHUB_STEP_SUMMARY": str(path)}
    assert github.summarize(report, environ) == ""
    github.annotate(report, environ, pytest.fail)
    assert path.read_text(errors="replace").startswith("what was there\n## ❌ Mine")


def test_elsewhere_github_is_told_nothing(report):
    assert github.summarize(report, {}) == ""
    github.annotate(report, {}, pytest.fail)


# --- the page -----------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Tags with their attributes, and all text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag: str, word: str = "") -> list[dict[str, str | None]]:
        return [a for t, a in self.tags if t == tag and (not word or word in (a.get("class") or "").split())]


SCRIPT = "import torch  # <the failure>"


@pytest.fixture(scope="module")
def html(report):
    return page.text(report, {SHIFTED: SCRIPT})


@pytest.fixture(scope="module")
def parsed(html):
    return Page(html)


def test_the_page_says_the_verdict_and_what_was_checked(parsed):
    for said in ("NOT CONFORMANT", "Mine packing=true", "my_trainer.py:Mine", "torch 2.13.0", "4 processes"):
        assert said in parsed.text


def test_the_page_loads_nothing_and_runs_nothing(parsed):
    assert not [tag for tag, _ in parsed.tags if tag in ("script", "link", "img", "iframe", "object", "base")]
    for tag, attributes in parsed.tags:
        assert not {"src", "srcset", "onclick", "onload"} & set(attributes), tag
        target = attributes.get("href", "#")
        assert target.startswith(("#", "cases/", "scripts/", "report.json")), target
    assert any("default-src 'none'" in a.get("content", "") for a in parsed.all("meta"))


def test_text_of_an_adapter_is_no_markup_on_the_page(html, parsed):
    assert '<script>alert("&amp;")' not in html
    assert HOSTILE.replace("\x00", "\ufffd") in parsed.text.replace("\x00", "\ufffd")


def test_the_links_of_the_page_lead_somewhere(parsed, report, tmp_path):
    reporting.write(report, tmp_path)
    ids = {a["id"] for _, a in parsed.tags if "id" in a}
    for link in parsed.all("a"):
        target = link["href"]
        if target.startswith("#"):
            assert target[1:] in ids, target
        elif not target.startswith("scripts/"):
            assert (tmp_path / target).exists(), target


def test_no_id_of_the_page_is_there_twice(parsed):
    ids = [a["id"] for _, a in parsed.tags if "id" in a]
    assert len(set(ids)) == len(ids)


def test_failures_come_first_and_warnings_last(parsed):
    cards = [a["id"] for a in parsed.all("div", "body")]
    assert cards == ["critic.head-name", SHIFTED, "value-loss.clip", "value-loss.half", "policy-loss.overflow"]


def test_every_clause_is_on_the_page_with_its_sentence(parsed, report):
    for row in reporting.to_json(report)["results"]:
        assert row["clause"] in parsed.text
        assert row["sentence"].replace("`", "") in parsed.text


def test_a_failure_on_the_page_has_everything(parsed):
    failure = SHIFTED_VALUES.failure
    wanted = [
        failure.expected,
        failure.actual,
        failure.place,
        failure.count,
        failure.note,
        failure.case,
        REPLAY,
        SCRIPT,
    ]
    wanted += [diagnosis.sentence for diagnosis in failure.diagnoses]
    wanted += [text for step in failure.steps for text in (step.label, step.expected, step.actual)]
    wanted += [failure.picture.caption, *failure.picture.labels, *failure.picture.remarks]
    assert [said for said in wanted if said not in parsed.text] == []
    assert "8,146 times what is allowed" in parsed.text


def test_the_picture_has_a_cell_for_each_token(parsed):
    drawn = [cell for row in SHIFTED_VALUES.failure.picture.rows for cell in row]
    cells = [a["class"].split() for a in parsed.all("td", "cell")]
    assert [(c[1], "expected" in c, "read" in c) for c in cells] == [(d.kind, d.expected, d.read) for d in drawn]


def test_a_cell_says_in_words_what_its_color_says(parsed):
    assert parsed.all("td", "cell")[3]["title"] == (
        "a token of the response, an answer should be read here, an answer was read here"
    )


def test_the_bar_of_a_clause_is_as_long_as_its_error_is_of_its_budget(html):
    row = re.search(r"<code>policy-loss\.clip</code>.*?</tr>", html, re.S)[0]
    assert 'class="bar amber"' in row
    assert "width: 93.0%" in row
    assert ">0.93<" in row


def test_the_bar_of_a_failure_is_that_of_the_difference_that_broke_it(html):
    row = re.search(r'<th scope="row" class="says"><a href="#policy-loss.overflow">.*?</tr>', html, re.S)[0]
    assert 'class="bar red"' in row
    assert ">2.00<" in row


@pytest.mark.parametrize("results", [(passed("policy-loss.clip"),), RESULTS[1:2], RESULTS[-1:]])
def test_a_page_of_another_verdict_says_so(results):
    report = sample_report(*results)
    text = Page(page.text(report, {})).text
    assert report.verdict in text
    assert ("What did not hold" in text) == (report.unfinished != ())
    assert ("Nothing was tested" in text) == (results == RESULTS[1:2])


def test_the_page_of_a_report_that_was_read_is_the_page_of_that_report(report, tmp_path, html):
    again = reporting.read(reporting.write(report, tmp_path))
    assert page.text(again, {SHIFTED: SCRIPT}) == html


def test_a_report_of_an_adapter_that_never_lived_has_all_files(tmp_path):
    """Nothing is known of its methods and little of the environment."""
    short = {key: value for key, value in sample_report().environment.items() if key not in ("device_name", "tf32")}
    dead = sample_report(RESULTS[-2])
    dead = replace(dead, subject={"adapter": "a.py:A", "name": "a.py:A", "options": {}}, environment=short)
    reporting.write(dead, tmp_path)
    assert "INCOMPLETE" in (tmp_path / "report.html").read_text()
    assert json.loads((tmp_path / "report.json").read_text())["summary"]["exit_status"] == 3
