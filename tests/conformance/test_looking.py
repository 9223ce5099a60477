"""What is said of answers that change, of answers that lack a part, and of failures that have no name of their own."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from rlhf_conformance import check
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.diagnosis import nearest
from rlhf_conformance.diagnosis.across import named_across
from rlhf_conformance.diagnosis.repeating import CAUSE
from rlhf_conformance.faults import faults
from rlhf_conformance.judging.judge import ClauseFailure
from rlhf_conformance.results import Diagnosis, Failure, Mismatch

# --- the same twice -------------------------------------------------------------------------------------------------


class Counting(Reference):
    """Another answer each time, whatever is seeded."""

    def __init__(self):
        super().__init__()
        self.count = itertools.count(1)

    def policy_loss(self, *given):
        found = super().policy_loss(*given)
        return replace(found, loss=found.loss + next(self.count))

    def action_values(self, critic, batch):
        rows = batch.actions_to_ragged(super().action_values(critic, batch))
        return [row + next(self.count) for row in rows]

    def process_sequences(self, *given):
        found = super().process_sequences(*given)
        return replace(found, action_mask=found.action_mask * (next(self.count) % 7 + 2))


@pytest.mark.parametrize("slug", ["policy-loss.clip", "critic.state-before", "sequences.action-mask"])
def test_an_answer_that_changes_is_said_to_change_and_nothing_else(slug):
    (result,) = check(Counting(), profile="smoke", only=[slug]).results
    assert [row.cause for row in result.failure.diagnoses] == [CAUSE]
    assert "itself failed" not in result.failure.note


@pytest.mark.parametrize(
    "fault, slug", [("half-dropped", "value-loss.half"), ("bfloat-log-softmax", "actor.log-probs")]
)
def test_an_answer_that_stays_is_not_said_to_change(fault, slug):
    (result,) = check(faults()[fault].adapter(), profile="smoke", only=[slug]).results
    assert CAUSE not in [row.cause for row in result.failure.diagnoses]


# --- a part that does not come --------------------------------------------------------------------------------------


class WithoutAttention(faults()["first-action-lost"].adapter):
    """The action mask is wrong, the tokens are right, and no attention mask is returned."""

    def process_sequences(self, *given, **more):
        return replace(super().process_sequences(*given, **more), attention_mask=None)


@pytest.mark.parametrize("slug", ["sequences.action-mask", "sequences.pad-equals-eos"])
def test_an_answer_that_lacks_a_part_is_diagnosed_by_the_others(slug):
    (result,) = check(WithoutAttention(), profile="smoke", only=[slug]).results
    assert [row.name for row in result.failure.diagnoses] == ["first-action-lost"]
    assert result.failure.note == ""


class WithoutFraction(Reference):
    """Twice the KL metric, and no clip fraction."""

    def policy_loss(self, *given):
        found = super().policy_loss(*given)
        return replace(found, clip_fraction=None, approx_kl=found.approx_kl * 2)


def test_a_part_that_is_wrong_is_told_though_another_one_does_not_come():
    report = check(
        WithoutFraction(), profile="smoke", only=["policy-loss.kl-metric", "policy-loss.metrics-nan-under-mask"]
    )
    assert [result.verdict for result in report.results] == ["fail", "fail"]
    assert not any("itself failed" in result.failure.note for result in report.results)


# --- names of other failures ----------------------------------------------------------------------------------------

MEAN = "value-token-mean-is-mean-of-rows"


@pytest.fixture(scope="module")
def report():
    """Two failures of one fault, of which one has its name: given here, since a busy machine may cut the search."""
    only = ["value-loss.token-mean", "value-loss.aggregation"]
    found = check(faults()[MEAN].adapter(), profile="smoke", only=only)
    named = Diagnosis("fault", MEAN, "agrees", cause="means of rows")
    first = found.result("value-loss.token-mean")
    first = replace(first, failure=replace(first.failure, diagnoses=(named,)))
    return replace(found, results=tuple(first if r.clause == first.clause else r for r in found.results))


def nameless(report, slug: str, **changes: object):
    """The report without the names of one failure."""

    def bare(result):
        return replace(result, failure=replace(result.failure, diagnoses=(), **changes))

    return replace(report, results=tuple(bare(r) if r.clause == slug else r for r in report.results))


def test_a_failure_gets_the_name_of_another_one_that_explains_it(report):
    (row,) = named_across(nameless(report, "value-loss.aggregation")).result("value-loss.aggregation").failure.diagnoses
    assert row.name == MEAN
    assert row.sentence.startswith(f"agrees with `{MEAN}` on the failing case, as value-loss.token-mean does on more")


def test_a_failure_with_other_numbers_gets_no_name(report):
    exchange = report.result("value-loss.aggregation").failure.exchange
    wrong = tuple(replace(row, actual=repr(float(row.actual) * 1.01)) for row in exchange.numbers)
    bare = nameless(report, "value-loss.aggregation", exchange=replace(exchange, numbers=wrong))
    assert named_across(bare).result("value-loss.aggregation").failure.diagnoses == ()


def test_what_breaks_the_search_costs_nothing(report, monkeypatch):
    def broken(*given):
        raise RuntimeError("no candidates")

    bare = nameless(report, "value-loss.aggregation")
    monkeypatch.setattr("rlhf_conformance.diagnosis.across.candidates", broken)
    assert named_across(bare) is bare


@pytest.mark.parametrize("by_name", [False, True])
def test_check_asks_for_the_names_that_failures_have_in_common(by_name, monkeypatch):
    kind = faults()[MEAN].adapter
    adapter = f"{kind.__module__}:{kind.__name__}" if by_name else kind()
    asked = []
    monkeypatch.setattr("rlhf_conformance.diagnosis.across.named_across", lambda report: asked.append(1) or report)
    assert check(adapter, profile="smoke", only=["value-loss.token-mean"]).verdict == "NOT CONFORMANT"
    assert asked == [1]


# --- one sentence ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["", "row 1"])
def test_a_failure_is_put_in_one_sentence_everywhere(place):
    mismatch = Mismatch("loss", place, "1", "2")
    assert str(ClauseFailure(mismatch)) == mismatch.sentence == Failure("loss", place, "1", "2").sentence


def test_the_diagnosis_names_all_that_answer_alike(monkeypatch):
    monkeypatch.setattr(nearest, "LISTED", 0)
    only = ["value-loss.half"]
    (result,) = check(faults()["half-dropped"].adapter(), profile="smoke", only=only).results
    (row,) = result.failure.diagnoses
    assert f"or {len(row.alike)} others" in row.sentence
