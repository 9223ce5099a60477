"""Whitening and advantages of groups: what is asked of whom, and which answers fit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rlhf_conformance.adapter import declarations
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.chapters.group_advantages.cases import group_cases
from rlhf_conformance.judging.checks import checks
from rlhf_conformance.judging.subject import Subject
from rlhf_conformance.judging.trying import PROFILES, try_clause
from rlhf_conformance.methods import DeclarationError
from rlhf_conformance.oracle.probes import ProbeStore
from rlhf_conformance.results import ERROR, FAIL, NOT_PROVIDED, PASS


@pytest.fixture
def subject(tmp_path):
    def make(**attributes) -> Subject:
        adapter = type("Declared", (Reference,), attributes)()
        return Subject.make(adapter, device="cpu", dtype="float32", store=ProbeStore(tmp_path))

    return make


def result(slug, subject):
    return try_clause(slug, subject, replace(PROFILES["smoke"], shrinking=0.0), 0).result


def row_of(change):
    """The reference with an advantage for each response, of which something else is made."""

    def group_advantages(self, scores, group_ids, mask, options):
        return change(Reference.group_advantages(self, scores, group_ids, torch.ones_like(mask), options)[:, 0])

    return group_advantages


@pytest.mark.parametrize(
    ("change", "verdict"),
    [(lambda x: x, PASS), (lambda x: -x, FAIL), (lambda x: x[:, None, None], ERROR), (lambda x: x.long(), ERROR)],
    ids=["right", "wrong", "another shape", "whole numbers"],
)
def test_an_advantage_for_each_response_is_judged_at_its_actions(subject, change, verdict):
    shown = subject(group_advantages=row_of(change))
    assert result("group-advantages.group-std", shown).verdict == verdict
    assert result("group-advantages.mask", shown).verdict == verdict


@pytest.mark.parametrize("layout", ["consecutive", "equal"])
def test_groups_stand_as_is_declared(subject, layout):
    cases = group_cases(subject(group_layout=layout), min_groups=2)
    drawn = [cases.case(data) for _, data in zip(range(80), cases.drawn(3))]
    for case in drawn:
        assert all(group == list(range(group[0], group[-1] + 1)) for group in case.groups)
    sizes = [len(set(map(len, case.groups))) for case in drawn]
    assert set(sizes) == {1} if layout == "equal" else max(sizes) > 1
    assert len({len(case.groups[0]) for case in drawn}) > 2


def test_who_leaves_one_out_is_not_asked_for_a_deviation(subject):
    shown = subject(group_baselines=("leave-one-out",), group_scales=("group-std",))
    asked = {slug: check.not_provided(shown.adapter) is None for slug, check in checks().items()}
    found = {
        slug.partition(".")[2] for slug, is_asked in asked.items() if slug.startswith("group-adv") and not is_asked
    }
    assert found == {"mean", "group-std", "batch-std", "ddof", "epsilon", "nearly-unanimous"}
    assert result("group-advantages.own-group", shown).verdict == PASS


def test_who_has_the_deviation_of_the_batch_alone_is_not_asked_about_his_own_group(subject):
    shown = subject(group_baselines=("mean",), group_scales=("batch-std",))
    for name in ("own-group", "shift", "nan-in-another-group"):
        assert result(f"group-advantages.{name}", shown).verdict == NOT_PROVIDED
    assert result("group-advantages.batch-std", shown).verdict == PASS


def refusing(self, values, mask, options):
    if mask.sum() < 2:
        raise ValueError("too few")
    return Reference.whiten(self, values, mask, options)


def test_too_few_to_whiten_may_be_refused_where_nothing_else_is_declared(subject):
    shown = {rule: subject(whiten=refusing, whitening_of_few=rule) for rule in (None, "refused", "zero")}
    assert {result("whitening.few-actions", s).verdict for s in shown.values()} == {PASS}
    declared = [result("whitening.few-declared", s).verdict for s in shown.values()]
    assert declared == [NOT_PROVIDED, PASS, ERROR]


@pytest.mark.parametrize("value", ["small", True, -1e-8, float("nan"), float("inf"), None])
def test_a_number_that_is_declared_is_one(subject, value):
    with pytest.raises(DeclarationError, match=r"whitening_eps = .*: wanted a number, at least 0"):
        declarations(subject(whitening_eps=value).adapter)


@pytest.mark.parametrize("place", ["variance", "std", "floor"])
@pytest.mark.parametrize("eps", [0.0, 1e-12, 1e-8, 1e-2])
def test_every_eps_that_is_declared_is_asked_for(subject, place, eps):
    shown = subject(whitening_eps=eps, whitening_eps_place=place)
    for name in ("definition", "epsilon", "scale"):
        assert result(f"whitening.{name}", shown).verdict == PASS
