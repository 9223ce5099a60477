"""What the chapters of formulas draw at the edges, and what their budgets can tell apart there."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rlhf_conformance import Adapter
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.faults import faults
from rlhf_conformance.judging.checks import checks
from rlhf_conformance.judging.judge import Judge
from rlhf_conformance.judging.questions import Call
from rlhf_conformance.judging.subject import Subject
from rlhf_conformance.judging.trying import PROFILES, seed_of, try_clause
from rlhf_conformance.oracle.probes import ProbeStore
from rlhf_conformance.results import FAIL, NOT_PROVIDED, PASS


@pytest.fixture
def asked(tmp_path):
    """The result of one clause for one adapter, as the gate has it."""

    def ask(adapter, slug, dtype="float32"):
        subject = Subject.make(adapter, device="cpu", dtype=dtype, store=ProbeStore(tmp_path))
        return try_clause(slug, subject, replace(PROFILES["gate"], shrinking=0.0), 0).result

    return ask


@pytest.fixture
def drawn(tmp_path):
    """The cases that the gate draws for a clause."""

    def draw(slug, adapter=None, dtype="float32"):
        subject = Subject.make(adapter or Reference(), device="cpu", dtype=dtype, store=ProbeStore(tmp_path))
        cases, count = checks()[slug].cases(subject), PROFILES["gate"].examples
        return [cases.case(data) for _, data in zip(range(count), cases.drawn(seed_of(slug, 0)))]

    return draw


MASK = ["ratio-before-the-mask", "product-before-the-mask", "square-before-the-mask", "weight-of-the-largest-square"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", MASK)
def test_numbers_that_overflow_under_the_mask_are_part_of_the_must(name, dtype, asked):
    fault = faults()[name]
    assert asked(fault.adapter(), fault.clause, dtype).verdict == FAIL
    assert asked(Reference(), fault.clause, dtype).verdict == PASS


# --- entropies ----------------------------------------------------------------------------------------------------


class OnlyLogs(Adapter):
    """Takes its entropies without a graph, and declares nothing."""

    def token_entropy(self, logits, temperature):
        return Reference().token_entropy(logits, temperature).detach()


@pytest.mark.parametrize(
    "declared, graph, gradient",
    [(None, FAIL, NOT_PROVIDED), (True, FAIL, FAIL), (False, NOT_PROVIDED, NOT_PROVIDED)],
)
def test_an_entropy_without_a_graph_is_judged_by_what_is_declared(declared, graph, gradient, asked):
    adapter = OnlyLogs()
    adapter.entropy_gradient = declared
    assert asked(adapter, "log-probs.entropy-graph").verdict == graph
    assert asked(adapter, "log-probs.entropy-gradient").verdict == gradient


def test_a_gradient_that_is_there_has_to_be_right_whatever_is_declared(asked):
    adapter = faults()["entropy-probabilities-detached"].adapter()
    adapter.entropy_gradient = None
    assert asked(adapter, "log-probs.entropy-gradient").verdict == FAIL


def test_gradients_are_off_for_a_call_that_wants_none_and_on_afterwards(tmp_path):
    seen = []

    class Watching(Reference):
        def token_entropy(self, logits, temperature):
            seen.append(torch.is_grad_enabled())
            return super().token_entropy(logits, temperature)

    subject = Subject.make(Watching(), device="cpu", dtype="float32", store=ProbeStore(tmp_path))
    logits = torch.zeros(1, 2, 3, requires_grad=True)
    answers = [subject.answer(Call("token_entropy", (logits, 1.0), grad=grad)) for grad in (False, True)]
    assert seen == [False, True]
    assert [answer.value.requires_grad for answer in answers] == [False, True]
    assert torch.is_grad_enabled()
    assert [answer.record.disturbed for answer in answers] == [[], []]


def test_ids_that_are_ruled_out_are_drawn_and_are_never_the_label(drawn):
    cases = drawn("log-probs.masked-logits")
    assert sum(bool(case.logits.isinf().any()) for case in cases) > len(cases) / 2
    for case in cases:
        labeled = case.logits.gather(-1, case.labels.unsqueeze(-1))
        assert labeled.isfinite().all()


# --- half precision -----------------------------------------------------------------------------------------------


def test_a_confident_label_in_half_precision_is_asked_in_every_run(drawn, asked):
    halves = [case for case in drawn("log-probs.gradient") if case.dtype != "float32"]
    assert halves
    assert all(torch.equal(case.labels, case.logits.argmax(-1)) for case in halves)
    for dtype in ("float32", "bfloat16", "float16"):
        assert asked(Reference(), "log-probs.gradient", dtype).verdict == PASS
        wrong = faults()["probabilities-of-gradient-in-half"].adapter()
        assert asked(wrong, "log-probs.gradient", dtype).verdict == FAIL


@pytest.mark.parametrize(
    "name",
    [
        "kl-metric-sign",
        "gradient-halved",
        "gradient-without-ratio",
        "half-dropped",
        "entropy-unscaled-under-no-grad",
        "entropy-in-bits",
        "entropy-gradient-of-temperature-one",
    ],
)
def test_what_is_wrong_in_float32_is_wrong_in_bfloat16(name, asked):
    fault = faults()[name]
    assert asked(fault.adapter(), fault.clause, "bfloat16").verdict == FAIL


# --- options, and what is logged ----------------------------------------------------------------------------------


def test_bounds_are_drawn_at_their_edges(drawn):
    options = [case.options for case in drawn("policy-loss.bounds-as-given")]
    assert {o.clip_eps_low for o in options} >= {0.0, 1.0, 1.5}
    assert {o.clip_eps_high for o in options} >= {0.0, 4.0}
    assert {case.options.clip_eps for case in drawn("value-loss.bounds-as-given")} == {0.0, 3.0}
    assert {o.dual_clip for o in options} == {None, 1.05, 1.5, 3.0, 10.0}
    temperatures = [case.temperature for case in drawn("log-probs.temperature")]
    assert {0.05, 20.0} <= set(temperatures)
    assert int in map(type, temperatures)
    assert {case.vocab_size for case in drawn("log-probs.definition")} >= {1, 2}


@pytest.mark.parametrize("slug", [slug for slug in checks() if slug.startswith("policy-loss.")])
def test_a_dual_clip_that_is_always_on_is_always_drawn_for_ppo_and_for_nothing_else(slug, tmp_path):
    class Always(Reference):
        dual_clip = "always"
        seen = 0

        def policy_loss(self, log_probs, old_log_probs, advantages, action_mask, options):
            assert (options.dual_clip is not None) is (options.surrogate == "ppo")
            type(self).seen += 1
            return super().policy_loss(log_probs, old_log_probs, advantages, action_mask, options)

    subject = Subject.make(Always(), device="cpu", dtype="float32", store=ProbeStore(tmp_path))
    assert try_clause(slug, subject, PROFILES["smoke"], 0).result.verdict == PASS
    assert Always.seen


def test_a_trainer_without_metrics_is_not_asked_for_them(asked):
    class LossAlone(Reference):
        def policy_loss(self, *arguments):
            return super().policy_loss(*arguments).loss

    class OneMetric(Reference):
        def policy_loss(self, *arguments):
            return replace(super().policy_loss(*arguments), approx_kl=None)

    for slug in ("policy-loss.metrics-empty", "policy-loss.metrics-nan-under-mask"):
        assert asked(LossAlone(), slug).verdict == NOT_PROVIDED
        assert asked(OneMetric(), slug).verdict == PASS


@pytest.mark.parametrize(
    "slug", ["policy-loss.scalar", "value-loss.scalar", "positions.pads", "policy-loss.metrics-empty"]
)
def test_numbers_are_compared(slug, tmp_path):
    subject = Subject.make(Reference(), device="cpu", dtype="float32", store=ProbeStore(tmp_path))
    judge = Judge(record=[])
    check = checks()[slug]
    judge.try_case(check, subject, check.cases(subject).case(b""))
    assert [comparison for comparison in judge.record if comparison.expected]


def test_positions_of_another_kind_of_number_are_the_adapters_affair(asked):
    class Flags(Reference):
        def position_ids(self, attention_mask):
            return super().position_ids(attention_mask).bool()

    assert asked(Flags(), "positions.pads").verdict == PASS
    assert asked(Flags(), "positions.cumsum").verdict == FAIL


@pytest.mark.parametrize("slug", ["policy-loss.kl-metric", "value-loss.clip"])
def test_inputs_in_float64_are_held_by_float32_too(slug, drawn):
    """Else they are rounded on their way into a tensor, which no budget allows for."""
    for case in drawn(slug, dtype="float64"):
        for table in getattr(case, "case", case).tables:
            assert torch.tensor(table, dtype=torch.float32).double().tolist() == [list(row) for row in table]
