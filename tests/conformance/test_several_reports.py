"""`matrix` and `diff`: reports side by side, and one after the other."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from rlhf_conformance import reporting
from rlhf_conformance.cli import main
from rlhf_conformance.reporting.diff import changes, heading
from rlhf_conformance.results import VERDICTS, Failure, Result
from samples import RESULTS, SHIFTED_VALUES, passed, sample_report

ROOT = Path(__file__).resolve().parents[2]
CLIP = "policy-loss.clip"


@pytest.fixture
def written(tmp_path):
    """`written("name", report)`: the path of that report's folder."""

    def write(name, report):
        reporting.write(report, tmp_path / name)
        return str(tmp_path / name)

    return write


def judged(verdict: str, clause: str = CLIP) -> Result:
    failure = Failure("loss", "", "0", "1") if verdict == "fail" else None
    return passed(clause) if verdict == "pass" else Result(clause, "MUST", verdict, f"it is {verdict}", failure=failure)


# --- matrix -------------------------------------------------------------------------------------------------------


@pytest.fixture
def two(written):
    half = sample_report(passed(CLIP), passed("value-loss.half"), environment={"dtype": "bfloat16"})
    return written("a", sample_report()), written("b", half)


def rows(text):
    lines = [re.split(r" *(?<!\\)\| *", line)[1:-1] for line in text.splitlines()]
    return lines[0], {line[0]: line[1:] for line in lines[2:]}


def test_the_matrix_has_a_column_for_each_report_and_a_row_for_each_clause(two, capsys):
    assert main(["matrix", *two]) == 0
    head, body = rows(capsys.readouterr().out)
    assert head == ["clause", "Mine packing=true, cpu float32", "Mine packing=true, cpu bfloat16"]
    red, green = body["**verdict**"]
    assert red.startswith("❌ NOT CONFORMANT: 3 of 11 clauses passed, 1 accepted as a known failure, 1 not provided")
    assert green.startswith("✅ CONFORMANT: ")
    assert body["`policy-loss.clip`"] == ["pass", "pass"]
    assert body["`value-loss.half`"] == ["**inconclusive**", "pass"]
    assert body[f"`{SHIFTED_VALUES.clause}`"] == ["**fail**", ""]
    assert body["`positions.pads`"] == ["–", ""]
    assert {f"`{result.clause}`" for result in RESULTS} <= set(body)


def test_the_matrix_counts_the_passes_of_each_chapter(two, capsys):
    main(["matrix", *two])
    _, body = rows(capsys.readouterr().out)
    assert body["**critic**"] == ["1 of 4", ""]
    assert body["**value-loss**"] == ["0 of 2", "1 of 1"]


def test_the_matrix_is_a_page_too(two, capsys, tmp_path):
    page = tmp_path / "matrix.html"
    assert main(["matrix", *two, "--html", str(page)]) == 0
    text = page.read_text()
    assert text.count('class="tone red"') == 1 + sum(r.verdict in ("fail", "error") for r in RESULTS)
    for said in ("cpu bfloat16", "critic.state-before", "known-failure", "CONFORMANT"):
        assert said in text


def test_reports_of_one_subject_are_told_apart_by_their_files(written, capsys):
    paths = [written(f"seed{seed}", sample_report(run={"seed": seed})) for seed in (1, 2)]
    main(["matrix", *paths])
    head, _ = rows(capsys.readouterr().out)
    assert "seed1" in head[1] and "seed2" in head[2]


def test_a_report_that_is_given_twice_is_refused(written, capsys):
    path, copy = written("a", sample_report()), written("b", sample_report())
    for twice in ([path, path], [path, copy]):
        assert main(["matrix", *twice]) == 2
        assert "is the same report as" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["matrix", "diff"])
def test_a_report_that_was_changed_is_refused(command, two, capsys, tmp_path):
    file = tmp_path / "b" / "report.json"
    file.write_text(file.read_text().replace('"margin": 0.25', '"margin": 0.2', 1))
    assert main([command, *two]) == 2
    assert f"{file} was changed after it was written" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["matrix", "diff"])
def test_a_report_that_is_not_there_is_refused(command, two, capsys):
    assert main([command, two[0], "nothing.json"]) == 2
    assert "cannot read nothing.json" in capsys.readouterr().err


def test_a_page_that_cannot_be_written_is_bad_usage(two, capsys, tmp_path):
    (tmp_path / "no").write_text("a file, and no folder")
    assert main(["matrix", *two, "--html", str(tmp_path / "no" / "folder.html")]) == 2
    assert "cannot write" in capsys.readouterr().err


# --- diff ---------------------------------------------------------------------------------------------------------


def kinds(old, new, margin=0.1):
    return {c.clause: c.kind for c in changes(sample_report(*old), sample_report(*new), margin)}


@pytest.mark.parametrize("verdict", [v for v in VERDICTS if v != "pass"])
def test_a_clause_that_passed_and_passes_no_more_regressed(verdict):
    assert kinds([judged("pass")], [judged(verdict)]) == {CLIP: "regressed"}


@pytest.mark.parametrize("verdict", [v for v in VERDICTS if v != "pass"])
def test_a_clause_that_passes_now_improved(verdict):
    assert kinds([judged(verdict)], [judged("pass")]) == {CLIP: "improved"}


def test_other_verdicts_have_changed():
    assert kinds([judged("not-provided")], [judged("fail")]) == {CLIP: "changed"}


@pytest.mark.parametrize("verdict", VERDICTS)
def test_what_stayed_is_not_mentioned(verdict):
    assert kinds([judged(verdict)], [judged(verdict)]) == {}


def test_a_clause_that_is_new_is_listed():
    assert kinds([passed("critic.shape")], [passed("critic.shape"), judged("fail")]) == {CLIP: "new"}


def test_a_clause_that_is_gone_regressed_if_it_passed():
    stays = passed("critic.shape")
    assert kinds([stays, judged("fail")], [stays]) == {CLIP: "gone"}
    assert kinds([stays, judged("pass")], [stays]) == {CLIP: "regressed"}


# old error / budget, new one, what is wanted to be left, whether that is too little
MARGINS = {
    "fell below": (0.5, 0.95, 0.1, True),
    "was below, fell further": (0.93, 0.97, 0.1, True),
    "was below, and stays": (0.95, 0.95, 0.1, False),
    "was below, and fell by less than is shown": (0.951, 0.953, 0.1, False),
    "was below, rose": (0.97, 0.95, 0.1, False),
    "fell, and is still above": (0.1, 0.89, 0.1, False),
    "fell to the threshold": (0.1, 0.9, 0.1, False),
    "another threshold": (0.1, 0.6, 0.5, True),
    "no threshold": (0.1, 1.0, 0.0, False),
    "nothing was compared before": (None, 0.95, 0.1, True),
    "nothing is compared now": (0.5, None, 0.1, False),
}


@pytest.mark.parametrize("name", MARGINS)
def test_a_margin_that_fell_below_the_threshold_is_a_regression(name):
    old, new, threshold, bad = MARGINS[name]
    assert kinds([passed(CLIP, old)], [passed(CLIP, new)], threshold) == ({CLIP: "margin"} if bad else {})


def test_diff_ends_with_status_1_where_a_clause_regressed(written, capsys):
    old = written("old", sample_report(passed(CLIP), passed("critic.shape")))
    new = written("new", sample_report(judged("fail"), passed("critic.shape", 0.95)))
    assert main(["diff", old, new]) == 1
    out = capsys.readouterr().out
    assert "regressed  policy-loss.clip: was pass, is fail: it is fail" in out
    assert "margin     critic.shape: 5% of the budget is left, was 75%; wanted 10%" in out
    assert out.splitlines()[-1] == "2 regressed"


def test_diff_ends_with_status_0_where_nothing_regressed(written, capsys):
    old = written("old", sample_report(judged("fail"), passed("critic.shape")))
    new = written("new", sample_report(passed(CLIP), passed("critic.shape", 0.95)))
    assert main(["diff", old, new, "--margin", "0.01"]) == 0
    out = capsys.readouterr().out
    assert "improved   policy-loss.clip" in out
    assert out.splitlines()[-1] == "nothing regressed"


@pytest.mark.parametrize("margin", ["-0.1", "1.5", "nan"])
def test_a_margin_that_is_no_fraction_is_bad_usage(margin, two, capsys):
    assert main(["diff", *two, f"--margin={margin}"]) == 2
    assert "wanted a fraction from 0 to 1" in capsys.readouterr().err


def test_diff_says_what_else_differs():
    old = sample_report()
    new = replace(old, environment={**old.environment, "torch": "2.14.0"})
    assert heading(old, new)[-1].strip() == "torch 2.13.0 -> 2.14.0"


WITHOUT_TORCH = """
import sys
from rlhf_conformance.cli import main
try:
    main(sys.argv[1:])
finally:
    print("torch" in sys.modules)
"""


@pytest.mark.parametrize("words", ["--help", "matrix --help", "diff --help", "matrix REPORT", "diff REPORT REPORT"])
def test_the_commands_import_no_torch(words, written):
    arguments = words.replace("REPORT", written("report", sample_report())).split()
    folders = os.pathsep.join(str(ROOT / floor) for floor in ("spec", "reference", "conformance"))
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *arguments],
        env={**os.environ, "PYTHONPATH": folders},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.splitlines()[-1] == "False", done.stderr
