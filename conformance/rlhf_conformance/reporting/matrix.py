"""Several reports side by side: trainer and its modes, device and dtype against clauses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import rlhf_spec.clauses
from rlhf_conformance.reporting import parts
from rlhf_conformance.reporting.stored import ReportError, checksum, to_json
from rlhf_conformance.results import PASS, Report


@dataclass(frozen=True)
class Column:
    """One report.

    remark      tells it from others of the same subject, device and dtype; else empty
    """

    report: Report
    remark: str = ""

    @property
    def subject(self) -> str:
        return parts.subject_name(self.report)

    @property
    def where(self) -> str:
        return f"{self.report.environment.get('device')} {self.report.environment.get('dtype')}"

    @property
    def title(self) -> str:
        return f"{self.subject}, {self.where}" + (f" ({self.remark})" if self.remark else "")


@dataclass(frozen=True)
class Row:
    """A clause and its verdict in each report, "" where it was not asked for."""

    clause: str
    level: str
    sentence: str
    verdicts: tuple[str, ...]


@dataclass(frozen=True)
class Rows:
    """The clauses of a chapter; `passes` has (passed, asked for) of each report."""

    slug: str
    title: str
    rows: tuple[Row, ...]
    passes: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Matrix:
    columns: tuple[Column, ...]
    chapters: tuple[Rows, ...]


def combined(reports: Sequence[tuple[Path, Report]]) -> Matrix:
    """The matrix of reports, in their order. Raises ReportError where one is given twice."""
    seen: dict[str, Path] = {}
    for path, report in reports:
        first = seen.setdefault(checksum(to_json(report)), path)
        if first is not path:
            raise ReportError(f"{path} is the same report as {first}")
    titles = [Column(report).title for _, report in reports]
    columns = tuple(
        Column(report, str(path) if titles.count(Column(report).title) > 1 else "") for path, report in reports
    )
    return Matrix(columns, tuple(_chapters(columns)))


def _chapters(columns: Sequence[Column]) -> list[Rows]:
    verdicts = [{r.clause: r.verdict for r in column.report.results} for column in columns]
    found = []
    for chapter in rlhf_spec.clauses.chapters():
        rows = tuple(
            Row(clause.slug, clause.level, clause.sentence, tuple(of.get(clause.slug, "") for of in verdicts))
            for clause in chapter.clauses
            if any(clause.slug in of for of in verdicts)
        )
        by_column = list(zip(*(row.verdicts for row in rows), strict=True))
        passes = tuple((column.count(PASS), sum(map(bool, column))) for column in by_column)
        if rows:
            found.append(Rows(chapter.slug, chapter.title, rows, passes))
    return found
