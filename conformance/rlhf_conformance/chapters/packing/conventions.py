"""What trainers may do otherwise here, without their adapters declaring it."""

from __future__ import annotations

from rlhf_conformance._lazy import torch
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.chapters.packing.interface import PackedSequences
from rlhf_conformance.diagnosis.conventions import Convention, instead_of


class _Unshifted(Reference):
    """labels[i] = ids[i], -100 on the first token of each sequence."""

    def pack_sequences(self, sequences):
        pack = super().pack_sequences(sequences)
        labels = torch.full_like(pack.labels, -100)
        labels[:, 1:] = pack.labels[:, :-1]
        return PackedSequences(pack.input_ids, pack.position_ids, labels)


CONVENTIONS = (
    Convention("packed_labels = 'unshifted'", instead_of("packed_labels", "shifted"), _Unshifted),
    Convention("packed_labels = 'shifted'", instead_of("packed_labels", "unshifted"), Reference, ("pack_sequences",)),
)
