"""docs/report.md: its fields are those of a real report, its verdicts and exit codes those of the code."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from rlhf_conformance import Adapter, check
from rlhf_conformance.names import MEANINGS
from rlhf_conformance.reporting import SCHEMA, to_json
from rlhf_conformance.results import NOT_CONFORMANT, NOT_FINISHED, VERDICTS, Report, Result
from samples import SHIFTED_VALUES

DOCUMENT = "docs/report.md"
OPEN = (
    "subject.options",
    "subject.declares",
    "subject.files",
    "summary.counts",
    "results[].others",
    "results[].failure.stored",
    "results[].failure.exchange.calls[].arguments",
    "results[].failure.exchange.options",
    "results[].failure.exchange.beside",
)
"""Objects whose keys are names of other things, or another format's."""
NULLABLE = {"results[].failure", "results[].failure.picture", "results[].failure.exchange"}
ROWS = {
    "results[].failure.diagnoses",
    "results[].failure.steps",
    "results[].failure.exchange.calls",
    "results[].failure.exchange.numbers",
}
"""Lists of objects that may be empty."""


class Halved(Adapter):
    def value_loss(self, values, old_values, returns, action_mask, options):
        return 0.5 * ((values - returns) ** 2 * action_mask).sum() / 2


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    """A real report, with a failure and a clause that is not provided, and beside them a failure with all that a
    diagnosis can add, as it is read back from a file."""
    real = check(Halved(), profile="smoke", only=["value-loss.half", "critic.shape"])
    return json.loads(json.dumps(to_json(replace(real, results=(*real.results, SHIFTED_VALUES)))))


def fields(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """("results[].failure.what", "loss") for every leaf that is there; a list that is empty here is none."""
    if isinstance(value, dict) and value and name not in OPEN:
        for key, inner in value.items():
            yield from fields(inner, f"{name}.{key}" if name else key)
    elif isinstance(value, list) and value and isinstance(value[0], dict | list):
        for inner in value:
            yield from fields(inner, f"{name}[]")
    elif name not in ROWS:
        yield name, value


def test_the_fields_are_those_of_a_report(report, table):
    documented = [row[0].strip("`") for row in table(DOCUMENT, "field")]
    assert set(documented) == {name for name, _ in fields(report)} | NULLABLE
    assert len(documented) == len(set(documented))


def test_the_types_are_those_of_a_report(report, table):
    types = {row[0].strip("`"): row[1] for row in table(DOCUMENT, "field")}
    kinds = {
        "string": str,
        "boolean": bool,
        "integer": int,
        "number": (int, float),
        "list of strings": list,
        "list of objects": list,
        "object": dict,
        "null": type(None),
    }
    for name, value in fields(report):
        allowed = [kinds[kind] for kind in types[name].split(" or ")]
        assert any(isinstance(value, kind) for kind in allowed), name


def test_the_schema_is_that_of_the_code(text):
    assert f"`{SCHEMA}`" in text(DOCUMENT)


def test_the_verdicts_are_those_of_the_code(table):
    assert [row[0].strip("`") for row in table(DOCUMENT, "verdict")] == list(VERDICTS)


def test_the_meanings_of_the_verdicts_are_those_that_explain_prints(table):
    assert {row[0].strip("`"): row[1] for row in table(DOCUMENT, "verdict")} == MEANINGS


def test_the_effect_of_a_verdict_is_that_of_the_code(table):
    for verdict, _, effect in table(DOCUMENT, "verdict"):
        name = verdict.strip("`")
        red = "red" if name in NOT_CONFORMANT else "incomplete" if name in NOT_FINISHED else "not affected"
        assert effect == ("green" if name == "pass" else red)


@pytest.mark.parametrize("verdict", VERDICTS)
def test_the_exit_status_of_a_verdict_is_the_documented_one(verdict, table):
    """One clause with that verdict, beside one that passes."""
    effect = {row[0].strip("`"): row[2] for row in table(DOCUMENT, "verdict")}[verdict]
    names = {row[1].strip("`"): int(row[0]) for row in table(DOCUMENT, "exit status") if row[1]}
    status = {"red": names["NOT CONFORMANT"], "incomplete": names["INCOMPLETE"]}.get(effect, names["CONFORMANT"])
    results = (Result("critic.shape", "MUST", "pass"), Result("value-loss.half", "MUST", verdict))
    assert Report(results).exit_status == status
