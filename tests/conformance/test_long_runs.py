"""A trainer that takes its time: how the run goes, how long it may still take, and when it is over."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import threading
import time
from io import StringIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from rlhf_conformance import UsageError, check, conformance_suite
from rlhf_conformance.faults import faults
from rlhf_conformance.reporting import progress, read
from rlhf_conformance.results import FAIL, LOST, NOT_PROVIDED, PASS, Result
from rlhf_conformance.run.loading import load_adapter
from rlhf_conformance.run.progress import Standing, in_words, seconds_left

from .conftest import FLOORS, run

SLOW = "processes.py:TakesHalfASecond"
GRACE = 6.0
"""Seconds after the budget within which a run is over, on a busy machine."""


# --- the estimate -------------------------------------------------------------------------------------------------


def test_a_case_is_taken_to_last_as_long_as_it_did_so_far():
    left = seconds_left({"a": 60, "b": 60, "c": 6}, {"a": 60, "b": 30}, ["a"], seconds=90, workers=1, limit=600)
    assert left == pytest.approx(36)


def test_no_clause_is_taken_to_last_longer_than_its_limit():
    assert seconds_left({"a": 60, "b": 60}, {"a": 60}, ["a"], seconds=600, workers=1, limit=120) == 120


@given(st.integers(1, 8), st.floats(1, 1000))
def test_workers_share_what_is_left(workers, seconds):
    alone = seconds_left({"a": 10, "b": 10}, {"a": 10}, ["a"], seconds * workers, 1, 1e9)
    assert seconds_left({"a": 10, "b": 10}, {"a": 10}, ["a"], seconds, workers, 1e9) == pytest.approx(alone / workers)


def test_nothing_is_said_before_a_case_was_tried():
    assert seconds_left({"a": 10}, {"a": 0}, [], seconds=5, workers=1, limit=60) is None


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "a few seconds"), (12, "10 s"), (99, "100 s"), (110, "2 min"), (3540, "59 min"), (4800, "1 h 20 min")],
)
def test_a_time_in_words(seconds, words):
    assert in_words(seconds) == words


# --- what is shown ------------------------------------------------------------------------------------------------


def test_a_line_says_what_runs_and_how_long_it_may_take():
    standing = Standing(12, 131, ("log-probs.gradient", "log-probs.entropy"), left=480)
    assert progress.line(standing) == (
        "  12 of 131 clauses, about 8 min left, trying log-probs.gradient and log-probs.entropy"
    )


def test_a_line_says_when_the_budget_comes_first():
    assert "about 8 min left, budget ends in 1 min" not in progress.line(Standing(1, 9, (), 480, 600))
    assert "about 8 min left, budget ends in 2 min" in progress.line(Standing(1, 9, (), 480, 120))


def lines_of(moments, monkeypatch) -> list[str]:
    """What a console off a terminal shows of a run of which word comes at these seconds."""
    console, now = Console(file=StringIO(), width=200), [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.Shown(console) as shown:
        for moment in moments:
            now[0] = moment
            shown.standing(Standing(1, 9, ("packing.tokens",), 60))
    return console.file.getvalue().splitlines()


def test_off_a_terminal_there_is_a_line_every_ten_seconds(monkeypatch):
    assert len(lines_of([0.5 * i for i in range(121)], monkeypatch)) in (6, 7)


def test_a_quick_run_says_nothing_of_it(monkeypatch):
    assert lines_of([0.5 * i for i in range(18)], monkeypatch) == []


def test_colors_make_no_terminal_of_a_log(tmp_path):
    """CI services set FORCE_COLOR, and a bar in a log is a thousand lines."""
    with (tmp_path / "log").open("w") as file:
        assert not progress.is_live(Console(file=file, force_terminal=True))


def test_on_a_terminal_a_bar_names_the_clause_and_the_time_left(tmp_path, hostile):
    ours, theirs = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": FLOORS, "TERM": "xterm", "COLUMNS": "150", "PYTEST_ADDOPTS": ""}
    environment.pop("NO_COLOR", None)
    arguments = ["check", hostile(SLOW), "--only", "packing.tokens", "-n", "1", "--budget", "25"]
    process = subprocess.Popen(
        [sys.executable, "-m", "rlhf_conformance", *arguments],
        cwd=tmp_path,
        env=environment,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    said = bytearray()

    def listen() -> None:
        try:
            while data := os.read(ours, 65536):
                said.extend(data)
        except OSError:
            return

    thread = threading.Thread(target=listen)
    thread.start()
    process.wait(timeout=120)
    thread.join()
    os.close(ours)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", said.decode(errors="replace"))
    assert re.search(r"0 of 1 clauses, about \d+ s left.*, trying packing\.tokens", text), text
    assert "\x1b[?25h" in said.decode(errors="replace"), "the cursor is shown again"


# --- the budget ---------------------------------------------------------------------------------------------------


def test_a_slow_trainer_is_followed_and_ended_within_its_budget(hostile, tmp_path):
    """The clauses that run are ended; what was found stays, and what was not tried is named."""
    budget = 35.0
    started = time.monotonic()
    done = run(
        *("-m", "rlhf_conformance", "check", hostile(SLOW), "-n", "2", "--budget", f"{budget:g}", "--report", "report"),
        cwd=tmp_path,
    )
    assert time.monotonic() - started < budget + GRACE
    assert done.status == 3
    lines = re.findall(r"^ *\d+ of \d+ clauses, (?:about [^,]+ left|time left not known yet),.*$", done.stdout, re.M)
    assert len(lines) >= 3, done.stdout
    assert re.search(r"about [^,]+ left,.* trying log-probs\.\S+ and log-probs\.", lines[-1]), lines
    report = read(tmp_path / "report" / "report.json")
    by_reason = {result.reason for result in report.results if result.verdict == LOST}
    used_up = "the budget of 35 s was used up"
    assert by_reason == {f"{used_up} while this clause was tried", f"not begun: {used_up}"}
    assert report.result("packing.tokens").reason == f"not begun: {used_up}"
    assert report.result("policy-loss.ratio").verdict == NOT_PROVIDED, "which is known of it"
    assert (report.run["budget"], report.run["ended_by"]) == (budget, "budget")
    assert f"{used_up}: {report.count(LOST)} of {len(report.results)} clauses were not tried to the end" in done.said
    assert all(result.clause in done.said for result in report.results if result.verdict == LOST)


def test_a_budget_ends_a_clause_that_hangs(command, hostile):
    started = time.monotonic()
    done = command("check", hostile("processes.py:Hangs"), "--only", "packing.tokens", "-n", "1", "--budget", "20")
    assert time.monotonic() - started < 20 + GRACE
    assert done.status == 3
    assert "the budget of 20 s was used up while this clause was tried" in done.said


def test_a_budget_that_is_not_used_up_changes_nothing(command, hostile):
    done = command("check", hostile("processes.py:Survivor"), "--only", "positions.pads", "--budget", "100")
    assert done.status == 0
    assert "budget of" not in done.said


@pytest.mark.parametrize("budget", ["0", "-1", "nan", "inf"])
def test_a_budget_is_a_number_of_seconds(budget, command, hostile):
    done = command("check", hostile("processes.py:Survivor"), "--only", "positions.pads", "--budget", budget)
    assert done.status == 2
    assert "wanted a number of seconds above 0" in done.said


def test_a_budget_below_0_is_refused_in_python(hostile):
    with pytest.raises(UsageError, match="wanted a number of seconds"):
        check(load_adapter(hostile("processes.py:Survivor")), budget=-1)


def test_in_this_process_no_case_is_begun_after_the_budget(hostile):
    started = time.monotonic()
    report = check(load_adapter(hostile(SLOW)), only=["positions", "packing", "value-loss"], budget=4)
    assert time.monotonic() - started < 4 + GRACE
    reasons = [result.reason for result in report.results if result.verdict == LOST]
    assert re.fullmatch(r"the budget of 4 s was used up while this clause was tried, after \d+ cases", reasons[0])
    assert set(reasons[1:]) == {"not begun: the budget of 4 s was used up"}
    assert {r.verdict for r in report.results if r.chapter == "value-loss"} == {NOT_PROVIDED}
    assert report.exit_status == 3


def test_what_was_found_before_the_budget_stays(hostile):
    """The failing case is made no smaller."""

    class Wrong(type(load_adapter(hostile(SLOW)))):
        def position_ids(self, attention_mask):
            return super().position_ids(attention_mask) + 1

    started = time.monotonic()
    result: Result = check(Wrong(), only=["positions.cumsum"], budget=3).result("positions.cumsum")
    assert time.monotonic() - started < 3 + GRACE
    assert result.verdict == FAIL


def test_pytest_fails_what_the_budget_left_untried(tmp_path, hostile):
    (tmp_path / "test_it.py").write_text(
        "from rlhf_conformance import conformance_suite\nfrom processes import TakesHalfASecond\n"
        'test_it = conformance_suite(TakesHalfASecond(), only=["positions", "value-loss"], budget=3)\n'
    )
    path = os.pathsep.join([FLOORS, str(Path(hostile("")).parent / "hostile")])
    done = run("-m", "pytest", "-p", "rlhf_conformance.run.plugin", "test_it.py", cwd=tmp_path, PYTHONPATH=path)
    assert done.status == 1
    assert "not begun: the budget of 3 s was used up" in done.said
    assert re.search(r"5 failed, 23 skipped", done.said), done.said


def test_a_suite_takes_a_budget(hostile):
    suite = conformance_suite(load_adapter(hostile("processes.py:Survivor")), budget=50)
    assert suite.run("positions.pads").verdict == PASS
    suite.close()


# --- a look that takes long -----------------------------------------------------------------------------------------

LOOK = """
import sys, time
from types import SimpleNamespace
from rlhf_conformance.run.plugin import _time_limit
with _time_limit(SimpleNamespace(folder=sys.argv[1]), "kl.value", 1.0, "gw0") as begin_again:
    for _ in range(20):
        time.sleep(0.1)
        {step}
"""


@pytest.mark.parametrize(("step", "status"), [("begin_again()", 0), ("pass", 1)])
def test_the_limit_of_a_clause_begins_anew_with_each_step(step, status, tmp_path):
    done = run("-c", LOOK.format(step=step), str(tmp_path), cwd=tmp_path, PYTHONPATH=FLOORS)
    assert done.status == status


def test_a_suite_says_of_each_step_of_a_look_that_it_is_taken():
    adapter, steps = faults()["half-dropped"].adapter(), []
    suite = conformance_suite(adapter)
    result = suite.run("value-loss.half", alive=lambda: steps.append(time.monotonic()))
    suite.close()
    assert result.verdict == FAIL
    assert len(steps) > 10
