"""A number looked up among the truth of its whole batch, where outputs of a probe are all different."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_conformance.diagnosis.answers import Answer, Cell, Seen
from rlhf_conformance.diagnosis.explaining import CLEAR
from rlhf_conformance.diagnosis.readings import spot
from rlhf_conformance.diagnosis.worlds import at_pad

OWN, OTHER, PAD = "another position of the same sample", "another sample", "a pad"


@dataclass(frozen=True)
class Source:
    """A place that a number may come from.

    cell    where it is read
    token   whose log-prob it is, as a cell; None where that is the answer's own, or means nothing
    """

    number: float
    cell: Cell
    token: Cell | None = None

    def kind(self, seen: Seen, answer: Answer) -> str:
        owner = seen.owners.get(self.cell)
        if owner is None:
            return PAD
        return OWN if owner[0] == answer.sample else OTHER

    def said(self, seen: Seen, answer: Answer) -> str:
        word, due = seen.readout.word, answer.position
        there = spot(seen, answer, self.cell)
        if not seen.readout.labeled:
            return f"the {word} of {there} where that of position {due} is due"
        if self.token is None:
            return f"its {word} under the logits of {there} where those of position {due} are due"
        token = spot(seen, answer, self.token)
        return f"the {word} of the token at {token} where that of the one at position {due + 1} is due"


def source_of(seen: Seen, answer: Answer) -> Source | None:
    """Where the number comes from; None where it is found nowhere, or in more than one place, or nearly so."""
    known = _sources(seen, answer)
    found = [s for s in known if abs(s.number - answer.actual) <= answer.allowed]
    places = {(s.cell, s.token) for s in found}
    if len(places) != 1:
        return None
    near = (s for s in known if abs(s.number - answer.actual) < CLEAR * answer.allowed)
    return found[0] if all((s.cell, s.token) in places for s in near) else None


def _sources(seen: Seen, answer: Answer) -> list[Source]:
    found = []
    for cell, (sample, position) in seen.owners.items():
        if not seen.readout.labeled or sample == answer.sample:
            found.append(Source(seen.read(answer, sample, position), cell))
        if seen.readout.labeled and (sample, position) != (answer.sample, answer.position):
            number = seen.aligned(sample, position)
            if number is not None:
                found.append(Source(number, cell, seen.cell(sample, position + 1)))
    if not seen.readout.labeled:
        for row in range(len(seen.ids)):
            for column in range(seen.width):
                if (row, column) not in seen.owners:
                    found += [Source(number, (row, column)) for number in at_pad(seen, (row, column), answer)]
    return found
