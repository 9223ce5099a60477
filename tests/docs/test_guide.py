"""docs/writing-an-adapter.md: its code runs, and its tables are those of the code."""

from __future__ import annotations

import re
import sys
import types
from dataclasses import fields

import pytest
import torch

from proof.trying import attempt
from rlhf_conformance import (
    AdvantageOptions,
    Batch,
    Checkpoint,
    CreditOptions,
    KlOptions,
    ObjectiveOptions,
    PolicyLossOptions,
    StepOptions,
    TokenRewardOptions,
    ValueLossOptions,
    check,
    conformance_suite,
)
from rlhf_conformance.adapter import METHODS, Adapter, declarations, provided
from rlhf_conformance.chapters.group_advantages.interface import GroupAdvantageOptions
from rlhf_conformance.chapters.off_policy_correction.interface import OffPolicyOptions
from rlhf_conformance.chapters.whitening.interface import WhiteningOptions

GUIDE = "docs/writing-an-adapter.md"


@pytest.fixture
def my_trainer(monkeypatch):
    """The package that the guide's adapter imports, with the losses of the example in it."""
    import losses_only

    monkeypatch.setitem(sys.modules, "my_trainer", types.ModuleType("my_trainer"))
    monkeypatch.setitem(sys.modules, "my_trainer.losses", losses_only)


@pytest.fixture
def python(blocks):
    """The first Python block of the guide that holds a text."""
    return lambda part: next(block for block in blocks(GUIDE, "python") if part in block)


def adapter_of(code: str, module: object = None, name: str = "MyTrainer") -> type[Adapter]:
    """The adapter that a block defines, executed beside the names of `module`."""
    names = {**vars(module), "Adapter": Adapter} if module else {}
    exec(compile(code, GUIDE, "exec"), names)
    return names[name]


def test_the_shortest_adapter_is_green(python, my_trainer):
    adapter = adapter_of(python("my_trainer.losses"))
    report = check(adapter(), profile="smoke", only=["policy-loss.", "value-loss."])
    assert report.verdict == "CONFORMANT"
    assert report.warnings == ()


def test_the_shortest_grpo_adapter_is_green(python, monkeypatch):
    import grpo_only

    monkeypatch.setitem(sys.modules, "my_trainer", types.ModuleType("my_trainer"))
    monkeypatch.setitem(sys.modules, "my_trainer.grpo", grpo_only)
    code = python("my_trainer.grpo")
    assert len(code.splitlines()) <= 25
    report = check(adapter_of(code)(), profile="smoke", only=["group-advantages.", "policy-loss."])
    assert report.verdict == "CONFORMANT"
    assert report.warnings == ()
    assert {r.verdict for r in report.results if r.clause == "group-advantages.group-std"} == {"pass"}


def test_the_guide_shows_the_adapter_of_the_grpo_example(python, examples):
    shown = python("my_trainer.grpo").partition("class MyTrainer(Adapter):")[2]
    assert (examples / "grpo_only.py").read_text(encoding="utf-8").endswith(f"class InHouse(Adapter):{shown}")


def test_the_adapter_from_scores_to_advantages_is_green(python, examples, monkeypatch):
    import ppo_only

    monkeypatch.setitem(sys.modules, "my_trainer", types.ModuleType("my_trainer"))
    monkeypatch.setitem(sys.modules, "my_trainer.experience", ppo_only)
    code = python("my_trainer.experience")
    report = check(adapter_of(code)(), profile="smoke", only=["kl.", "token-rewards.", "advantages."])
    assert report.verdict == "CONFORMANT"
    assert report.warnings == ()
    passed = {r.clause for r in report.results if r.verdict == "pass"}
    assert {"kl.k3", "token-rewards.sum", "advantages.observations"} <= passed
    shown = code.partition("class MyTrainer(Adapter):")[2]
    assert (examples / "ppo_only.py").read_text(encoding="utf-8").endswith(f"class InHouse(Adapter):{shown}")


def test_the_adapter_of_what_a_step_minimises_is_green(python, examples, monkeypatch, table):
    import objective_only

    monkeypatch.setitem(sys.modules, "my_trainer", types.ModuleType("my_trainer"))
    monkeypatch.setitem(sys.modules, "my_trainer.step", objective_only)
    code = python("my_trainer.step")
    report = check(adapter_of(code)(), profile="smoke", only=["objective."])
    assert report.verdict == "CONFORMANT"
    assert report.warnings == ()
    assert {r.clause for r in report.results if r.verdict == "pass"} >= {"objective.total", "objective.parts"}
    shown = code.partition("class MyTrainer(Adapter):")[2]
    assert (examples / "objective_only.py").read_text(encoding="utf-8").endswith(f"class InHouse(Adapter):{shown}")
    named = {name for row in table(GUIDE, "of the terms") for name in re.findall("`([a-z_]+)`", row[0])}
    assert named < {f.name for f in fields(ObjectiveOptions)}


def test_the_adapter_of_a_whole_step_is_green(python, monkeypatch, table):
    import step_only

    monkeypatch.setitem(sys.modules, "my_trainer", types.ModuleType("my_trainer"))
    monkeypatch.setitem(sys.modules, "my_trainer.loop", step_only)
    adapter = adapter_of(python("my_trainer.loop"))
    adapter.kl_estimators = ("k3",)
    report = check(adapter(), profile="smoke", only=["step."])
    assert report.verdict == "CONFORMANT"
    assert {r.clause for r in report.results if r.verdict == "pass"} >= {"step.micro-batches", "step.update"}
    named = {row[0].strip("`") for row in table(GUIDE, "of the step")}
    assert named == {f.name for f in fields(StepOptions)} - {f.name for f in fields(ObjectiveOptions)}


def test_the_adapter_with_an_engine_that_samples_is_green(python, examples, monkeypatch, table):
    import correction_only

    monkeypatch.setitem(sys.modules, "my_trainer", types.ModuleType("my_trainer"))
    monkeypatch.setitem(sys.modules, "my_trainer.correction", correction_only)
    code = python("my_trainer.correction")
    report = check(adapter_of(code)(), profile="smoke", only=["off-policy-correction.", "corrected-loss."])
    assert report.verdict == "CONFORMANT"
    assert report.warnings == ()
    shown = code.partition("class MyTrainer(Adapter):")[2]
    assert (examples / "correction_only.py").read_text(encoding="utf-8").endswith(f"class InHouse(Adapter):{shown}")
    assert {row[0].strip("`") for row in table(GUIDE, "asked for")} == {f.name for f in fields(OffPolicyOptions)}


def test_the_options_of_credit_are_those_of_the_code(text):
    named = set(re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| (?:KL|token rewards|advantages|credit)", text(GUIDE), re.M))
    parts = {f.name for kind in (KlOptions, TokenRewardOptions, AdvantageOptions) for f in fields(kind)}
    whole = {f.name for f in fields(CreditOptions)}
    assert {name for cell in named for name in re.findall(r"\w+", cell)} == parts | whole
    assert parts - whole == {"stop_penalty"}  # the scores of the whole path are penalized already
    assert whole - parts == {"whiten"}


def test_the_log_prob_adapter_is_green(python):
    import whole_trainer

    adapter = adapter_of(python("class MyTrainer(Adapter):\n    def token_log_probs"), whole_trainer)
    report = check(adapter(), profile="smoke", only=["log-probs.", "sequences.", "positions."])
    assert report.verdict == "CONFORMANT"


def test_the_adapter_that_returns_outputs_and_takes_modules_is_green(python):
    """Its trainer has the interface of the reference, whose adapter loads the models here."""
    import rlhf_reference
    from rlhf_conformance.adapters.reference import Reference

    shown = adapter_of(python("log_probs_with_output"), types.SimpleNamespace(Actor=rlhf_reference.Actor))

    class Shown(shown, Reference):
        layouts = ("padded", "left")

    only = ["actor.with", "actor.from", "reward.with", "critic.with"]
    report = check(Shown(), profile="smoke", only=only)
    assert report.verdict == "CONFORMANT"
    assert len(report.results) == 8


def test_the_guide_shows_the_whole_adapter_of_the_example(python, examples):
    code = python("class PlainTrainer")
    assert (examples / "whole_trainer.py").read_text(encoding="utf-8").endswith(code)


def test_the_adapter_of_a_whole_trainer_has_at_most_sixty_lines(python):
    assert len(python("class PlainTrainer").splitlines()) <= 60


def test_a_mode_changes_what_is_declared(python):
    adapter = adapter_of(python("packing=False"), sys.modules[Adapter.__module__])
    assert declarations(adapter(packing=True, loss="sequence-mean"))["aggregations"] == ("sequence-mean",)
    assert declarations(adapter(packing=True))["packs_internally"]
    assert provided(adapter()) == ("generate",)
    assert provided(adapter(packing=True)) == ()


def test_the_adapter_of_a_trainer_that_adds_up_rows_is_green(python):
    import whole_trainer

    def sum_of_log_probs(actor, ids, mask, labels):
        logits = whole_trainer.logits_of(actor, ids, mask)[:, :-1].float()
        picked = logits.log_softmax(-1).gather(-1, labels[:, 1:, None].clamp(min=0))[..., 0]
        return picked.where(labels[:, 1:] != -100, 0.0).sum(-1)

    names = types.SimpleNamespace(torch=torch, sum_of_log_probs=sum_of_log_probs)
    summing = adapter_of(python("sum_of_log_probs"), names)

    class Summing(summing, whole_trainer.PlainTrainer):
        temperature = False

    assert attempt(Summing(), "actor.log-probs").result.verdict == "pass"
    assert attempt(Summing(), "actor.gradient").result.verdict == "pass"


def test_the_map_of_weights_of_the_guide_is_right(python):
    from rlhf_conformance.twins import twins

    mapped = adapter_of(python("def checkpoint_weights"), sys.modules[Adapter.__module__]).checkpoint_weights

    class Fused(twins()["fused-projections"]):
        def checkpoint_weights(self, model, tensors):
            return mapped(self, model.model, tensors)

    assert attempt(Fused(), "actor.gradient").result.verdict == "pass"
    assert attempt(Fused(), "actor.follows-weights").result.verdict == "pass"


def test_the_test_file_of_the_guide_makes_suites(python, monkeypatch):
    import whole_trainer

    module = types.ModuleType("adapter")
    module.MyTrainer = whole_trainer.PlainTrainer
    monkeypatch.setitem(sys.modules, "adapter", module)
    names: dict = {}
    exec(python("conformance_suite("), names)
    suites = [value for key, value in names.items() if key.startswith("test_")]
    assert [type(suite) for suite in suites] == [type(conformance_suite(whole_trainer.PlainTrainer()))] * 2


def test_the_options_of_the_losses_are_those_of_the_code(table):
    named = {name for row in table(GUIDE, "option") for name in re.findall(r"`(\w+)`", row[0])}
    assert named == {*PolicyLossOptions.__dataclass_fields__, *ValueLossOptions.__dataclass_fields__}


def test_the_options_of_groups_and_of_whitening_are_those_of_the_code(text):
    section = text(GUIDE).split("### Without a critic: GRPO")[1].split("\n## ")[0]
    named = set(re.findall(r"^\| `(\w+)` \| (?:group|whitening)", section, re.M))
    assert named == {*GroupAdvantageOptions.__dataclass_fields__, *WhiteningOptions.__dataclass_fields__}


def test_the_attributes_of_a_checkpoint_are_those_of_the_code(table):
    rows = [row for row in table(GUIDE, "attribute") if "`" in row[0]]
    named = {name for row in rows for name in re.findall(r"`(\w+)", row[0])}
    assert named == {*Checkpoint.__dataclass_fields__, "module"}


def test_the_batch_has_what_the_guide_names(text):
    section = text(GUIDE).split("### The batch")[1].split("### Layouts")[0]
    rows = re.findall(r"^\| `(\w+)` \|", section, re.M)
    helpers = re.findall(r"`batch\.(\w+)", section)
    assert rows
    assert helpers
    assert all(name in Batch.__dataclass_fields__ or hasattr(Batch, name) for name in rows + helpers)


def test_the_methods_that_the_guide_names_exist(table):
    named = {name for row in table(GUIDE, "method") for name in re.findall(r"`(\w+)[(`]", row[0])}
    assert named <= set(METHODS)


def test_the_file_of_known_failures_is_read(blocks, tmp_path):
    from rlhf_conformance.run.known import read_known_failures

    file = tmp_path / "known-failures.toml"
    file.write_text(blocks(GUIDE, "toml")[0])
    (row,) = read_known_failures(file)
    assert row.clause == "policy-loss.empty-batch"
    assert row.reason
    assert row.issue


def test_known_failures_without_an_issue_are_read(blocks, tmp_path):
    from rlhf_conformance.run.known import read_known_failures

    file = tmp_path / "known-failures.toml"
    file.write_text(re.sub(r"^issue.*\n", "", blocks(GUIDE, "toml")[0], flags=re.M))
    assert read_known_failures(file)[0].issue == ""


def test_the_default_profile_is_the_one_of_the_command(text):
    from rlhf_conformance.cli import build_parser

    assert build_parser().parse_args(["check", "x"]).profile == "gate"
    assert "the default, `gate`" in text(GUIDE)
