"""Markdown: the summary of a report, as GitHub shows it under a step, and the matrix of several."""

from __future__ import annotations

from typing import TYPE_CHECKING

import rlhf_spec.clauses
from rlhf_conformance import escaping
from rlhf_conformance.reporting import parts
from rlhf_conformance.reporting.causes import Cause, Causes, causes
from rlhf_conformance.reporting.matrix import Matrix
from rlhf_conformance.results import ERROR, FAIL, KNOWN_FAILURE, NOT_PROVIDED, PASS, VERDICTS, Failure, Report, Result

if TYPE_CHECKING:
    from rlhf_conformance.reporting.stored import Scripts

SIGNS = {"CONFORMANT": "✅", "NOT CONFORMANT": "❌", "INCOMPLETE": "⚠️"}
LONGEST_CASE = 800
LENGTHS = ((300, 4), (120, 4), (60, 2), (60, 0))
"""Characters of what is said of one failure outside of its details, and how many of those without a cause, and of the
causes, have their sentence there: the first that leaves room for all."""
LONGEST_SUMMARY = 3900
"""Bytes: what a comment can have and still be read. Details beyond that are in the report."""


def summary(report: Report, scripts: Scripts) -> str:
    """The file `summary.md`: what is wrong, first; then the chapters, then failures in full as far as there is room."""
    found = causes(report)
    first = found.clearest
    shown = sorted(parts.shown(report.results), key=lambda pair: pair[0].clause not in first)
    head = [f"## {SIGNS[report.verdict]} {escaped(parts.subject_name(report))}: {report.verdict}", _sentence(report)]
    chapters = _chapters(report)
    room = LONGEST_SUMMARY - sum(_size(block) for block in (*head, chapters))
    lists = [_causes(found, *lengths) for lengths in LENGTHS]
    fitting = (rows for rows in lists if sum(_size(block) for block in rows) <= room)
    blocks = [*head, *next(fitting, lists[-1]), chapters]
    left = LONGEST_SUMMARY - sum(_size(block) for block in blocks)
    details = [_details(result, others, report) for result, others in shown]
    for number, block in enumerate(details):
        left -= _size(block)
        if left < 0:
            blocks.append(f"{len(details) - number} more are in report.html.")
            break
        blocks.append(block)
    return "\n\n".join(block for block in blocks if block) + "\n"


def _size(block: str) -> int:
    """Bytes, those between blocks included."""
    return len(block.encode("utf-8", "replace")) + 2


def _causes(found: Causes, longest: int, count: int) -> list[str]:
    """What explains the failures, and what fails without an explanation, in texts of so many characters; so many with
    a sentence."""
    if found.explained + len(found.unexplained) < 2:
        return []
    rows = [f"{number}. {_cause(cause, longest, number <= count)}" for number, cause in enumerate(found.found, 1)]
    rows += [f"- `{result.clause}`: {_short(result.sentence, longest)}" for result in found.nameless[:count]]
    if found.nameless[count:]:
        rows.append(f"- {', '.join(f'`{result.clause}`' for result in found.nameless[count:])}")
    return [f"**{found.sentence}**", "\n".join(rows)]


def _cause(cause: Cause, longest: int, shown: bool) -> str:
    slugs = ", ".join(f"`{slug}`" + "?" * (slug in cause.doubtful) for slug in cause.slugs)
    said = f"**{_short(cause.title, longest)}** ({len(cause.slugs)}: {slugs})"
    if shown and cause.clearest.verdict == FAIL:
        said += f"<br>for one, `{cause.clearest.clause}`: {_short(cause.clearest.sentence, longest)}"
    return said


def _short(text: str, longest: int) -> str:
    return escaped(text if len(text) <= longest else f"{text[:longest]} …")


def _sentence(report: Report) -> str:
    env, run = report.environment, report.run
    said = f"{parts.counts(report)}, on {env.get('device')} in {env.get('dtype')}, profile {run['profile']}, "
    said += f"seed {run['seed']}, {run['seconds']:.1f} s."
    if report.warnings:
        said += f" Broken SHOULD clauses (red with `--strict`): {', '.join(r.clause for r in report.warnings)}."
    if report.count(KNOWN_FAILURE):
        said += f" Known failures: {', '.join(r.clause for r in report.results if r.verdict == KNOWN_FAILURE)}."
    if parts.tested_nothing(report):
        said += " **Nothing was tested.**"
    return said


def _chapters(report: Report) -> str:
    others = [v for v in VERDICTS if v not in (PASS, FAIL, ERROR, NOT_PROVIDED) and report.count(v)]
    columns = [PASS, FAIL, ERROR, NOT_PROVIDED, *others]
    rows = [["chapter", *columns, "error / budget"], ["---", *["--:"] * (len(columns) + 1)]]
    for chapter in parts.chapters(report):
        margin = "" if chapter.margin is None else f"{chapter.margin:.2f}"
        rows.append([chapter.slug, *(str(chapter.count(v) or "") for v in columns), margin])
    return table(rows)


def _details(result: Result, others: list[str], report: Report) -> str:
    sentence = rlhf_spec.clauses.clause(result.clause).sentence
    lines = [
        "<details>",
        f"<summary><b>{result.verdict}</b> <code>{result.clause}</code> ({result.level})</summary>\n",
        f"> {escaped(sentence)}\n",
    ]
    failure = result.failure
    if failure is None or result.verdict not in (FAIL, ERROR):
        lines.append(escaped(result.reason) + "\n")
    else:
        lines += _failure(failure)
        lines += [f"**also**: {escaped(other.sentence)}\n" for other in result.others]
    if others:
        lines.append(f"The same for {len(others)} more: {', '.join(others)}.\n")
    if report.command(result):
        lines.append(fenced(report.command(result), "sh"))
    return "\n".join([*lines, "</details>"])


def _failure(failure: Failure) -> list[str]:
    rows = [("what", failure.what), ("expected", failure.expected), ("actual", failure.actual)]
    rows.append(("where", f"{failure.place} ({failure.count})" if failure.count else failure.place))
    if failure.error is not None and failure.budget:
        rows.append(("difference", f"{failure.error:.3g}, allowed {failure.budget:.3g}"))
    rows.append(("note", failure.note))
    lines = [table([["", ""], ["---", "---"], *([name, escaped(value)] for name, value in rows if value)]) + "\n"]
    lines += [f"**{diagnosis.kind}**: {escaped(diagnosis.sentence)}\n" for diagnosis in failure.diagnoses]
    if failure.case:
        lines.append(fenced(shortened(failure.case)))
    return lines


def shortened(case: str) -> str:
    return case if len(case) <= LONGEST_CASE else f"{case[:LONGEST_CASE]} … (the whole of it is in report.json)"


def table(rows: list[list[str]]) -> str:
    """Rows of cells that are Markdown already, the second of them the line under the head."""
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def escaped(text: str) -> str:
    """Text of whatever kind as one line of Markdown that shows it; code in backticks stays code."""
    pieces = escaping.line(text).split("`")
    if len(pieces) % 2 == 0:  # one backtick too many
        pieces = ["`".join(pieces)]
    plain = [piece if i % 2 else escaping.markdown(piece) for i, piece in enumerate(pieces)]
    return escaping.unblocked("`".join(plain)).replace("|", r"\|")


def fenced(text: str, language: str = "") -> str:
    """A block that text cannot end, however many backticks it has."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text}\n{fence}\n"


def matrix(found: Matrix) -> str:
    """Reports side by side: a row for each clause, under a row for each chapter."""
    rows = [["clause", *(escaped(column.title) for column in found.columns)], ["---", *["---"] * len(found.columns)]]
    rows.append(["**verdict**", *(f"{SIGNS[c.report.verdict]} {parts.headline(c.report)}" for c in found.columns)])
    for chapter in found.chapters:
        rows.append(
            [f"**{chapter.slug}**", *(f"{passed} of {asked}" if asked else "" for passed, asked in chapter.passes)]
        )
        rows += [[f"`{row.clause}`", *map(_word, row.verdicts)] for row in chapter.rows]
    return table(rows) + "\n"


def _word(verdict: str) -> str:
    if verdict in (PASS, NOT_PROVIDED, ""):
        return {PASS: "pass", NOT_PROVIDED: "–", "": ""}[verdict]
    return f"**{verdict}**"
