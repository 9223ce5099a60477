"""Every check of every chapter: its case goes through JSON and back, and the failure that a fault of it shows is kept
with every argument, written as a script and tried again, because nothing else is possible."""

from __future__ import annotations

import json
import re
from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest

from rlhf_conformance.adapter import METHODS
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.diagnosis.evidence import drawn
from rlhf_conformance.diagnosis.exchange import exchange
from rlhf_conformance.faults import faults
from rlhf_conformance.judging import storing
from rlhf_conformance.judging.checks import checks
from rlhf_conformance.judging.subject import Subject
from rlhf_conformance.judging.trying import PROFILES, try_clause
from rlhf_conformance.reporting.scripts import script
from rlhf_conformance.results import FAIL, Report

SLUGS = list(checks())
NO_DATA = ("model", "module", "actor", "critic", "reward_model", "trainer", "folder")
"""Arguments that are no data: models, trainers, modules and folders."""


@pytest.fixture
def subject(store: Any) -> Subject:
    return Subject.make(Reference(), device="cpu", dtype="float32", store=store)


@pytest.mark.parametrize("slug", SLUGS)
def test_its_cases_go_through_json_and_back(slug: str, subject: Subject):
    for case in drawn(checks()[slug], subject, 3, 1):
        back = storing.from_json(json.loads(json.dumps(storing.to_json(case))))
        assert (type(back), repr(back)) == (type(case), repr(case))  # NaN is not equal to itself


@pytest.mark.parametrize("slug", SLUGS)
def test_a_stored_case_with_a_field_of_another_type_is_refused(slug: str, subject: Subject):
    (case,) = drawn(checks()[slug], subject, 1, 1)[:1]
    stored = storing.to_json(case)
    for name in [f.name for f in fields(case)]:
        with pytest.raises(storing.StoredCaseError):
            storing.from_json({**stored, name: {"float": "not a number"}})


def fault_of(slug: str) -> Any:
    """A fault that its own check must catch, the cheapest to read first: one without a known bug is as good."""
    return next(fault for fault in faults().values() if fault.clause == slug)


@pytest.mark.parametrize("slug", SLUGS)
def test_what_broke_it_is_kept_with_every_argument_written_as_a_script_and_tried_again(slug: str, store: Any):
    fault = fault_of(slug)
    liar = Subject.make(fault.adapter(), device="cpu", dtype="float32", store=store)
    tried = try_clause(slug, liar, replace(PROFILES["gate"], shrinking=0.0), 0, to_the_end=False)
    result, failure = tried.result, tried.result.failure
    assert result.verdict in (FAIL, "error"), result.reason
    assert failure is not None
    assert failure.stored is not None
    assert repr(storing.from_json(json.loads(json.dumps(failure.stored)))) == repr(tried.case)
    kept = exchange(checks()[slug], liar, tried.case, failure)
    assert kept.calls, "no call was kept"
    text = script(replace(result, failure=replace(failure, exchange=kept)), Report((result,)))
    assert text is not None
    compile(text, slug, "exec")
    for call in kept.calls:
        row = METHODS[call.method]
        given = [name for name in row.arguments if name not in row.extras or name in call.arguments]
        wanted = [name for name in given if name not in NO_DATA]
        assert [name for name in wanted if name not in call.arguments] == [], call.method
        for name in wanted:
            for argument in _flat(name, call.arguments[name]):
                assert re.search(rf"\b{argument}\b", text), f"{argument} of {call.method} is not in the script"
    again = try_clause(slug, liar, PROFILES["gate"], 0, replayed=storing.from_json(failure.stored)).result
    assert again.verdict == result.verdict
    assert again.failure is not None
    assert failure.what in {failure.what for failure in (again.failure, *again.others)}


def _flat(name: str, value: Any) -> list[str]:
    """The names under which an argument stands in a script."""
    if isinstance(value, dict) and storing.TYPE in value:
        return [key for key in value if key != storing.TYPE]
    return [name]


def test_there_are_no_kinds_of_cases_that_no_check_draws(subject: Subject):
    """A kind that is stored, and drawn by nobody, was left behind."""
    seen: set[str] = set()

    def walk(value: Any) -> None:
        if is_dataclass(value):
            seen.add(type(value).__name__)
            for field in fields(value):
                walk(getattr(value, field.name))
        elif isinstance(value, list | tuple):
            for item in value:
                walk(item)

    for check in checks().values():
        for case in drawn(check, subject, 20, 1):
            walk(case)
    assert set(storing.kinds()) - seen == set()
