"""What the suite answers to adapters that misbehave: an exit status and a sentence, never a traceback, never a hang."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

CONFORMANT, FAILED, USAGE, INCOMPLETE = 0, 1, 2, 3
NEVER = ("Traceback (most recent call last)", "the suite itself failed", "INTERNALERROR")


@dataclass(frozen=True)
class Row:
    """One misbehaviour.

    adapter     as named on the command line, in the folder `hostile/` where it is a file
    options     further arguments
    status      exit status
    says        texts that must appear
    never       texts that must not, beside NEVER
    """

    adapter: str
    options: tuple[str, ...]
    status: int
    says: tuple[str, ...]
    never: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        return " ".join((self.adapter, *self.options)).replace("--profile smoke ", "")


def holds(row: Row, done, says: tuple[str, ...] | None = None) -> None:
    for text in row.says if says is None else says:
        assert text in done.said, done.said
    for text in (*NEVER, *row.never):
        assert text not in done.stdout + done.stderr, done.stdout + done.stderr
    assert done.status == row.status, done.said


# --- adapters that cannot be had: exit status 2, whatever command asks for them -----------------------------------

UNLOADABLE = [
    Row("no_such_package.module:Name", (), USAGE, ("no module named 'no_such_package'", "is it installed")),
    Row("no_such_file.py:Name", (), USAGE, ("there is no file no_such_file.py", "looked for /")),
    Row("loading.py:Mode", (), USAGE, ("has no 'Mode'", "it holds the adapters", "Modes")),
    Row("import_needs.py:Adapter", (), USAGE, ("no module named 'a_trainer_that_is_not_installed'",)),
    Row("refrence", (), USAGE, ("no adapter is called 'refrence'", "one of", "reference")),
    Row("loading.py", (), USAGE, ("say which class: loading.py:Name",)),
    Row("import_raises.py:X", (), USAGE, ("RuntimeError: CUDA driver is older than this library (import_raises",)),
    Row("import_exits.py:X", (), USAGE, ("cannot import import_exits.py: SystemExit: 2",)),
    Row("syntax_error.py:X", (), USAGE, ("cannot import", "SyntaxError", "line 1")),
    Row("loading.py:ConstructorRaises", (), USAGE, ("FileNotFoundError: no checkpoint of the trainer", "loading.py:")),
    Row("loading.py:ConstructorExits", (), USAGE, ("the constructor of", "SystemExit: usage: train.py")),
    Row("loading.py:Modes", ("-o", "packng=true"), USAGE, ("'packng'", "it takes packing, rank")),
    Row("loading.py:Nothing", ("-o", "packing=true"), USAGE, ("it takes no options",)),
    Row("loading.py:Modes", ("-o", "packing"), USAGE, ("option 'packing': wanted NAME=VALUE",)),
    Row("loading.py:Modes", ("-o", "my-mode=1"), USAGE, ("option 'my-mode=1': wanted NAME=VALUE",)),
    Row("loading.py:instance", ("-o", "rank=1"), USAGE, ("is an instance", "name its class")),
    Row("loading.py:NotAnAdapter", (), USAGE, ("not a subclass of rlhf_conformance.Adapter",)),
    Row("loading.py:function", (), USAGE, ("not a subclass of rlhf_conformance.Adapter",)),
    Row("loading.py:StringForTuple", (), USAGE, ("aggregations = 'token-mean': wanted a tuple", "('token-mean',)")),
    Row("loading.py:UnknownLayout", (), USAGE, ("'diagonal' is not one of 'padded', 'left'",)),
    Row("loading.py:NumberForTuple", (), USAGE, ("NumberForTuple.layouts = 3: wanted a tuple",)),
    Row("loading.py:WordForFlag", (), USAGE, ("dual_clip = 'yes': wanted True or False",)),
    Row("loading.py:MisspeltMethod", (), USAGE, ("token_logprobs is unknown", "is 'token_log_probs' meant?")),
    Row("loading.py:MisspeltDeclaration", (), USAGE, ("aggregation is unknown", "is 'aggregations' meant?")),
    Row("fault:no-such-fault", (), USAGE, ("there is no fault 'no-such-fault'",)),
    Row("fault:critic-values-shiftd", (), USAGE, ("is critic-values-shifted",)),
]


@pytest.fixture
def folder(tmp_path, hostile):
    """The folder `hostile/` with a file that no linter would let in."""
    for file in Path(hostile("")).glob("*.py"):
        (tmp_path / file.name).write_text(file.read_text())
    (tmp_path / "syntax_error.py").write_text("def policy_loss(:\n    pass\n")
    return tmp_path


@pytest.mark.parametrize("row", UNLOADABLE, ids=lambda row: row.id)
def test_an_adapter_that_cannot_be_had_is_a_sentence_and_status_2(row, folder, command):
    """`list` loads as `check` does, without torch."""
    done = command("list", row.adapter, *row.options, cwd=folder)
    holds(row, done)
    assert done.stderr.strip().splitlines()[-1].startswith("rlhf-conformance: ")


@pytest.mark.parametrize(
    "row",
    [row for row in UNLOADABLE if row.adapter in ("no_such_package.module:Name", "loading.py:ConstructorExits")],
    ids=lambda row: row.id,
)
def test_check_ends_at_the_first_clause_of_an_adapter_that_cannot_be_had(row, folder, command):
    """All clauses are asked for, and it must not take a try for each."""
    done = command("check", row.adapter, *row.options, "-n", "1", cwd=folder, timeout=60)
    holds(row, done)


# --- usage --------------------------------------------------------------------------------------------------------

MISUSED = [
    Row(
        "loading.py:Modes", ("--only", "policy-los.clip"), USAGE, ("no clause begins with 'policy-los.clip'", "meant?")
    ),
    Row("loading.py:Modes", ("--only", "zzz"), USAGE, ("no clause begins with 'zzz'", "rlhf-conformance list")),
    Row("loading.py:Modes", ("--dtype", "float13"), USAGE, ("float13", "float32", "bfloat16")),
    Row("loading.py:Modes", ("--profile", "fast"), USAGE, ("'fast'", "smoke")),
    Row("loading.py:Modes", ("--device", "abacus"), USAGE, ("no device 'abacus'",)),
    Row("loading.py:Modes", ("-n", "0"), USAGE, ("at least one worker",)),
    Row("loading.py:Modes", ("--known-failures", "missing.toml"), USAGE, ("cannot read missing.toml",)),
    Row("loading.py:Modes", ("--report", "loading.py"), USAGE, ("loading.py",)),
    Row("loading.py:Modes", ("--no-such-flag",), USAGE, ("--no-such-flag",)),
]


@pytest.mark.parametrize("row", MISUSED, ids=lambda row: row.id)
def test_bad_usage_is_a_sentence_and_status_2(row, folder, command):
    only = () if "--only" in row.options else ("--only", "positions.pads")
    done = command("check", row.adapter, "--profile", "smoke", *only, *row.options, cwd=folder)
    holds(row, done, row.says)
    assert "CONFORMANT" not in done.said, "found only after the run"


def test_a_gpu_that_is_not_there_is_said(folder, command):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    row = Row("loading.py:Modes", ("--device", "cuda"), USAGE, ("no device 'cuda' on this machine",))
    holds(row, command("check", row.adapter, *row.options, cwd=folder))


# --- adapters that provide nothing --------------------------------------------------------------------------------


def test_an_adapter_that_provides_nothing_is_incomplete(in_process, hostile):
    row = Row("loading.py:Nothing", (), INCOMPLETE, ("INCOMPLETE: 0 of", "nothing was tested"))
    holds(row, in_process(hostile(row.adapter)))


def test_an_adapter_that_provides_only_half_of_what_a_clause_needs_is_incomplete(in_process, hostile):
    row = Row("loading.py:HalfPair", (), INCOMPLETE, ("INCOMPLETE: 0 of", "nothing was tested"))
    holds(row, in_process(hostile(row.adapter)))


def test_a_selection_that_the_adapter_does_not_provide_is_incomplete(in_process, hostile):
    row = Row("loading.py:Modes", (), INCOMPLETE, ("INCOMPLETE: 0 of", "nothing was tested"))
    holds(row, in_process(hostile(row.adapter), "value-loss"))


@pytest.mark.parametrize("adapter", ["loading.py:Nothing", "loading.py:HalfPair"])
def test_list_says_so_too(adapter, command, folder):
    done = command("list", adapter, cwd=folder)
    assert done.status == INCOMPLETE
    assert "provides nothing" in done.stderr


# --- adapters that answer in the wrong way: verdicts --------------------------------------------------------------

LOG_PROB, LOSS = ("log-probs.definition",), ("policy-loss.ratio",)
SHOULD = ("positions.cumsum", "log-probs.side-effects")  # the first one passes, so that what is left is a warning
WARNED = ("CONFORMANT: 1 of 2", "warning: broken SHOULD clauses (red with --strict): log-probs.side-effects")
ANSWERS = [
    Row("Honest", LOG_PROB + LOSS, CONFORMANT, ("CONFORMANT: 2 of 2",)),
    Row("ReturnsNone", LOG_PROB, FAILED, ("ERROR log-probs.definition", "None (is a return statement missing?)")),
    Row("WrongShape", LOG_PROB, FAILED, ("ERROR", "of shape (1, 1, 2); wanted a tensor of shape (1, 1)")),
    Row("WrongDtype", LOG_PROB, FAILED, ("ERROR", "int64 tensor", "wanted floating-point numbers")),
    Row("FloatForTensor", LOSS, FAILED, ("ERROR", "policy_loss returned a float; wanted the loss, a tensor")),
    Row("LossOfEveryToken", LOSS, FAILED, ("ERROR", "shape (2, 3); wanted the loss, a tensor with one number")),
    Row("Raises", LOG_PROB, FAILED, ("token_log_probs raised ValueError: only contiguous logits", "answers.py:")),
    Row("RaisesUnprintable", LOG_PROB, FAILED, ("token_log_probs raised Unprintable",), ("not deterministic",)),
    Row("CallsExit", LOG_PROB, FAILED, ("token_log_probs called sys.exit: world size is 1 (answers.py:",)),
    Row("RaisesInBackward", ("policy-loss.gradient",), FAILED, ("ERROR", "this kernel has no backward pass")),
    Row("RaisesInBackward", ("log-probs.gradient",), FAILED, ("ERROR", "this kernel has no backward pass")),
    Row("RaisesInBackward", LOSS, CONFORMANT, ("CONFORMANT: 1 of 1",)),
    Row("TypeErrorInBackward", ("policy-loss.gradient",), FAILED, ("ERROR", "unsupported operand")),
    Row("NoGraph", ("policy-loss.scalar",), FAILED, ("FAIL policy-loss.scalar", "none: the loss is detached")),
    Row("NoGraph", ("policy-loss.gradient",), FAILED, ("FAIL policy-loss.gradient", "expected 0.13 actual 0 ")),
    Row("ReturnsNan", LOSS, FAILED, ("FAIL policy-loss.ratio", "actual nan")),
    Row("MetricOfEveryToken", ("policy-loss.clip-fraction",), FAILED, ("ERROR", "clip_fraction = ", "a number")),
    Row("MetricIsWord", ("policy-loss.kl-metric",), FAILED, ("ERROR", "approx_kl = a str", "a number")),
    Row("Alternates", LOG_PROB, FAILED, ("FAIL log-probs.definition",)),
    Row("Alternates", SHOULD, CONFORMANT, (*WARNED, "answer of token_log_probs to the same question asked again")),
    Row("WrongOnce", LOG_PROB, FAILED, ("ERROR log-probs.definition", "the adapter is not deterministic")),
    Row("AddsNoise", LOG_PROB, FAILED, ("FAIL log-probs.definition",)),
    Row("AddsNoise", SHOULD, CONFORMANT, (*WARNED, "changed: the random number generator of the CPU")),
    Row("CountsItsCalls", SHOULD, CONFORMANT, (*WARNED, "to the same question asked again")),
    Row("SeedsTorch", SHOULD, CONFORMANT, (*WARNED, "changed: the random number generator of the CPU")),
    Row("LeavesGradOff", SHOULD, CONFORMANT, (*WARNED, "changed: the grad mode")),
    Row("LeavesDefaultDtype", SHOULD, CONFORMANT, (*WARNED, "changed: the default dtype")),
    Row("LeavesThreads", SHOULD, CONFORMANT, (*WARNED, "changed: the number of threads")),
    Row("WritesInputs", ("log-probs.inputs-unwritten", SHOULD[0]), CONFORMANT, ("FAIL", "actual written: logits")),
    Row("WritesMask", ("positions.inputs-unwritten", SHOULD[0]), CONFORMANT, ("FAIL", "written: attention_mask")),
    Row("WritesAdvantages", ("policy-loss.inputs-unwritten",), FAILED, ("FAIL", "actual written: advantages")),
    Row("ShortPack", ("packing.tokens",), FAILED, ("FAIL packing.tokens",)),
    Row("FlatPack", ("packing.tokens",), FAILED, ("ERROR", "wanted a tensor of shape (1, N)")),
    Row("PairForMasks", ("sequences.action-mask",), FAILED, ("ERROR", "a tuple of 2; wanted a ProcessedSequences")),
    Row("NoModel", ("actor.log-probs",), FAILED, ("ERROR", "load_actor returned None; wanted the model")),
    Row("OpaqueModel", ("actor.log-probs",), CONFORMANT, ("CONFORMANT: 1 of 1",)),
    Row("OpaqueModel", ("actor.gradient",), FAILED, ("ERROR", "parameters raised ConnectionError: the worker holds")),
]


@pytest.mark.parametrize("row", ANSWERS, ids=lambda row: row.id)
def test_a_wrong_answer_is_a_verdict(row, in_process, hostile):
    holds(row, in_process(hostile(f"answers.py:{row.adapter}"), *row.options))


@pytest.mark.parametrize("name", ["SeedsTorch", "LeavesGradOff", "LeavesDefaultDtype", "LeavesThreads"])
def test_the_process_is_put_back_as_it_was(name, in_process, hostile):
    import torch

    state = (torch.get_rng_state(), torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads())
    in_process(hostile(f"answers.py:{name}"), "log-probs.definition")
    assert torch.equal(torch.get_rng_state(), state[0])
    assert (torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads()) == state[1:]


def test_a_broken_should_is_red_when_strict(in_process, hostile):
    row = Row("SeedsTorch", SHOULD, FAILED, ("NOT CONFORMANT: 1 of 2", "FAIL log-probs.side-effects"))
    holds(row, in_process(hostile("answers.py:SeedsTorch"), *SHOULD, strict=True))


def test_an_interrupt_is_the_users(hostile):
    """Ctrl-C ends a check in this process, and is no verdict on the adapter."""
    from rlhf_conformance import check
    from rlhf_conformance.loading import load_adapter

    with pytest.raises(KeyboardInterrupt):
        check(load_adapter(hostile("answers.py:RaisesInterrupt")), only=["positions.cumsum"], profile="smoke")


# --- adapters that harm their process: the others are judged ------------------------------------------------------

HARM = ("--only", "positions.pads", "--only", "packing.tokens")
ENDED = ("LOST packing.tokens", "the process of the adapter ended", "INCOMPLETE: 1 of 2")
PROCESSES = [
    Row("processes.py:Exits", HARM, INCOMPLETE, ENDED),
    Row("processes.py:KillsItself", HARM, INCOMPLETE, ENDED),
    Row("processes.py:Segfaults", HARM, INCOMPLETE, ENDED),
    Row(
        "processes.py:Hangs",
        (*HARM, "--time-limit", "3"),
        INCOMPLETE,
        ("LOST packing.tokens", "longer than 3 s", "processes.py", "in pack_sequences", "INCOMPLETE: 1 of 2"),
    ),
    Row("processes.py:LeavesThread", HARM[:2], CONFORMANT, ("CONFORMANT: 1 of 1",)),
    Row("processes.py:PrintsMuch", HARM[:2], CONFORMANT, ("CONFORMANT: 1 of 1",), ("all_reduce", "loading shard")),
    Row("answers.py:Raises", HARM[:2], CONFORMANT, ("CONFORMANT: 1 of 1",)),
    Row(
        "answers.py:Raises",
        (*HARM[:2], "--only", "log-probs.definition"),
        FAILED,
        ("ERROR log-probs.definition", "raised ValueError: only contiguous", "NOT CONFORMANT: 1 of 2"),
    ),
    Row("answers.py:RaisesInterrupt", HARM[:2], INCOMPLETE, ("LOST positions.pads",)),
]


@pytest.mark.parametrize("row", PROCESSES, ids=lambda row: row.id)
def test_harm_to_the_process_is_a_verdict_on_that_clause_alone(row, command, folder):
    done = command("check", row.adapter, "--profile", "smoke", "-n", "1", *row.options, cwd=folder, timeout=100)
    holds(row, done)
    assert len(done.stdout + done.stderr) < 20_000


def test_an_adapter_that_ends_every_process_that_imports_it_is_given_up(command, folder):
    """All 131 clauses are asked for; a process for each of them would take minutes."""
    done = command("check", "import_dies.py:X", "--profile", "smoke", "-n", "1", cwd=folder, timeout=90)
    assert done.status in (USAGE, INCOMPLETE)
    assert "ended" in done.said
