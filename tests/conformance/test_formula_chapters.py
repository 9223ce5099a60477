"""The chapters of formulas ask what the specification says, and their cases can be written out and read again."""

from __future__ import annotations

import importlib

import pytest
import torch

from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.chapters.log_probs.cases import LogitsCase
from rlhf_conformance.chapters.packing.cases import PackCase
from rlhf_conformance.chapters.positions.cases import MaskCase
from rlhf_conformance.chapters.sequences.cases import GeneratedCase
from rlhf_conformance.judging import storing
from rlhf_conformance.judging.checks import checks
from rlhf_conformance.judging.judge import Judge
from rlhf_conformance.judging.questions import NotReturned
from rlhf_conformance.judging.subject import Subject
from rlhf_conformance.oracle.layouts import Sample
from rlhf_conformance.oracle.probes import ProbeStore

GENERATED = GeneratedCase((Sample((4, 5), (6, 1)), Sample((7,), (8, 9, 2, 3))), 4, (1,), 0)
MASKS = MaskCase(((1, 2, 0), (0, 1, 2)))
PACK = PackCase(((3, 4, 5), (6,), (7, 8)))
LOGITS = LogitsCase(2, 3, 5, seed=7, scale=4.0, offset=-1.0, temperature=0.7, ignored=(1, 4))


def subject(tmp_path, adapter=None) -> Subject:
    return Subject.make(adapter or Reference(), device="cpu", dtype="float32", store=ProbeStore(tmp_path))


def compared(slug, case, subject):
    judge = Judge(record=[])
    judge.try_case(checks()[slug], subject, case)
    return judge.record


@pytest.mark.parametrize("case", [GENERATED, MASKS, PACK, LOGITS], ids=lambda case: type(case).__name__)
def test_a_case_is_read_as_it_was_stored(case):
    assert storing.from_json(storing.to_json(case)) == case


@pytest.mark.parametrize(
    "data",
    [
        {"type": "MaskCase", "spans": [[1, 2]]},
        {"type": "PackCase", "sequences": [[1.5]]},
        {"type": "Sample", "prompt": 3, "response": [1]},
    ],
)
def test_a_case_of_the_wrong_types_is_refused(data):
    with pytest.raises(storing.StoredCaseError, match="wanted"):
        storing.from_json(data)


def test_the_recipe_of_a_case_makes_its_tensors():
    case = LogitsCase(2, 300, 5, seed=11, scale=0.5, offset=-3.0, dtype="bfloat16")
    made = {name: eval(source, {"torch": torch}) for name, source in case.recipes.items()}
    assert made["logits"].dtype == torch.bfloat16
    assert torch.equal(made["logits"], case.logits)
    assert torch.equal(made["labels"], case.labels)


@pytest.mark.parametrize("slug", ["log-probs.ignored-label", "log-probs.gradient", "log-probs.entropy"])
def test_the_formula_of_a_question_gives_what_is_expected(slug, tmp_path):
    case = LOGITS if slug.endswith("ignored-label") else LogitsCase(2, 3, 5, seed=7, temperature=0.7)
    asked = [c for c in compared(slug, case, subject(tmp_path)) if c.question.formula]
    assert asked
    for comparison in asked:
        formula, answered = comparison.question.formula, comparison.answers[-1]
        module, _, name = formula.function.rpartition(".")
        function = getattr(importlib.import_module(module), name)
        arguments = {"logits": answered.argument("logits").tolist(), "temperature": answered.argument("temperature")}
        if answered.method == "token_log_probs":
            arguments["labels"] = answered.argument("labels").tolist()
        numbers = torch.tensor(function(**arguments, **formula.options), dtype=torch.float64).flatten().tolist()
        assert numbers == list(comparison.expected)


class Overwrites(Reference):
    def token_log_probs(self, logits, labels, temperature):
        answer = super().token_log_probs(logits.clone(), labels, temperature)
        logits.zero_()
        return answer


def test_the_second_turn_sees_the_logits_as_the_first_has_left_them(tmp_path):
    case = LogitsCase(1, 2, 3, seed=1)
    found = [c.what for c in compared("log-probs.entropy-order", case, subject(tmp_path, Overwrites())) if c.broken]
    assert found == [
        "entropy in turn 1 from the same logits",
        "log-probs in turn 2 from the same logits",
        "entropy in turn 2 from the same logits",
    ]


class EndsWithTheLongest(Reference):
    def process_sequences(self, *arguments):
        made = super().process_sequences(*arguments)
        made.action_mask[:] = made.action_mask.amax(0, keepdim=True)
        return made


def test_rows_are_compared_with_what_each_is_alone(tmp_path):
    found = compared("sequences.rows-independent", GENERATED, subject(tmp_path, EndsWithTheLongest()))
    (broken,) = [c for c in found if c.broken]
    assert broken.what == "action_mask of row 0 in the batch and alone"
    assert (broken.actual, broken.expected) == ((1, 1, 1, 1), (1, 1, 0, 0))
    assert len(broken.answers[0].argument("sequences")) == 2
    assert len(broken.against[0].argument("sequences")) == 1


class PacksTokensOnly(Reference):
    def pack_sequences(self, sequences):
        made = super().pack_sequences(sequences)
        return type(made)(made.input_ids)


@pytest.mark.parametrize("slug", ["packing.boundary", "positions.restart"])
def test_a_part_that_is_not_made_is_not_judged(slug, tmp_path):
    with pytest.raises(NotReturned, match="pack_sequences returns no"):
        compared(slug, PACK, subject(tmp_path, PacksTokensOnly()))


class CountsColumns(Reference):
    def position_ids(self, attention_mask):
        return torch.arange(attention_mask.shape[1]).expand_as(attention_mask).clone()


def test_a_wrong_position_is_named_by_its_column(tmp_path):
    (comparison,) = compared("positions.cumsum", MASKS, subject(tmp_path, CountsColumns()))
    assert comparison.broken.place == "row 0, column 1"
    assert (comparison.broken.expected, comparison.broken.actual) == ("0", "1")
