"""What is drawn for the actor alone; cases of all models are in `chapters/_models/cases.py`."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_conformance.chapters._models.cases import Asked, ModelCase, model_cases
from rlhf_conformance.chapters._temperatures import known_temperatures
from rlhf_conformance.judging.picks import Picked, Picks
from rlhf_conformance.judging.storing import stored
from rlhf_conformance.judging.subject import Subject
from rlhf_conformance.oracle.probes import Probe


@stored
@dataclass(frozen=True)
class ModuleCase:
    """A case whose checkpoint is handed over as a module with other weights than on disk, in train mode or not."""

    case: ModelCase
    training: bool

    @property
    def size(self) -> tuple[int, int]:
        return self.case.size


def modules(subject: Subject) -> Picked[ModuleCase]:
    """The module's config asks for dropout, which old log-probs are taken without."""
    asked = Asked(probe=Probe(dropout=True), temperatures=known_temperatures(subject.adapter), tied=True)
    return model_cases(subject.adapter, asked).with_more(1, _handed_over)


def _handed_over(case: ModelCase, picks: Picks) -> ModuleCase:
    return ModuleCase(case, picks.chance(1, 2))
