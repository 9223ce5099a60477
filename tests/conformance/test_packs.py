"""What is judged of a pack: labels by -100 or by a mask, and packs of which a sequence is empty."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rlhf_conformance import PackedSequences
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.chapters.packing.cases import PackCase
from rlhf_conformance.chapters.packing.checks import labels_of, marked_labels
from rlhf_conformance.judging.judge import Judge
from rlhf_conformance.judging.trying import PROFILES, try_clause
from rlhf_conformance.results import FAIL, NOT_PROVIDED, PASS


@pytest.fixture
def verdict(store):
    from rlhf_conformance.judging.subject import Subject

    def tried(adapter, slug):
        return try_clause(
            slug, Subject.make(adapter(), device="cpu", dtype="float32", store=store), PROFILES["gate"], 0
        )

    return lambda adapter, slug: tried(adapter, slug).result.verdict


class Unshifted(Reference):
    """Every label is the token itself, but for those that `ignored` names."""

    packed_labels = "unshifted"

    def ignored(self, positions):
        return positions == 0

    def pack_sequences(self, sequences):
        pack = super().pack_sequences(sequences)
        return replace(pack, labels=pack.input_ids.masked_fill(self.ignored(pack.position_ids), -100))


class FirstOfAllLeftIn(Unshifted):
    def ignored(self, positions):
        return (positions == 0) & (torch.arange(positions.shape[1]) > 0)


class SecondSequenceLeftIn(Unshifted):
    def ignored(self, positions):
        return (positions == 0) & (torch.arange(positions.shape[1]) == 0)


class Masked(Reference):
    """Rolled labels beside a mask, by `scored`."""

    def scored(self, pack):
        return pack.labels != -100

    def pack_sequences(self, sequences):
        pack = super().pack_sequences(sequences)
        return replace(pack, labels=pack.input_ids.roll(-1, 1), label_mask=self.scored(pack))


class MaskedAsFloats(Masked):
    def scored(self, pack):
        return super().scored(pack).float()


class MaskOfOnes(Masked):
    def scored(self, pack):
        return torch.ones_like(pack.input_ids)


class Unmarked(Masked):
    packed_labels = "unmarked"

    def scored(self, pack):
        return None


@pytest.mark.parametrize(
    "adapter, wanted",
    [
        (Unshifted, PASS),
        (FirstOfAllLeftIn, PASS),
        (SecondSequenceLeftIn, FAIL),
        (Masked, PASS),
        (MaskedAsFloats, PASS),
        (MaskOfOnes, FAIL),
        (Unmarked, NOT_PROVIDED),
    ],
)
def test_labels_are_judged_as_a_loss_reads_them(adapter, wanted, verdict):
    assert verdict(adapter, "packing.boundary") == wanted


def test_a_mask_ignores_what_minus_100_ignores():
    ids, labels = torch.tensor([[5, 6, 7]]), torch.tensor([[6, -100, 5]])
    assert marked_labels(PackedSequences(ids)) is None
    assert marked_labels(PackedSequences(ids, None, labels)).tolist() == [[6, -100, 5]]
    assert marked_labels(PackedSequences(ids, None, labels, torch.tensor([[1, 1, 0]]))).tolist() == [[6, -100, -100]]


def test_labels_of_a_pack_leave_out_the_empty_sequence():
    case = PackCase(((5, 6), (), (7,)))
    assert labels_of(case, "shifted") == [6, -100, -100]
    assert labels_of(case, "unshifted") == [-100, 6, -100]


# --- empty sequences ----------------------------------------------------------------------------------------------


class LeavesOut(Reference):
    def pack_sequences(self, sequences):
        return super().pack_sequences([s for s in sequences if len(s)])


class TooManyLabels(LeavesOut):
    """Which no loss could take."""

    def pack_sequences(self, sequences):
        pack = super().pack_sequences(sequences)
        return replace(pack, labels=torch.cat([s.new_full((max(1, len(s)),), -100) for s in sequences])[None])


class FirstIsDropped(LeavesOut):
    def pack_sequences(self, sequences):
        return super().pack_sequences(sequences[1:] if min(map(len, sequences)) == 0 else sequences)


@pytest.mark.parametrize(
    "adapter, wanted", [(Reference, PASS), (LeavesOut, PASS), (TooManyLabels, PASS), (FirstIsDropped, FAIL)]
)
def test_an_empty_sequence_is_refused_or_left_out(adapter, wanted, verdict):
    assert verdict(adapter, "packing.empty-sequence") == wanted


def test_whoever_refuses_has_still_been_compared(store):
    """With the pack that has no empty sequence in it."""
    from rlhf_conformance.judging.checks import checks
    from rlhf_conformance.judging.subject import Subject

    judge = Judge(record=[])
    subject = Subject.make(Reference(), device="cpu", dtype="float32", store=store)
    judge.try_case(checks()["packing.empty-sequence"], subject, PackCase(((5, 6), (), (7,))))
    assert [comparison.actual for comparison in judge.record] == [(5.0, 6.0, 7.0)]
    assert len(judge.calls) == 2


# --- sequences without a prompt ------------------------------------------------------------------------------------


def of_tokens(actor_rows, batch):
    """A number for each token of a pack, the first of each sequence 0, those of the responses."""
    rows = [torch.nn.functional.pad(row, (1, 0)) for row in actor_rows]
    return [row[prompt:] for row, prompt in zip(rows, batch.prompt_lengths, strict=True)]


class TakesThem(Reference):
    layouts = ("packed",)

    def answers(self, actor, batch):
        rows = zip(batch.to_ragged(self.logits(actor, batch)), batch.sequences, strict=True)
        found = [z[:-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0] for z, ids in rows]
        return of_tokens(found, batch)

    action_log_probs = answers


class GivesNaN(TakesThem):
    def action_log_probs(self, actor, batch):
        rows = zip(self.answers(actor, batch), batch.prompt_lengths, strict=True)
        return [row if prompt else torch.cat([row[:1] * torch.nan, row[1:]]) for row, prompt in rows]


class LeavesFirstOut(TakesThem):
    """A list that is one short: nobody can take it for the answer to the whole pack."""

    def action_log_probs(self, actor, batch):
        rows = zip(self.answers(actor, batch), batch.prompt_lengths, strict=True)
        return [row if prompt else row[1:] for row, prompt in rows]


class ReadsTheRow(TakesThem):
    """As a slice of the whole row does, which begins one before its sequence."""

    def action_log_probs(self, actor, batch):
        z = self.logits(actor, batch)[0]
        found = z[:-1].log_softmax(-1).gather(1, batch.input_ids[0, 1:, None])[:, 0]
        found = torch.cat([found.new_zeros(1), found])
        rows = zip(batch.starts, batch.prompt_lengths, batch.sequence_lengths, strict=True)
        return [found[start + prompt : start + length] for start, prompt, length in rows]


@pytest.mark.parametrize(
    "adapter, wanted",
    [(Reference, PASS), (TakesThem, PASS), (GivesNaN, PASS), (LeavesFirstOut, PASS), (ReadsTheRow, FAIL)],
)
def test_what_nothing_predicts_is_anything_but_a_neighbors(adapter, wanted, verdict):
    assert verdict(adapter, "packing.no-prompt") == wanted


def test_every_case_has_a_sequence_without_a_prompt_and_one_with():
    from .test_discovery import drawn

    for slug in ("packing.no-prompt", "packing.reward-no-prompt", "packing.critic-no-prompt"):
        for case in drawn(slug):
            prompts = [len(s.prompt) for s in case.case.samples]
            assert prompts.count(0) == 1 < len(prompts)
            assert prompts[case.index] > 0
        behind = [c.case.samples[c.index + 1 : c.index + 2] for c in drawn(slug)]
        assert sum(bool(after) and not after[0].prompt for after in behind) > len(behind) / 3
