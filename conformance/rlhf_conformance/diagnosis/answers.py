"""What an adapter returned for a batch, number by number, beside what is right and what stands around it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import rlhf_spec.reward
from rlhf_conformance._lazy import torch
from rlhf_conformance.adapter import METHODS
from rlhf_conformance.diagnosis.evidence import MORE_CASES, Evidence, Observed
from rlhf_conformance.judging.questions import Call, main
from rlhf_conformance.judging.subject import Subject
from rlhf_conformance.methods import Readout
from rlhf_conformance.oracle import budgets
from rlhf_conformance.oracle.batch import Batch
from rlhf_conformance.oracle.layouts import Sample, present

Cell = tuple[int, int]
"""Row and column of the batch; a pack is one row, its shards behind one another."""
Table = list[list[float]]
"""For each position what may be read there: a number for each token where answers have a label, else a single one."""


@dataclass(frozen=True)
class Answer:
    """One number: where it is due, what is right and what came.

    position    of its sample, at which it should be read
    token       whose log-prob it is; None where that means nothing
    """

    sample: int
    index: int
    position: int
    token: int | None
    actual: float
    expected: float
    allowed: float

    @property
    def differs(self) -> bool:
        return not abs(self.actual - self.expected) <= self.allowed

    @property
    def column(self) -> int:
        """Of a table."""
        return self.token or 0


@dataclass(eq=False)
class Seen:
    """A batch that a model was asked about, with the adapter's answers. Everything else is worked out when it is asked
    for.

    case        samples, probe, layout and temperature
    call        how the adapter was asked
    """

    subject: Subject
    readout: Readout
    case: Any
    call: Call
    answers: tuple[Answer, ...] = ()
    remembered: dict[Any, Any] = field(default_factory=dict)

    def place(self, answer: Answer) -> str:
        index = self.readout.index
        return f"sample {answer.sample}" + (f", {index} {answer.index}" if index else "")

    @property
    def everywhere(self) -> str:
        within = {"": "in every sample", "position": "at every position of every sample"}
        return within.get(self.readout.index, f"in every {self.readout.index} of every sample")

    def due(self, sample: Sample) -> Sequence[int]:
        """The positions at which the answers of a sample are read."""
        return self.readout.places(sample)

    @property
    def normalizes(self) -> bool:
        """Whether the model was loaded to normalize its scores."""
        return bool(getattr(self.call.given[0], "normalize", False))

    @cached_property
    def batch(self) -> Batch:
        case = self.case
        return present(
            case.samples, case.how, pad_token_id=case.probe.pad_token_id, temperature=case.temperature, device="cpu"
        )

    @property
    def packed(self) -> bool:
        return self.batch.is_packed

    @cached_property
    def ids(self) -> Any:
        """Token ids, (B, L), or (1, N) for a pack and its shards."""
        return self.batch.input_ids.reshape(1, -1) if self.packed else self.batch.input_ids

    @property
    def width(self) -> int:
        return int(self.ids.shape[1])

    def cell(self, sample: int, position: int) -> Cell:
        """Where a position lies, be it within its sample or not."""
        return (0 if self.packed else sample), self.batch.starts[sample] + position

    @cached_property
    def owners(self) -> dict[Cell, tuple[int, int]]:
        """Sample and position of each cell that holds a token."""
        return {self.cell(i, p): (i, p) for i, s in enumerate(self.case.samples) for p in range(len(s))}

    def holds(self, cell: Cell) -> bool:
        return 0 <= cell[1] < self.width

    def outputs(self, sample: int, *, plain: bool = False) -> Any:
        """(L, V) logits or (L, 1) scores of a sample alone."""
        tokens, truth, probe = self.case.samples[sample].tokens, self.subject.truth, self.case.probe
        if self.readout.head:
            return torch.tensor(truth.scores(probe, tokens, plain=plain), dtype=torch.float64)[:, None]
        return torch.tensor(truth.logits(probe, tokens, plain=plain), dtype=torch.float64)

    def tables(self, temperature: float | None = None, *, plain: bool = False) -> list[Table]:
        """What may be read at each position of each sample alone, not normalized."""
        key = ("tables", temperature, plain)
        if key not in self.remembered:
            at = temperature or self.case.temperature
            count = range(len(self.case.samples))
            self.remembered[key] = [self.readout.table(self.outputs(i, plain=plain), at).tolist() for i in count]
        return self.remembered[key]

    def finish(self, number: float) -> float:
        """Normalized, where that is what the clause wants."""
        return rlhf_spec.reward.normalize(number, *self.call.scored)

    def read(self, answer: Answer, sample: int, position: int, temperature: float | None = None) -> float:
        """What the answer would be if it were read at that position."""
        return self.finish(self.tables(temperature)[sample][position][answer.column])

    def aligned(self, sample: int, position: int) -> float | None:
        """The log-prob of the token behind a position; None at the end of a sample."""
        tokens = self.case.samples[sample].tokens
        if position + 1 >= len(tokens):
            return None
        return self.finish(self.tables()[sample][position][tokens[position + 1]])


def looked_at(evidence: Evidence) -> list[Seen]:
    """The smallest failing case first, then larger ones, each with the adapter's answers. Nothing where the clause is
    not about a model, or where its adapter gives no answers at all."""
    found = _of(evidence.subject, evidence.smallest)
    return found + _drawn(evidence, evidence.seed) if found else []


def looked_at_again(evidence: Evidence) -> list[Seen]:
    """As many other cases, for evidence that left a choice."""
    return _drawn(evidence, evidence.seed + 1)


def unanswered(evidence: Evidence) -> Seen | None:
    """The first batch that a model was asked about in the smallest failing case, whether it answered or not."""
    for call in evidence.smallest.calls:
        readout = METHODS[call.method].readout
        if readout is not None and call.about is not None:
            return Seen(evidence.subject, readout, call.about, call)
    return None


def _drawn(evidence: Evidence, seed: int) -> list[Seen]:
    found: list[Seen] = []
    for observed in evidence.tried(MORE_CASES, seed):
        found += _of(evidence.subject, observed)
    return found


def _of(subject: Subject, observed: Observed) -> list[Seen]:
    """The batches of one case, as far as they are about one method's numbers and have all their answers."""
    found: list[Seen] = []
    for answered in observed.answers:
        readout = METHODS[answered.method].readout
        if readout is None or answered.about is None or (found and found[0].readout is not readout):
            continue
        assert answered.call is not None
        seen = Seen(subject, readout, answered.about, answered.call)
        rows = [row if readout.entry is None else row[:, readout.entry] for row in main(answered)]
        numbers = [row.detach().double().reshape(-1).tolist() for row in rows]
        if [len(row) for row in numbers] == [len(seen.due(s)) for s in seen.case.samples]:
            found.append(replace(seen, answers=_answers(seen, numbers)))
    return found


def _answers(seen: Seen, rows: list[list[float]]) -> tuple[Answer, ...]:
    readout, case = seen.readout, seen.case
    blank = [
        Answer(i, t, p, sample.tokens[p + 1] if readout.labeled else None, rows[i][t], 0.0, 0.0)
        for i, sample in enumerate(case.samples)
        for t, p in enumerate(seen.due(sample))
    ]
    right, plain = ([tables[a.sample][a.position][a.column] for a in blank] for tables in _both(seen))
    scale = readout.widen * seen.subject.truth.scale(case.probe, case.samples, head=readout.head)
    allowed = budgets.model_output(right, plain, scale, seen.subject.dtype, case.temperature)
    if seen.normalizes:
        allowed = budgets.normalized(allowed, *seen.call.scored, seen.subject.dtype)
    pairs = zip(blank, right, strict=True)
    return tuple(replace(answer, expected=seen.finish(number), allowed=allowed) for answer, number in pairs)


def _both(seen: Seen) -> tuple[list[Table], list[Table]]:
    return seen.tables(), seen.tables(plain=True)


def finite(seens: list[Seen]) -> bool:
    return all(math.isfinite(answer.actual) for seen in seens for answer in seen.answers)
