"""What the suite answers to adapters that misbehave: an exit status and a sentence, never a traceback, never a hang."""

from __future__ import annotations

import builtins
import contextlib
import os
import re
import signal
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest

from rlhf_conformance.reporting import read, write
from rlhf_conformance.reporting.terminal import describe
from rlhf_conformance.results import ERROR, FAIL, LOST, PASS
from rlhf_conformance.run import workers
from rlhf_conformance.run.command import run_plan
from rlhf_conformance.run.plan import Plan

CONFORMANT, FAILED, USAGE, INCOMPLETE = 0, 1, 2, 3
NEVER = ("Traceback (most recent call last)", "itself failed", "INTERNALERROR")


@dataclass(frozen=True)
class Row:
    """One misbehavior.

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


# --- adapters that cannot be loaded: exit status 2, whatever command asks for them -----------------------------------

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
    Row("loading.py:WordForFlag", (), USAGE, ("global_count = 'yes': wanted True or False",)),
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
    Row("LeavesGradOff", ("log-probs.gradient",), CONFORMANT, ("CONFORMANT: 1 of 1",)),
    Row("RaisesTheSame", LOG_PROB, FAILED, ("token_log_probs raised ImportError: no kernel",), ("not deterministic",)),
    Row("RaisesInACircle", LOG_PROB, FAILED, ("token_log_probs raised ValueError: wrong",), ("not deterministic",)),
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
    Row("Alternates", LOG_PROB, FAILED, ("ERROR log-probs.definition", "not deterministic")),
    Row("Alternates", SHOULD, CONFORMANT, (*WARNED, "answer of token_log_probs to the same question asked again")),
    Row("WrongOnce", LOG_PROB, FAILED, ("ERROR log-probs.definition", "the adapter is not deterministic")),
    Row("AddsNoise", LOG_PROB, FAILED, ("FAIL log-probs.definition",)),
    Row("AddsNoise", SHOULD, CONFORMANT, (*WARNED, "changed: the random number generator of the CPU")),
    Row("CountsItsCalls", SHOULD, CONFORMANT, (*WARNED, "to the same question asked again")),
    Row(
        "SeedsTorch", SHOULD, CONFORMANT, (*WARNED, "changed: the random number generator of the CPU, which was seeded")
    ),
    Row("LeavesGradOff", SHOULD, CONFORMANT, (*WARNED, "changed: the grad mode")),
    Row("LeavesDefaultDtype", SHOULD, CONFORMANT, (*WARNED, "changed: the default dtype")),
    Row("LeavesThreads", SHOULD, CONFORMANT, (*WARNED, "changed: the number of threads")),
    Row("LeavesAutocast", LOG_PROB, CONFORMANT, ("CONFORMANT: 1 of 1",)),
    Row("LeavesAutocast", SHOULD, CONFORMANT, (*WARNED, "changed: autocast")),
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
    from rlhf_conformance.run.loading import load_adapter

    with pytest.raises(KeyboardInterrupt):
        check(load_adapter(hostile("answers.py:RaisesInterrupt")), only=["positions.cumsum"], profile="smoke")


# --- the table of hostile adapters --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Hostile:
    """One hostility and what must follow for the clause that meets it.

    name        a class in `hostile/answers.py` or, in a run of its own processes, a function in `hostile/harms.py`
    strikes     the clause, or the method in whose clause the harm is done
    verdict     exact
    says        the exact reason, as a regular expression in which only numbers, lines and places vary
    """

    name: str
    strikes: str
    verdict: str
    says: str = ""


LINE = r"\d+"


def at(function: str, file: str = "answers.py") -> str:
    return rf"\({file}:{LINE} in {function}\)"


def raised(method: str, kind: str, text: str, harm: str) -> str:
    return f"{method} raised {kind}{text} {at(harm, 'harms.py')}"


POISON = "CUDA error: an illegal memory access was encountered"
LATER = "CUDA kernel errors might be reported later"
HERE_AT = at("token_log_probs")
ONCE = "the same case failed once and passed once: the adapter is not deterministic. At first: "
DEFINITION, EFFECTS = "log-probs.definition", "log-probs.side-effects"
CHANGED = "global state after token_log_probs: expected as it was before, got changed: {}"
THEN = "; while this was looked into, "
NUMBER = r"-?[\d.e+-]+"
ENDED = "the process of the adapter ended while this clause was tried: "
KILLED = f"{ENDED}it was killed with SIGKILL, as the kernel does where memory runs out"
SLOW = r"the adapter took longer than 3 s and was ended"
WRONG = rf"[^;]+: expected {NUMBER}, got {NUMBER}"

HERE = [
    Hostile(
        "Raises",
        DEFINITION,
        ERROR,
        rf"token_log_probs raised ValueError: only contiguous logits are supported {HERE_AT}",
    ),
    Hostile(
        "RaisesUnprintable",
        DEFINITION,
        ERROR,
        rf"token_log_probs raised Unprintable: \(its message cannot be read: RuntimeError\) {HERE_AT}",
    ),
    Hostile(
        "RaisesControls",
        DEFINITION,
        ERROR,
        rf"token_log_probs raised ValueError: \\x1b\[2J\\ud800 is not a token {HERE_AT}",
    ),
    Hostile(
        "RaisesMegabytes",
        DEFINITION,
        ERROR,
        rf"token_log_probs raised ValueError: [0., ]{{390,410}} {HERE_AT}",
    ),
    Hostile(
        "CallsExit",
        DEFINITION,
        ERROR,
        rf"token_log_probs called sys.exit: world size is 1 {HERE_AT}",
    ),
    Hostile(
        "WritesInputs",
        "log-probs.inputs-unwritten",
        FAIL,
        "inputs of token_log_probs after the call: expected as they were before, got written: logits",
    ),
    Hostile(
        "WritesMask",
        "positions.inputs-unwritten",
        FAIL,
        "inputs of position_ids after the call: expected as they were before, got written: attention_mask",
    ),
    Hostile("SeedsTorch", EFFECTS, FAIL, CHANGED.format("the random number generator of the CPU, which was seeded")),
    Hostile("LeavesDefaultDtype", EFFECTS, FAIL, CHANGED.format("the default dtype")),
    Hostile("LeavesGradOff", EFFECTS, FAIL, CHANGED.format("the grad mode")),
    Hostile("EntersInferenceMode", EFFECTS, FAIL, CHANGED.format("the inference mode")),
    Hostile("LeavesThreads", EFFECTS, FAIL, CHANGED.format("the number of threads")),
    Hostile("LeavesDevice", EFFECTS, PASS),
    Hostile("LeavesDeterministic", EFFECTS, PASS),
    Hostile("LeavesFolder", EFFECTS, PASS),
    Hostile("LeavesVariables", EFFECTS, PASS),
    Hostile("LeavesSignals", EFFECTS, PASS),
    Hostile("LeavesFilters", EFFECTS, PASS),
    Hostile("ReturnsItsInput", "sequences.tokens-unchanged", PASS),
    Hostile("StaticBuffer", EFFECTS, PASS),
    Hostile(
        "WrongOnce",
        DEFINITION,
        ERROR,
        ONCE + WRONG,
    ),
    Hostile(
        "CountsItsCalls",
        EFFECTS,
        FAIL,
        rf"answer of token_log_probs to the same question asked again at .+: expected {NUMBER}, got {NUMBER}",
    ),
    Hostile(
        "PoisonsCuda",
        DEFINITION,
        ERROR,
        rf"token_log_probs raised RuntimeError: CUDA error: device-side assert triggered {LATER} {HERE_AT}",
    ),
    Hostile(
        "RunsOutOfCudaMemory",
        DEFINITION,
        ERROR,
        rf"token_log_probs raised RuntimeError: CUDA error: out of memory {HERE_AT}",
    ),
]
"""Hostilities that a process survives. A view of an input, or a buffer that the next call writes, is none: what an
adapter answers is copied at once, and no clause forbids either. What moves no number of a clause (the folder, the
environment, ...) is put back without a verdict."""

RUNS = {
    "exits": [
        Hostile("exits", "token_log_probs", LOST, f"{ENDED}it exited with status 0"),
        Hostile(
            "segfaults", "token_entropy", LOST, rf"{ENDED}it was ended by SIGSEGV, in __init__.py:{LINE} in string_at"
        ),
        Hostile("kills_itself", "pack_sequences", LOST, KILLED),
        Hostile("aborts", "policy_loss", LOST, rf"{ENDED}it was ended by SIGABRT, in harms.py:{LINE} in aborts"),
    ],
    "hangs": [
        Hostile("hangs", "token_log_probs", LOST, rf"{SLOW}, in harms.py:{LINE} in hangs"),
        Hostile("hangs_in_c", "token_entropy", LOST, rf"{SLOW}, in harms.py:{LINE} in hangs_in_c"),
        Hostile("hangs_unwatched", "pack_sequences", LOST, SLOW),
        Hostile("forks_and_dies", "policy_loss", LOST, KILLED),
    ],
    "survived": [
        Hostile("closes_streams", "token_log_probs", PASS),
        Hostile("prints_much", "token_entropy", PASS),
        Hostile("forks", "pack_sequences", PASS),
        Hostile("leaves_process", "policy_loss", PASS),
        Hostile("fills_memory", "value_loss", ERROR, raised("value_loss", "MemoryError", "", "fills_memory")),
        Hostile(
            "asks_for_much",
            "process_sequences",
            ERROR,
            raised("process_sequences", "RuntimeError", ": .*DefaultCPUAllocator: .*allocate.*", "asks_for_much"),
        ),
    ],
    "leftovers": [
        Hostile("leaves_thread", "token_log_probs", PASS),
        Hostile("ends_at_exit", "token_entropy", PASS),
        Hostile("reads_its_score", "pack_sequences", PASS),
        Hostile(
            "closes_everything",
            "policy_loss",
            LOST,
            rf"{ENDED}it (exited with status \d+|closed the connection to the suite|was ended by SIG(ABRT|SEGV).*)",
        ),
        Hostile("interrupts", "value_loss", ERROR, raised("value_loss", "KeyboardInterrupt", "", "interrupts")),
    ],
    "away": [
        Hostile("leaves_daemon", "token_log_probs", PASS),
        Hostile("leaves_stranger", "token_entropy", PASS),
        Hostile("holds_descriptors", "pack_sequences", PASS),
        Hostile("leaves_files", "policy_loss", PASS),
    ],
    "unheard": [
        Hostile(
            "writes_on_descriptors",
            "token_log_probs",
            LOST,
            f"{ENDED}(nothing was heard from it, and it was ended|it closed the connection to the suite)",
        ),
        Hostile("kills_its_parent", "token_entropy", LOST, KILLED),
        Hostile("stops_its_parent", "pack_sequences", LOST, rf"{SLOW}, in harms.py:{LINE} in hangs"),
        Hostile("stops_its_parent_for_good", "policy_loss", LOST, SLOW),
    ],
    "poison": [
        Hostile(
            "poisons_cuda",
            "token_log_probs",
            ERROR,
            raised("token_log_probs", "RuntimeError", f": {POISON}", "poisons_cuda"),
        ),
    ],
    "found, then lost": [
        Hostile("wrong_then_hangs", "token_log_probs", FAIL, f"{WRONG}{THEN}{SLOW}, in harms.py:{LINE} in hangs"),
        Hostile("wrong_then_killed", "token_entropy", FAIL, f"{WRONG}{THEN}{KILLED}"),
        Hostile(
            "raises_then_exits",
            "pack_sequences",
            ERROR,
            f"pack_sequences raised ValueError: only contiguous logits are supported "
            f"{at('raises_then_exits', 'harms.py')}{THEN}{ENDED}it exited with status 3",
        ),
        Hostile("wrong_then_killed_in_diagnosis", "policy_loss", FAIL, f"{WRONG}{THEN}{KILLED}"),
    ],
}
"""Hostilities that a process may not survive, in runs of several, each in the clause of another method."""

CLAUSES = {
    "token_log_probs": DEFINITION,
    "token_entropy": "log-probs.entropy",
    "pack_sequences": "packing.tokens",
    "policy_loss": "policy-loss.ratio",
    "value_loss": "value-loss.half",
    "process_sequences": "sequences.attention-span",
}
INNOCENT = ("positions.cumsum", "positions.pads")


def whole(report, folder) -> None:
    """Every clause has a result, and the report comes back as it was written."""
    assert all(result.reason or result.verdict == PASS for result in report.results)
    assert read(write(report, folder)).results == report.results


KINDS = [
    tuple(line.split("\t"))
    for line in Path(__file__).with_name("hostile").joinpath("kinds.tsv").read_text().splitlines()
]
"""The method (or the exception), the value, the verdict, and how its reason begins; # stands for a line."""


def test_the_table_has_at_least_a_hundred_rows():
    assert len(HERE) + len(KINDS) + sum(map(len, RUNS.values())) >= 100


@pytest.mark.parametrize("row", KINDS, ids=lambda row: " ".join(row[:2]).strip())
@pytest.mark.filterwarnings("ignore")
def test_an_answer_of_a_wrong_kind_is_an_error_with_a_sentence(row, hostile):
    from rlhf_conformance import check
    from rlhf_conformance.run.loading import load_adapter

    method, value, verdict, says = row
    if method == "group" and not hasattr(builtins, "ExceptionGroup"):
        pytest.skip("Python has no groups of exceptions")
    options = {"method": method, "value": value} if value else {"error": method}
    adapter = load_adapter(hostile(f"kinds.py:{'Wrong' if value else 'Raising'}"), options)
    result = check(adapter, only=[STRIKES.get(method, DEFINITION)], profile="smoke").results[0]
    assert result.verdict == verdict, result.reason
    assert re.sub(r"kinds.py:\d+", "kinds.py:#", result.reason).startswith(says)
    assert not any(text in result.reason for text in NEVER)


STRIKES = {
    "position_ids": "positions.cumsum",
    "policy_loss": "policy-loss.gradient",
    "approx_kl": "policy-loss.kl-metric",
    "pack_sequences": "packing.tokens",
    "process_sequences": "sequences.tokens-unchanged",
}


@pytest.mark.parametrize("row", HERE, ids=lambda row: f"{row.name} {row.strikes}")
def test_a_hostile_answer_is_a_verdict_on_its_clause_alone(row, hostile, tmp_path):
    from rlhf_conformance import check
    from rlhf_conformance.run.loading import load_adapter

    innocent = "positions.cumsum"
    only = (row.strikes, innocent)
    report = check(load_adapter(hostile(f"answers.py:{row.name}")), only=only, profile="smoke")
    result = report.result(row.strikes)
    assert result.verdict == row.verdict, result.reason
    assert re.fullmatch(row.says, result.reason), result.reason
    assert report.result(innocent).verdict == (LOST if row.name == "PoisonsCuda" else PASS)
    assert (result.failure is None) == (result.verdict == PASS)
    whole(report, tmp_path)


def judged(hostile, rows, limit, count):
    """The clauses of the rows and two innocent ones, in `count` processes, with `limit` seconds for each clause."""
    plan = Plan(
        adapter=hostile("harms.py:Harmful"),
        options={row.strikes: row.name for row in rows},
        profile="smoke",
        only=(*(CLAUSES[row.strikes] for row in rows), *INNOCENT),
        time_limit=limit,
    )
    return run_plan(plan, count)


@pytest.mark.parametrize("name", RUNS)
def test_harm_to_the_process_is_a_verdict_on_its_clause_alone(name, hostile, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "LATE", 1.0)
    monkeypatch.setattr(workers, "SILENT", 4.0)
    monkeypatch.setattr(workers, "PATIENCE", 3.0)
    monkeypatch.setenv("HOSTILE_NOTES", str(tmp_path / "notes"))
    limit = 3 if any(SLOW in row.says for row in RUNS[name]) else 60
    report = judged(hostile, RUNS[name], limit, 1 if name in ("poison", "survived", "leftovers", "away") else 2)
    for row in RUNS[name]:
        result = report.result(CLAUSES[row.strikes])
        assert result.verdict == row.verdict, (row.name, result.reason)
        assert re.fullmatch(row.says, result.reason), (row.name, result.reason)
        if THEN in result.reason:
            assert THEN[2:] in describe(result), "a terminal shows notes, no reasons"
            assert result.failure.stored, "there is a case to be replayed"
    assert [report.result(slug).verdict for slug in INNOCENT] == [PASS, PASS]
    assert report.subject["provides"], "the report says what was run"
    assert report.environment["threads"] == 1
    assert report.run["time_limit"] == limit
    whole(report, tmp_path)
    notes = tmp_path / "notes"
    for pid in notes.read_text().split() if notes.exists() else ():
        assert not _alive(int(pid)), "a program that the adapter started outlives the run"
    left = tmp_path / "notes.folder"
    assert not (left.exists() and Path(left.read_text()).exists()), "a folder of the adapter outlives the run"


def _alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_a_verdict_of_flaky_answers_shows_the_case(hostile):
    from rlhf_conformance import check
    from rlhf_conformance.run.loading import load_adapter

    result = check(load_adapter(hostile("answers.py:WrongOnce")), only=[DEFINITION], profile="smoke").result(DEFINITION)
    assert result.failure.stored
    assert f"case         {result.failure.case}" in describe(result)
    assert "the adapter is not deterministic" in describe(result)


@pytest.mark.parametrize("name", ["LeavesFolder", "LeavesVariables", "LeavesSignals", "LeavesFilters"])
def test_the_surroundings_are_put_back(name, in_process, hostile):
    def now():
        alarm = signal.getitimer(signal.ITIMER_REAL)[0]
        return os.getcwd(), dict(os.environ), signal.getsignal(signal.SIGINT), alarm, list(warnings.filters)

    before = now()
    in_process(hostile(f"answers.py:{name}"), DEFINITION)
    assert now() == before


@pytest.mark.parametrize("name", ["EntersInferenceMode", "LeavesDevice", "LeavesDeterministic"])
def test_the_modes_of_torch_are_put_back(name, in_process, hostile):
    import torch

    in_process(hostile(f"answers.py:{name}"), DEFINITION)
    assert not torch.is_inference_mode_enabled()
    assert torch.is_grad_enabled()
    assert torch.get_default_device() == torch.device("cpu")
    assert not torch.are_deterministic_algorithms_enabled()


def test_an_adapter_that_answers_from_our_own_code_is_told_apart(command, hostile):
    done = command("check", hostile("borrows.py:Borrows"), "--profile", "smoke", "--only", DEFINITION, "-n", "1")
    assert done.status == CONFORMANT
    assert (
        "warning: the adapter imports rlhf_reference.log_probs: what it answers from there is the suite's own code, "
        "not a trainer's" in done.said
    )


@pytest.mark.parametrize("name", ["reference", "fault:critic-values-shifted", "twin:log-softmax-then-gather", "Honest"])
def test_what_imports_none_of_our_code_or_belongs_to_us_is_not_told_apart(name, hostile):
    from rlhf_conformance.run.borrowed import borrowed
    from rlhf_conformance.run.loading import load_adapter

    assert borrowed(load_adapter(hostile(f"answers.py:{name}") if name == "Honest" else name)) == ()


def test_a_helper_elsewhere_that_borrows_is_found(tmp_path, monkeypatch):
    from rlhf_conformance.run.borrowed import borrowed
    from rlhf_conformance.run.loading import load_adapter

    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "lends_it.py").write_text("from rlhf_reference.log_probs import token_log_probs\n")
    adapter = "import lends_it\nfrom rlhf_conformance import Adapter\nclass Mine(Adapter):\n    helper = lends_it\n"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "borrows_by_helper.py").write_text(adapter)
    monkeypatch.syspath_prepend(tmp_path / "elsewhere")
    found = borrowed(load_adapter(f"{tmp_path}/mine/borrows_by_helper.py:Mine"))
    assert "rlhf_reference.log_probs" in found


def test_what_is_installed_below_the_adapter_borrows_nothing(tmp_path, monkeypatch):
    """As pytest plugins of ours do, in a virtual environment beside the adapter."""
    from rlhf_conformance.run.borrowed import borrowed
    from rlhf_conformance.run.loading import load_adapter

    packages = tmp_path / ".venv" / "lib" / "site-packages"
    packages.mkdir(parents=True)
    (packages / "installed_trainer.py").write_text("import rlhf_spec.policy_loss\n")
    adapter = "import installed_trainer\nfrom rlhf_conformance import Adapter\nclass Mine(Adapter):\n    pass\n"
    (tmp_path / "beside_an_environment.py").write_text(adapter)
    monkeypatch.syspath_prepend(packages)
    assert borrowed(load_adapter(f"{tmp_path}/beside_an_environment.py:Mine")) == ()


@pytest.mark.parametrize("what", ["compare", "judged", "report"])
def test_a_judge_that_was_changed_makes_no_run_green(what, command, hostile):
    only = ("--only", "positions.cumsum", "--only", "positions.pads")
    done = command("check", hostile("patches.py:Patches"), "-o", f"what={what}", "--profile", "smoke", *only, "-n", "1")
    assert done.status == INCOMPLETE
    assert "is not believed: a planted fault (OneOff, at positions.cumsum)" in done.said


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_the_planted_faults_are_seen_where_nothing_was_changed(dtype, hostile):
    from rlhf_conformance.run.loading import load_adapter
    from rlhf_conformance.run.plan import planned
    from rlhf_conformance.run.suite import Suite

    suite = Suite(planned((), ["positions"], dtype=dtype), load_adapter(hostile("answers.py:Honest")))
    suite.prepare()
    assert suite.unseen() == ""


@pytest.mark.cuda
def test_a_poisoned_gpu_costs_no_other_clause_its_verdict(hostile):
    plan = Plan(
        adapter=hostile("answers.py:ReallyPoisonsCuda"), device="cuda", profile="smoke", only=(DEFINITION, *INNOCENT)
    )
    report = run_plan(plan, workers=1)
    assert report.result(DEFINITION).verdict == ERROR
    assert "CUDA error" in report.result(DEFINITION).reason
    assert [report.result(slug).verdict for slug in INNOCENT] == [PASS, PASS]


# --- through the command ------------------------------------------------------------------------------------------

HARM = ("--only", "positions.pads", "--only", "packing.tokens")
PROCESSES = [
    Row(
        "processes.py:Hangs",
        (*HARM, "--time-limit", "3"),
        INCOMPLETE,
        ("LOST packing.tokens", "longer than 3 s", "in processes.py:", "3 s a clause", "INCOMPLETE: 1 of 2"),
    ),
    Row("processes.py:PrintsMuch", HARM[:2], CONFORMANT, ("CONFORMANT: 1 of 1",), ("all_reduce", "loading shard")),
]


@pytest.mark.parametrize("row", PROCESSES, ids=lambda row: row.id)
def test_harm_to_the_process_through_the_command(row, command, folder):
    done = command("check", row.adapter, "--profile", "smoke", "-n", "1", *row.options, cwd=folder, timeout=100)
    holds(row, done)
    assert len(done.stdout + done.stderr) < 20_000


def test_an_adapter_that_ends_every_process_that_imports_it_is_given_up(command, folder):
    """All clauses are asked for; a process for each of them would take minutes."""
    done = command("check", "import_dies.py:X", "--profile", "smoke", "-n", "1", cwd=folder, timeout=90)
    assert done.status in (USAGE, INCOMPLETE)
    assert "ended" in done.said
