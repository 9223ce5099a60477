"""JUnit XML, as CI systems read it: a suite for each chapter, a test for each clause."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING

from rlhf_conformance.reporting import parts
from rlhf_conformance.reporting.terminal import describe
from rlhf_conformance.results import ERROR, PASS, Report, Result

if TYPE_CHECKING:
    from rlhf_conformance.reporting.stored import Scripts

FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 has no way to write."""


def text(report: Report, scripts: Scripts) -> str:
    """The file. A broken SHOULD of a run that is not strict counts as skipped, as pytest counts an expected failure."""
    root = ET.Element("testsuites", name="rlhf-conformance", time=f"{report.run['seconds']:.2f}")
    totals = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
    for chapter in parts.chapters(report):
        suite = _suite(chapter, report)
        root.append(suite)
        for key in totals:
            totals[key] += int(suite.attrib[key])
    root.attrib.update({key: str(value) for key, value in totals.items()})
    ET.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _suite(chapter: parts.Chapter, report: Report) -> ET.Element:
    suite = ET.Element("testsuite", name=chapter.slug)
    properties = ET.SubElement(suite, "properties")
    for name, value in (("verdict", report.verdict), *parts.facts(report)):
        ET.SubElement(properties, "property", name=name, value=_legal(value))
    cases = [_case(result, report) for result in chapter.results]
    suite.extend(cases)
    suite.set("tests", str(len(cases)))
    for key, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(key, str(sum(case.find(tag) is not None for case in cases)))
    suite.set("time", f"{sum(result.seconds for result in chapter.results):.3f}")
    return suite


def _case(result: Result, report: Report) -> ET.Element:
    where = f"{report.environment.get('device')}-{report.environment.get('dtype')}"
    case = ET.Element(
        "testcase",
        classname=_legal(f"{report.subject.get('name')}.{result.chapter}"),
        name=f"{result.clause}[{where}]",
        time=f"{result.seconds:.3f}",
    )
    if result.verdict == PASS:
        return case
    child = ET.SubElement(case, _tag(result, report), message=_legal(f"{result.verdict}: {result.reason}"))
    if child.tag != "skipped":
        child.set("type", result.verdict)
        child.text = _legal(describe(result, report.command(result)))
    return case


def _tag(result: Result, report: Report) -> str:
    kind = parts.effect(result, report)
    if kind == parts.RED:
        return "error" if result.verdict == ERROR else "failure"
    return "error" if kind == parts.INCOMPLETE else "skipped"


def _legal(text: str) -> str:
    return FORBIDDEN.sub(lambda match: ascii(match[0])[1:-1], text)
