"""Which reading of an adapter's numbers holds, and how far: every number of all the evidence must bear it out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from rlhf_conformance.diagnosis.answers import Answer, Cell, Seen
from rlhf_conformance.oracle.batch import PACKS, RECTANGLES
from rlhf_conformance.oracle.layouts import Sample

COINCIDENCE = 1e-5
"""How likely numbers may agree with a reading by chance, all readings that are tried taken together."""
CLEAR = 4.0
"""By how many allowances a number must be off before it is evidence."""
FEWEST = 2
"""Numbers that differ from each other and bear a reading out."""


Among = Callable[[Seen, Answer], bool]


def everyone(seen: Seen, answer: Answer) -> bool:
    return True


def not_last(seen: Seen, answer: Answer) -> bool:
    return not _is_last(seen, answer)


def not_first(seen: Seen, answer: Answer) -> bool:
    return answer.index > 0


def nowhere(seen: Seen, answer: Answer) -> Cell | None:
    return None


def numbers_said(seen: Seen, answer: Answer) -> str:
    return f"{answer.actual:.4g} where {answer.expected:.4g} is due"


@dataclass(frozen=True)
class Reading:
    """One way in which numbers may have gone wrong.

    kind, name      of a diagnosis
    rule            what it comes to, in words
    predict         what a number would be; several where that is left open, none where nothing is said
    said            what came for what, in words
    where           the cell in which the number was read
    fitted          how many numbers were used up to fit it
    loose           it holds wherever another of its name does
    constant        it says that numbers are one and the same, as a bound or a zero is
    """

    kind: str
    name: str
    rule: str
    predict: Callable[[Seen, Answer], Iterable[float]]
    said: Callable[[Seen, Answer], str] = numbers_said
    where: Callable[[Seen, Answer], Cell | None] = nowhere
    fitted: int = 0
    constant: bool = False
    loose: bool = False


@dataclass
class Explanation:
    """A reading that every number bears out.

    explained   numbers that differ, with the batch they come from
    against     numbers that are right where the reading has something else
    scope       where it holds
    named       the scope is more than a count
    open        how many of the numbers that differ it leaves more than one choice
    """

    reading: Reading
    explained: list[tuple[Seen, Answer]] = field(default_factory=list)
    against: list[tuple[Seen, Answer]] = field(default_factory=list)
    scope: str = ""
    named: bool = False
    chance: float = 1.0
    open: int = 0

    @property
    def everywhere(self) -> bool:
        return not self.against


def near(answer: Answer, numbers: Iterable[float]) -> bool:
    return any(abs(answer.actual - number) <= answer.allowed for number in numbers)


def explain(reading: Reading, seens: list[Seen], tried: int, among: Among = everyone) -> Explanation | None:
    """The reading with its evidence, None where a number speaks against it or too few for it.

    tried   how many readings are: of many, one fits by chance sooner
    among   the numbers that are looked at
    """
    found = Explanation(reading)
    evidence: dict[tuple[float, float], float] = {}
    for seen in seens:
        for answer in (a for a in seen.answers if among(seen, a)):
            numbers = _predicted(reading, seen, answer)
            if answer.differs:
                if not near(answer, numbers):
                    return None
                found.explained.append((seen, answer))
                found.open += len(set(numbers)) > 1
                off = abs(answer.actual - answer.expected)
                if off >= CLEAR * answer.allowed:
                    share = len(set(numbers)) * answer.allowed / off
                    evidence[round(answer.actual, 5), round(answer.expected, 5)] = min(1.0, share)
            elif numbers and not near(answer, (*numbers, *_at_odds(answer, numbers))):
                found.against.append((seen, answer))
    constant = len({actual for actual, _ in evidence}) < FEWEST  # which could be anything's
    if len(evidence) < FEWEST + reading.fitted or (constant and not reading.constant):
        return None
    strongest_last = sorted(evidence.values(), reverse=True)
    kept = strongest_last[: len(strongest_last) - reading.fitted]
    found.chance = tried * math.prod(kept) if kept else 1.0
    if found.chance > COINCIDENCE:
        return None
    return _scoped(found, seens)


def _predicted(reading: Reading, seen: Seen, answer: Answer) -> tuple[float, ...]:
    """The numbers that a reading has for an answer; none where its formula has no number, as where it divides by 0."""
    try:
        return tuple(reading.predict(seen, answer))
    except ArithmeticError:
        return ()


def _at_odds(answer: Answer, numbers: tuple[float, ...]) -> tuple[float, ...]:
    """The truth, where it cannot be told from what the reading has: within two allowances both may be meant."""
    return (answer.actual,) if any(abs(answer.expected - n) <= 2 * answer.allowed for n in numbers) else ()


def _scoped(found: Explanation, seens: list[Seen]) -> Explanation | None:
    total = sum(len(seen.answers) for seen in seens)
    count = len(found.explained)
    if found.everywhere:
        found.scope, found.named = seens[0].everywhere, True
        return found
    fitting = [
        text
        for text, holds in scopes(seens)
        if all(holds(*one) for one in found.explained) and not any(holds(*one) for one in found.against)
    ]
    named = len(fitting) == 1 and min(count, len(found.against)) >= FEWEST
    if (found.reading.constant or found.reading.fitted) and not named:
        return None
    found.named = named
    found.scope = fitting[0] if named else f"in {count} of {total} numbers, which are all that differ"
    return found


def _of_layouts(seens: list[Seen]) -> Iterator[Scope]:
    """Each layout, as against those that were seen beside it."""
    met = [layout for layout in RECTANGLES + PACKS if any(s.case.how.layout == layout for s in seens)]
    for layout in met:
        *others, last = [repr(other) for other in met if other != layout] or [""]
        if last:
            against = f"{', '.join(others)} or {last}" if others else last
            yield f"in layout {layout!r}, not in {against}", _in_layout(layout)


def _in_layout(layout: str) -> Callable[[Seen, Answer], bool]:
    return lambda seen, answer: seen.case.how.layout == layout


Scope = tuple[str, Among]


def scopes(seens: list[Seen]) -> list[Scope]:
    """Parts of what was returned that a mistake may be confined to."""
    readout = seens[0].readout
    found = [*_OF_SAMPLES, *_OF_BATCHES, *_of_layouts(seens)]
    if readout.index:
        of = f"{readout.index} of every sample"
        found += [
            (f"in the first {of} only", lambda s, a: a.index == 0),
            (f"in the last {of} only", _is_last),
            (f"in every {of} but the first", not_first),
            (f"in every {of} but the last", not_last),
            ("in responses of one token only", lambda s, a: len(_sample(s, a).response) == 1),
            ("in responses of several tokens only", lambda s, a: len(_sample(s, a).response) > 1),
        ]
    if readout.index == "position":
        found.append(("at the prompt's positions but the last", lambda s, a: a.index < len(_sample(s, a).prompt) - 1))
    if readout.labeled:
        found += [
            ("where the action is the EOS that ends the response", lambda s, a: _is_eos(s, a) and _is_last(s, a)),
            ("where the action is the pad id", lambda s, a: a.token == s.case.probe.pad_token_id),
        ]
    elif not readout.index:
        found += [
            ("in samples that end in EOS only", _ends_in_eos),
            ("in samples that do not end in EOS only", lambda s, a: not _ends_in_eos(s, a)),
        ]
    return found


def _sample(seen: Seen, answer: Answer) -> Sample:
    return seen.case.samples[answer.sample]


def _count(seen: Seen, answer: Answer) -> int:
    return len(seen.due(_sample(seen, answer)))


def _is_last(seen: Seen, answer: Answer) -> bool:
    return answer.index == _count(seen, answer) - 1


def _is_eos(seen: Seen, answer: Answer) -> bool:
    return answer.token == seen.case.probe.eos_token_id


def _ends_in_eos(seen: Seen, answer: Answer) -> bool:
    return _sample(seen, answer).tokens[-1] == seen.case.probe.eos_token_id


def _lengths(seen: Seen) -> list[int]:
    return [len(s) for s in seen.case.samples]


def _left_pads(seen: Seen, answer: Answer) -> int:
    return 0 if seen.packed else seen.batch.starts[answer.sample]


def _right_pads(seen: Seen, answer: Answer) -> int:
    return 0 if seen.packed else seen.width - seen.batch.starts[answer.sample] - len(_sample(seen, answer))


_OF_SAMPLES: list[Scope] = [
    ("in sample 0 only", lambda s, a: a.sample == 0),
    ("in every sample but the first", lambda s, a: a.sample > 0),
    ("in the last sample only", lambda s, a: a.sample == len(s.case.samples) - 1),
    ("in every sample but the last", lambda s, a: a.sample < len(s.case.samples) - 1),
    ("in samples shorter than the longest only", lambda s, a: len(_sample(s, a)) < max(_lengths(s))),
    ("in rows with pads on the left only", lambda s, a: _left_pads(s, a) > 0),
    ("in rows with pads on the right only", lambda s, a: _right_pads(s, a) > 0),
    (
        "in rows with ordinary ids under the mask only",
        lambda s, a: bool(s.case.how.garbage) and _left_pads(s, a) + _right_pads(s, a) > 0,
    ),
    ("in rows with pads only", lambda s, a: _left_pads(s, a) + _right_pads(s, a) > 0),
]
_OF_BATCHES: list[Scope] = [
    ("in packs only", lambda s, a: s.packed),
    ("in padded batches only", lambda s, a: not s.packed),
    ("in batches of several samples only", lambda s, a: len(s.case.samples) > 1),
    (
        "where the responses differ in length only",
        lambda s, a: len({len(x.response) for x in s.case.samples}) > 1,
    ),
    ("where the samples differ in length only", lambda s, a: len(set(_lengths(s))) > 1),
    ("at temperatures below 1 only", lambda s, a: s.case.temperature < 1),
    ("at temperatures above 1 only", lambda s, a: s.case.temperature > 1),
    ("in train mode only", lambda s, a: getattr(s.call.given[0], "training", None) is True),
    ("in eval mode only", lambda s, a: getattr(s.call.given[0], "training", None) is False),
]
