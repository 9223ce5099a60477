"""Exit status 4, files that are whole, and text of adapters that is nowhere a command."""

from __future__ import annotations

import ast
import json
import os

import pytest

from rlhf_conformance import escaping, files
from rlhf_conformance.literals import literal

USAGE, BROKEN = 2, 4
ADAPTER = """
from rlhf_conformance import Adapter
class Odd(Adapter):
    name = "a\\ud800\\n::error::x \\x1b[31m [red]b[/] \u2603"
    def position_ids(self, mask):
        return (mask.cumsum(-1) - 1).clamp(min=0)
"""
CHECK = ("check", "odd.py:Odd", "--profile", "smoke", "--only", "positions.pads", "-n", "1")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "odd.py").write_text(ADAPTER, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_name_that_the_terminal_cannot_show_costs_no_verdict(encoding, command, folder):
    done = command(*CHECK, "--report", "out", cwd=folder, PYTHONIOENCODING=encoding)
    assert done.status == 0, done.said
    assert "\n::error" not in done.stdout
    assert (folder / "out" / "report.json").exists()


def test_a_summary_that_cannot_be_written_is_status_4_behind_the_report(command, folder):
    done = command(*CHECK, "--report", "out", cwd=folder, GITHUB_STEP_SUMMARY=str(folder / "no" / "summary.md"))
    assert done.status == BROKEN
    assert "the run is CONFORMANT, but its summary cannot be written" in done.said
    assert (folder / "out" / "report.json").exists()


@pytest.mark.parametrize(
    ("name", "text", "option", "says"),
    [
        ("deep.json", "[" * 100_000, "--replay", "nested too deeply"),
        ("list.json", "[]", "--replay", "is not a report of schema"),
        ("bytes.json", "\udcff", "--replay", "not UTF-8"),
        (
            "case.json",
            '{"schema": "rlhf-conformance/case/1", "clause": "positions.pads"}',
            "--replay",
            "case.schema.json",
        ),
        ("case.json", '{"schema": "rlhf-conformance/case/1", "clause": 3, "case": {}}', "--replay", "case.schema.json"),
        ("deep.toml", "x = " + "[" * 5000, "--known-failures", "is not TOML"),
        ("long.toml", "x = " + "1" * 10_000, "--known-failures", "is not TOML"),
    ],
)
def test_a_malformed_file_is_a_sentence_that_names_it_and_status_2(name, text, option, says, command, folder):
    (folder / name).write_text(text, encoding="utf-8", errors="surrogateescape")
    done = command(*CHECK, option, name, cwd=folder)
    assert done.status == USAGE
    assert name in done.said
    assert says in done.said
    assert "Traceback" not in done.said


def test_a_case_that_is_nested_deeply_is_refused(tmp_path):
    case = {"type": "Case"}
    for _ in range(files.DEEPEST):
        case = {"type": "Case", "case": case}
    (tmp_path / "case.json").write_text(json.dumps(case))
    with pytest.raises(files.FileError, match="nested too deeply"):
        files.read_json(tmp_path / "case.json")


def test_what_cannot_be_done_by_the_suite_itself_is_status_4(monkeypatch, capsys):
    from rlhf_conformance import cli

    monkeypatch.setattr(cli, "run_explain", lambda arguments: 1 / 0)
    assert cli.main(["explain", "positions.pads"]) == BROKEN
    assert "the suite itself failed, please report it: ZeroDivisionError" in capsys.readouterr().err


def test_a_file_is_never_found_half_written(tmp_path, monkeypatch):
    path = tmp_path / "report.json"
    files.write_whole(path, "before")

    def interrupted(*names):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        files.write_whole(path, "after")
    assert [file.name for file in tmp_path.iterdir()] == ["report.json"]
    assert path.read_text() == "before"


@pytest.mark.parametrize("text", ["\0", "\n", "\r", '"', "\\", "\u2028", "\x1b[2J", "\ud800", '"""', "é☃"])
def test_any_text_is_one_line_of_python_that_gives_it_back(text):
    assert ast.literal_eval(literal(text)) == text
    assert len(literal(text).splitlines()) == 1


def test_a_number_that_is_none_is_no_code_in_a_script():
    tree = ast.parse(literal({"float": '"); import os; ("'}))
    assert len(tree.body) == 1


@pytest.mark.parametrize(
    "text", ["::error::x", "  ::add-mask::x", "a\n::error::x", "##[error]x", "\x1b[31mred", "a\rb"]
)
def test_no_line_of_a_log_is_a_command(text):
    shown = escaping.logged(text)
    assert not any(line.lstrip().startswith("::") for line in shown.splitlines())
    assert "##[" not in shown
    assert all(c.isprintable() or c == "\n" for c in shown)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("@everyone", "@&#8203;everyone"),
        ("see #1", "see #&#8203;1"),
        ("# title", "\\# title"),
        ("- item", "\\- item"),
        ("a|b", r"a\|b"),
        ("<b>", "&lt;b&gt;"),
        ("`a`", "`a`"),
        ("a`b", r"a\`b"),
        ("~~gone~~", r"\~\~gone\~\~"),
    ],
)
def test_markdown_shows_text_as_it_is(text, shown):
    from rlhf_conformance.reporting.markdown import escaped

    assert escaped(text) == shown


def test_the_nightly_profile_keeps_the_failing_case_for_the_next_run(tmp_path, hostile):
    from rlhf_conformance.run.loading import load_adapter
    from rlhf_conformance.run.plan import planned
    from rlhf_conformance.run.suite import Suite

    asked = {"profile": "full", "database": str(tmp_path / "kept")}
    only = ["policy-loss.ratio"]
    first = Suite(planned((), only, **asked), load_adapter(hostile("answers.py:ReturnsNan"))).run(*only)
    assert any((tmp_path / "kept" / "policy-loss.ratio").rglob("*"))
    again = Suite(planned((), only, seed=7, **asked), load_adapter(hostile("answers.py:ReturnsNan"))).run(*only)
    assert again.failure.case == first.failure.case
