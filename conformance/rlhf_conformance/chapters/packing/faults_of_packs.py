"""Liars about packs: several sequences in one row."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from rlhf_conformance._lazy import torch
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.chapters.packing.interface import PackedSequences
from rlhf_conformance.faults import fault


def row(parts):
    return torch.cat(parts).unsqueeze(0)


# --- positions ----------------------------------------------------------------------------------------------------


@fault("positions.restart", bug="packed-positions-run-on")
class PackPositionsRunOn(Reference):
    "Positions run from 0 to N over the whole pack."

    def pack_sequences(self, sequences):
        answer = super().pack_sequences(sequences)
        total = answer.input_ids.shape[1]
        return replace(answer, position_ids=torch.arange(total, device=answer.input_ids.device)[None])


@fault("positions.restart")
class PackPositionsFromOne(Reference):
    "Each sequence of a pack starts at position 1."

    def pack_sequences(self, sequences):
        answer = super().pack_sequences(sequences)
        return replace(answer, position_ids=answer.position_ids + 1)


@fault("positions.restart")
class PackPositionsRestartLate(Reference):
    "Positions restart one token after the boundary."

    def pack_sequences(self, sequences):
        answer = super().pack_sequences(sequences)
        moved = answer.position_ids.roll(1, dims=1)
        moved[0, 0] = 0
        return replace(answer, position_ids=moved)


@fault("positions.restart")
class SingleTokenNoRestart(Reference):
    "A sequence of a single token does not restart the positions."

    def pack_sequences(self, sequences):
        answer = super().pack_sequences(sequences)
        parts: list = []
        for sequence in sequences:
            start = int(parts[-1][-1]) + 1 if len(sequence) == 1 and parts else 0
            parts.append(torch.arange(start, start + len(sequence), device=sequence.device))
        return replace(answer, position_ids=row(parts))


@fault("positions.restart")
class RestartAtFirstBoundaryOnly(Reference):
    "Positions restart at the second sequence and run on from there; right for two sequences."

    def pack_sequences(self, sequences):
        answer = super().pack_sequences(sequences)
        first, total = len(sequences[0]), answer.input_ids.shape[1]
        columns = torch.arange(total, device=answer.input_ids.device)
        return replace(answer, position_ids=columns.where(columns < first, columns - first)[None])


@fault("positions.restart")
class LoneSequenceFromOne(Reference):
    "A pack of one sequence is taken for a padded row, and counted from 1."

    def pack_sequences(self, sequences):
        answer = super().pack_sequences(sequences)
        return answer if len(sequences) > 1 else replace(answer, position_ids=answer.position_ids + 1)


# --- tokens -------------------------------------------------------------------------------------------------------


@fault("packing.tokens", also=("positions.restart",))
class PackSortedByLength(Reference):
    "The longest sequence goes first."

    def pack_sequences(self, sequences):
        return super().pack_sequences(sorted(sequences, key=len, reverse=True))


@fault("packing.tokens", also=("positions.restart",))
class PackSeparator(Reference):
    "A separator token stands between the sequences."

    def pack_sequences(self, sequences):
        separator = torch.zeros(1, dtype=torch.long, device=sequences[0].device)
        parted = [torch.cat([s, separator]) for s in sequences[:-1]]
        return super().pack_sequences([*parted, sequences[-1]])


@fault("packing.tokens", also=("positions.restart",))
class PackDropsTokenZero(Reference):
    "Padding is stripped by its id, 0, and takes real tokens of that id along."

    def pack_sequences(self, sequences):
        kept = [s[s != 0] for s in sequences]
        return super().pack_sequences([s for s in kept if len(s)] or sequences)


@fault("packing.tokens", also=("positions.restart",))
class PackDropsDuplicates(Reference):
    "Of two equal sequences one is left out."

    def pack_sequences(self, sequences):
        return super().pack_sequences(list({tuple(s.tolist()): s for s in sequences}.values()))


@fault("packing.tokens", also=("positions.restart",))
class PackLosesLastToken(Reference):
    "The last token of each sequence is cut off with the shift of the labels; single tokens stay."

    def pack_sequences(self, sequences):
        return super().pack_sequences([s[:-1] if len(s) > 1 else s for s in sequences])


# --- labels -------------------------------------------------------------------------------------------------------


@fault("packing.boundary", bug="packed-label-roll")
class PackLabelsRolled(Reference):
    "Labels are the ids rolled by one: a sequence's last token is scored on the first of the next."

    def pack_sequences(self, sequences):
        answer = super().pack_sequences(sequences)
        labels = answer.input_ids.roll(-1, dims=1)
        labels[0, -1] = -100
        return replace(answer, labels=labels)


@fault("packing.boundary", bug="double-shift")
class PackLabelsShiftedTwice(Reference):
    "Labels are shifted once more by the caller."

    def pack_sequences(self, sequences):
        answer = super().pack_sequences(sequences)
        labels = [torch.cat([s[2:], s.new_full((min(2, len(s)),), -100)]) for s in sequences]
        return replace(answer, labels=row(labels))


@fault("packing.boundary", bug="packed-label-roll")
class LabelMaskOfActionsAlone(Reference):
    "Labels are rolled, and the mask beside them is 1 on all tokens of a sequence, its last one included."

    def pack_sequences(self, sequences):
        answer = super().pack_sequences(sequences)
        return replace(answer, labels=answer.input_ids.roll(-1, 1), label_mask=torch.ones_like(answer.input_ids))


@fault("packing.boundary", bug="sft-mask-off-by-one")
class LabelMaskOneEarly(Reference):
    "Labels are shifted, the mask beside them is not: it leaves out the first of each sequence, not the last."

    def pack_sequences(self, sequences):
        answer = super().pack_sequences(sequences)
        return replace(answer, labels=answer.input_ids.roll(-1, 1), label_mask=(answer.position_ids > 0).long())


@fault("packing.boundary")
class LastLabelWraps(Reference):
    "The boundaries inside the pack are kept, but its last token is scored on its first."

    def pack_sequences(self, sequences):
        answer = super().pack_sequences(sequences)
        labels = answer.labels.clone()
        labels[0, -1] = answer.input_ids[0, 0]
        return replace(answer, labels=labels)


@fault("packing.boundary")
class LoneSequenceWraps(Reference):
    "A pack of one sequence has no boundary: its last token is scored on its first."

    def pack_sequences(self, sequences):
        answer = super().pack_sequences(sequences)
        return answer if len(sequences) > 1 else replace(answer, labels=answer.input_ids.roll(-1, dims=1))


@fault("packing.boundary")
class SingleTokenLabelled(Reference):
    "A sequence of a single token has no boundary of its own: it is scored on what follows it."

    def pack_sequences(self, sequences):
        answer = super().pack_sequences(sequences)
        labels, end = answer.labels.clone(), 0
        for sequence, after in pairwise(sequences):
            end += len(sequence)
            if len(sequence) == 1:
                labels[0, end - 1] = after[0]
        return replace(answer, labels=labels)


@fault("packing.boundary")
class BoundaryTwoWide(Reference):
    "The label before the boundary is ignored as well: each sequence loses the score of its last token."

    def pack_sequences(self, sequences):
        answer = super().pack_sequences(sequences)
        labels = answer.labels.clone()
        labels[0, :-1] = labels[0, :-1].masked_fill(answer.labels[0, 1:] == -100, -100)
        return replace(answer, labels=labels)


@fault("packing.boundary")
class PaddingOfPackLabelled(Reference):
    "The pack is padded to a round length, and its padding is scored."

    def pack_sequences(self, sequences):
        answer = super().pack_sequences(sequences)
        tail = torch.zeros(1, 4, dtype=torch.long, device=answer.input_ids.device)
        parts = ((answer.input_ids, tail), (answer.position_ids, torch.arange(4, device=tail.device)[None]))
        ids, positions = (torch.cat(part, dim=1) for part in parts)
        return PackedSequences(ids, positions, torch.cat([answer.labels, tail], dim=1))


# --- empty sequences ----------------------------------------------------------------------------------------------


class _Empties(Reference):
    """Empty sequences are taken, by `filled`, which makes other sequences of those that hold some."""

    def filled(self, sequences):
        raise NotImplementedError

    def pack_sequences(self, sequences):
        some = any(len(s) == 0 for s in sequences)
        return super().pack_sequences(self.filled(sequences) if some else sequences)


@fault("packing.empty-sequence")
class EmptySequenceBecomesPad(_Empties):
    "A pad stands for an empty sequence, in the middle of the pack."

    def filled(self, sequences):
        return [s if len(s) else s.new_zeros(1) for s in sequences]


@fault("packing.empty-sequence")
class EmptySequenceEndsThePack(_Empties):
    "The pack ends at an empty sequence; where that is the first, only it is left out."

    def filled(self, sequences):
        ends = next(i for i, s in enumerate(sequences) if len(s) == 0)
        return sequences[:ends] if ends else [s for s in sequences if len(s)]


@fault("packing.empty-sequence")
class EmptySequenceJoinsItsNeighbors(_Empties):
    "The boundary at an empty sequence is lost: those around it become one."

    def filled(self, sequences):
        joined: list = []
        after_empty = False
        for sequence in sequences:
            if len(sequence) and joined and after_empty:
                joined[-1] = torch.cat([joined[-1], sequence])
            elif len(sequence):
                joined.append(sequence)
            after_empty = len(sequence) == 0
        return joined


@fault("packing.empty-sequence")
class EmptySequenceHasLabel(_Empties):
    "An empty sequence gets the label of its boundary, which moves those of all that follow."

    def filled(self, sequences):
        return [s for s in sequences if len(s)]

    def pack_sequences(self, sequences):
        answer = super().pack_sequences(sequences)
        labels = [torch.cat([s[1:], s.new_full((1,), -100)]) for s in sequences]
        return replace(answer, labels=row(labels)[:, : answer.input_ids.shape[1]])
