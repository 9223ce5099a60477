"""An adapter that answers from our own reference implementation."""

from __future__ import annotations

from rlhf_conformance import Adapter


class Borrows(Adapter):
    """Imports it where it needs it, as those do who want to try the suite first."""

    def token_log_probs(self, logits, labels, temperature):
        from rlhf_reference.log_probs import token_log_probs

        return token_log_probs(logits, labels, temperature=temperature)
