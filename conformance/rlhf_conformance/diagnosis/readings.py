"""Readings by place: the number is a right one, of another position, another sample, a neighbor or a pad."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import permutations

from rlhf_conformance.diagnosis.answers import Answer, Cell, Seen
from rlhf_conformance.diagnosis.explaining import Reading, near, numbers_said
from rlhf_conformance.diagnosis.worlds import WORLDS, at_pad
from rlhf_conformance.methods import Readout

Rule = Callable[[Seen, Answer], "Cell | None"]
"""The cell in which an answer is read; None where the rule has none."""
SHIFTS = (1, -1, 2, -2, 3, -3)


def place_readings(readout: Readout) -> list[Reading]:
    """All of this kind that are known, for answers of this kind."""
    found: list[Reading] = []
    for name, text, rule in _rules(readout):
        exact = not readout.index and name != "shift"  # a rule that names a cell of the row means that cell
        found.append(_own_token(name, text, rule) if readout.labeled else _plain(name, text, rule, exact=exact))
        if readout.labeled:
            found.append(_aligned(name, text, rule))
    if readout.labeled:
        found += [_other_token(k) for k in SHIFTS]
    found += [
        Reading(
            "place",
            "swap",
            text,
            lambda s, a, order=order: _swapped(s, a, order),  # type: ignore[misc]
            _said_swap,
            loose=order is _any_order,
        )
        for text, order in _ORDERS
    ]
    found += [Reading("place", world.name, world.rule, world.numbers) for world in WORLDS]
    return found


def _rules(readout: Readout) -> list[tuple[str, str, Rule]]:
    shifts: list[tuple[str, str, Rule]] = [
        ("shift", f"shifted by {k:+d}", lambda s, a, k=k: s.cell(a.sample, a.position + k))  # type: ignore[misc]
        for k in SHIFTS
    ]
    if readout.index == "action":
        return shifts + _WINDOWS
    return shifts + (_ENDS if not readout.index else [])


# --- cells ---------------------------------------------------------------------------------------------------------


def _prompt(seen: Seen, sample: int) -> int:
    return len(seen.case.samples[sample].prompt)


def _length(seen: Seen, sample: int) -> int:
    return len(seen.case.samples[sample])


def _total(seen: Seen) -> int:
    return sum(len(s) for s in seen.case.samples)


def _row(seen: Seen, answer: Answer) -> int:
    return 0 if seen.packed else answer.sample


def _offset(seen: Seen, answer: Answer) -> int:
    """How far an action stands behind the first token of the response."""
    return answer.position + 1 - _prompt(seen, answer.sample)


def _from_the_edge(seen: Seen, answer: Answer) -> Cell | None:
    count = len(seen.case.samples[answer.sample].response)
    return None if seen.packed else (answer.sample, seen.width - 1 - count + _offset(seen, answer))


def _in_equal_parts(seen: Seen, answer: Answer) -> Cell | None:
    if not seen.packed:
        return None
    return 0, answer.sample * _total(seen) // len(seen.case.samples) + answer.position


_WINDOWS: list[tuple[str, str, Rule]] = [
    (
        "window",
        "the prompt length of sample 0 is used for all",
        lambda s, a: s.cell(a.sample, _prompt(s, 0) - 1 + _offset(s, a)),
    ),
    (
        "window",
        "actions are counted as if no observation stood between them",
        lambda s, a: s.cell(a.sample, _prompt(s, a.sample) - 1 + a.index),
    ),
    ("window", "actions are counted back from the row's last column, pads included", _from_the_edge),
    (
        "window",
        "positions are counted from the start of the row, not of the sample",
        lambda s, a: (_row(s, a), a.position),
    ),
    ("window", "the pack is cut into equal parts", _in_equal_parts),
    (
        "window",
        "samples are located by counting back from the end of the row, padding included",
        lambda s, a: (0, s.cell(a.sample, a.position)[1] + s.width - _total(s)) if s.packed else None,
    ),
    (
        "window",
        "each boundary of the batch moves the reading one further back",
        lambda s, a: s.cell(a.sample, a.position - a.sample),
    ),
    (
        "window",
        "each boundary of the batch moves the reading one further on",
        lambda s, a: s.cell(a.sample, a.position + a.sample),
    ),
    (
        "order",
        "the actions come in reverse order",
        lambda s, a: s.cell(a.sample, _length(s, a.sample) - 2 - a.index),
    ),
    ("place", "every action gets what is the first one's", lambda s, a: s.cell(a.sample, _prompt(s, a.sample) - 1)),
    ("place", "every action gets what is the last one's", lambda s, a: s.cell(a.sample, _length(s, a.sample) - 2)),
]


def _by_id(where: str, test: str) -> Rule:
    """The first or last cell whose id passes: of the sample's tokens (its last one where none does), or of the padded
    row (column 0 where none does)."""
    of_row, at = where.endswith("row"), 0 if where.startswith("first") else -1

    def cell(seen: Seen, answer: Answer) -> Cell | None:
        if of_row and seen.packed:
            return None
        special = seen.case.probe.eos_token_id if "EOS" in test else seen.case.probe.pad_token_id
        ids = seen.ids[answer.sample].tolist() if of_row else seen.case.samples[answer.sample].tokens
        found = [i for i, token in enumerate(ids) if (token == special) != test.startswith("not")]
        if of_row:
            return answer.sample, (found or [0])[at]
        return seen.cell(answer.sample, (found or [len(ids) - 1])[at])

    return cell


def _before_first_pad(seen: Seen, answer: Answer) -> Cell | None:
    cell = _by_id("first of row", "pad")(seen, answer)
    return None if cell is None else (cell[0], (cell[1] - 1) % seen.width)


def _end_of(seen: Seen, sample: int) -> Cell:
    return seen.cell(sample, _length(seen, sample) - 1)


def _in_own_row(seen: Seen, answer: Answer, column: int) -> Cell | None:
    return None if seen.packed else (answer.sample, column)


_ENDS: list[tuple[str, str, Rule]] = [
    ("window", "read at the last column of the row, pad or not", lambda s, a: _in_own_row(s, a, s.width - 1)),
    (
        "window",
        "read at column n - 1 of the row, where n counts the sample's tokens",
        lambda s, a: _in_own_row(s, a, _length(s, a.sample) - 1),
    ),
    ("window", "every row is read where the first one ends", lambda s, a: _in_own_row(s, a, _end_of(s, 0)[1])),
    ("window", "read before the first pad id of the row, at its end where there is none", _before_first_pad),
    ("window", "read at the last EOS of the row, at column 0 where there is none", _by_id("last of row", "EOS")),
    ("window", "read at the first EOS of the row, at column 0 where there is none", _by_id("first of row", "EOS")),
    ("window", "read at the last id of the row that is not the pad id", _by_id("last of row", "not pad")),
    ("window", "read at the first EOS of the sample", _by_id("first", "EOS")),
    ("window", "read at the last token that is not EOS", _by_id("last", "not EOS")),
    ("window", "read at the last token that is not the pad id", _by_id("last", "not pad")),
    ("window", "read at the last token of the prompt", lambda s, a: s.cell(a.sample, _prompt(s, a.sample) - 1)),
    ("window", "read at the first token of the response", lambda s, a: s.cell(a.sample, _prompt(s, a.sample))),
    ("window", "read at the first token", lambda s, a: s.cell(a.sample, 0)),
    (
        "neighbor",
        "every sample gets the score at the end of the last one",
        lambda s, a: _end_of(s, len(s.case.samples) - 1),
    ),
    ("neighbor", "every sample gets the score at the end of the first one", lambda s, a: _end_of(s, 0)),
]


# --- what is read there --------------------------------------------------------------------------------------------


def _plain(name: str, text: str, rule: Rule, *, exact: bool) -> Reading:
    """The number of another position."""

    def said(seen: Seen, answer: Answer) -> str:
        cell = _cell(seen, answer, rule)
        return f"the {seen.readout.word} of {spot(seen, answer, cell)} where that of position {answer.position} is due"

    where = rule if exact else _where(rule)
    return Reading("place", name, text, _numbers_at(rule, exact=exact), said, where)


def _own_token(name: str, text: str, rule: Rule) -> Reading:
    """The right token under the logits of another position."""

    def said(seen: Seen, answer: Answer) -> str:
        cell = _cell(seen, answer, rule)
        there = spot(seen, answer, cell)
        return f"its log-prob under the logits of {there} where those of position {answer.position} are due"

    text = f"logits {text}" if name == "shift" else f"{text}, for logits alone"
    return Reading("place", name, text, _numbers_at(rule), said, _where(rule))


def _numbers_at(rule: Rule, *, exact: bool = False) -> Callable[[Seen, Answer], tuple[float, ...]]:
    def numbers(seen: Seen, answer: Answer) -> tuple[float, ...]:
        cell = rule(seen, answer)
        if cell is None:
            return ()
        owner = seen.owners.get(cell)
        if owner is not None and owner[0] == answer.sample:
            return (seen.read(answer, *owner),)
        there = (seen.read(answer, *owner),) if owner else _behind_the_edge(seen, answer, cell)
        return there if exact else (*there, *_instead(seen, answer, cell))

    return numbers


def _behind_the_edge(seen: Seen, answer: Answer, cell: Cell) -> tuple[float, ...]:
    """A cell that is nobody's, or outside of the row, which may be rolled around."""
    rolled = cell[0], cell[1] % seen.width
    owner = seen.owners.get(rolled)
    return (seen.read(answer, *owner),) if owner else at_pad(seen, rolled, answer)


def _instead(seen: Seen, answer: Answer, cell: Cell) -> tuple[float, ...]:
    """Where a rule leaves the sample, an implementation may have stopped at its end, or have put a zero."""
    nearest = _held(seen, answer, cell)
    return seen.read(answer, answer.sample, nearest), 0.0


def _held(seen: Seen, answer: Answer, cell: Cell) -> int:
    """The position of the sample that is next to a cell outside of it."""
    return min(max(cell[1] - seen.batch.starts[answer.sample], 0), _length(seen, answer.sample) - 1)


def _cell(seen: Seen, answer: Answer, rule: Rule) -> Cell | None:
    """The cell that the number was read in, one at the sample's end where that has it."""
    cell = rule(seen, answer)
    if cell is None or seen.owners.get(cell, (-1,))[0] == answer.sample:
        return cell
    held = _held(seen, answer, cell)
    return seen.cell(answer.sample, held) if near(answer, (seen.read(answer, answer.sample, held),)) else cell


def _where(rule: Rule) -> Callable[[Seen, Answer], Cell | None]:
    return lambda seen, answer: _cell(seen, answer, rule)


def spot(seen: Seen, answer: Answer, cell: Cell | None) -> str:
    """A cell in words, for someone who looks at this answer."""
    if cell is None:
        return "no position"
    owner = seen.owners.get(cell)
    if owner is None:
        return f"the pad in column {cell[1]}" if seen.holds(cell) else f"column {cell[1]}, outside of the row,"
    sample, position = owner
    return f"position {position}" if sample == answer.sample else f"position {position} of sample {sample}"


def _aligned(name: str, text: str, rule: Rule) -> Reading:
    """The log-prob of another token, right in itself."""

    def numbers(seen: Seen, answer: Answer) -> tuple[float, ...]:
        cell = rule(seen, answer)
        if cell is None:
            return ()
        owner = seen.owners.get(cell)
        number = seen.aligned(*owner) if owner else None
        if number is not None and owner is not None and owner[0] == answer.sample:
            return (number,)
        return (0.0, *([number] if number is not None else _at_boundary(seen, answer, cell)))

    def said(seen: Seen, answer: Answer) -> str:
        cell = rule(seen, answer)
        owner = seen.owners.get(cell) if cell else None
        if owner is None or owner[1] + 1 >= _length(seen, owner[0]):
            return numbers_said(seen, answer)
        token = spot(seen, answer, seen.cell(owner[0], owner[1] + 1))
        return f"the log-prob of the token at {token} where that of the one at position {answer.position + 1} is due"

    return Reading("place", name, text, numbers, said, rule)


def _at_boundary(seen: Seen, answer: Answer, cell: Cell) -> tuple[float, ...]:
    """Logits of a sample's end, or of a pad, scored on whatever id lies behind them in the row, which may be rolled
    around."""
    row, column = cell[0], cell[1] % seen.width
    label = replace(answer, token=int(seen.ids[row][(column + 1) % seen.width]))
    held = seen.read(label, answer.sample, _held(seen, answer, cell))
    return held, *_behind_the_edge(seen, label, cell)


def _other_token(k: int) -> Reading:
    """Another token under the right logits."""

    def token(seen: Seen, answer: Answer) -> int | None:
        row, column = seen.cell(answer.sample, answer.position + 1 + k)
        return int(seen.ids[row][column]) if seen.holds((row, column)) else None

    def numbers(seen: Seen, answer: Answer) -> tuple[float, ...]:
        label = token(seen, answer)
        if label is None:
            return (0.0,)
        number = seen.finish(seen.tables()[answer.sample][answer.position][label])
        inside = 0 <= answer.position + 1 + k < _length(seen, answer.sample)
        return (number,) if inside else (number, 0.0)

    def said(seen: Seen, answer: Answer) -> str:
        cell = seen.cell(answer.sample, answer.position + 1 + k)
        due = answer.position + 1
        return f"the log-prob of the token at {spot(seen, answer, cell)} under the logits for the one at position {due}"

    return Reading("place", "shift", f"tokens shifted by {k:+d}", numbers, said, _right_cell)


def _right_cell(seen: Seen, answer: Answer) -> Cell | None:
    return seen.cell(answer.sample, answer.position)


# --- samples in another order --------------------------------------------------------------------------------------

Order = tuple[int, ...]


def _sorted_by(key: Callable[[Seen, int], int], *, reverse: bool = False) -> Callable[[Seen], list[Order]]:
    return lambda seen: [
        tuple(sorted(range(len(seen.case.samples)), key=lambda i: key(seen, i), reverse=reverse)),
    ]


MOST_PERMUTED = 5
"""Of more samples not every order is tried."""


def _any_order(seen: Seen) -> list[Order]:
    count = len(seen.case.samples)
    return list(permutations(range(count))) if count <= MOST_PERMUTED else []


_ORDERS: tuple[tuple[str, Callable[[Seen], list[Order]]], ...] = (
    ("the samples come back sorted by length, shortest first", _sorted_by(_length)),
    ("the samples come back sorted by length, longest first", _sorted_by(lambda s, i: -_length(s, i))),
    ("the samples come back in reverse order", lambda seen: [tuple(range(len(seen.case.samples)))[::-1]]),
    ("the samples come back in another order", _any_order),
)


def _swapped(seen: Seen, answer: Answer, orders: Callable[[Seen], list[Order]]) -> tuple[float, ...]:
    key = ("order", orders)
    if key not in seen.remembered:
        seen.remembered[key] = next(
            (rows for order in orders(seen) for rows in _laid(seen, order) if _fits(seen, rows)), None
        )
    rows = seen.remembered[key]
    return () if rows is None else rows[answer.sample, answer.index]


Numbers = dict[tuple[int, int], "tuple[float, ...]"]


def _laid(seen: Seen, order: Order) -> list[Numbers]:
    """The answers of the samples in this order: row by row, and behind one another and then cut by their own counts."""
    rows: list[list[float]] = [[] for _ in seen.case.samples]
    for answer in seen.answers:
        rows[answer.sample].append(answer.expected)
    flat = [number for i in order for number in rows[i]]
    cut: Numbers = {(a.sample, a.index): (number,) for a, number in zip(seen.answers, flat, strict=True)}
    by_row: Numbers = {
        (a.sample, a.index): _of_row(seen, a, rows[order[a.sample]], len(rows[a.sample])) for a in seen.answers
    }
    return [by_row, cut]


def _of_row(seen: Seen, answer: Answer, row: list[float], count: int) -> tuple[float, ...]:
    """In the layout "left" rows end together, elsewhere they begin together; behind their end there may be zeros."""
    at = answer.index + (len(row) - count if seen.case.how.layout == "left" else 0)
    return (row[at],) if 0 <= at < len(row) else (0.0,)


def _fits(seen: Seen, rows: Numbers) -> bool:
    return all(near(a, rows[a.sample, a.index]) for a in seen.answers)


def _said_swap(seen: Seen, answer: Answer) -> str:
    twins = [
        a for a in seen.answers if (a.sample, a.index) != (answer.sample, answer.index) and near(answer, (a.expected,))
    ]
    if len(twins) != 1:
        return f"{answer.actual:.4g} where {answer.expected:.4g} is due"
    return f"the {seen.readout.word} of {seen.place(twins[0])}"
