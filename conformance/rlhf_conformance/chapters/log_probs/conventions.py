"""What trainers may do otherwise here, without their adapters declaring it."""

from __future__ import annotations

from dataclasses import replace

from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.diagnosis.conventions import Convention, flag, instead_of


class _NoTemperature(Reference):
    """Every log-prob and entropy at temperature 1."""

    def token_log_probs(self, logits, labels, temperature):
        return super().token_log_probs(logits, labels, 1.0)

    def token_entropy(self, logits, temperature):
        return super().token_entropy(logits, 1.0)

    def load_actor(self, checkpoint):
        return super().load_actor(replace(checkpoint, temperature=1.0))


class _IgnoredLabelScored(Reference):
    """Label -100 is clamped to token 0, whose log-prob comes out."""

    def token_log_probs(self, logits, labels, temperature):
        return super().token_log_probs(logits, labels.clamp(min=0), temperature)


CONVENTIONS = (
    Convention("ignored_label = None", instead_of("ignored_label", "zero"), _IgnoredLabelScored),
    flag("temperature", _NoTemperature),
)
