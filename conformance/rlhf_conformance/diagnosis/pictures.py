"""A failing batch as it lies before the trainer: cells, what should be read of them, and what was."""

from __future__ import annotations

import collections
from collections.abc import Callable

from rlhf_conformance import chapters
from rlhf_conformance.diagnosis import provenance
from rlhf_conformance.diagnosis.answers import Answer, Seen, unanswered
from rlhf_conformance.diagnosis.answers import Cell as Place
from rlhf_conformance.diagnosis.evidence import Evidence
from rlhf_conformance.judging.isolation import AdapterError
from rlhf_conformance.judging.judge import ClauseFailure, Comparison
from rlhf_conformance.judging.wiring import WiringError
from rlhf_conformance.results import Cell, Picture

Look = Callable[[Evidence, "Comparison | None"], "Picture | None"]
_REGISTRY: dict[str, Look] = {}


def picture_of(*methods: str) -> Callable[[Look], Look]:
    """Register what draws a case that these methods were asked about, from the chapter's module `steps`."""

    def register(look: Look) -> Look:
        for name in methods:
            _REGISTRY[name] = look
        return look

    return register


def picture(evidence: Evidence) -> Picture | None:
    """The batch of the smallest failing case, with the places where answers should be read and were; or what the
    chapter draws of it."""
    found = provenance.found(evidence)
    if found.seens:
        shown = next((s for s in found.seens if any(a.differs for a in s.answers)), found.seens[0])
        return of_batch(shown, found.where)
    asked = unanswered(evidence)
    if asked is not None:
        return of_question(asked)
    collections.deque(chapters.modules("steps"), maxlen=0)
    broken, calls = evidence.smallest.broken, evidence.smallest.calls
    comparison = broken[0] if broken else None
    methods = [comparison.answers[-1].method] if comparison else [call.method for call in calls[-1:]]
    look = next((_REGISTRY[name] for name in methods if name in _REGISTRY), None)
    try:
        return look(evidence, comparison) if look else None
    except (AdapterError, WiringError, ClauseFailure):
        return None


def of_batch(seen: Seen, where: Callable[[Seen, Answer], Place | None]) -> Picture:
    """The rows as they were handed over, with the positions that answers are due at and those they were read at."""
    due = {seen.cell(a.sample, a.position) for a in seen.answers}
    read: set[Place] = set()
    unknown = 0
    for answer in seen.answers:
        cell = where(seen, answer) if answer.differs else seen.cell(answer.sample, answer.position)
        unknown += cell is None
        read |= {cell} if cell is not None and seen.holds(cell) else set()
    rows = _rows(seen, due, read)
    word = seen.readout.word
    caption = f"layout {seen.case.how.layout!r}; outlined: where each {word} is due, marked: where it was read"
    if unknown:
        caption += f" ({unknown} of {len(seen.answers)} come from no known place)"
    return Picture(caption, rows, _labels(seen, len(rows)), _remarks(seen, len(rows)))


def of_question(seen: Seen) -> Picture:
    """The same for a batch that no answers came for: where they are due."""
    due = {seen.cell(i, p) for i, s in enumerate(seen.case.samples) for p in seen.due(s)}
    rows = _rows(seen, due, set())
    caption = f"layout {seen.case.how.layout!r}; outlined: where each {seen.readout.word} is due"
    return Picture(caption, rows, _labels(seen, len(rows)), _spans(seen, len(rows)))


def _rows(seen: Seen, due: set[Place], read: set[Place]) -> tuple[tuple[Cell, ...], ...]:
    places = [[(r, c) for c in range(seen.width)] for r in range(len(seen.ids))]
    flat = [tuple(_cell(seen, place, place in due, place in read) for place in row) for row in places]
    return _cut(flat[0], seen.batch.input_ids.shape[1]) if seen.packed else tuple(flat)


def _cell(seen: Seen, place: Place, expected: bool, read: bool) -> Cell:
    token = int(seen.ids[place[0]][place[1]])
    owner = seen.owners.get(place)
    if owner is None:
        return Cell(str(token), "pad", expected, read)
    sample, position = owner
    kind = "prompt" if position < len(seen.case.samples[sample].prompt) else "response"
    if kind == "response" and token == seen.case.probe.eos_token_id:
        kind = "eos"
    return Cell(str(token), kind, expected, read)


def _cut(row: tuple[Cell, ...], width: int) -> tuple[tuple[Cell, ...], ...]:
    return tuple(row[i : i + width] for i in range(0, len(row), width))


def _labels(seen: Seen, count: int) -> tuple[str, ...]:
    if not seen.packed:
        return tuple(f"sample {i}" for i in range(count))
    return ("pack",) if count == 1 else tuple(f"shard {i}" for i in range(count))


def _remarks(seen: Seen, count: int) -> tuple[str, ...]:
    """Of a pack, which columns hold which sample; of a padded row, whether its answers differ."""
    if seen.packed:
        return _spans(seen, count)
    wrong = [sum(a.differs for a in seen.answers if a.sample == i) for i in range(count)]
    right = [sum(a.sample == i for a in seen.answers) for i in range(count)]
    return tuple(f"{w} of {n} differ" if w else "right" for w, n in zip(wrong, right, strict=True))


def _spans(seen: Seen, count: int) -> tuple[str, ...]:
    if not seen.packed:
        return ("",) * count
    ends = [(s, s + len(x) - 1) for s, x in zip(seen.batch.starts, seen.case.samples, strict=True)]
    return (", ".join(f"sample {i}: {a} to {b}" for i, (a, b) in enumerate(ends)), *[""] * (count - 1))
