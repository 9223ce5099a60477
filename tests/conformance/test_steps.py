"""The formula of a failure, step by step: its numbers are the specification's, and the line where the two part company
is the one where the fault is."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from rlhf_conformance import Adapter, check
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.chapters._losses.cases import PolicyLossCase
from rlhf_conformance.chapters.policy_loss.interface import PolicyLossOptions
from rlhf_conformance.diagnosis.evidence import Evidence, drawn, observe
from rlhf_conformance.diagnosis.lines import MOST, Line, arranged, cells, number
from rlhf_conformance.diagnosis.steps import steps
from rlhf_conformance.faults import faults
from rlhf_conformance.judging.checks import checks
from rlhf_conformance.judging.subject import Subject
from rlhf_conformance.reporting.terminal import describe
from rlhf_conformance.results import Failure, Result, Step

PARTED = {
    "half-dropped": "half of that, the loss of the token",
    "dual-clip-everywhere": "minus that, the loss of the token",
    "clip-after-mask-mean": "loss, the token-mean: divided by their number",
    "mean-of-means": "loss, the token-mean: divided by the global count",
    "argmax-token": "log-prob of label",
    "log-prob-temperature-ignored": "log-prob of label",
    "chunk-count-mismatch": "log-prob of label",
    "row-for-column": "action mask",
    "eos-overwrites-truncated": "tokens",
    "positions-count-columns": "cumsum(mask) - 1 at its tokens",
    "pack-labels-rolled": "labels",
    "critic-values-shifted": "value, the score at position",
    "rewards-clamped": "reward, the score at position",
    "divided-by-variance": "- mean) / divisor",
    "sorted-and-not-back": "from token",
    "weight-upside-down": "weight",
    "observations-in-the-sum": "weight",
    "first-response-token-lost": "log-prob of the action",
    "actor-entropy-before-temperature": "entropy, minus the sum of p log p",
}
"""Part of the label of the line that is marked, by fault."""
FORMULAS = (
    *("policy-loss", "value-loss", "log-probs", "sequences", "whitening", "group-advantages", "off-policy-correction"),
    *("positions.cumsum", "positions.pads", "positions.restart", "packing.boundary", "packing.tokens"),
)
"""Clauses, or chapters of them, whose formula can be shown without a model."""


def failure_of(adapter: Adapter, clause: str) -> Failure:
    result = check(adapter, profile="smoke", only=[clause]).result(clause)
    assert result.verdict == "fail", result
    assert result.failure is not None
    return result.failure


def marked(found: tuple[Step, ...]) -> list[Step]:
    return [step for step in found if step.parted]


@pytest.fixture
def subject(store: Any) -> Subject:
    return Subject.make(Reference(), device="cpu", dtype="float32", store=store)


def evidence_of(subject: Subject, slug: str, case: Any) -> Evidence:
    return Evidence(checks()[slug], subject, observe(checks()[slug], subject, case))


@pytest.mark.parametrize("name", PARTED)
def test_the_line_where_the_fault_is_is_marked(name: str):
    fault = faults()[name]
    found = failure_of(fault.adapter(), fault.clause).steps
    (step,) = marked(found)
    assert PARTED[name] in step.label
    assert step.actual not in ("", step.expected)
    assert len(found) <= MOST


def test_the_marked_line_has_the_numbers_of_the_failure():
    fault = faults()["dual-clip-everywhere"]
    failure = failure_of(fault.adapter(), fault.clause)
    (step,) = marked(failure.steps)
    assert (step.expected, step.actual) == (failure.expected, failure.actual)


CASE = PolicyLossCase(
    log_probs=((-0.25, -1.0), (-0.5, 0.0)),
    old_log_probs=((-1.0, -0.5), (-0.5, 0.0)),
    advantages=((2.0, -3.0), (1.0, 0.0)),
    action_mask=((1, 1), (1, 0)),
    options=PolicyLossOptions(clip_eps_low=0.25, clip_eps_high=0.5, aggregation="token-mean"),
)


class Off(Reference):
    """A policy loss that is wrong by ten, so that its steps are shown."""

    def policy_loss(self, *arguments: Any) -> Any:
        return super().policy_loss(*arguments).loss + 10


def test_the_steps_of_the_policy_loss_are_those_of_its_formula(subject: Subject):
    subject.adapter = Off()
    found = {s.label: s.expected for s in steps(evidence_of(subject, "policy-loss.aggregation", CASE))}
    ratio = math.exp(0.75)
    assert found["row 0, token 0: ratio exp(-0.25 - -1)"] == number(ratio)
    assert found["row 0, token 0: ratio clipped to 0.75 .. 1.5"] == "1.5"
    assert found["row 0, token 0: ratio * advantage 2"] == number(2 * ratio)
    assert found["row 0, token 0: clipped ratio * advantage 2"] == "3"
    assert found["row 0, token 0: the smaller of the two"] == "3"
    assert found["row 0, token 0: minus that, the loss of the token (asked for alone)"] == "-3"
    assert found["row 0, token 1: the smaller of the two"] == number(-3 * 0.75)
    assert found["action mask, row by row"] == "1 1 | 1 0"
    assert found["sum of the losses of the action tokens"] == number(-3 + 2.25 - 1)
    assert found["loss, the token-mean: divided by their number, 3"] == number((-3 + 2.25 - 1) / 3)


def test_a_sequence_mean_shows_the_mean_of_each_row(subject: Subject):
    subject.adapter = Off()
    case = CASE.with_options(aggregation="sequence-mean")
    found = {s.label: s for s in steps(evidence_of(subject, "policy-loss.aggregation", case))}
    row = found["mean of row 0 over its action tokens, 2 (asked for alone)"]
    assert row.expected == number((-3 + 2.25) / 2)
    assert row.actual == number((-3 + 2.25) / 2 + 10)
    assert found["loss, the sequence-mean: divided by the number of rows, 2"].expected == number((-0.375 - 1) / 2)


class WrongGradient(Reference):
    """Right values, twice the gradient."""

    def policy_loss(self, *arguments: Any) -> Any:
        loss = super().policy_loss(*arguments).loss
        return 2 * loss - loss.detach()


def test_a_wrong_gradient_is_marked_behind_the_right_loss():
    found = failure_of(WrongGradient(), "policy-loss.gradient").steps
    (step,) = marked(found)
    assert "gradient of the loss, weight" in step.label
    assert float(step.actual) == pytest.approx(2 * float(step.expected))
    assert all(s.actual in ("", s.expected) for s in found[: found.index(step)])


class ReadsUnderTheMask(Reference):
    """The mean divides by all cells, and what is masked pulls."""

    def value_loss(self, values: Any, old_values: Any, returns: Any, action_mask: Any, options: Any) -> Any:
        return (
            super().value_loss(values, old_values, returns, action_mask, options) + 0 * values.sum() + values.sum() / 8
        )


def test_a_gradient_under_the_mask_is_named():
    found = failure_of(ReadsUnderTheMask(), "value-loss.mask").steps
    assert any("under the mask" in step.label and step.expected == "0" for step in found)


@pytest.mark.parametrize("slug", [slug for slug in checks() if slug.startswith(FORMULAS)])
def test_nothing_is_marked_where_the_adapter_is_right(slug: str, subject: Subject):
    for case in drawn(checks()[slug], subject, 4, seed=7):
        evidence = evidence_of(subject, slug, case)
        assert not evidence.smallest.failed
        assert marked(steps(evidence)) == []


def test_clauses_without_a_formula_have_no_steps(subject: Subject):
    for name in ("scalar", "inputs-unwritten", "side-effects"):
        slug = f"value-loss.{name}"
        (case,) = drawn(checks()[slug], subject, 1, seed=0)[:1]
        assert steps(evidence_of(subject, slug, case)) == ()


def test_an_adapter_that_cannot_be_asked_again_has_no_steps(subject: Subject):
    class Tired(Reference):
        def token_log_probs(self, *arguments: Any) -> Any:
            raise RuntimeError("no more")

    (case,) = drawn(checks()["log-probs.definition"], subject, 1, seed=0)[:1]
    subject.adapter = Tired()
    assert steps(evidence_of(subject, "log-probs.definition", case)) == ()


def test_a_loss_that_raises_still_shows_what_should_have_come(subject: Subject):
    class Tired(Reference):
        def policy_loss(self, *arguments: Any) -> Any:
            raise RuntimeError("no more")

    subject.adapter = Tired()
    found = steps(evidence_of(subject, "policy-loss.aggregation", CASE))
    assert found
    assert all(step.actual == "" and not step.parted for step in found)


def test_a_diagnosis_whose_calls_are_spent_asks_for_no_single_tokens(subject: Subject):
    subject.adapter = Off()
    evidence = evidence_of(subject, "policy-loss.aggregation", CASE)
    assert any("token 0" in step.label for step in steps(evidence))
    evidence.work.calls = 0
    assert not any("token 0" in step.label for step in steps(evidence))


# --- the lines themselves -----------------------------------------------------------------------------------------


def block(label: str, actual: float = 1.0) -> list[Line]:
    return [Line(f"{label}: {i}", 1.0, actual) for i in range(5)]


def test_the_blocks_that_differ_come_first_and_one_line_is_marked():
    found = arranged([block("right"), block("wrong", 2.0), block("other", 3.0)], [Line("mean", 1.0, 2.0)])
    assert [step.label for step in found if step.parted] == ["wrong: 0"]
    assert found[0].label == "wrong: 0"
    assert [step.label for step in found[-2:]] == ["mean", "tokens left out"]


def test_what_there_is_no_room_for_is_counted():
    found = arranged([block(f"token {i}", 2.0) for i in range(20)], [Line("mean", 1.0)], what="tokens")
    assert len(found) <= MOST
    shown = {step.label.split(":")[0] for step in found if step.label.startswith("token ")}
    assert found[-1] == Step("tokens left out", str(20 - len(shown)))


@pytest.mark.parametrize(
    "expected, actual, allowed, parted",
    [
        (1.0, 1.0, 0.0, False),
        (1.0, 1.5, 0.5, False),
        (1.0, 1.6, 0.5, True),
        (1.0, math.nan, 9.0, True),
        (math.nan, math.nan, 0.0, False),
        (math.inf, math.inf, 0.0, False),
        (math.inf, 1.0, 9.0, True),
        (1.0, None, 0.0, False),
        ("1 0", "1 0", 0.0, False),
        ("1 0", "1 1", 0.0, True),
    ],
)
def test_a_line_is_parted_where_the_two_lie_further_apart_than_is_allowed(expected, actual, allowed, parted):
    assert Line("x", expected, actual, allowed).parted is parted


def test_of_long_rows_the_part_around_the_difference_is_shown():
    row = list(range(100))
    wanted, came = cells(row, [*row[:50], -1, *row[51:]])
    assert " 50 " in wanted
    assert " -1 " in str(came)
    assert wanted.startswith("... ")
    assert wanted.endswith(" ...")
    assert cells([1, 0]) == ("1 0", None)


def test_the_terminal_points_at_the_marked_line():
    failure = Failure("loss", "", "1", "2", steps=(Step("ratio", "1"), Step("product", "1", "2", parted=True)))
    result = Result("policy-loss.clip", "MUST", "fail", "x", failure=failure)
    lines = describe(result).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("  step by step"))
    assert lines[start].split() == ["step", "by", "step", "expected", "actual"]
    assert lines[start + 1].split() == ["ratio", "1"]
    assert lines[start + 2].split() == ["->", "product", "1", "2"]


def test_the_terminal_shows_no_table_without_steps():
    result = Result("policy-loss.clip", "MUST", "fail", "x", failure=Failure("loss", "", "1", "2"))
    assert "step by step" not in describe(result)
    assert "step by step" not in describe(replace(result, verdict="error"))
