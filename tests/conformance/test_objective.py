"""The objective and the corrected loss: what is asked of whom, what the oracle says, and scripts of their gradients."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

import rlhf_spec.corrected_loss
import rlhf_spec.objective
from rlhf_conformance import check
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.chapters.corrected_loss.cases import LOOSE, corrected_cases, weighable
from rlhf_conformance.chapters.corrected_loss.checks import DUAL
from rlhf_conformance.chapters.corrected_loss.loss import CORRECTED
from rlhf_conformance.chapters.objective.cases import TERMS, objective_cases
from rlhf_conformance.chapters.objective.terms import OBJECTIVE
from rlhf_conformance.faults import faults
from rlhf_conformance.judging.questions import main
from rlhf_conformance.judging.subject import Subject
from rlhf_conformance.oracle.probes import ProbeStore
from rlhf_conformance.reporting.scripts import script

CASES = 60


@pytest.fixture
def subject(tmp_path):
    def make(dtype="float32", **attributes) -> Subject:
        adapter = type("Declared", (Reference,), attributes)()
        return Subject.make(adapter, device="cpu", dtype=dtype, store=ProbeStore(tmp_path))

    return make


def drawn(cases, count=CASES):
    return [cases.case(data) for data, _ in zip(cases.drawn(7), range(count), strict=False)]


def moved(minimised, case, name, i, j, by):
    """The value of a case with one cell of a table moved."""
    rows = [list(row) for row in getattr(case, name)]
    rows[i][j] += by
    return minimised.value(case.changed(**{name: tuple(map(tuple, rows))}))


@pytest.mark.parametrize("leaf", ["log_probs", "values", "entropies"])
def test_the_gradients_of_the_objective_are_those_of_its_value(subject, leaf):
    """By differences. GSPO's reaches each token through a mean, which needs rows of one advantage."""
    own = subject(surrogates=("ppo", "reinforce"), kl_gradient="plain")
    compared = 0
    for case in drawn(objective_cases(own, terms=TERMS, surrogates=("ppo", "reinforce"), zones=("inside",))):
        gradient = OBJECTIVE.gradient(case, leaf="" if leaf == "log_probs" else leaf)
        for i, j in case.actions[:3]:
            step = 1e-6
            slope = (moved(OBJECTIVE, case, leaf, i, j, step) - moved(OBJECTIVE, case, leaf, i, j, -step)) / (2 * step)
            assert gradient[i][j] == pytest.approx(slope, rel=1e-4, abs=1e-6)
            compared += gradient[i][j] != 0
    assert compared > CASES


@pytest.mark.parametrize("surrogate", ["ppo", "gspo", "cispo"])
def test_the_gradient_of_a_corrected_kl_is_that_of_its_value(subject, surrogate):
    """By differences, less the policy loss: the ratio has a graph, with GSPO through all actions of its row."""
    own, compared = subject(surrogates=(surrogate,), kl_gradient="weighted", kl_correction="ratio"), 0
    for case in drawn(objective_cases(own, terms=("kl",), surrogates=(surrogate,), zones=("inside",))):
        alone = case.with_options(kl_coef=0.0)
        for i, j in case.actions[:3]:
            step = 1e-6
            up, down = (
                moved(OBJECTIVE, case, "log_probs", i, j, by) - moved(OBJECTIVE, alone, "log_probs", i, j, by)
                for by in (step, -step)
            )
            slope = OBJECTIVE.gradient(case)[i][j] - OBJECTIVE.gradient(alone)[i][j]
            assert slope == pytest.approx((up - down) / (2 * step), rel=1e-4, abs=1e-6)
            compared += slope != 0
    assert compared > CASES


def test_the_gradient_of_the_corrected_loss_is_that_of_its_value(subject):
    """The weights are constants: they are made of the old log-probs."""
    own, compared = subject(surrogates=("ppo", "reinforce")), 0
    for case in drawn(corrected_cases(own, surrogates=("ppo", "reinforce"), zones=("inside",))):
        gradient = CORRECTED.gradient(case)
        for i, j in case.actions[:3]:
            step = 1e-6
            up, down = (moved(CORRECTED, case, "log_probs", i, j, by) for by in (step, -step))
            assert gradient[i][j] == pytest.approx((up - down) / (2 * step), rel=1e-4, abs=1e-6)
            compared += gradient[i][j] != 0
    assert compared > CASES / 2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_the_reference_is_well_within_the_budgets(subject, dtype):
    """Not only within them: half would do."""
    own = subject(dtype)
    for minimised in (OBJECTIVE, CORRECTED):
        for case in drawn(minimised.drawn(own), 20):
            answer = float(main(own.answer(minimised.call(own, case))).detach())
            assert abs(answer - minimised.value(case)) <= minimised.value_budget(case, own.dtype) / 2


def test_a_term_that_is_not_declared_has_no_coefficient(subject):
    own = subject(objective_terms=("entropy",))
    assert OBJECTIVE.leaves(own.adapter) == ("log_probs", "entropies")
    for case in drawn(objective_cases(own)):
        assert (case.options.value_coef, case.options.kl_coef) == (0.0, 0.0)
        assert case.options.entropy_coef > 0
        assert case.options.offered_by(own.adapter)
        assert not replace(case.options, kl_coef=0.1).offered_by(own.adapter)


def test_each_term_is_there_and_is_not_there(subject):
    cases = drawn(objective_cases(subject()))
    for term in TERMS:
        coefs = {getattr(case.options, f"{term}_coef") > 0 for case in cases}
        assert coefs == {True, False}


def test_the_bounds_bind_and_do_not(subject):
    weights = [
        x for case in drawn(CORRECTED.drawn(subject())) for row in CORRECTED.weights_and_mask(case)[0] for x in row
    ]
    assert 0.1 < sum(x == 0 for x in weights) / len(weights) < 0.9


def test_gspo_has_the_weights_of_whole_sequences_alone(subject):
    own = subject(surrogates=("gspo",))
    assert {level for level, _, _ in weighable(own.adapter, "gspo")} == {"sequence"}
    assert {case.options.level for case in drawn(CORRECTED.drawn(own))} == {"sequence"}
    left_out = subject(surrogates=("gspo",), rejected_tokens="left-out").adapter
    assert {mode for _, mode, _ in weighable(left_out, "gspo")} == {"truncate"}
    assert weighable(subject(correction_levels=("token",)).adapter, "gspo") == []


@pytest.mark.parametrize("aggregation", ["constant-length", "token-sum"])
def test_sums_are_drawn_with_weights_that_are_not_one(subject, aggregation):
    """Where they are all 1, no sum can forget them."""
    cases = drawn(corrected_cases(subject(), aggregations=(aggregation,), zones=("inside",), **LOOSE))
    free = [case.with_options(level=None) for case in cases]
    moves = [CORRECTED.value(case) != CORRECTED.value(other) for case, other in zip(cases, free, strict=True)]
    assert {case.options.aggregation for case in cases} == {aggregation}
    assert sum(moves) > CASES / 2


def test_the_dual_clip_binds_under_most_weights(subject):
    """Where it does not, or the weight is 1, it matters not which comes first."""
    cases, binds = drawn(corrected_cases(subject(), **DUAL, **LOOSE)), 0
    for case in cases:
        assert case.options.dual_clip > 1
        binds += CORRECTED.value(case.with_options(dual_clip=None)) > CORRECTED.value(case) + 1e-6
    assert binds > CASES / 2


def test_the_bypass_reads_the_engine_and_not_the_old_log_probs(subject):
    case = next(c for c in drawn(corrected_cases(subject(), bypass=True)) if c.shape[1] > 2)
    other = case.changed(old_log_probs=case.advantages)
    assert CORRECTED.value(other) == CORRECTED.value(case)
    assert CORRECTED.value(case.changed(rollout_log_probs=case.advantages)) != CORRECTED.value(case)


@pytest.mark.parametrize(
    ("clause", "name"),
    [
        ("objective.entropy-gradient", "entropy-term-detached"),
        ("objective.value-gradient", "value-term-detached"),
        ("objective.kl-gradient", "kl-term-detached"),
        ("objective.total", "kl-term-subtracted"),
        ("objective.parts", "whole-logged-as-policy-loss"),
        ("objective.micro-batches", "kl-of-the-micro-batch"),
        ("corrected-loss.gradient", "weights-in-the-value-alone"),
        ("corrected-loss.bypass", "bypass-ignored"),
        ("corrected-loss.bypass-off", "bypass-stays-on"),
        ("corrected-loss.bypass-old-nan", "bypass-by-multiplication"),
        ("corrected-loss.bypass-mask", "bypass-ratio-before-the-mask"),
    ],
)
def test_a_failure_is_a_script_that_shows_it(clause, name, tmp_path):
    report = check(faults()[name].adapter(), profile="gate", only=[clause])
    result = report.result(clause)
    assert result.verdict == "fail"
    text = script(result, report)
    file = tmp_path / "case.py"
    file.write_text(text, encoding="utf-8")
    ran = subprocess.run([sys.executable, str(file)], capture_output=True, text=True, check=False)
    assert ran.returncode == 1, ran.stderr
    assert "Traceback" not in ran.stderr


def test_the_specification_refuses_what_it_does_not_know():
    band = {"clip_eps_low": 0.2, "clip_eps_high": 0.2}
    tables = [[[-1.0]]] * 4
    with pytest.raises(ValueError, match="rejected"):
        rlhf_spec.corrected_loss.corrected_loss(*tables, [[1]], **band, level="token", rejected="dropped")
    with pytest.raises(ValueError, match="aggregation"):
        rlhf_spec.objective.entropy_term([[1.0]], [[1]], entropy_aggregation="mean")
    with pytest.raises(ValueError, match="estimator"):
        rlhf_spec.objective.kl_term([[1.0]], [[1.0]], [[1]], estimator="k4")


def test_the_reference_says_what_is_missing_and_refuses_other_shapes():
    from rlhf_reference import Objective, PolicyLoss

    rows = torch.zeros(2, 3)
    given = (rows, rows, rows, torch.ones(2, 3))
    for coef, missing in (("value_coef", "values"), ("kl_coef", "ref_log_probs"), ("entropy_coef", "entropies")):
        with pytest.raises(ValueError, match=missing):
            Objective(PolicyLoss(), **{coef: 0.5})(*given)
    with pytest.raises(ValueError, match="shape"):
        Objective(PolicyLoss(), entropy_coef=0.5)(*given, entropies=torch.zeros(2))
    with pytest.raises(ValueError, match="shape"):
        PolicyLoss()(*given, loss_weights=torch.ones(2))
