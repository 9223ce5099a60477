"""What trainers may do otherwise here, without their adapters declaring it."""

from __future__ import annotations

from dataclasses import replace

from rlhf_conformance.adapter import Adapter
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.diagnosis.conventions import Convention, other_than


def _whitened(whiten: bool) -> type[Adapter]:
    """The reference with advantages whitened or not, whatever is asked for."""

    class Otherwise(Reference):
        def credit(self, *arguments):
            *tables, options = arguments
            return super().credit(*tables, replace(options, whiten=whiten))

    return Otherwise


CONVENTIONS = (
    Convention("credit_whitening = 'always'", other_than("credit_whitening", "always"), _whitened(True)),
    Convention("credit_whitening = False", other_than("credit_whitening", False), _whitened(False)),
)
