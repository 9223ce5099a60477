"""Honest variants of the pack."""

from __future__ import annotations

from dataclasses import replace

from rlhf_conformance._lazy import torch
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.chapters.packing.interface import PackedSequences
from rlhf_conformance.twins import twin


@twin
class UnshiftedPack(Reference):
    "Labels as models of transformers want them: the ids themselves, -100 on each sequence's first; padding at the end."

    packed_labels = "unshifted"

    def pack_sequences(self, sequences):
        tail = sequences[0].new_zeros(-sum(map(len, sequences)) % 8)
        labels = [torch.cat([s.new_full((1,), -100), s[1:]]) for s in sequences]
        positions = [torch.arange(len(s), device=s.device) for s in (*sequences, tail)]
        labels.append(torch.full_like(tail, -100))
        return PackedSequences(*(torch.cat(x)[None] for x in ([*sequences, tail], positions, labels)))


@twin
class FirstLabelLeftIn(UnshiftedPack):
    "Unshifted labels whose very first is the token itself: nothing predicts it."

    def pack_sequences(self, sequences):
        pack = super().pack_sequences(sequences)
        pack.labels[0, 0] = pack.input_ids[0, 0]
        return pack


@twin
class LabelsWithMask(Reference):
    "Labels are the ids rolled by one, and a mask beside them leaves out each sequence's last."

    def pack_sequences(self, sequences):
        pack = super().pack_sequences(sequences)
        return replace(pack, labels=pack.input_ids.roll(-1, 1), label_mask=pack.labels != -100)


@twin
class LabelsWithoutMarks(Reference):
    "Labels are the ids rolled by one, and what is scored is cut out of the log-probs later."

    packed_labels = "unmarked"

    def pack_sequences(self, sequences):
        pack = super().pack_sequences(sequences)
        return replace(pack, labels=pack.input_ids.roll(-1, 1))


@twin
class EmptySequencesLeftOut(Reference):
    "A pack holds the sequences that have tokens."

    def pack_sequences(self, sequences):
        return super().pack_sequences([s for s in sequences if len(s)])
