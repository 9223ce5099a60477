"""`rlhf-conformance init`, and a repository that was made by it on its way through a bug."""

from __future__ import annotations

import re
import shlex
import sys
from importlib import resources
from pathlib import Path

import pytest
import yaml

from rlhf_conformance.adapter import METHODS, provided
from rlhf_conformance.run import starting
from rlhf_conformance.run.known import read_known_failures
from rlhf_conformance.run.loading import UsageError, load_adapter

from .conftest import Done, run

CONFORMANT, FAILED, USAGE, INCOMPLETE = 0, 1, 2, 3
ADAPTER, KNOWN = "conformance_adapter.py", "known-failures.toml"

# The functions that the skeleton calls, where the trainer is the reference.
LOSSES = """
import rlhf_reference as ref


def policy_loss(log_probs, old_log_probs, advantages, action_mask, low, high):
    return ref.PolicyLoss(low, high)(log_probs, old_log_probs, advantages, action_mask).loss


def value_loss(values, old_values, returns, action_mask, clip_eps):
    return ref.ValueLoss(clip_eps)(values, old_values, returns, action_mask)


def log_probs(logits, labels, temperature):
    return ref.token_log_probs(logits, labels, temperature=temperature)


def entropy(logits, temperature):
    return ref.token_entropy(logits, temperature=temperature)
"""
MODELS = """

def masks(sequences, prompt_length, prompt_attention_mask, stop_token_ids):
    out = ref.process_sequences(
        sequences, prompt_length, stop_token_ids=stop_token_ids, pad_token_id=0,
        prompt_attention_mask=prompt_attention_mask,
    )
    return out.attention_mask, out.action_mask


positions = ref.position_ids


class Actor(ref.Actor):
    def __init__(self, path, dtype, device, temperature):
        super().__init__(path, dtype=dtype, device=device, temperature=temperature)

    def log_probs(self, input_ids, attention_mask, num_actions):
        return self(input_ids, num_actions, attention_mask=attention_mask)


class RewardModel(ref.RewardModel):
    def __init__(self, path, dtype, device):
        super().__init__(path, dtype=dtype, device=device)

    def rewards(self, input_ids, attention_mask):
        return self(input_ids, attention_mask=attention_mask)


class Critic(ref.CriticModel):
    def __init__(self, path, dtype, device):
        super().__init__(path, dtype=dtype, device=device)

    def values(self, input_ids, attention_mask, num_actions):
        return self(input_ids, num_actions, attention_mask=attention_mask)
"""
BUG = ("return ref.ValueLoss(clip_eps)", "return 2 * ref.ValueLoss(clip_eps)")
FILLED_IN = ("policy_loss", "value_loss", "token_log_probs", "token_entropy")
CLAUSES = ("value-loss.half", "value-loss.unclipped", "value-loss.scalar", "policy-loss.clip", "log-probs.definition")
ONLY = tuple(word for slug in CLAUSES for word in ("--only", slug))


def filled_in(text: str, *methods: str) -> str:
    """The skeleton with the comment signs taken away from these methods, or from all, and from its imports."""
    head, *parts = re.split(r"(?=^    # def )", text, flags=re.M)
    head = re.sub(r"^# (?=import|from)", "", head, flags=re.M)
    for part in parts:
        wanted = not methods or re.match(r"    # def (\w+)", part)[1] in methods
        head += re.sub(r"^    # ?", "    ", part, flags=re.M) if wanted else part
    return head


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository made by `init`, untouched."""
    starting.write(tmp_path)
    return tmp_path


@pytest.fixture
def sample(repository: Path) -> Path:
    """The same with losses and log-probs of the reference filled in."""
    adapter = repository / ADAPTER
    adapter.write_text(filled_in(adapter.read_text(), *FILLED_IN))
    (repository / "my_trainer.py").write_text(LOSSES)
    return repository


def check(folder: Path, *arguments: str) -> Done:
    return run("-m", "rlhf_conformance", "check", f"{ADAPTER}:MyTrainer", "-n", "2", *arguments, cwd=folder)


def replaced(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


# --- what is written -----------------------------------------------------------------------------------------------


def test_what_init_writes_and_says(tmp_path, capsys):
    from rlhf_conformance.cli import main

    folder = tmp_path / "new"
    assert main(["init", str(folder)]) == CONFORMANT
    assert {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} == set(starting.FILES)
    said = capsys.readouterr().out
    assert f"  rlhf-conformance check {folder}/{ADAPTER}:MyTrainer --profile smoke\n" in said
    assert f"  pytest {folder}/test_conformance.py\n" in said


def test_without_a_folder_it_is_the_current_one(tmp_path, monkeypatch, capsys):
    from rlhf_conformance.cli import main

    monkeypatch.chdir(tmp_path)
    assert main(["init"]) == CONFORMANT
    assert (tmp_path / ADAPTER).exists()
    assert f"  rlhf-conformance check {ADAPTER}:MyTrainer --profile smoke\n" in capsys.readouterr().out


@pytest.mark.parametrize("name", starting.FILES)
def test_nothing_is_overwritten(name, tmp_path):
    mine = tmp_path / name
    mine.parent.mkdir(parents=True, exist_ok=True)
    mine.write_text("mine")
    with pytest.raises(UsageError, match=re.escape(name)):
        starting.write(tmp_path)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [mine]
    assert mine.read_text() == "mine"


def test_a_second_init_is_bad_usage(repository, capsys):
    from rlhf_conformance.cli import main

    assert main(["init", str(repository)]) == USAGE
    assert "there is already: " + ", ".join(starting.FILES) in capsys.readouterr().err


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="wanted a folder"):
        starting.write(tmp_path / "file")


def test_every_template_is_written(repository):
    templates = resources.files("rlhf_conformance").joinpath("templates", "init")
    assert {path.name for path in templates.iterdir()} == set(starting.FILES.values())


def test_the_file_of_known_failures_begins_empty(repository):
    assert read_known_failures(repository / KNOWN) == ()


# --- the skeleton --------------------------------------------------------------------------------------------------


def test_an_untouched_skeleton_is_not_green(repository):
    done = check(repository, "--profile", "smoke", *ONLY)
    assert done.status == INCOMPLETE
    assert "nothing was tested: the adapter provides no method that a selected clause needs; write one" in done.said


def test_an_untouched_skeleton_is_not_green_in_pytest(repository):
    done = run("-m", "pytest", "-p", "rlhf_conformance.run.plugin", "-q", "test_conformance.py", cwd=repository)
    assert done.status not in (0, 5)
    assert "nothing would be tested" in done.said


@pytest.fixture
def loaded(monkeypatch):
    """The adapter of a folder, with the modules that its import leaves behind forgotten afterwards."""
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    return lambda folder: load_adapter(f"{folder / ADAPTER}:MyTrainer")


def test_all_of_the_skeleton_is_of_the_adapter(repository, loaded):
    """Each method that it offers exists; what it leaves out is for later, and in the guide."""
    adapter = repository / ADAPTER
    adapter.write_text(filled_in(adapter.read_text()))
    (repository / "my_trainer.py").write_text("")
    offered = set(re.findall(r"    def (\w+)", adapter.read_text()))
    assert set(provided(loaded(repository))) == offered
    later = {"pack_sequences", "action_entropy", "logits", "generate", "values", "save", "restore", "wrap_actor"}
    later |= {"log_probs_with_output", "rewards_with_output", "action_values_with_output"}
    later |= {"kl", "token_rewards", "advantages", "returns", "credit", "whiten", "group_advantages"}
    later |= {"off_policy_weights", "corrected_loss", "objective"}
    later |= {"load_trainer", "step_gradients", "step_update", "step_log_probs", "save_trainer", "resume_trainer"}
    later |= {"load_critic_trainer", "critic_step_gradients", "critic_step_update"}
    assert {name for name, row in METHODS.items() if not row.optional} - offered == later


def test_the_declarations_of_the_skeleton_are_the_defaults(repository, loaded):
    from rlhf_conformance.adapter import Adapter

    mine = loaded(repository)
    for name in set(vars(type(mine))) - {"name"}:
        if not name.startswith("_"):
            assert getattr(mine, name) == getattr(Adapter, name), name


def test_the_whole_skeleton_filled_in_with_the_reference_passes_its_smoke_stage(repository):
    adapter = repository / ADAPTER
    adapter.write_text(filled_in(adapter.read_text()))
    (repository / "my_trainer.py").write_text(LOSSES + MODELS)
    done = check(repository, "--profile", "smoke", "--strict", "--known-failures", KNOWN)
    assert done.status == CONFORMANT, done.stdout + done.stderr


# --- a repository on its way through a bug -------------------------------------------------------------------------


def test_a_repository_made_by_init_goes_through_a_bug(sample):
    """Green; red; accepted and green; mended and red until the row is removed; green."""
    known = ("--known-failures", KNOWN)
    green = check(sample, *ONLY, *known)
    assert green.status == CONFORMANT, green.stdout + green.stderr

    replaced(sample / "my_trainer.py", *BUG)
    red = check(sample, *ONLY, *known, "--report", "reports")
    assert red.status == FAILED
    assert "FAIL value-loss.half (MUST)" in red.said
    assert "case ValueLossCase(" in red.said
    for name in diagnosed(sample / "reports" / "report.json", "value-loss.half"):
        assert name in red.said

    written = check(sample, *ONLY, *known, "--accept")
    assert written.status == CONFORMANT, written.stdout + written.stderr
    assert [row.clause for row in read_known_failures(sample / KNOWN)] == ["value-loss.unclipped", "value-loss.half"]

    accepted = check(sample, *ONLY, *known)
    assert accepted.status == CONFORMANT, accepted.stdout + accepted.stderr
    assert "known failure: value-loss.half" in accepted.said

    replaced(sample / "my_trainer.py", *reversed(BUG))
    mended = check(sample, *ONLY, *known)
    assert mended.status == FAILED
    assert "UNEXPECTED-PASS value-loss.half" in mended.said
    commands = re.findall(r"remove the row with `(.*?)`", mended.stdout)
    assert len(commands) == 2
    for command in commands:
        program, *arguments = shlex.split(command)
        assert program == "rlhf-conformance"
        done = run("-m", "rlhf_conformance", *arguments, cwd=sample)
        assert done.status == CONFORMANT, done.stdout + done.stderr
        assert "removed: value-loss." in done.said
    assert read_known_failures(sample / KNOWN) == ()

    again = check(sample, *ONLY, *known)
    assert again.status == CONFORMANT, again.stdout + again.stderr


def diagnosed(report: Path, clause: str) -> list[str]:
    """Names of the diagnoses of a clause in a report; none where there is no doubtless one."""
    from rlhf_conformance import reporting

    failure = reporting.read(report).result(clause).failure
    return [diagnosis.name for diagnosis in failure.diagnoses]


def test_the_same_through_pytest(sample):
    """Green; a bug is red; accepted it is an expected failure."""
    pytest_ = ("-m", "pytest", "-p", "rlhf_conformance.run.plugin", "-q", "test_conformance.py")
    chosen = ("-k", "value-loss.half or value-loss.scalar or log-probs.definition")
    green = run(*pytest_, cwd=sample)
    assert green.status == 0, green.stdout
    assert "failed" not in green.said
    replaced(sample / "my_trainer.py", *BUG)
    assert run(*pytest_, *chosen, cwd=sample).status == 1
    check(sample, *ONLY, "--known-failures", KNOWN, "--accept")
    accepted = run(*pytest_, *chosen, cwd=sample)
    assert accepted.status == 0
    assert re.search(r"2 passed, \d+ deselected, 1 xfailed", accepted.said)


# --- the workflow --------------------------------------------------------------------------------------------------


def test_the_workflow_checks_what_init_wrote(repository):
    workflow = yaml.safe_load((repository / ".github/workflows/rlhf-conformance.yml").read_text())
    environment = workflow["jobs"]["gate"]["env"]
    assert environment["ADAPTER"] == f"{ADAPTER}:MyTrainer"
    assert environment["KNOWN_FAILURES"] == KNOWN
    assert workflow["permissions"] == {"contents": "read", "pull-requests": "write"}
