"""Candidates that no library has: the reference, with one thing that goes in or comes out spoiled on its way.

A tensor that is rolled, negated, rounded, shifted; a mask with one more or less; an option that is not honored; an
answer that is off by a factor, an offset or a count. Each is given the cases of the failure by the clause's own check,
values and gradients alike, as a fault of the library is.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

from rlhf_conformance._lazy import torch
from rlhf_conformance.adapter import METHODS, Adapter, provided
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.diagnosis import changes
from rlhf_conformance.diagnosis.changes import Change
from rlhf_conformance.diagnosis.conventions import conventions
from rlhf_conformance.diagnosis.evidence import Observed
from rlhf_conformance.judging.checks import Check
from rlhf_conformance.judging.judge import Comparison
from rlhf_conformance.judging.questions import main

Given = tuple[Any, ...]
Input = tuple[str, Callable[[Given], Given]]
Output = tuple[str, Callable[[Any, Given], Any]]


@dataclass(frozen=True)
class Variation:
    """One of them.

    kind, name, says    of a diagnosis
    adapter             the reference, spoiled
    """

    kind: str
    name: str
    says: str
    adapter: type[Adapter]


def variations(check: Check, adapter: Adapter, smallest: Observed) -> list[Variation]:
    """All that may fail a check: of what its methods are given, and of what they answer."""
    base = honest(adapter)
    found: list[Variation] = []
    for method, given, answers in _asked(check, adapter, smallest):
        concerns_models = METHODS[method].concerns_models
        found += [
            Variation("input", says, f"the answer is what it would be if {says}", _made(base, method, put=put))
            for says, put in _of_arguments(method, given, concerns_models=concerns_models)
        ]
        found += [
            Variation("numbers", says, f"the answer is right, except that {says}", _made(base, method, spoil=spoil))
            for says, spoil in (
                *_of_answers(method, answers),
                *_fitted(smallest, method),
                *_counts(method, answers),
                *_by_ids(method),
            )
        ]
    return found


def _asked(check: Check, adapter: Adapter, smallest: Observed) -> Iterator[tuple[str, Given, list[Any]]]:
    """Each method that was asked and loads nothing, with what it was given first and its answers."""
    for method in check.needs:
        row, calls = METHODS[method], [c for c in smallest.calls if c.method == method]
        if row.answer is not None and not row.loads and calls and method in provided(adapter):
            yield method, calls[0].given, [a for a in smallest.answers if a.method == method]


def narrowed(check: Check, adapter: Adapter, smallest: Observed) -> list[Variation]:
    """Denominators that are wrong only where an option is what it is in the smallest case: a mean of one kind, or one
    that no count was given for."""
    base = honest(adapter)
    found: list[Variation] = []
    for method, given, answers in _asked(check, adapter, smallest):
        for (where, holds), (says, spoil) in itertools.product(
            _conditions(given), (*_counts(method, answers), *_fitted(smallest, method))
        ):
            words = f"{says} where {where}"
            made = _made(base, method, spoil=functools.partial(_only_where, holds, spoil))
            found.append(Variation("numbers", words, f"the answer is right, except that {words}", made))
    return found


def _only_where(holds: Callable[[Given], bool], spoil: Callable[[Any, Given], Any], answer: Any, given: Given) -> Any:
    return spoil(answer, given) if holds(given) else answer


def _conditions(given: Given) -> Iterator[tuple[str, Callable[[Given], bool]]]:
    """What is said by options that are None, and by those that are words; by two of them together last."""
    single = []
    for i, value in enumerate(given):
        if not is_dataclass(value) or isinstance(value, type):
            continue
        for row in fields(value):
            chosen = getattr(value, row.name)
            if chosen is None:
                single.append((f"no `{row.name}` is given", _option_is(i, row.name, None)))
            elif isinstance(chosen, str):
                single.append((f"`{row.name}` is {chosen!r}", _option_is(i, row.name, chosen)))
    yield from single
    for (one, holds), (other, also) in itertools.combinations(single, 2):
        yield f"{one} and {other}", _both(holds, also)


def conditions(smallest: Observed) -> Iterator[tuple[str, Callable[[Observed], bool]]]:
    """The same of whole cases: what the first call that has options was given."""
    for call in smallest.calls:
        found = list(_conditions(call.given))
        if found:
            yield from ((where, functools.partial(_holds_in, call.method, holds)) for where, holds in found)
            return


def _holds_in(method: str, holds: Callable[[Given], bool], seen: Observed) -> bool:
    calls = [call for call in seen.calls if call.method == method]
    return bool(calls) and all(holds(call.given) for call in calls)


def _option_is(i: int, name: str, value: Any) -> Callable[[Given], bool]:
    return lambda given: getattr(given[i], name) == value


def _both(a: Callable[[Given], bool], b: Callable[[Given], bool]) -> Callable[[Given], bool]:
    return lambda given: a(given) and b(given)


def honest(adapter: Adapter) -> tuple[type[Adapter], ...]:
    """The reference, following the conventions that the adapter declares where they are not its own."""

    def follows(convention: str) -> bool:
        name = convention.partition(" = ")[0]
        return convention == f"{name} = {getattr(adapter, name, None)!r}"

    declared = [c.adapter for c in conventions() if follows(c.name)]
    kinds = (*dict.fromkeys(declared), Reference)
    return tuple(k for k in kinds if not any(other is not k and issubclass(other, k) for other in kinds)) or kinds


def _made(
    base: tuple[type[Adapter], ...],
    method: str,
    *,
    put: Callable[[Given], Given] = lambda given: given,
    spoil: Callable[[Any, Given], Any] = lambda answer, given: answer,
) -> type[Adapter]:
    """The reference, with the arguments of a method and what it answers changed."""
    kind: Any = None

    @functools.wraps(getattr(base[0], method))
    def answer(self: Any, *given: Any, **extras: Any) -> Any:
        return spoil(getattr(super(kind, self), method)(*put(given), **extras), given)

    kind = type("Variation", base, {method: answer})
    return kind


# --- what goes in ---------------------------------------------------------------------------------------------------


def _of_arguments(method: str, given: Given, *, concerns_models: bool) -> Iterator[Input]:
    names = METHODS[method].arguments
    if concerns_models:  # where a model's outputs are read is looked into elsewhere
        return
    for i, (name, value) in enumerate(zip(names, given, strict=False)):
        if isinstance(value, torch.Tensor):
            for change in _for(name, value):
                yield f"`{name}` were {change.says}", _replacing(i, change.spoil)
            for j in range(i + 1, len(given)):
                if _exchangeable(value, given[j]):
                    yield f"`{name}` and `{names[j]}` were exchanged", _exchanging(i, j)
                    yield f"`{names[j]}` were given for `{name}`, too", _copying(j, i)
                    yield f"`{name}` were given for `{names[j]}`, too", _copying(i, j)
        elif isinstance(value, float):
            for says, scalar in _SCALARS:
                yield f"`{name}` were {says}", _replacing(i, scalar)
        elif is_dataclass(value) and not isinstance(value, type):
            yield from _of_options(i, value)
    if "action_mask" in names:
        yield from _of_masked(names)


_SCALARS: tuple[tuple[str, Callable[[float], float]], ...] = (
    ("1", lambda x: 1.0),
    ("inverted", lambda x: 1 / x if x else x),
    ("squared", lambda x: x * x),
    ("its root", lambda x: math.sqrt(abs(x))),
)


def _for(name: str, value: Any) -> tuple[Change, ...]:
    if value.is_floating_point() and "mask" not in name:
        more = changes.GRADIENTS[:1] if value.requires_grad else ()
        return (*changes.ORDERS, *changes.NUMBERS, *(changes.MEANS if value.ndim == 2 else ()), *more)
    if "mask" in name:
        return (*changes.MASKS, *changes.ORDERS)
    return (*changes.IDS, *changes.ORDERS)


def _exchangeable(a: Any, b: Any) -> bool:
    return isinstance(b, torch.Tensor) and a.shape == b.shape and a.dtype == b.dtype and a.is_floating_point()


def _replacing(i: int, change: Callable[[Any], Any]) -> Callable[[Given], Given]:
    return lambda given: (*given[:i], change(given[i]), *given[i + 1 :])


def _exchanging(i: int, j: int) -> Callable[[Given], Given]:
    return lambda given: tuple(given[{i: j, j: i}.get(k, k)] for k in range(len(given)))


def _copying(source: int, target: int) -> Callable[[Given], Given]:
    return lambda given: tuple(given[source if k == target else k] for k in range(len(given)))


def _of_options(i: int, options: Any) -> Iterator[Input]:
    """Options that are not honored: one or all are always what they are by default, or what another one says."""
    rows = fields(options)
    numbers = [row.name for row in rows if isinstance(row.default, float)]
    maybe = [row.name for row in rows if row.default is None]
    for row in rows:
        yield f"`{row.name}` were always {row.default!r}", _optioned(i, **{row.name: row.default})
    if len(numbers) > 1:
        defaults = {row.name: row.default for row in rows if row.name in numbers}
        words = " and ".join(f"`{name}` {value!r}" for name, value in defaults.items())
        yield f"always {words} were asked for", _optioned(i, **defaults)
    for name in numbers:
        for says, change in _OPTIONS:
            yield f"`{name}` were {says}", _rewritten(i, name, name, change)
    for name in (*numbers, *maybe):
        for other in numbers:
            if other != name:
                yield f"`{name}` were what `{other}` is", _rewritten(i, name, other, lambda x: x)


def _optioned(i: int, **values: Any) -> Callable[[Given], Given]:
    return _replacing(i, lambda options: replace(options, **values))


def _rewritten(i: int, name: str, source: str, change: Callable[[Any], Any]) -> Callable[[Given], Given]:
    """The option `name` becomes what is made of the option `source`."""
    return _replacing(i, lambda options: replace(options, **{name: change(getattr(options, source))}))


_OPTIONS: tuple[tuple[str, Callable[[Any], Any]], ...] = (
    ("None", lambda x: None),
    ("0", lambda x: 0.0),
    ("doubled", lambda x: None if x is None else 2 * x),
    ("halved", lambda x: None if x is None else x / 2),
    ("squared", lambda x: None if x is None else x * x),
    ("infinite", lambda x: 1e9),
)


def _of_masked(names: Sequence[str]) -> Iterator[Input]:
    """What is done to a measure under the action mask or over all cells, and shapes that broadcast."""
    at, last = names.index("action_mask"), names[names.index("action_mask") - 1]
    for where, masked in (("the actions", True), ("all cells", False)):
        for says, by_std, unbiased in (
            ("less their mean over", False, True),
            ("whitened over", True, True),
            ("whitened, with the biased deviation, over", True, False),
        ):
            whitened = functools.partial(_whitened, at=at, masked=masked, by_std=by_std, unbiased=unbiased)
            yield f"`{last}` were {says} {where}", whitened
    pairs = f"`{last}` (N,) met the others (N, 1): every pair of tokens"
    yield pairs, functools.partial(_paired, at=at, masked=True)
    yield f"{pairs}, masked or not", functools.partial(_paired, at=at, masked=False)


def _whitened(given: Given, *, at: int, masked: bool, by_std: bool, unbiased: bool) -> Given:
    x = given[at - 1]
    among = x[given[at].bool()] if masked else x.reshape(-1)
    if among.numel() < 2:
        return given
    centred = x - among.mean()
    return (*given[: at - 1], centred / (among.std(unbiased=unbiased) + 1e-8) if by_std else centred, *given[at:])


def _paired(given: Given, *, at: int, masked: bool) -> Given:
    tables = [x.reshape(-1) for x in given[:at]]
    n, mask = tables[0].numel(), given[at].reshape(-1)
    grown = [*(t[:, None].expand(n, n) for t in tables[:-1]), tables[-1][None].expand(n, n)]
    weights = mask[:, None] * mask[None] if masked else torch.ones_like(mask[:, None] * mask[None])
    return (*(t.reshape(1, -1) for t in grown), weights.reshape(1, -1), *given[at + 1 :])


# --- what comes out -------------------------------------------------------------------------------------------------


def _of_answers(method: str, answers: Sequence[Any]) -> Iterator[Output]:
    """Every part of an answer, spoiled."""
    for part, value in _parts(method, answers):
        for change in _answer_changes(part, value):
            yield _changed(part, change)


def _changed(part: str, change: Change) -> Output:
    """A change of a part of an answer."""
    return f"{_subject(part)} {change.says}", _spoiling(part, lambda x, given: change.spoil(x))


def _subject(part: str) -> str:
    return f"`{part}` is" if part else "it is"


def _answer_changes(part: str, value: Any) -> tuple[Change, ...]:
    if not value.is_floating_point():
        return (*(changes.MASKS if "mask" in part else changes.IDS), *changes.ORDERS)
    orders = changes.ORDERS if value.ndim > 1 else ()
    more = changes.GRADIENTS if value.requires_grad else ()
    return (*orders, *changes.NUMBERS, *(changes.MEANS if value.ndim == 2 else ()), *more)


def _parts(method: str, answers: Sequence[Any]) -> list[tuple[str, Any]]:
    """Names and tensors of the parts of an answer; the empty name is the answer itself."""
    if not answers:
        return []
    value = answers[0].value
    if is_dataclass(value) and not isinstance(value, type):
        parts = [(f.name, _tensor_of(getattr(value, f.name))) for f in fields(value)]
    else:
        parts = [("", _tensor_of(main(answers[0])))]
    return [(name, part) for name, part in parts if part is not None]


def _tensor_of(value: Any) -> torch.Tensor | None:
    """What changes of an answer are made for: a tensor, a number as one, or the first of several rows."""
    if isinstance(value, list | tuple):
        return value[0] if value and isinstance(value[0], torch.Tensor) else None
    return torch.as_tensor(value) if isinstance(value, torch.Tensor | float | int) else None


def _spoiling(part: str, change: Callable[[Any, Given], Any]) -> Callable[[Any, Given], Any]:
    def spoil(answer: Any, given: Given) -> Any:
        if is_dataclass(answer) and not isinstance(answer, type):
            names = {f.name for f in fields(answer)}
            name = part or ("loss" if "loss" in names else "answers")
            value = getattr(answer, name, None)
            return answer if value is None else replace(answer, **{name: rows_of(value, given)})
        if isinstance(answer, tuple):  # answers, and the output beside them
            at = int(part == "output")
            return tuple(rows_of(value, given) if i == at else value for i, value in enumerate(answer))
        return rows_of(answer, given)

    def rows_of(value: Any, given: Given) -> Any:
        if isinstance(value, list):
            return [change(row, given) for row in value]
        return change(torch.as_tensor(value), given)

    return spoil


def _bare(method: str) -> str:
    return getattr(METHODS[method].answer, "bare", "")


# --- factors and offsets --------------------------------------------------------------------------------------------


def _fitted(smallest: Observed, method: str) -> Iterator[Output]:
    """One factor, or one offset, read off the clearest number that is wrong: all others have to bear it out."""
    for comparison in smallest.broken:
        question = comparison.question
        if question is None or not comparison.answers or comparison.answers[-1].method != method:
            continue
        part = question.reading.field or _bare(method)
        for change in _read_off(comparison, is_gradient=question.reading.is_gradient):
            yield _changed(part, change)


def _read_off(comparison: Comparison, *, is_gradient: bool) -> Iterator[Change]:
    rows = zip(comparison.actual, comparison.expected, comparison.allowed, strict=True)
    off = [(a, e) for a, e, allowed in rows if math.isfinite(a - e) and abs(a - e) > allowed]
    if not off:
        return
    a, e = max(off, key=lambda row: abs(row[1]))
    if e and a and round(a / e, 5) not in (-1.0, 0.5, 1.0, 2.0):  # which have rows of their own
        yield changes.gradient_factor(a / e) if is_gradient else changes.factor(a / e)
    if not is_gradient:
        yield changes.offset(a - e)


Count = Callable[[Any], float]
COUNTS: tuple[tuple[str, Count], ...] = (
    ("the number of rows", lambda m: m.shape[0]),
    ("the number of columns", lambda m: m.shape[-1]),
    ("the number of cells", lambda m: m.numel()),
    ("the number of actions", lambda m: float(m.sum())),
    ("the number of rows with an action", lambda m: float((m.sum(-1) > 0).sum())),
    ("the number of actions of the longest row", lambda m: float(m.sum(-1).max())),
    ("the number of masked cells", lambda m: float((m == 0).sum())),
)


def _counts(method: str, answers: Sequence[Any]) -> Iterator[Output]:
    """Denominators: divided by one count where another one is due, or once too often, or not at all."""
    names = METHODS[method].arguments
    if "action_mask" not in names:
        return
    at, rows = names.index("action_mask"), [("", _one), *COUNTS]
    for part, _ in _parts(method, answers):
        for (due, other), (says, count) in itertools.permutations(rows, 2):
            words = [f"multiplied by {due}"] * bool(due) + [f"divided by {says}"] * bool(says)
            recounted = functools.partial(_recounted, at, other, count)
            yield f"{_subject(part)} {' and '.join(words)}", _spoiling(part, recounted)


def _one(mask: Any) -> float:
    return 1.0


def _recounted(at: int, times: Count, over: Count, x: Any, given: Given) -> Any:
    return x * (float(times(given[at])) / max(float(over(given[at])), 1e-9))


# --- masks by ids ---------------------------------------------------------------------------------------------------


def _by_ids(method: str) -> Iterator[Output]:
    """Masks that go by ids, where the answer has both and the special ones are given."""
    names = METHODS[method].arguments
    for special in (n for n in names if n in ("pad_token_id", "stop_token_ids")):
        at = names.index(special)
        for part in ("attention_mask", "action_mask"):
            says = f"`{part}` is 0 wherever the token is one of `{special}`"
            yield says, functools.partial(_masked_by_ids, part, at, False)
            yield (
                f"`{part}` is 1 exactly where the token is none of `{special}`",
                functools.partial(_masked_by_ids, part, at, True),
            )


def _masked_by_ids(part: str, at: int, alone: bool, answer: Any, given: Given) -> Any:
    mask, ids = getattr(answer, part, None), getattr(answer, "sequences", None)
    if mask is None or ids is None:
        return answer
    special = torch.as_tensor(given[at] if isinstance(given[at], int) else sorted(given[at]))
    other = (~torch.isin(ids[:, ids.shape[1] - mask.shape[1] :], special)).to(mask.dtype)
    return replace(answer, **{part: other if alone else mask * other})
