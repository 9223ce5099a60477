"""The specification and the suite cover each other; and the gate tries the same cases everywhere."""

from __future__ import annotations

import inspect
from collections import Counter
from dataclasses import replace

import pytest

from rlhf_conformance.adapter import METHODS, Adapter
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.judging.checks import check as register
from rlhf_conformance.judging.checks import checks
from rlhf_conformance.judging.trying import PROFILES, _explore, _Trial, seed_of
from rlhf_spec.clauses import chapters, clauses

from .conftest import ROOT, run

SLUGS = [clause.slug for clause in clauses()]
# One slug for each strategy, and some that draw from the same one.
DRAWN = (
    "log-probs.definition",
    "log-probs.every-position",
    "log-probs.stable",
    "sequences.action-mask",
    "sequences.truncation",
    "positions.cumsum",
    "positions.left-padding",
    "packing.tokens",
    "packing.order",
    "packing.isolation",
    "actor.log-probs",
    "actor.temperature",
    "actor.garbage-under-mask",
    "actor.generate",
    "actor.generate-config",
    "actor.backbones",
    "actor.gradient",
    "reward.pad-equals-eos",
    "reward.normalization",
    "critic.head-name",
    "policy-loss.clip",
    "policy-loss.mask",
    "policy-loss.micro-batches",
    "policy-loss.overflow",
    "value-loss.clip",
    "value-loss.padding-invariance",
    "kl.k3",
    "kl.expectation",
    "token-rewards.own-row",
    "advantages.last-action",
    "credit.mask",
)


# --- coverage -----------------------------------------------------------------------------------------------------


def test_every_clause_has_a_check_and_every_check_a_clause():
    assert set(checks()) == set(SLUGS)


def test_the_size_of_the_suite():
    levels = Counter(clause.level for clause in clauses())
    assert sum(levels.values()) >= 50
    assert levels["MUST"] >= 35
    assert {clause.chapter for clause in clauses()} == {chapter.slug for chapter in chapters()}


@pytest.mark.parametrize("slug", SLUGS)
def test_a_check_needs_methods_that_there_are(slug):
    needs = checks()[slug].needs
    assert needs
    assert set(needs) <= set(METHODS)


def test_every_method_is_needed_by_a_check():
    needed = {method for check in checks().values() for method in check.needs}
    assert needed == {name for name, row in METHODS.items() if not row.optional}


def test_every_method_of_the_interface_is_listed():
    """The optional ones work as they are; the rest say what they return and are not implemented."""
    assert {name for name, value in inspect.getmembers(Adapter, inspect.isfunction)} == set(METHODS)
    for name, row in METHODS.items():
        method = getattr(Adapter, name)
        assert method.__doc__
        if row.optional:
            continue
        with pytest.raises(NotImplementedError):
            method(*[None] * len(inspect.signature(method).parameters))


def test_nothing_is_provided_by_an_adapter_without_methods():
    assert all(check.not_provided(Adapter()) for check in checks().values())


def test_every_clause_runs_on_the_reference():
    assert {slug: check.not_provided(Reference()) for slug, check in checks().items()} == dict.fromkeys(SLUGS)


@pytest.mark.parametrize("method", [name for name, row in METHODS.items() if not row.optional])
def test_an_adapter_that_lacks_one_method_is_told_so(method):
    class Lacking(Reference):
        pass

    setattr(Lacking, method, getattr(Adapter, method))
    for slug, check in checks().items():
        reason = check.not_provided(Lacking())
        assert bool(reason) == (method in check.needs), slug
        assert reason is None or method in reason


MODELS = ("actor", "reward", "critic")
PACKS_WITHOUT_A_MODEL = {"packing.tokens", "packing.boundary", "packing.empty-sequence"}
# What each declaration rules out when it says no.
OF_PPO = ("ratio", "clip", "asymmetric-clip", "bounds-as-given", "dual-clip", "dual-clip-sign", "overflow")
OF_PPO += ("clipped-gradient", "clip-fraction")
OF_GSPO = tuple(f"sequence-ratio{what}" for what in ("", "-clip", "-gradient", "-mask", "-empty-row"))
OF_CISPO = tuple(f"cispo{what}" for what in ("", "-bounds", "-gradient", "-overflow"))
OF_REINFORCE = ("reinforce", "reinforce-old")
OF_OTHERS = ("surrogate-mask", "surrogate-nan-under-mask")
OF_CONSTANTS = ("constant-length", "constant-length-micro-batches")
OTHER_SURROGATES = {
    "corrected-loss.other-surrogates",
    "corrected-loss.bypass-other-surrogates",
    "objective.other-surrogates",
    "step.surrogates",
}
CORRECTED_DUAL_CLIP = {"corrected-loss.dual-clip", "corrected-loss.bypass-dual-clip"}
OF_BYPASS = ("", "-other-surrogates", "-dual-clip", "-off", "-old", "-old-nan", "-micro-batches", "-mask", "-empty-row")
OF_VALUE_TERM, OF_KL_TERM, OF_ENTROPY_TERM = (
    (f"{term}-term", f"{term}-gradient") for term in ("value", "kl", "entropy")
)
OF_KL_TERM = (*OF_KL_TERM, "kl-correction", "kl-clamp")
OF_EMPTY_STEPS = {"step.empty-row", "step.empty-micro-batch", "step.critic-empty-row"}
CUT_ANYHOW = {f"step.{name}" for name in ("gradient", "dynamic-batches", "log-probs")}
RULED_OUT = [
    ("temperature", False, {f"{chapter}.temperature" for chapter in ("log-probs", *MODELS, "step")}),
    (
        "entropy_gradient",
        False,
        {"actor.entropy-gradient", "log-probs.entropy-gradient", "log-probs.entropy-graph"},
    ),
    ("reward_new_head", False, {"reward.new-head"}),
    ("critic_new_head", "always", {"critic.missing-head"}),
    ("ignored_label", None, {"log-probs.ignored-label"}),
    ("stop_ids", "one", {"sequences.stop-set"}),
    ("dual_clip", False, {"policy-loss.dual-clip", "policy-loss.dual-clip-sign", *CORRECTED_DUAL_CLIP}),
    ("asymmetric_clip", False, {"policy-loss.asymmetric-clip"}),
    (
        "value_clip",
        False,
        {"value-loss.bounds-as-given", "value-loss.clip", "value-loss.clipped-gradient", "step.critic-clip"},
    ),
    ("unclipped_value", False, {"value-loss.unclipped"}),
    (
        "global_count",
        False,
        {
            "policy-loss.constant-length-micro-batches",
            "corrected-loss.bypass-micro-batches",
            *(f"{chapter}.micro-batches" for chapter in ("policy-loss", "value-loss", "corrected-loss", "objective")),
        },
    ),
    (
        "surrogates",
        ("ppo",),
        {f"policy-loss.{name}" for name in (*OF_GSPO, *OF_CISPO, *OF_REINFORCE, *OF_OTHERS)} | OTHER_SURROGATES,
    ),
    (
        "surrogates",
        ("gspo",),
        {
            *(f"policy-loss.{name}" for name in (*OF_PPO, *OF_CISPO, *OF_REINFORCE, "surrogate-mask")),
            *(f"corrected-loss.{name}" for name in ("token-weights", "rejected-overflow")),
            *CORRECTED_DUAL_CLIP,
            *OTHER_SURROGATES,
        },
    ),
    ("surrogates", ("cispo", "ppo"), {f"policy-loss.{name}" for name in (*OF_GSPO, *OF_REINFORCE)}),
    (
        "surrogates",
        ("reinforce",),
        {
            *(f"policy-loss.{name}" for name in (*OF_PPO, *OF_GSPO, *OF_CISPO)),
            "corrected-loss.after-the-clip",
            *CORRECTED_DUAL_CLIP,
            *OTHER_SURROGATES,
        },
    ),
    ("rejected_tokens", "left-out", set()),
    ("correction_nan", None, {f"{name}.nan-of-the-engine" for name in ("off-policy-correction", "corrected-loss")}),
    ("correction_bypass", False, {f"corrected-loss.bypass{what}" for what in OF_BYPASS}),
    (
        "objective_terms",
        ("value",),
        {f"objective.{name}" for name in (*OF_KL_TERM, *OF_ENTROPY_TERM, "clipped-action")},
    ),
    ("objective_terms", ("kl",), {f"objective.{name}" for name in (*OF_VALUE_TERM, *OF_ENTROPY_TERM)}),
    ("objective_terms", ("entropy",), {f"objective.{name}" for name in (*OF_VALUE_TERM, *OF_KL_TERM)}),
    ("entropy_aggregation", "token-mean", {"objective.micro-batches"}),
    ("objective_global_count", False, {"objective.micro-batches"}),
    ("kl_correction", "ratio", set()),
    ("constant_length", False, {f"policy-loss.{name}" for name in OF_CONSTANTS}),
    (
        "constant_length",
        "always",
        {
            *(f"policy-loss.{name}" for name in ("token-mean", "sequence-mean", "token-sum")),
            "objective.other-means",
            "step.aggregations",
        },
    ),
    ("token_sum", False, {"policy-loss.token-sum"}),
    ("count_empty_rows", None, {"policy-loss.empty-rows-counted", *OF_EMPTY_STEPS}),
    ("step_terms", ("policy",), {"step.kl-term", "step.entropy-term", "step.terms"}),
    ("step_terms", ("policy", "kl"), {"step.entropy-term", "step.terms"}),
    ("step_layouts", ("padded",), {"step.packed", "step.critic-packed"}),
    ("step_cuts", ("rows",), {"step.dynamic-batches"}),
    ("step_cuts", ("tokens",), {s for s in SLUGS if s.startswith("step.")} - CUT_ANYHOW),
    ("step_remainder", False, {"step.remainder"}),
    ("step_samples", 4, {"step.again"}),
    ("step_denominators", "micro-batch", {"step.dynamic-batches", "step.order"}),
    ("step_entropy_denominators", "micro-batch", set()),
    ("step_architectures", ("llama",), set()),
    ("step_advantages", "sample", set()),
    ("step_empty", False, OF_EMPTY_STEPS),
    ("step_max_norm", False, {"step.max-norm", "step.norm-unreached"}),
    ("step_momentum", False, set()),
    ("step_corrections", False, {"step.correction"}),
    ("step_schedules", ("constant",), {"step.schedule"}),
    ("kl_estimators", ("k1",), {"kl.k2", "kl.k3", "kl.abs", "kl.not-negative", "kl.clamped-gradient"}),
    ("kl_estimators", ("k2",), {"kl.k1", "kl.k3", "kl.abs", "kl.expectation", "kl.clamped-gradient"}),
    ("kl_gradient", None, {"kl.gradient", "kl.expected-gradient", "kl.clamped-gradient"}),
    ("kl_gradient", "k2", {"kl.clamped-gradient"}),
    ("kl_masked", None, {"kl.masked-cells"}),
    ("score_position", "after-last", {"token-rewards.last-action"}),
    ("score_clip", False, {"token-rewards.score-clip"}),
    ("token_rewards_masked", None, {"token-rewards.masked-cells"}),
    ("after_last_action", "value", {"advantages.single-action"}),
    ("advantages_masked", None, {"advantages.masked-cells"}),
    ("reward_normalization", False, {"reward.normalization", "reward.normalization-train"}),
    ("critic_normalization", False, {"critic.normalization"}),
    ("head_names", ("score",), {"reward.head-name", "critic.head-name"}),
    ("architectures", ("llama",), {"positions.left-padding", "positions.start-at-zero"}),
    ("aggregations", ("sequence-mean",), {"policy-loss.token-mean", "value-loss.token-mean"}),
    (
        "aggregations",
        ("token-mean",),
        {"policy-loss.sequence-mean", "value-loss.sequence-mean"},
    ),
    ("packed_labels", "unmarked", {"packing.boundary"}),
    ("layouts", ("padded",), {s for s in SLUGS if s.startswith("packing.")} - PACKS_WITHOUT_A_MODEL),
    (
        "layouts",
        ("packed", "packed-tail", "sharded", "segments"),
        {
            "positions.left-padding",
            "critic.pads-zero",
            *(f"{model}.{name}" for model in MODELS for name in ("padding-invariance", "garbage-under-mask")),
        },
    ),
    (
        "takes_attention_mask",
        False,
        {"sequences.sampled-pad", "sequences.pad-first-prompt", *(f"{model}.garbage-under-mask" for model in MODELS)},
    ),
]


@pytest.mark.parametrize(
    "attribute, value, ruled_out", RULED_OUT, ids=lambda value: "" if isinstance(value, set) else str(value)
)
def test_what_is_not_declared_is_not_asked(attribute, value, ruled_out):
    adapter = Reference()
    setattr(adapter, attribute, value)
    assert {slug for slug, check in checks().items() if check.not_provided(adapter)} == ruled_out


def test_a_second_check_for_a_clause_is_refused():
    with pytest.raises(ValueError, match="two checks for the clause"):
        register("positions.cumsum", needs=(), cases=lambda subject: None)(lambda *_: None)


# --- the same cases -----------------------------------------------------------------------------------------------


def cases_of(slug: str, subject, profile: str = "gate", seed: int = 0) -> list[str]:
    """The cases that a clause is tried on, as they print; nothing is asked of any adapter."""
    seen: list[str] = []

    def record(subject, case):
        seen.append(repr(case))
        yield from ()

    recording = replace(checks()[slug], function=record)
    assert _explore(_Trial(recording, subject, 1), PROFILES[profile], seed_of(slug, seed), None) is None
    return seen


@pytest.mark.parametrize("slug", DRAWN[::3])
def test_the_gate_tries_the_same_cases_again(slug, strategy_subject):
    assert cases_of(slug, strategy_subject()) == cases_of(slug, strategy_subject())


PRINT_CASES = """
import hashlib, sys
sys.path.insert(0, sys.argv[1])
from conformance.test_clauses_and_checks import DRAWN, cases_of
from pathlib import Path
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.judging.subject import Subject
from rlhf_conformance.oracle.probes import ProbeStore
subject = Subject.make(Reference(), device="cpu", dtype="float32", store=ProbeStore(Path("probes")))
for slug in DRAWN:
    print(slug, hashlib.sha256(repr(cases_of(slug, subject, "smoke")).encode()).hexdigest())
"""


def test_other_processes_try_the_same_cases(tmp_path, strategy_subject):
    """Whatever the hashes of strings are, and whatever Hypothesis profile a CI has set."""
    runs = [
        run("-c", PRINT_CASES, str(ROOT / "tests"), cwd=tmp_path, PYTHONHASHSEED=seed, **more)
        for seed, more in (("1", {}), ("2", {"CI": "true"}))
    ]
    assert len(runs[0].stdout.splitlines()) == len(DRAWN), runs[0].stderr
    assert runs[0].stdout == runs[1].stdout


@pytest.mark.parametrize("slug", ["actor.log-probs", "packing.equivalence", "policy-loss.token-mean"])
def test_where_one_case_is_all_it_is_not_the_simplest(slug, strategy_subject):
    """Hypothesis always begins with that one, and it is the same for every seed."""
    assert PROFILES["smoke"].examples_of(checks()[slug]) == 1
    drawn = [cases_of(slug, strategy_subject(), "smoke", seed) for seed in range(5)]
    assert {len(cases) for cases in drawn} == {1}
    assert len({cases[0] for cases in drawn}) == 5


@pytest.mark.parametrize("slug", ["log-probs.definition", "actor.log-probs", "policy-loss.clip"])
def test_another_seed_tries_other_cases(slug, strategy_subject):
    assert cases_of(slug, strategy_subject(), seed=0) != cases_of(slug, strategy_subject(), seed=1)


def test_clauses_with_one_strategy_try_different_cases(strategy_subject):
    assert cases_of("reward.last-attended", strategy_subject()) != cases_of(
        "reward.one-per-sequence", strategy_subject()
    )


@pytest.mark.parametrize("slug", SLUGS)
def test_every_strategy_draws_enough_for_a_pass(slug, strategy_subject):
    """Also for an adapter that declares as little as it can; smoke is the tightest."""
    least = {
        "layouts": ("padded",),
        "architectures": ("llama",),
        "stop_ids": "one",
        "takes_attention_mask": False,
        "temperature": False,
    }
    for declared in ({}, least):
        subject = strategy_subject(**declared)
        if not checks()[slug].not_provided(subject.adapter):
            seen = cases_of(slug, subject, "smoke")
            assert len(seen) >= PROFILES["smoke"].floor_of(checks()[slug])


@pytest.mark.parametrize("slug", ["policy-loss.clip", "policy-loss.mask", "value-loss.clip"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_losses_are_drawn_in_every_dtype(slug, dtype, strategy_subject):
    """Away from the kinks, which is hardest in the coarsest dtype."""
    seen = cases_of(slug, strategy_subject(dtype))
    assert len(seen) >= PROFILES["gate"].floor_of(checks()[slug])
