"""What an adapter returned for a batch, number by number, beside what is right and what stands around it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import rlhf_spec.reward
from rlhf_conformance import budgets
from rlhf_conformance._lazy import torch
from rlhf_conformance.batch import Batch
from rlhf_conformance.cases.models import EditedCase, ModelCase, PermutedCase, WeightedCase
from rlhf_conformance.checks.roles import ACTOR, CRITIC, REWARD, Role
from rlhf_conformance.diagnosis import Evidence, drawn
from rlhf_conformance.layouts import Sample, present
from rlhf_conformance.probes import VOCAB_SIZE
from rlhf_conformance.subject import AdapterError, Subject, WiringError

Cell = tuple[int, int]
"""Row and column of the batch; a pack is one row, its shards behind one another."""
Table = list[list[float]]
"""For each position what may be read there: a number for each token where answers have a label, else a single one."""

CASES = 12
ENTRY = 5
"""Of a position's logits one entry is looked at: outputs of a probe are all different."""


@dataclass(frozen=True)
class Quantity:
    """Something that a model is asked for.

    word        what one of its numbers is called
    ask         the adapter's numbers, a list for each sample
    table       outputs (L, V) or (L, 1) and temperature -> what may be read at each position
    due         the positions at which the answers of a sample are read
    labelled    the number is one of a token: of the one behind its position
    index       what the answers of a sample are counted by; empty for one answer in all
    widen       the allowance in those of a model's output
    """

    word: str
    role: Role
    ask: Callable[[Subject, Any, ModelCase], list[Any]]
    table: Callable[[Any, float], Any]
    due: Callable[[Sample], range]
    labelled: bool = False
    index: str = "action"
    widen: float = 1.0

    def place(self, answer: Answer) -> str:
        return f"sample {answer.sample}" + (f", {self.index} {answer.index}" if self.index else "")

    @property
    def everywhere(self) -> str:
        within = {"": "in every sample", "position": "at every position of every sample"}
        return within.get(self.index, f"in every {self.index} of every sample")


def _entropies(logits: Any, temperature: float) -> Any:
    log_probs = (logits / temperature).log_softmax(-1)
    return -(log_probs.exp() * log_probs).sum(-1, keepdim=True)


_states = lambda s: range(len(s.prompt) - 1, len(s) - 1)  # noqa: E731
_all = lambda s: range(len(s))  # noqa: E731
_as_it_is = lambda outputs, _: outputs  # noqa: E731

QUANTITIES = {
    "action_log_probs": Quantity(
        "log-prob", ACTOR, ACTOR.ask, lambda z, temperature: (z / temperature).log_softmax(-1), _states, labelled=True
    ),
    "rewards": Quantity("score", REWARD, REWARD.ask, _as_it_is, lambda s: range(len(s) - 1, len(s)), index=""),
    "action_values": Quantity("value", CRITIC, CRITIC.ask, _as_it_is, _states),
    "action_entropy": Quantity(
        "entropy", ACTOR, lambda s, m, c: s.actions("action_entropy", m, c), _entropies, _states, widen=4.0
    ),
    "values": Quantity(
        "value", CRITIC, lambda s, m, c: s.whole_output("values", m, c), _as_it_is, _all, index="position"
    ),
    "logits": Quantity(
        f"logit of token {ENTRY}",
        ACTOR,
        lambda s, m, c: [row[:, ENTRY] for row in s.whole_output("logits", m, c, VOCAB_SIZE)],
        lambda z, _: z[:, ENTRY : ENTRY + 1],
        _all,
        index="position",
    ),
}
"""By the method of the adapter that gives them."""


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


@dataclass(frozen=True)
class Way:
    """How a clause asks: with normalisation or without, in train or eval mode, and whether normalised is right."""

    normalize: bool = False
    training: bool | None = None
    normalized: bool = False


PLAINLY = (Way(),)
_WAYS = {
    "reward.normalization": (Way(True, False, True),),
    "reward.normalization-train": (Way(True, True, False),),
    "critic.normalization": (Way(True, False, True), Way(True, True, True)),
}


@dataclass(eq=False)
class Seen:
    """A case with the adapter's answers. Everything else is worked out when it is asked for."""

    subject: Subject
    quantity: Quantity
    case: ModelCase
    way: Way = Way()
    answers: tuple[Answer, ...] = ()
    remembered: dict[Any, Any] = field(default_factory=dict)

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
        if self.quantity.role.head:
            return torch.tensor(truth.scores(probe, tokens, plain=plain), dtype=torch.float64)[:, None]
        return torch.tensor(truth.logits(probe, tokens, plain=plain), dtype=torch.float64)

    def tables(self, temperature: float | None = None, *, plain: bool = False) -> list[Table]:
        """What may be read at each position of each sample alone, not normalised."""
        key = ("tables", temperature, plain)
        if key not in self.remembered:
            at = temperature or self.case.temperature
            count = range(len(self.case.samples))
            self.remembered[key] = [self.quantity.table(self.outputs(i, plain=plain), at).tolist() for i in count]
        return self.remembered[key]

    def finish(self, number: float) -> float:
        """Normalised, where that is what the clause wants."""
        probe = self.case.probe
        return rlhf_spec.reward.normalise(number, probe.mean, probe.std) if self.way.normalized else number

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
    cases = [evidence.smallest.case, *drawn(evidence.check, evidence.subject, CASES, evidence.seed)]
    return _seen(evidence, cases)


def unanswered(evidence: Evidence) -> Seen | None:
    """The smallest failing case alone, where that is one for a model."""
    quantity = _quantity(evidence)
    return Seen(evidence.subject, quantity, _inner(evidence.smallest.case)[0]) if quantity else None


def looked_at_again(evidence: Evidence) -> list[Seen]:
    """As many other cases, for evidence that left a choice."""
    return _seen(evidence, drawn(evidence.check, evidence.subject, CASES, evidence.seed + 1))


def _seen(evidence: Evidence, cases: list[Any]) -> list[Seen]:
    quantity = _quantity(evidence)
    if quantity is None:
        return []
    found: list[Seen] = []
    for case in cases:
        if evidence.late:
            break
        for inner in _inner(case):
            found += _asked(evidence, quantity, inner)
        if not found:
            break
    return found


def _quantity(evidence: Evidence) -> Quantity | None:
    needs = evidence.check.needs
    if "save" in needs or not _inner(evidence.smallest.case):
        return None
    return next((QUANTITIES[name] for name in needs if name in QUANTITIES), None)


def _inner(case: Any) -> tuple[ModelCase, ...]:
    """What the adapter is asked for a case: that, and what it is compared with."""
    if isinstance(case, ModelCase):
        clean = replace(case.how, garbage=()) if case.how.garbage else case.how.plain()
        return (case,) if clean == case.how else (case, case.shown(clean))
    if isinstance(case, EditedCase):
        return case.case, case.edited
    if isinstance(case, PermutedCase):
        return case.case, case.permuted
    return (case.case,) if isinstance(case, WeightedCase) else ()


def _asked(evidence: Evidence, quantity: Quantity, case: ModelCase) -> Iterator[Seen]:
    for way in _WAYS.get(evidence.slug, PLAINLY):
        try:
            rows = _rows(evidence.subject, quantity, case, way)
        except (AdapterError, WiringError):
            continue
        seen = Seen(evidence.subject, quantity, case, way)
        if [len(row) for row in rows] == [len(quantity.due(s)) for s in case.samples]:
            yield replace(seen, answers=_answers(seen, rows))


def _rows(subject: Subject, quantity: Quantity, case: ModelCase, way: Way) -> list[list[float]]:
    if way.training is None:
        model = quantity.role.model(subject, case)
    else:
        model = subject.model(quantity.role.load, case.probe, normalize=way.normalize)
        subject.uncopied("set_training", model, way.training)
    return [row.detach().double().reshape(-1).tolist() for row in quantity.ask(subject, model, case)]


def _answers(seen: Seen, rows: list[list[float]]) -> tuple[Answer, ...]:
    quantity, case = seen.quantity, seen.case
    blank = [
        Answer(i, t, p, sample.tokens[p + 1] if quantity.labelled else None, rows[i][t], 0.0, 0.0)
        for i, sample in enumerate(case.samples)
        for t, p in enumerate(quantity.due(sample))
    ]
    right, plain = ([tables[a.sample][a.position][a.column] for a in blank] for tables in _both(seen))
    scale = quantity.widen * quantity.role.scale(seen.subject, case)
    allowed = budgets.model_output(right, plain, scale, seen.subject.dtype, case.temperature)
    if seen.way.normalize:
        mean, std = (case.probe.mean, case.probe.std) if seen.way.normalized else (0.0, 1.0)
        allowed = allowed / std * 2 + 8 * budgets.unit(seen.subject.dtype) * abs(mean) / std
    pairs = zip(blank, right, strict=True)
    return tuple(replace(answer, expected=seen.finish(number), allowed=allowed) for answer, number in pairs)


def _both(seen: Seen) -> tuple[list[Table], list[Table]]:
    return seen.tables(), seen.tables(plain=True)


def finite(seens: list[Seen]) -> bool:
    return all(math.isfinite(answer.actual) for seen in seens for answer in seen.answers)
