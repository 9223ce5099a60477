"""Honest variants of the pack."""

from __future__ import annotations

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
