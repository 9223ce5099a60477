"""The standalone script of a failure: torch alone, the numbers of the report, the difference as its exit status."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf_conformance import Adapter, check
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.faults import faults
from rlhf_conformance.judging import storing
from rlhf_conformance.oracle.probes import Probe, build
from rlhf_conformance.reporting import read, write
from rlhf_conformance.reporting.scripts import script
from rlhf_conformance.results import Failure, Report, Result

ALONE = """
import runpy, sys

class Refusal:
    names = {names}

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"{{name}} is not to be had here")

sys.meta_path.insert(0, Refusal())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
OURS = {"rlhf_spec", "rlhf_reference", "rlhf_conformance"}
OTHERS = {"transformers", "peft", "safetensors", "hypothesis", "pytest", "rich", "numpy"}

FAULTS = {
    "half-dropped": "value-loss.half",
    "mean-of-means": "policy-loss.micro-batches",
    "argmax-token": "log-probs.definition",
    "eos-overwrites-truncated": "sequences.truncation",
    "positions-count-columns": "positions.cumsum",
    "pack-labels-rolled": "packing.boundary",
    "critic-values-shifted": "critic.state-before",
    "rewards-clamped": "reward.unclamped",
    "first-response-token-lost": "actor.log-probs",
}


def reported(adapter: Adapter, clause: str) -> tuple[Result, Report]:
    report = check(adapter, profile="smoke", only=[clause])
    return report.result(clause), report


def written(adapter: Adapter, clause: str) -> tuple[Result, str]:
    result, report = reported(adapter, clause)
    text = script(result, report)
    assert text is not None
    return result, text


def run(path: Path, *arguments: str, refused: set[str] = OURS | OTHERS) -> subprocess.CompletedProcess[str]:
    """Run a script in a Python that has torch and not what is refused."""
    command = [sys.executable, "-I", "-c", ALONE.format(names=sorted(refused)), str(path), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=path.parent)


def run_here(text: str) -> tuple[int, str]:
    """(exit status, output) of a script run in this process."""
    names: dict[str, Any] = {"__name__": "script"}
    exec(compile(text, "script.py", "exec"), names)
    with redirect_stdout(io.StringIO()) as out:
        status = names["main"]()
    return status, out.getvalue()


def with_candidate(text: str, code: str) -> str:
    """The script with another candidate."""
    return text.replace("\n\n\ndef main():", f"\n\n\n{code}\n\n\ndef main():", 1)


@cache
def made(name: str) -> tuple[Result, str]:
    """The result and the script of a fault."""
    return written(faults()[name].adapter(), FAULTS[name])


@pytest.mark.parametrize("name", FAULTS)
def test_a_script_shows_the_difference_with_torch_alone(name, tmp_path):
    result, text = made(name)
    path = tmp_path / "failure.py"
    path.write_text(text)
    done = run(path)
    assert done.returncode == 1, done.stdout + done.stderr
    (row, *_) = (line for line in done.stdout.splitlines() if line.endswith("<-- differs"))
    assert row.startswith(result.failure.place or result.failure.what)
    assert row.removeprefix(result.failure.place or result.failure.what).split()[:2] == [
        result.failure.expected,
        result.failure.actual,
    ]


def test_what_is_refused_cannot_be_imported(tmp_path):
    path = tmp_path / "imports.py"
    path.write_text("import rlhf_spec")
    assert "not to be had here" in run(path).stderr


RIGHT = {
    "half-dropped": "def candidate(**call):\n    return formula(call)",
    "mean-of-means": "def candidate(**call):\n    return formula(call)",
    "argmax-token": "def candidate(**call):\n    return formula(call)",
    "eos-overwrites-truncated": "def candidate(sequences, **rest):\n"
    "    rows = [row for row in sequences.tolist() if row[-1] not in rest['stop_token_ids']]\n    return rows",
    "positions-count-columns": "def candidate(attention_mask):\n"
    "    return [(m.cumsum(-1) - 1)[m.bool()] for m in attention_mask]",
    "pack-labels-rolled": "def candidate(sequences):\n    return [[*row.tolist()[1:], -100] for row in sequences]",
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_script_ends_with_zero_once_the_candidate_is_right(name):
    _, text = made(name)
    status, out = run_here(with_candidate(text, RIGHT[name]))
    assert status == 0, out
    assert "differs" not in out


def test_a_candidate_that_is_still_wrong_is_seen():
    _, text = made("half-dropped")
    status, out = run_here(with_candidate(text, "def candidate(**call):\n    return 3 * formula(call)"))
    assert status == 1
    assert "differs" in out


def test_a_candidate_with_too_few_numbers_is_refused():
    _, text = made("critic-values-shifted")
    with pytest.raises(SystemExit, match="the candidate gave 0 numbers"):
        run_here(with_candidate(text, "def candidate(**call):\n    return []"))


THROUGH_TRANSFORMERS = """
def candidate(input_ids, attention_mask, prompt_lengths, response_lengths, **rest):
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained({folder!r}, num_labels=1).eval()
    values = []
    for ids, mask, prompt, response in zip(input_ids, attention_mask, prompt_lengths, response_lengths):
        states = model.base_model(input_ids=ids[mask.bool()][None]).last_hidden_state
        values.append(model.score(states)[0, prompt - 1 : prompt + response - 1, 0])
    return values
"""


def test_the_written_checkpoint_is_what_the_trainer_was_given(tmp_path):
    """Upstream's own stack, on the probe that the script has written, finds the expected values."""
    _, text = made("critic-values-shifted")
    path, folder = tmp_path / "failure.py", tmp_path / "probe"
    path.write_text(with_candidate(text, THROUGH_TRANSFORMERS.format(folder=str(folder)).strip("\n")))
    done = run(path, "--write-checkpoint", str(folder))
    assert done.returncode == 0, done.stderr
    done = run(path, refused=OURS)
    assert done.returncode == 0, done.stdout + done.stderr


PROBES = [
    Probe("llama"),
    Probe("gpt2", dropout=True),
    Probe("llama", head_name="value_head", head_scale=64.0, pad_is_eos=True),
    Probe("gpt2", head_name="score", mean=0.5, std=2.0),
    Probe("llama", head_name="score", headless=True),
]


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.folder)
def test_the_written_checkpoint_is_the_probe_to_the_bit(probe, tmp_path):
    from safetensors.torch import load_file
    from transformers import AutoConfig

    failure = Failure("load of a checkpoint", "", "an error", "none", stored=storing.to_json(probe))
    text = script(Result("reward.missing-head", "MUST", "fail", "x", failure=failure), Report(()))
    names: dict[str, Any] = {"__name__": "script"}
    exec(compile(str(text), "script.py", "exec"), names)
    names["write_checkpoint"](tmp_path / "written")
    (tmp_path / "built").mkdir()
    build(probe, tmp_path / "built")

    weights = torch.load(tmp_path / "written" / "pytorch_model.bin")
    truth = load_file(tmp_path / "built" / "model.safetensors")
    assert weights.keys() == truth.keys()
    for name in truth:
        assert weights[name].dtype == truth[name].dtype
        assert torch.equal(weights[name], truth[name]), name
    configs = [AutoConfig.from_pretrained(tmp_path / folder).to_dict() for folder in ("written", "built")]
    for config in configs:
        config.pop("_name_or_path", None)
        config.pop("transformers_version", None)
    assert configs[0] == configs[1]
    generation = [tmp_path / folder / "generation_config.json" for folder in ("written", "built")]
    assert [path.exists() for path in generation] == [probe.head_name is None] * 2
    if probe.head_name is None:
        assert json.loads(generation[0].read_text()) == json.loads(generation[1].read_text())


class MaskMultiplies(Reference):
    """NaN under the mask comes through."""

    def value_loss(self, values, old_values, returns, action_mask, options):
        return super().value_loss(values, old_values, returns, action_mask, options) + 0 * values.sum()


class BytesCount(Reference):
    """Counts in bytes: wrong where there are more tokens than 255."""

    def value_loss(self, values, old_values, returns, action_mask, options):
        count = int(action_mask.sum())
        loss = super().value_loss(values, old_values, returns, action_mask, options)
        return loss * count / (count % 256 or 1)


class ForgetsTheEnd(Reference):
    """Wrong behind the thousandth position."""

    def token_log_probs(self, logits, labels, temperature):
        answer = super().token_log_probs(logits, labels, temperature)
        return torch.cat([answer[:, :1000], answer[:, 1000:] - 1], dim=1)


class KeepsNoGraph(Reference):
    def policy_loss(self, *arguments):
        return super().policy_loss(*arguments).loss.detach()


class Raises(Adapter):
    def value_loss(self, values, old_values, returns, action_mask, options):
        raise RuntimeError('no\nvalue "loss" \\ today')


def test_numbers_that_are_no_numbers_are_shown():
    result, text = written(MaskMultiplies(), "value-loss.nan-under-mask")
    status, out = run_here(text)
    assert status == 1
    assert result.failure.actual == "nan"
    assert f"{result.failure.expected} " in out
    assert " nan " in out


def test_a_long_case_is_written_as_its_rows_repeated():
    result, text = written(BytesCount(), "value-loss.token-mean")
    assert ".repeat(1, 107)" in text
    assert len(text) < 12_000
    status, out = run_here(text)
    assert status == 1
    assert result.failure.actual in out
    right = with_candidate(text, "def candidate(**call):\n    return formula(call)")
    assert run_here(right)[0] == 0


def test_logits_that_are_too_many_are_drawn_from_their_seed():
    result, text = written(ForgetsTheEnd(), "log-probs.every-position")
    assert result.failure.exchange.total > len(result.failure.exchange.numbers)
    assert "Drawn from a seed" in text
    assert run_here(text)[0] == 1
    right = with_candidate(text, "def candidate(**call):\n    return formula(call)")
    assert run_here(right)[0] == 0


GRADIENTS = ("policy-loss.gradient", "value-loss.gradient", "policy-loss.batch-order", "log-probs.gradient")


class TwiceTheGradient(Reference):
    def policy_loss(self, *arguments):
        return _steeper(super().policy_loss(*arguments).loss)

    def value_loss(self, *arguments):
        return _steeper(super().value_loss(*arguments))

    def token_log_probs(self, *arguments):
        return _steeper(super().token_log_probs(*arguments))


def _steeper(answer: torch.Tensor) -> torch.Tensor:
    return 2 * answer - answer.detach()


RIGHT_WITH_A_GRAPH = {
    "policy": "def candidate(log_probs, old_log_probs, advantages, action_mask, **options):\n"
    "    from rlhf_conformance import PolicyLossOptions\n"
    "    from rlhf_conformance.adapters.reference import Reference\n"
    "    given = log_probs, old_log_probs, advantages, action_mask, PolicyLossOptions(**options)\n"
    "    return Reference().policy_loss(*given).loss",
    "value": "def candidate(values, old_values, returns, action_mask, **options):\n"
    "    from rlhf_conformance import ValueLossOptions\n"
    "    from rlhf_conformance.adapters.reference import Reference\n"
    "    return Reference().value_loss(values, old_values, returns, action_mask, ValueLossOptions(**options))",
    "log": "def candidate(**call):\n    from rlhf_reference import token_log_probs\n    return token_log_probs(**call)",
}
"""What a mended trainer would do, with a graph."""


@pytest.mark.parametrize("clause", GRADIENTS)
def test_a_gradient_is_taken_of_the_candidate(clause):
    result, text = written(TwiceTheGradient(), clause)
    assert result.failure.what.startswith("gradient")
    status, out = run_here(text)
    assert (status, result.failure.actual in out) == (1, True)
    right = RIGHT_WITH_A_GRAPH[clause.split("-")[0]]
    assert run_here(with_candidate(text, right))[0] == 0
    steep = f"{right.replace('candidate', 'right')}\n\n\ndef candidate(**call):\n"
    steep += "    answer = right(**call)\n    return 2 * answer - answer.detach()"
    assert run_here(with_candidate(text, steep))[0] == 1


PAIRS = {"actions-counted-from-the-edge": "first", "mask-from-pad-id": "first", "boundary-one-early": "last"}
"""Faults in clauses that compare two answers of the trainer, and which of them is judged."""


@pytest.mark.parametrize("name", PAIRS)
def test_of_two_calls_the_judged_one_is_compared(name):
    """A candidate that answers rightly to that call and with nothing to the other."""
    fault = faults()[name]
    _, text = written(fault.adapter(), fault.clause)
    calls = text[text.index("CALLS = [") : text.index("# The model")]
    assert calls.count('"layout"') == 2
    remark, other = calls.index("# RETURNED is what came of this call."), calls.rindex('"layout"')
    assert (remark < other - 100) == (PAIRS[name] == "first")
    order = "[EXPECTED, []]" if PAIRS[name] == "first" else "[[], EXPECTED]"
    code = f"def candidate(**call):\n    ANSWERS[:] = ANSWERS or {order}\n    return ANSWERS.pop(0)\n\n\nANSWERS = []"
    assert run_here(with_candidate(text, code))[0] == 0


def test_a_plain_fact_is_stated(tmp_path):
    result, text = written(KeepsNoGraph(), "policy-loss.scalar")
    path = tmp_path / "fact.py"
    path.write_text(text)
    done = run(path)
    assert done.returncode == 1, done.stderr
    assert done.stdout.splitlines() == [
        f"what: {result.failure.what}",
        f"expected: {result.failure.expected}",
        f"returned: {result.failure.actual}",
    ]
    assert run_here(with_candidate(text, "def candidate(**call):\n    return 'no number'"))[0] == 2


def test_an_error_is_stated_with_what_the_trainer_was_given():
    result, text = written(Raises(), "value-loss.half")
    assert result.verdict == "error"
    assert '"old_values": torch.tensor(' in text
    status, out = run_here(text)
    assert status == 1
    assert 'value_loss raised RuntimeError: no value "loss" \\ today' in out


def test_a_case_whose_calls_are_not_on_record_is_still_written_out():
    result, _ = made("half-dropped")
    text = script(replace(result, failure=replace(result.failure, exchange=None)), Report(()))
    status, out = run_here(str(text))
    assert status == 1
    assert f"expected: {result.failure.expected}" in out
    assert '"type": "ValueLossCase"' in str(text)


def test_there_is_no_script_without_a_case():
    assert script(Result("policy-loss.clip", "MUST", "pass"), Report(())) is None
    assert (
        script(Result("policy-loss.clip", "MUST", "fail", "x", failure=Failure("loss", "", "1", "2")), Report(()))
        is None
    )


def test_the_script_of_a_report_that_was_read_back_is_the_same(tmp_path):
    result, report = reported(faults()["half-dropped"].adapter(), "value-loss.half")
    again = read(write(report, tmp_path))
    assert script(again.result(result.clause), again) == script(result, report)


def test_the_head_says_what_was_found():
    result, text = made("critic-values-shifted")
    head = " ".join(line.removeprefix("# ") for line in text.splitlines() if line.startswith("#"))
    assert head.startswith("critic.state-before (MUST): ")
    assert f"expected {result.failure.expected}, got {result.failure.actual}" in head
    assert "fault:critic-values-shifted" in head
    assert f"torch {torch.__version__}" in head


def test_answers_that_come_out_otherwise_the_second_time_are_owned_up_to():
    class Drifts(Reference):
        calls = 0

        def value_loss(self, *arguments):
            self.calls += 1
            return super().value_loss(*arguments) + self.calls

    _, text = written(Drifts(), "value-loss.half")
    assert "answered with other numbers" in " ".join(text.split())


def test_the_scripts_pass_a_linter(tmp_path):
    for name in FAULTS:
        _, text = made(name)
        (tmp_path / f"{name.replace('-', '_')}.py").write_text(text)
        compile(text, name, "exec")
    ruff = shutil.which("ruff")
    if ruff is not None:
        # `ast.unparse` puts a generator that is the only argument into parentheses.
        command = [ruff, "check", "--isolated", "--ignore", "UP034", str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def test_writing_a_script_loads_no_torch(tmp_path):
    """The command that writes reports has none."""
    _, report = reported(faults()["critic-values-shifted"].adapter(), "critic.state-before")
    path = write(report, tmp_path)
    code = (
        "import sys; from pathlib import Path; from rlhf_conformance import reporting\n"
        "from rlhf_conformance.reporting import scripts\n"
        f"report = reporting.read(Path({str(path)!r}))\n"
        "assert scripts.script(report.results[0], report)\n"
        "print('torch' in sys.modules)"
    )
    folders = [str(Path(__file__).parents[2] / floor) for floor in ("spec", "reference", "conformance")]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {folders!r}\n{code}"], capture_output=True, text=True
    )
    assert done.stdout.strip() == "False", done.stderr
