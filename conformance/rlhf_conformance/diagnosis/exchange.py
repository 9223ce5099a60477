"""What went to the adapter before the comparison that broke a clause, and the numbers that were compared."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from rlhf_conformance._lazy import torch
from rlhf_conformance.adapter import METHODS, PREPARING, PolicyLossOptions, ValueLossOptions
from rlhf_conformance.batch import Batch, Prompts
from rlhf_conformance.cases import storing
from rlhf_conformance.checks import Check
from rlhf_conformance.judge import ClauseFailure, Comparison, Judge
from rlhf_conformance.probes import Checkpoint
from rlhf_conformance.results import Call, Exchange, Failure, Number
from rlhf_conformance.subject import AdapterError, Subject, WiringError, parameter_names

NUMBERS = 256
"""So many numbers of a comparison are kept."""
CELLS = 300
MADE_AGAIN = ("policy_loss", "value_loss", "token_log_probs", "token_entropy")
"""A tensor of these methods that has more numbers is kept as its shape alone: the case says how to make it."""
ASKED_ONCE = ("sequences.rows-independent",)
"""Clauses that compare one answer with many others."""
_WITHHELD = ("path", "device", "starts")
"""Fields that say something of this machine, or nothing to a trainer."""


def exchange(check: Check, subject: Subject, case: Any, failure: Failure) -> Exchange:
    """Try the case once more, listening to what the adapter is given."""
    events: list[Any] = []
    subject.forget_models()  # so that loading them is heard
    subject.heard = lambda method, args: events.append(_call(method, args)) if _worth_hearing(method) else None
    try:
        check.function(subject, case, Judge(record=events))
    except KeyboardInterrupt:
        raise
    except (ClauseFailure, AdapterError, WiringError):
        pass
    finally:
        subject.heard = None
    end = next((i for i, e in enumerate(events) if _is_broken(e, failure)), None)
    until = events[:end]
    if check.slug in ASKED_ONCE:
        until = [event for event in until if isinstance(event, Call)]
    return Exchange(_calls(until)) if end is None else Exchange(_calls(until), *_numbers(events[end]))


def _worth_hearing(method: str) -> bool:
    return method in METHODS or method in PREPARING


def _is_broken(event: Any, failure: Failure) -> bool:
    return isinstance(event, Comparison) and event.broken is not None and event.what == failure.what


def _calls(events: list[Any]) -> tuple[Call, ...]:
    """Those since the comparison before, or if there are none, since the one that has some; and all that prepared."""
    asked: list[Call] = []
    for event in reversed(events):
        if isinstance(event, Comparison):
            if asked:
                break
        elif event.method not in PREPARING:
            asked.insert(0, event)
    prepared = [e for e in events if isinstance(e, Call) and e.method in PREPARING]
    return (*prepared, *asked)


def _numbers(comparison: Comparison) -> tuple[tuple[Number, ...], int]:
    rows = list(zip(comparison.indices, comparison.expected, comparison.actual, comparison.allowed, strict=True))
    chosen = list(range(len(rows)))
    if len(rows) > NUMBERS:  # those that differ come first
        chosen = sorted(sorted(chosen, key=lambda i: _agrees(*rows[i][1:]))[:NUMBERS])
    return tuple(_number(i, comparison, *rows[i]) for i in chosen), len(rows)


def _agrees(expected: float, actual: float, allowed: float) -> bool:
    return expected == actual or abs(expected - actual) <= allowed


def _number(
    offset: int, comparison: Comparison, index: tuple[int, ...], expected: float, actual: float, allowed: float
) -> Number:
    place = comparison.place(index) or comparison.what
    return Number(offset, place, repr(expected), repr(actual), repr(allowed))


def _call(method: str, args: tuple[Any, ...]) -> Call:
    most = CELLS if method in MADE_AGAIN else None
    plain = {name: _plain(arg, most) for name, arg in zip(parameter_names(method), args, strict=False)}
    return Call(method, {name: value for name, value in plain.items() if value is not _NOT_DATA})


_NOT_DATA = object()


def _plain(value: Any, most: int | None = None) -> Any:
    """An argument as plain data; a model or a folder is none. Tensors with more than `most` numbers are left out."""
    if isinstance(value, torch.Tensor):
        dtype = str(value.dtype).removeprefix("torch.")
        numbers = value.detach().cpu().tolist() if most is None or value.numel() <= most else None
        return {"tensor": storing.to_json(numbers), "dtype": dtype, "shape": list(value.shape)}
    if isinstance(value, Batch | Prompts | Checkpoint):
        named = {f.name: _plain(getattr(value, f.name)) for f in fields(value) if f.name not in _WITHHELD}
        return {storing.TYPE: type(value).__name__, **named}
    if isinstance(value, PolicyLossOptions | ValueLossOptions):
        return storing.to_json(value)
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return storing.to_json(value)
    return _NOT_DATA
