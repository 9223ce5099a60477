"""What a person sees: progress, the table of chapters, each failure in full."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

import rlhf_spec.clauses
from rlhf_conformance.escaping import logged
from rlhf_conformance.reporting import overview, parts
from rlhf_conformance.reporting.causes import causes
from rlhf_conformance.results import (
    ERROR,
    FAIL,
    INCONCLUSIVE,
    KNOWN_FAILURE,
    LOST,
    NOT_PROVIDED,
    PASS,
    SKIP,
    UNEXPECTED_PASS,
    Failure,
    Report,
    Result,
)

STYLES = {
    PASS: "green",
    FAIL: "bold red",
    ERROR: "bold red",
    UNEXPECTED_PASS: "bold red",
    LOST: "bold yellow",
    INCONCLUSIVE: "bold yellow",
    KNOWN_FAILURE: "magenta",
    NOT_PROVIDED: "dim",
    SKIP: "dim",
}
COLUMNS = (PASS, FAIL, ERROR, NOT_PROVIDED)
OTHER_FAILURES = 6
"""Of one clause, so many are shown beside the first."""
ROWS = 56
"""What a run says below its table, all lines together, unless more has to be said."""
OTHERS = (SKIP, KNOWN_FAILURE, UNEXPECTED_PASS, INCONCLUSIVE, LOST)


class Screen(Console):
    """A console whose reader may go away: rich would then end the process with the status of a broken clause."""

    def on_broken_pipe(self) -> None:
        self.file = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def show_report(console: Console, report: Report, *, verbose: bool = False) -> None:
    """The table, the failures, the verdict. Failures are shown by their causes, and each in full as far as there is
    room, or where that is asked for (`verbose`)."""
    console.print(_heading(report), highlight=False, soft_wrap=True)
    console.print(_table(report))
    end = _verdict(report)
    for line in ("", *_failures(report, verbose, ROWS - len(end)), ""):
        console.print(logged(line), highlight=False, markup=False, soft_wrap=True)
    for text in end:
        console.print(text, highlight=False, soft_wrap=True)


def _failures(report: Report, verbose: bool, rows: int) -> list[str]:
    """By cause, where there is more than one; then those that are to be shown in full, the clearest first."""
    first = causes(report).clearest
    shown = sorted(parts.shown(report.results), key=lambda pair: pair[0].clause not in first)
    full = [[describe(result, report.command(result)), *_same(others)] for result, others in shown]
    if len(full) <= 1:
        return [line for block in full for line in block]
    lines, left = overview.overview(report, rows)
    blocks = full if verbose else _that_fit(full, left - 2)
    for block in blocks:
        lines += ["", *block]
    if len(blocks) < len(full):
        lines += ["", f"{len(full) - len(blocks)} of {len(full)} are in full in the report, and here with --verbose"]
    return lines


def _same(others: list[str]) -> list[str]:
    return [f"  the same for {len(others)} more: {', '.join(others)}"] if others else []


def _that_fit(blocks: list[list[str]], rows: int) -> list[list[str]]:
    """As many as there is room for, from the first."""
    found = []
    for block in blocks:
        rows -= 1 + overview.height(block)
        if rows < 0:
            break
        found.append(block)
    return found


def _heading(report: Report) -> str:
    env, run = report.environment, report.run
    versions = " ".join(f"{name} {env[name]}" for name in ("torch", "transformers", "hypothesis") if env.get(name))
    where = f"{env.get('device', '')} {env.get('dtype', '')}".strip()
    facts = [
        parts.subject_name(report),
        where,
        versions,
        f"profile {run['profile']}",
        f"seed {run['seed']}",
        f"{run['time_limit']:g} s a clause" if run.get("time_limit") else "",
    ]
    files = [f"{name} from {file}" for name, file in report.subject.get("files", {}).items()]
    return "\n" + escape(logged("\n".join(["  |  ".join(fact for fact in facts if fact), *files])))


def _table(report: Report) -> Table:
    others = [verdict for verdict in OTHERS if report.count(verdict)]
    table = Table(show_footer=True)
    table.add_column("chapter", footer="all")
    for verdict in (*COLUMNS, *others):
        table.add_column(verdict, footer=str(report.count(verdict)), justify="right")
    table.add_column("error / budget", footer=_share(parts.largest_margin(report.results)), justify="right")
    for chapter in parts.chapters(report):
        counts = [Text(str(chapter.count(v) or ""), style=STYLES[v]) for v in (*COLUMNS, *others)]
        table.add_row(chapter.slug, *counts, _share(chapter.margin))
    return table


def _share(margin: float | None) -> str:
    return "" if margin is None else f"{margin:.2f}"


def describe(result: Result, command: str = "") -> str:
    """One failure: clause, sentence, case, expected, actual, place, and the command that repeats it."""
    clause = rlhf_spec.clauses.clause(result.clause)
    lines = [f"{result.verdict.upper()} {result.clause} ({result.level})", f"  the clause   {clause.sentence}"]
    failure = result.failure
    if failure is None or result.verdict not in (FAIL, ERROR):
        lines.append(f"  what         {result.reason}")
    else:
        lines += _failure_lines(result)
    if command:
        lines.append(f"  repeat with  {command}")
    return logged("\n".join(lines))


def _failure_lines(result: Result) -> list[str]:
    failure = result.failure
    assert failure is not None
    if result.verdict == ERROR:
        note = [f"  note         {failure.note}"] if failure.note else []
        return [f"  what         {failure.what}", *note, *_case_lines(failure.case), *_other_lines(result)]
    lines = [f"  what         {failure.what}", f"  expected     {failure.expected}", f"  actual       {failure.actual}"]
    if failure.place:
        lines.append(f"  where        {failure.place}" + (f" ({failure.count})" if failure.count else ""))
    if failure.error is not None and failure.budget:
        lines.append(f"  difference   {failure.error:.3g}, allowed {failure.budget:.3g}")
    if failure.note:
        lines.append(f"  note         {failure.note}")
    return [*lines, *_diagnosis_lines(failure), *_case_lines(failure.case), *_other_lines(result)]


def _diagnosis_lines(failure: Failure) -> list[str]:
    """What it looks like, and the formula with the numbers in it, an arrow where the two part company."""
    lines = [f"  diagnosis    {row.sentence}" for row in failure.diagnoses]
    if not failure.steps:
        return lines
    head = ("step by step", "expected", "actual")
    rows = [(step.label, step.expected, step.actual) for step in failure.steps]
    label, expected, actual = (max(len(text) for text in column) for column in zip(head, *rows, strict=True))
    lines.append(f"  {head[0]:<{label + 3}}  {head[1]:>{expected}}  {head[2]:>{actual}}")
    for step in failure.steps:
        mark = "->" if step.parted else "  "
        line = f"  {mark} {step.label:<{label}}  {step.expected:>{expected}}  {step.actual:>{actual}}"
        lines.append(line.rstrip())
    return lines


def _other_lines(result: Result) -> list[str]:
    """What else is wrong with the clause, a line each."""
    lines = [f"  also         {other.sentence}" for other in result.others[:OTHER_FAILURES]]
    more = len(result.others) - OTHER_FAILURES
    return [*lines, f"  also         {more} more, which are in report.json"] if more > 0 else lines


def _case_lines(case: str) -> list[str]:
    return [f"  case         {case}"] if case else []


def _verdict(report: Report) -> list[Text]:
    lines = []
    imports = report.subject.get("imports", ())
    if imports:
        said = f"the adapter imports {', '.join(imports)}: what it answers from there is the suite's own code"
        lines.append(Text(f"warning: {said}, not a trainer's", style="yellow"))
    if report.warnings:
        slugs = ", ".join(r.clause for r in report.warnings)
        lines.append(Text(f"warning: broken SHOULD clauses (red with --strict): {slugs}", style="yellow"))
    known = (r for r in report.results if r.verdict == KNOWN_FAILURE)
    lines.extend(Text(logged(f"known failure: {r.clause}: {r.reason}"), style="magenta") for r in known)
    lines.extend(Text(logged(text), style="yellow") for text in parts.ended(report))
    style = {0: "bold green", 1: "bold red", 3: "bold yellow"}[report.exit_status]
    seconds = f"{report.run['seconds']:.1f} s, imports {report.run['import_seconds']:.1f} s of it"
    text = logged(f"{parts.headline(report)}, in {seconds}")
    lines.append(Text(text, style=style))
    if parts.tested_nothing(report):
        text = "nothing was tested: the adapter provides no method that a selected clause needs; write one"
        lines.append(Text(text, style="yellow"))
    return lines


def command_line(arguments: list[str]) -> str:
    """A command as the user would type it."""
    return shlex.join(["rlhf-conformance", *arguments])


def show_clauses(console: Console, rows: Iterable[tuple[str, str, str]]) -> None:
    """slug, level and a remark, one line each, plain enough for grep."""
    for slug, level, remark in rows:
        console.print(f"{slug:<32} {level:<11} {remark}".rstrip(), highlight=False, markup=False, soft_wrap=True)


__all__: list[Any] = ["command_line", "describe", "show_clauses", "show_report"]
