"""From the KL to advantages: what is asked of whom, and that a declaration decides."""

from __future__ import annotations

from dataclasses import fields, replace
from pkgutil import resolve_name

import pytest
import torch

from rlhf_conformance.adapter import METHODS, declarations, provided
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.diagnosis import evidence
from rlhf_conformance.judging import storing
from rlhf_conformance.judging.checks import checks
from rlhf_conformance.judging.judge import Judge
from rlhf_conformance.judging.subject import Subject
from rlhf_conformance.judging.trying import PROFILES, try_clause
from rlhf_conformance.methods import DeclarationError
from rlhf_conformance.oracle.probes import ProbeStore
from rlhf_conformance.results import FAIL, NOT_PROVIDED, PASS
from rlhf_conformance.twins import twins

CHAPTERS = ("kl", "token-rewards", "advantages", "credit")
SLUGS = [slug for slug in checks() if slug.partition(".")[0] in CHAPTERS]


def shown(adapter, tmp_path, dtype="float32") -> Subject:
    return Subject.make(adapter, device="cpu", dtype=dtype, store=ProbeStore(tmp_path))


def verdict(slug, adapter, tmp_path, profile="gate"):
    subject = shown(adapter, tmp_path)
    return try_clause(slug, subject, replace(PROFILES[profile], shrinking=0.0), 0, to_the_end=False).result.verdict


# --- declarations ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["kl_clamp", "kl_log_ratio_clamp"])
def test_a_clamp_is_a_number_or_none(name):
    for value in (None, 0.0, 5, 20.0):
        assert declarations(type("Declared", (Reference,), {name: value})())[name] == value
    for value in (-1.0, "10", True, float("inf")):
        with pytest.raises(DeclarationError, match=rf"{name} = .*: wanted a number, at least 0, or None"):
            declarations(type("Declared", (Reference,), {name: value})())


DECIDED = [
    ("advantages.observations", "observations-are-zero-steps", {"observations": "skipped"}),
    ("advantages.observations", "observations-are-valued", {"observations": "zero-steps"}),
    ("advantages.discounted-observations", "observations-are-zero-steps", {"observations": "skipped"}),
    ("advantages.last-action", "one-step-behind-the-end", {"after_last_action": "nothing"}),
    ("advantages.last-action", "bootstraps-behind-the-end", {"after_last_action": "nothing"}),
    ("token-rewards.score-position", "rewards-after-the-last-action", {"score_position": "last-action"}),
    ("kl.clamp", "kl-without-clamps", {"kl_clamp": 10.0, "kl_clamped": ("k3",)}),
    ("kl.clamp", "kl-clamped-throughout", {"kl_clamped": ("k3",)}),
    ("kl.gradient", "kl-with-the-gradient-of-k2", {"kl_gradient": "plain"}),
    ("kl.gradient", "kl-weighted-by-the-ratio", {"kl_gradient": "plain"}),
    ("kl.masked-cells", "kl-of-picked-actions", {"kl_masked": "zero"}),
    ("advantages.masked-cells", "advantages-row-by-row", {"advantages_masked": "zero"}),
]


@pytest.mark.parametrize(("slug", "twin", "otherwise"), DECIDED)
def test_what_is_declared_is_asked(slug, twin, otherwise, tmp_path):
    """An honest variant passes as it declares itself, and fails where it declares what it does not do."""
    kind = twins()[twin]
    assert verdict(slug, kind(), tmp_path) in (PASS, NOT_PROVIDED)
    assert verdict(slug, type("Otherwise", (kind,), otherwise)(), tmp_path) == FAIL


# --- the whole path -------------------------------------------------------------------------------------------------


def test_a_trainer_that_hides_its_parts_is_judged_by_the_whole(tmp_path):
    adapter = twins()["path-in-one-place"]()
    assert provided(adapter) == ("credit",)
    verdicts = {slug: verdict(slug, adapter, tmp_path, "smoke") for slug in SLUGS}
    undeclared = {"credit.whitening", "credit.returns-unwhitened"}
    asked = {slug for slug in SLUGS if slug.startswith("credit.")} - undeclared
    assert {slug for slug, found in verdicts.items() if found == NOT_PROVIDED} == set(SLUGS) - asked
    assert {verdicts[slug] for slug in asked} == {PASS}


def test_a_whole_that_does_otherwise_declares_it(tmp_path):
    class Valued(Reference):
        observations = "value-steps"

    assert verdict("credit.holes", Valued(), tmp_path) == FAIL


# --- questions and cases --------------------------------------------------------------------------------------------


def nested(value):
    return value.detach().tolist() if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize("slug", SLUGS)
def test_the_formula_of_a_question_gives_what_is_expected(slug, tmp_path):
    """As a script calls it: with the arguments and the options of the call, and those beside it."""
    subject = shown(Reference(), tmp_path)
    for case in evidence.drawn(checks()[slug], subject, 4, seed=7):
        judge = Judge(record=[])
        judge.try_case(checks()[slug], subject, case)
        for comparison in judge.record or ():
            question = comparison.question
            if question is None or question.formula is None or comparison.against:
                continue
            call = comparison.answers[-1].call
            given = dict(
                zip(METHODS[call.method].arguments, map(nested, call.given), strict=False)
            )  # the last may be left out
            options = given.pop("options")
            known = {**given, **{f.name: getattr(options, f.name) for f in fields(options)}, **question.formula.options}
            function = resolve_name(question.formula.function)
            taken = function.__code__.co_varnames[: function.__code__.co_argcount + function.__code__.co_kwonlyargcount]
            found = function(**{name: value for name, value in known.items() if name in taken})
            scope = {"answers": [found], "calls": [given], "flat": flat, "torch": torch}
            exec("def of_formula():\n    " + question.reading.of_formulas.replace("\n", "\n    "), scope)
            assert scope["of_formula"]() == pytest.approx(comparison.expected, rel=1e-9, abs=1e-9)


def flat(value):
    return [x for part in value for x in flat(part)] if isinstance(value, list | tuple) else [float(value)]


@pytest.mark.parametrize("slug", SLUGS)
def test_a_case_is_read_as_it_was_stored(slug, tmp_path):
    for case in evidence.drawn(checks()[slug], shown(Reference(), tmp_path), 3, seed=11):
        again = storing.from_json(storing.to_json(case))
        assert repr(again) == repr(case)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16"])
@pytest.mark.parametrize("slug", SLUGS)
def test_the_reference_conforms_in_every_dtype(slug, dtype, tmp_path):
    subject = shown(Reference(), tmp_path, dtype)
    result = try_clause(slug, subject, replace(PROFILES["smoke"], shrinking=0.0), 5).result
    assert result.verdict == PASS, result.reason
