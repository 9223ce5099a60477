"""Slips that are in no library: what is said of them, and that nothing is said where two would do as well."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from proof.trying import _subject, settle
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.diagnosis.evidence import drawn, observe
from rlhf_conformance.diagnosis.looking import diagnosed
from rlhf_conformance.diagnosis.variations import variations
from rlhf_conformance.judging.checks import checks
from rlhf_conformance.judging.trying import PROFILES, try_clause
from rlhf_conformance.results import FAIL


@pytest.fixture(scope="module", autouse=True)
def _quiet():
    settle()


def said(adapter: Any, slug: str) -> str:
    """All that is said of the adapter's failure of a clause, causes, places and notes."""
    subject = _subject(adapter, "float32")
    tried = try_clause(slug, subject, replace(PROFILES["gate"], shrinking=0.5), 0, to_the_end=False)
    assert tried.result.verdict == FAIL, tried.result.reason
    failure = diagnosed(tried.result, tried.case, subject, 0).failure
    assert failure is not None
    return "\n".join([*(d.sentence for d in failure.diagnoses), failure.note])


def loss(change: Any) -> Any:
    class Trainer(Reference):
        def policy_loss(self, *given):
            answer = super().policy_loss(*given)
            return replace(answer, loss=change(answer.loss))

    return Trainer()


def given(method: str, change: Any) -> Any:
    """The reference, which is given something else."""
    return type("Trainer", (Reference,), {method: lambda self, *a: getattr(Reference, method)(self, *change(*a))})()


def answered(method: str, change: Any) -> Any:
    """The reference, whose answers are changed."""
    return type("Trainer", (Reference,), {method: lambda self, *a: change(getattr(Reference, method)(self, *a))})()


def _always_default(new, old, advantages, mask, options):
    return new, old, advantages, mask, replace(options, clip_eps_low=0.2, clip_eps_high=0.2)


def _every_pair(values, old, returns, mask, options):
    n = values.numel()
    wide = [x.reshape(-1)[:, None].expand(n, n).reshape(1, -1) for x in (values, old)]
    both = (mask.reshape(-1)[:, None] * mask.reshape(-1)[None]).reshape(1, -1)
    return *wide, returns.reshape(-1)[None].expand(n, n).reshape(1, -1), both, options


def _shifted_mask(new, old, advantages, mask, options):
    return new, old, advantages, torch.cat([mask[:, 1:], mask[:, :1] * 0], 1), options


SLIPS = [
    (loss(lambda x: -x), "policy-loss.aggregation", "`loss` is negated"),
    (loss(lambda x: x + math.log(2)), "policy-loss.clip", "`loss` is raised by log 2"),
    (given("policy_loss", _shifted_mask), "policy-loss.aggregation", "`action_mask` were shifted by one to the left"),
    (given("policy_loss", _always_default), "policy-loss.clip", "always `clip_eps_low` 0.2 and `clip_eps_high` 0.2"),
    (given("value_loss", _every_pair), "value-loss.aggregation", "every pair of tokens"),
    (given("token_log_probs", lambda z, y, t: (z, y.roll(-1, 1), t)), "log-probs.definition", "`labels` were rolled"),
    (given("token_log_probs", lambda z, y, t: (z, y, t**0.5)), "log-probs.temperature", "`temperature` were its root"),
    (answered("token_log_probs", lambda x: x / math.log(10)), "log-probs.definition", "multiplied by 1 / log 10"),
    (answered("token_log_probs", lambda x: (x + x.detach()) / 2), "log-probs.gradient", "gradient half as large"),
]


@pytest.mark.parametrize(("adapter", "slug", "sentence"), SLIPS, ids=[row[2] for row in SLIPS])
def test_a_slip_that_is_in_no_library_gets_its_cause(adapter, slug, sentence):
    assert sentence in said(adapter, slug)


def test_a_row_whose_gradient_is_missing_gets_its_place():
    first_detached = given("policy_loss", lambda new, *rest: (torch.cat([new[:1].detach(), new[1:]]), *rest))
    found = said(first_detached, "policy-loss.gradient")
    assert "in row 0" in found
    assert "0 came" in found


def test_a_graph_that_only_batches_of_one_row_have_is_no_detached_loss():
    class Trainer(Reference):
        def policy_loss(self, *given):
            answer = super().policy_loss(*given)
            return replace(answer, loss=answer.loss.detach()) if given[3].shape[0] > 1 else answer

    found = said(Trainer(), "policy-loss.scalar")
    assert "loss-detached" not in found
    assert "of several rows" in found


def test_a_gradient_that_several_losses_have_is_no_ratio_of_fresh_log_probs():
    """A loss without any ratio has this gradient, too; its value tells them apart."""

    class Trainer(Reference):
        def policy_loss(self, new, old, advantages, mask, options):
            return -(new * advantages * mask).sum() / mask.sum().clamp(min=1)

    assert "ratio-of-fresh-log-probs" not in said(Trainer(), "policy-loss.gradient")


def test_variations_follow_the_conventions_that_are_declared():
    class Trainer(Reference):
        kl_metric = "k3"

    check, subject = checks()["policy-loss.kl-metric"], _subject(Trainer(), "float32")
    (case,) = drawn(check, subject, 1, 0)
    made = variations(check, subject.adapter, observe(check, subject, case))
    assert all(issubclass(v.adapter, Reference) for v in made)
    assert len({v.name for v in made}) == len(made)


# --- many rows, and places ------------------------------------------------------------------------------------------


class EightByEight(Reference):
    """Rows behind the last whole eight keep a value of 0."""

    def action_values(self, critic, batch):
        rows = batch.actions_to_ragged(super().action_values(critic, batch))
        whole = len(rows) // 8 * 8 or len(rows)
        return [*rows[:whole], *(0 * row for row in rows[whole:])]


def test_of_many_rows_the_one_that_is_lost_is_named():
    found = said(EightByEight(), "critic.batch-independence")
    assert "the numbers in the last row differ, all of them and no others" in found
    assert "0 came" in found


def test_a_slip_in_some_layouts_is_said_of_those_that_were_seen_alone():
    """It is in 'left' batches, too, of which none is among the cases."""

    class Trainer(Reference):
        def action_log_probs(self, actor, batch):
            rows = batch.actions_to_ragged(super().action_log_probs(actor, batch))
            late = batch.layout in ("padded", "left")
            return [torch.cat([row[1:], row[-1:] * 0]) for row in rows] if late else rows

    found = said(Trainer(), "actor.log-probs")
    assert "'padded' only" not in found
    assert "in layout 'padded', not in '" in found or "in padded batches" in found


def test_a_failure_that_is_no_number_has_no_place_among_numbers():
    class Trainer(Reference):
        def position_ids(self, attention_mask):
            answer = super().position_ids(attention_mask)
            attention_mask.zero_()
            return answer

    assert "every number" not in said(Trainer(), "positions.inputs-unwritten")


@pytest.mark.parametrize("slug", ["value-loss.clip", "value-loss.sequence-mean", "value-loss.gradient"])
def test_a_denominator_that_is_wrong_with_some_options_only_is_said_with_them(slug):
    def change(self, values, old, returns, mask, options):
        right = Reference.value_loss(self, values, old, returns, mask, options)
        return right * mask.sum() / mask.numel() if options.global_count is None else right

    text = said(type("Trainer", (Reference,), {"value_loss": change})(), slug)
    assert "multiplied by the number of actions and divided by the number of cells where no `global_count` is" in text


def test_an_examination_does_not_end_before_a_second_search_has_had_its_own():
    """What was seen of the adapter for the first suspects is not paid for again; none is named unexamined."""

    def change(self, values, old, returns, mask, options):
        right = Reference.value_loss(self, values, old, returns, mask, options)
        return right * mask.sum() / mask.numel() if options.global_count is None else right

    text = said(type("Trainer", (Reference,), {"value_loss": change})(), "value-loss.clip")
    assert "all ones" not in text
    assert "number of columns" not in text
