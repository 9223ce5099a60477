"""What a person sees: progress, the table of chapters, each failure in full."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

import rlhf_spec.clauses
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
OTHERS = (SKIP, KNOWN_FAILURE, UNEXPECTED_PASS, INCONCLUSIVE, LOST)


def show_progress(console: Console, result: Result, done: int, total: int) -> None:
    """One line for each clause that is worth one; on a terminal a counter that overwrites itself."""
    if result.verdict not in (PASS, NOT_PROVIDED):
        console.print(f"[{STYLES[result.verdict]}]{result.verdict:>15}[/] {result.clause}", highlight=False)
    if console.is_terminal:
        console.print(f"{done:>4} of {total} clauses", end="\r", highlight=False)
    elif done % 25 == 0 or done == total:
        console.print(f"{done:>4} of {total} clauses", highlight=False)


def show_report(console: Console, report: Report, command: str) -> None:
    """The table, the failures, the verdict."""
    console.print(_heading(report), highlight=False, soft_wrap=True)
    console.print(_table(report))
    for result, others in _grouped(report.results):
        console.print()
        console.print(describe(result, command), highlight=False, markup=False, soft_wrap=True)
        if others:
            same = f"  the same for {len(others)} more: {', '.join(others)}"
            console.print(same, highlight=False, markup=False, soft_wrap=True)
    console.print()
    for line in _verdict(report):
        console.print(line, highlight=False, soft_wrap=True)


def _grouped(results: Iterable[Result]) -> list[tuple[Result, list[str]]]:
    """What has to be shown: every failure, and errors and losses once for each cause, with the other clauses it hit."""
    shown: dict[str, tuple[Result, list[str]]] = {}
    for result in results:
        if result.verdict not in (FAIL, ERROR, UNEXPECTED_PASS, LOST, INCONCLUSIVE):
            continue
        key = result.clause if result.verdict in (FAIL, UNEXPECTED_PASS) else f"{result.verdict}: {result.reason}"
        if key in shown:
            shown[key][1].append(result.clause)
        else:
            shown[key] = (result, [])
    return list(shown.values())


def _heading(report: Report) -> str:
    env, run = report.environment, report.run
    options = "".join(f" {key}={value}" for key, value in report.subject.get("options", {}).items())
    versions = " ".join(f"{name} {env[name]}" for name in ("torch", "transformers") if env.get(name))
    where = f"{env.get('device', '')} {env.get('dtype', '')}".strip()
    parts = [
        f"{report.subject.get('name')}{options}",
        where,
        versions,
        f"profile {run['profile']}",
        f"seed {run['seed']}",
    ]
    return "\n" + escape("  |  ".join(part for part in parts if part))


def _table(report: Report) -> Table:
    others = [verdict for verdict in OTHERS if report.count(verdict)]
    table = Table(show_footer=True)
    table.add_column("chapter", footer="all")
    for verdict in (*COLUMNS, *others):
        table.add_column(verdict, footer=str(report.count(verdict)), justify="right")
    margins = [r.margin for r in report.results if r.verdict == PASS and r.margin is not None]
    table.add_column("error / budget", footer=f"{max(margins):.2f}" if margins else "", justify="right")
    for chapter in rlhf_spec.clauses.chapters():
        rows = [r for r in report.results if r.chapter == chapter.slug]
        if not rows:
            continue
        counts = [_count(rows, verdict) for verdict in (*COLUMNS, *others)]
        passed = [r.margin for r in rows if r.verdict == PASS and r.margin is not None]
        table.add_row(chapter.slug, *counts, f"{max(passed):.2f}" if passed else "")
    return table


def _count(rows: Iterable[Result], verdict: str) -> Text:
    count = sum(r.verdict == verdict for r in rows)
    return Text(str(count) if count else "", style=STYLES[verdict])


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
        lines.append(f"  repeat with  {command} --only {result.clause}")
    return "\n".join(lines)


def _failure_lines(result: Result) -> list[str]:
    failure = result.failure
    assert failure is not None
    if result.verdict == ERROR:
        return [f"  what         {failure.what}", *_case_lines(failure.case)]
    lines = [f"  what         {failure.what}", f"  expected     {failure.expected}", f"  actual       {failure.actual}"]
    if failure.place:
        lines.append(f"  where        {failure.place}" + (f" ({failure.count})" if failure.count else ""))
    if failure.error is not None and failure.budget:
        lines.append(f"  difference   {failure.error:.3g}, allowed {failure.budget:.3g}")
    if failure.note:
        lines.append(f"  note         {failure.note}")
    return lines + _case_lines(failure.case)


def _case_lines(case: str) -> list[str]:
    return [f"  case         {case}"] if case else []


def _verdict(report: Report) -> list[Text]:
    lines = []
    if report.warnings:
        slugs = ", ".join(r.clause for r in report.warnings)
        lines.append(Text(f"warning: broken SHOULD clauses (red with --strict): {slugs}", style="yellow"))
    known = (r for r in report.results if r.verdict == KNOWN_FAILURE)
    lines.extend(Text(f"known failure: {r.clause}: {r.reason}", style="magenta") for r in known)
    passed, asked = report.count(PASS), len(report.results)
    style = {0: "bold green", 1: "bold red", 3: "bold yellow"}[report.exit_status]
    seconds = f"{report.run['seconds']:.1f} s, imports {report.run['import_seconds']:.1f} s of it"
    counts = f"{passed} of {asked} clauses passed, {report.count(NOT_PROVIDED)} not provided"
    text = f"{report.verdict}: {counts}, in {seconds}"
    lines.append(Text(text, style=style))
    if all(r.verdict in (NOT_PROVIDED, SKIP) for r in report.results):
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


__all__: list[Any] = ["command_line", "describe", "show_clauses", "show_progress", "show_report"]
