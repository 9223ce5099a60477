"""Pages that hold everything themselves: no script, no network, light and dark."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup, escape

import rlhf_spec.clauses
from rlhf_conformance.reporting import parts
from rlhf_conformance.reporting.causes import causes
from rlhf_conformance.reporting.matrix import Matrix
from rlhf_conformance.reporting.overview import called
from rlhf_conformance.results import (
    ERROR,
    FAIL,
    KNOWN_FAILURE,
    NOT_CONFORMANT,
    NOT_FINISHED,
    NOT_PROVIDED,
    PASS,
    SKIP,
    VERDICTS,
    Cell,
    Failure,
    Report,
    Result,
)

if TYPE_CHECKING:
    from rlhf_conformance.reporting.stored import Scripts

KINDS = {
    "prompt": ("P", "a token of the prompt"),
    "response": ("R", "a token of the response"),
    "eos": ("E", "the end of the response"),
    "action": ("A", "an action"),
    "off": ("–", "masked"),
    "pad": ("·", "padding"),
}
"""Of each kind of cell: its letter, so that no one has to go by colors, and what it is."""
DIAGNOSES = {
    "place": "Place",
    "fault": "Known bug",
    "convention": "Convention",
    "numbers": "Numbers",
    "device": "Device",
}
"""The kinds of diagnoses, as headings."""
TONES = {
    **dict.fromkeys(NOT_CONFORMANT, "red"),
    **dict.fromkeys(NOT_FINISHED, "amber"),
    PASS: "green",
    KNOWN_FAILURE: "purple",
    NOT_PROVIDED: "grey",
    SKIP: "grey",
}
"""The color of each verdict."""
OPEN = 6
"""So many failures are open to be read when the page is opened, one of each cause; the others are folded."""
ORDER = (parts.RED, parts.INCOMPLETE, parts.WARNING)


def text(report: Report, scripts: Scripts) -> str:
    """The page of a report."""
    found = causes(report)
    first = found.clearest
    of_cause = {slug: place for place, cause in enumerate(found.found) for slug in cause.slugs}

    def order(pair: tuple[Result, list[str]]) -> Any:
        slug = pair[0].clause
        return ORDER.index(parts.effect(pair[0], report)), of_cause.get(slug, len(of_cause)), slug not in first

    shown = sorted(parts.shown(report.results), key=order)
    open_ones = [result.clause for result, _ in shown if result.clause in first or result.clause not in of_cause]
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            chapters=parts.chapters(report),
            columns=[v for v in VERDICTS if v in (PASS, FAIL, ERROR, NOT_PROVIDED) or report.count(v)],
            shown=shown,
            causes=found,
            opened=open_ones[:OPEN],
            anchors={slug: result.clause for result, others in shown for slug in (result.clause, *others)},
            facts=parts.facts(report),
            subject=parts.subject_name(report),
            tally=_tally(report),
            tested_nothing=parts.tested_nothing(report),
            left_out=parts.left_out(report),
            scripts=scripts,
        )
    )


def matrix(found: Matrix) -> str:
    """The page of several reports side by side."""
    return _environment().get_template("matrix.html.j2").render(matrix=found, counts=parts.counts)


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("rlhf_conformance"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"prose": prose, "share": share, "width": width, "number": number}
    environment.globals |= {
        "sentence": lambda slug: rlhf_spec.clauses.clause(slug).sentence,
        "color": color,
        "compares": compares,
        "times": times,
        "worst": parts.worst,
        "cell_says": cell_says,
        "called": called,
        "legend": legend,
        "KINDS": KINDS,
        "DIAGNOSES": DIAGNOSES,
        "tone_of": TONES.__getitem__,
    }
    return environment


def _tally(report: Report) -> list[tuple[str, int]]:
    """How many results have each color."""
    tones = [color(result, report) for result in report.results]
    return [(tone, tones.count(tone)) for tone in ("green", "red", "amber", "purple", "grey") if tone in tones]


def prose(text: str) -> Markup:
    """Text with its `code` in backticks as code."""
    pieces = re.split(r"`([^`]*)`", text)
    return Markup("").join(
        Markup("<code>{}</code>").format(piece) if i % 2 else escape(piece) for i, piece in enumerate(pieces)
    )


def color(result: Result, report: Report) -> str:
    """The color of a result: of its verdict, but a warning is amber."""
    return "amber" if parts.effect(result, report) == parts.WARNING else TONES[result.verdict]


def share(margin: float | None) -> str:
    """Error over budget, short."""
    if margin is None:
        return "–"
    if margin and round(margin, 2) == 0:
        return "<0.01"
    return f"{margin:.2f}" if margin < 10 else f"{margin:,.0f}" if margin < 1e7 else f"{margin:.0e}"


def width(margin: float | None) -> str:
    """The length of its bar, in percent."""
    return f"{100 * min(1.0, margin or 0.0):.1f}"


def number(value: float) -> str:
    return f"{value:.3g}"


def times(result: Result) -> str:
    """How many times the budget the error of a failure is, in words; nothing where that is no number."""
    margin = parts.worst(result)
    return "" if margin is None else f"{share(margin)} times what is allowed"


def compares(result: Result) -> bool:
    """Whether there is an expected and an actual answer to show."""
    return result.verdict == FAIL and result.failure is not None


def cell_says(cell: Cell) -> str:
    """A cell of a picture in words."""
    words = [KINDS.get(cell.kind, ("", cell.kind))[1]]
    if cell.expected:
        words.append("an answer should be read here")
    if cell.read:
        words.append("an answer was read here")
    return ", ".join(words)


def legend(failure: Failure) -> dict[str, Any]:
    """The kinds of cells in a failure's picture, and whether any are marked."""
    assert failure.picture is not None
    cells = [cell for row in failure.picture.rows for cell in row]
    kinds = {cell.kind for cell in cells}
    return {
        "kinds": [kind for kind in KINDS if kind in kinds],
        "expected": any(cell.expected for cell in cells),
        "read": any(cell.read for cell in cells),
    }
