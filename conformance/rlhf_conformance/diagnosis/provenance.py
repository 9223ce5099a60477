"""Where a returned number comes from: outputs of a probe are all different, so each tells its place in the batch."""

from __future__ import annotations

import math
from collections.abc import Callable

from rlhf_conformance._lazy import torch
from rlhf_conformance.diagnosis.answers import Answer, Cell, Seen, finite, looked_at, looked_at_again
from rlhf_conformance.diagnosis.evidence import Evidence
from rlhf_conformance.diagnosis.explaining import (
    COINCIDENCE,
    FEWEST,
    Among,
    Explanation,
    Reading,
    everyone,
    explain,
    not_first,
    not_last,
)
from rlhf_conformance.diagnosis.lookup import OTHER, OWN, PAD, Source, source_of
from rlhf_conformance.diagnosis.readings import place_readings
from rlhf_conformance.diagnosis.transformations import number_readings
from rlhf_conformance.oracle import budgets
from rlhf_conformance.results import Diagnosis

COMMON = {
    "shift": "read at a position beside the one that is due",
    "mask": "pads are attended, or tokens are not",
    "positions": "the model is given wrong positions",
    "neighbor": "sequences of a pack see each other",
    "shards": "the shards of a pack are not put together as they should be",
    "temperature": "the temperature is not applied as it should be",
    "swap": "the samples come back in another order",
    "place": "read elsewhere than it should be",
    "numbers": "the right numbers, transformed",
    "normalization": "the scores are not normalized as they should be",
}
"""What readings of a name have in common, for evidence that does not part them."""


def diagnoses(evidence: Evidence) -> tuple[Diagnosis, ...]:
    """What can be said for certain of where the answers of a model were read."""
    diagnosis = found(evidence).diagnosis
    return (diagnosis,) if diagnosis else ()


class Found:
    """What a look at the evidence has brought.

    where   the cell in which an answer was read, as far as that is known
    """

    def __init__(self, seens: list[Seen]) -> None:
        self.seens = seens
        self.diagnosis: Diagnosis | None = None
        self.where: Callable[[Seen, Answer], Cell | None] = _looked_up


def found(evidence: Evidence) -> Found:
    if "provenance" not in evidence.remembered:
        evidence.remembered["provenance"] = _look(evidence)
    return evidence.remembered["provenance"]


def _look(evidence: Evidence) -> Found:
    found = Found(looked_at(evidence))
    seens = found.seens
    if not seens or not finite(seens) or not any(a.differs for seen in seens for a in seen.answers):
        return found
    explained = _explained(evidence, seens)
    if explained:
        found.diagnosis = _claimed(explained, seens)
        found.where = explained[0].reading.where
    else:
        found.diagnosis = _in_half(seens) or _scattered(seens) or _but_at_an_end(evidence, found)
    return found


def _but_at_an_end(evidence: Evidence, found: Found) -> Diagnosis | None:
    """A reading that explains all but the last number of each sample, or all but the first: where a place beside the
    right one is read, there may be none beside the one at the end, and something else is put there."""
    seens, index = found.seens, found.seens[0].readout.index
    if not index:
        return None
    for end, among in (("last", not_last), ("first", not_first)):
        held = [e for e in _explained(evidence, seens, among) if e.everywhere and e.reading.kind == "place"]
        if held:
            found.where = held[0].reading.where
            return _claimed(held, seens, f"in every {index} of every sample but the {end}, which is wrong otherwise")
    return None


def _looked_up(seen: Seen, answer: Answer) -> Cell | None:
    source = source_of(seen, answer)
    return source.cell if source else None


# --- readings ------------------------------------------------------------------------------------------------------


def _explained(evidence: Evidence, seens: list[Seen], among: Among = everyone) -> list[Explanation]:
    """The readings that hold, if they are of one mind. Where they are not, or where it cannot be told how far they
    hold, more batches are looked at."""
    readout = seens[0].readout
    readings = [*place_readings(readout), *number_readings(readout, seens)]
    held = _held(readings, seens, len(readings), among)
    if held and not (len(held) == 1 and held[0].named):
        seens += looked_at_again(evidence)
        held = _held([e.reading for e in held], seens, len(readings), among)
    alike = len({e.reading.name for e in held}) == 1 or _only(held) in (PAD, OTHER)
    return held if alike else []


def _only(held: list[Explanation]) -> str:
    """What kind of cell all that differs was read in, if it is of one kind by all readings."""
    kinds = {_kind_of(*one, e.reading.where(*one)) for e in held for one in e.explained}
    return kinds.pop() if len(kinds) == 1 and held[0].reading.kind == "place" else ""


def _held(readings: list[Reading], seens: list[Seen], tried: int, among: Among) -> list[Explanation]:
    """Those that hold everywhere before those that hold in part, those that say each number before those that leave
    some open, those with nothing fitted before the others."""
    held: list[Explanation] = []
    for reading in readings:
        explanation = explain(reading, seens, tried, among)
        if explanation:
            held.append(explanation)
    for better in (
        lambda e: e.everywhere,
        lambda e: e.named,
        lambda e: not e.reading.fitted,
        lambda e: not e.open,
        lambda e: not e.reading.loose,
    ):
        held = [e for e in held if better(e)] or held
    return held


def _claimed(held: list[Explanation], seens: list[Seen], where: str = "") -> Diagnosis | None:
    """What is said of readings that hold; `where`, if that is known better than they know it."""
    best = held[0]
    reading = best.reading
    name, rule, only = reading.name, reading.rule, _only(held)
    if only in (PAD, OTHER):
        name = "pad" if only == PAD else "neighbor"
    scope = where or best.scope
    if len(held) > 1:
        scope = where or f"in all {len(best.explained)} numbers that differ"
        rule = f"read at {only}" if only in (PAD, OTHER) else COMMON[name if name in COMMON else reading.kind]
    seen, answer = _clearest(best, seens[0])
    said = reading.said(seen, answer)
    holds = f"{rule} {scope}" if "shifted" in rule else f"{rule}, {scope}"
    sentence = f"{_place(seens, seen, answer)}: you returned {said}: {holds}"
    return Diagnosis(reading.kind, name, sentence, cause=rule)


def _clearest(found: Explanation, smallest: Seen) -> tuple[Seen, Answer]:
    """A number to show: one that the reading does not leave open, of the batch that the report shows if there is."""
    shown = sorted(found.explained, key=lambda one: one[0].case is not smallest.case)
    return next((one for one in shown if len(set(found.reading.predict(*one))) == 1), shown[0])


def _kind_of(seen: Seen, answer: Answer, cell: Cell | None) -> str:
    if cell is None or not seen.holds(cell):
        return ""
    owner = seen.owners.get(cell)
    return PAD if owner is None else OWN if owner[0] == answer.sample else OTHER


def _place(seens: list[Seen], seen: Seen, answer: Answer) -> str:
    """The place of an answer; in the batch that the report shows, or in another one."""
    place = seen.place(answer)
    return place if seen.case is seens[0].case else f"{place} of another batch"


# --- numbers one by one --------------------------------------------------------------------------------------------


def _scattered(seens: list[Seen]) -> Diagnosis | None:
    """Every number that differs is one of another place, though no rule says which."""
    sources: list[tuple[Seen, Answer, Source]] = []
    chances: dict[float, float] = {}
    for seen in seens:
        for answer in seen.answers:
            if not answer.differs:
                continue
            source = source_of(seen, answer)
            if source is None:
                return None
            sources.append((seen, answer, source))
            chances[round(answer.actual, 5)] = _chance(seen, answer)
    if len(chances) < FEWEST or math.prod(chances.values()) > COINCIDENCE:
        return None
    kinds = {source.kind(seen, answer) for seen, answer, source in sources}
    if len(kinds) != 1:
        return None
    kind = kinds.pop()
    seen, answer, source = sources[0]
    count, total = len(sources), sum(len(s.answers) for s in seens)
    name = {OWN: "place", OTHER: "neighbor", PAD: "pad"}[kind]
    said = f"{_place(seens, seen, answer)}: you returned {source.said(seen, answer)}"
    sentence = f"{said}; all numbers that differ ({count} of {total}) come from {kind}"
    return Diagnosis("place", name, sentence, cause=f"read at {kind}")


def _chance(seen: Seen, answer: Answer) -> float:
    """Of finding a number among so many by accident."""
    known = len(seen.owners) * 2
    return min(1.0, known * answer.allowed / max(abs(answer.actual - answer.expected), 1.0))


# --- precision -----------------------------------------------------------------------------------------------------

HALVES = ("bfloat16", "float16")
DISTINCT = 6


def _in_half(seens: list[Seen]) -> Diagnosis | None:
    """Every number that came is one of a half-precision dtype, where what is right would not be."""
    dtype = seens[0].subject.dtype
    if str(dtype).removeprefix("torch.") in HALVES:
        return None
    every = [answer for seen in seens for answer in seen.answers]
    came, due = ({getattr(a, part) for a in every} for part in ("actual", "expected"))
    if len(came) < DISTINCT:
        return None
    for name in HALVES:
        half = getattr(torch, name)
        rounded = torch.tensor([a.expected for a in every], dtype=torch.float64).to(half).double().tolist()
        small = all(abs(a.actual - r) <= budgets.kept_in(r, half) for a, r in zip(every, rounded, strict=True))
        if _held_by(came, half, dtype) == len(came) and _held_by(due, half, dtype) <= len(due) // 2 and small:
            first = next((seen, a) for seen in seens for a in seen.answers if a.differs)
            place = _place(seens, *first)
            said = f"you returned {first[1].actual:.8g} where {first[1].expected:.8g} is due"
            cause = f"it is computed or kept in {name}"
            rest = f"all {len(came)} different numbers are exact in {name}: {cause}"
            return Diagnosis("numbers", "dtype", f"{place}: {said}; {rest}", cause=cause)
    return None


def _held_by(numbers: set[float], half: torch.dtype, dtype: torch.dtype) -> int:
    """How many of the numbers, as they are in the dtype under test, lose nothing in half precision."""
    tensor = torch.tensor(sorted(numbers), dtype=torch.float64).to(dtype)
    return int((tensor.to(half).to(dtype) == tensor).sum())
