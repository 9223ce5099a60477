"""What an answer is by its kind and shape, before anything is said about its numbers: wrong wiring is told apart from
wrong mathematics.

Each kind of answer is a small class with one method, `checked`, which returns the answer as the checks see it or raises
`WiringError`. A float64 answer, NaN or a missing graph is well wired: that is for clauses to judge.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

from rlhf_conformance._lazy import torch
from rlhf_conformance.judging.raised import kind_of, shown

Given = Mapping[str, Any]
"""The arguments of a call by name."""
Shape = tuple["int | None", ...]
"""None stands for any length."""


class WiringError(Exception):
    """A method of the adapter returned something of the wrong kind: not wrong mathematics, but a wrong plug."""

    def __init__(self, method: str, came: str, wanted: str) -> None:
        self.method = method
        super().__init__(f"{method} returned {came}; wanted {wanted}")


class Answer(Protocol):
    """A kind of answer."""

    def checked(self, method: str, value: Any, given: Given, device: str) -> Any:
        """The answer as the checks see it. Raises WiringError."""


@dataclass(frozen=True)
class Tensor:
    """A dense real tensor.

    shape   from the arguments by name; None: not told
    wanted  what its numbers are, in words
    kind    "float", "integer" (bool included) or "number", which is either
    """

    shape: Callable[[Given], Shape | None]
    wanted: str
    kind: str = "float"

    def checked(self, method: str, value: Any, given: Given, device: str, label: str = "") -> Any:
        """See `Answer`; `label` is what a part of an answer is called, empty for an answer by itself."""
        shape = self.shape(given)
        wanted = f"a tensor of shape {_show(shape)}: {self.wanted}" if shape is not None else self.wanted
        prefix = f"{label} = " if label else ""
        tensor = dense(method, value, wanted, device, prefix)
        if shape is not None and not _fits(tuple(tensor.shape), shape):
            raise WiringError(method, prefix + describe(value), wanted)
        if self.kind == "float" and not tensor.is_floating_point():
            raise WiringError(method, prefix + describe(value), f"floating-point numbers: {self.wanted}")
        if self.kind == "integer" and tensor.is_floating_point():
            raise WiringError(method, prefix + describe(value), f"integers: {self.wanted}")
        return tensor


@dataclass(frozen=True)
class Scalar:
    """A tensor with one number, of whatever shape."""

    wanted: str

    def checked(self, method: str, value: Any, given: Given, device: str, label: str = "") -> Any:
        prefix = f"{label} = " if label else ""
        tensor = dense(method, value, f"{self.wanted}, a tensor with one number", device, prefix)
        if tensor.numel() != 1:
            raise WiringError(method, prefix + describe(value), f"{self.wanted}, a tensor with one number")
        if not tensor.is_floating_point():
            raise WiringError(method, prefix + describe(value), f"{self.wanted}, a floating-point number")
        return tensor


@dataclass(frozen=True)
class Metric:
    """A number, or a tensor that holds one."""

    wanted: str = "a number, or a tensor that holds one"

    def checked(self, method: str, value: Any, given: Given, device: str, label: str = "") -> Any:
        if is_a(value, float):
            return float.__float__(value)
        if is_a(value, int) and type(value) is not bool:
            return _number(method, int.__int__(value), f"{label} = ", self.wanted)
        tensor = dense(method, value, self.wanted, device, f"{label} = ")
        if tensor.numel() != 1 or tensor.dtype == torch.bool:
            raise WiringError(method, f"{label} = {describe(value)}", self.wanted)
        return tensor


@dataclass(frozen=True)
class Record:
    """Several answers in one object; a part that is None is not made, unless it is `required`.

    kind        the class of the object
    parts       the kinds of its fields
    required    fields that may not be None
    loose       a tuple with all the fields will do, too
    bare        the field that an answer of another class is taken for; empty: none
    """

    kind: type
    parts: Mapping[str, Any]
    required: tuple[str, ...] = ()
    loose: bool = False
    bare: str = ""

    def checked(self, method: str, value: Any, given: Given, device: str) -> Any:
        if self.loose and is_a(value, tuple) and tuple.__len__(value) == len(fields(self.kind)):
            value = self.kind(*tuple.__iter__(value))
        if not is_a(value, self.kind):
            if not self.bare:
                raise WiringError(method, describe(value), f"a {self.kind.__name__}")
            return self.kind(**{self.bare: self.parts[self.bare].checked(method, value, given, device)})
        whole = {field.name: getattr(value, field.name) for field in fields(self.kind)}
        found: dict[str, Any] = {}
        for name, part in self.parts.items():
            inner = whole[name]
            if inner is not None or name in self.required:
                label = "" if name == self.bare else name
                found[name] = part.checked(method, inner, {**given, "answer": {**whole, **found}}, device, label)
        return self.kind(**{**whole, **found})


@dataclass(frozen=True)
class Actions:
    """A number for each action of a batch, in one of the shapes that its layout accepts; the checks see one 1-D tensor
    for each sample."""

    wanted: str = "floating-point numbers, one for each action"

    def checked(self, method: str, value: Any, given: Given, device: str) -> Any:
        rows: Any
        either = "a tensor, or a list of 1-D tensors, one for each sample"
        if is_a(value, list) or is_a(value, tuple):
            items = list((list if is_a(value, list) else tuple).__iter__(value))
            if not all(is_a(row, torch.Tensor) for row in items):
                raise WiringError(method, describe(value), either)
            rows = [dense(method, row, either, device, "in a list ") for row in items]
        else:
            rows = dense(method, value, either, device)
        if not all(part.is_floating_point() for part in (rows if isinstance(rows, list) else [rows])):
            raise WiringError(method, describe(value), self.wanted)
        try:
            return given["batch"].actions_to_ragged(rows)
        except ValueError as error:
            came, _, wanted = str(error).partition("; wanted ")
            raise WiringError(method, came, wanted) from None


@dataclass(frozen=True)
class Cells:
    """Entries (*entry) for every cell of a batch; the checks see one tensor (length, *entry) for each sample."""

    entry: Shape = ()

    def checked(self, method: str, value: Any, given: Given, device: str) -> Any:
        shape = (*given["batch"].input_ids.shape, *self.entry)
        answer = Tensor(lambda _: shape, "an entry for every position").checked(method, value, given, device)
        return given["batch"].to_ragged(answer)


@dataclass(frozen=True)
class Either:
    """One of several kinds of answers, which their shapes tell apart."""

    kinds: tuple[Any, ...]
    wanted: str

    def checked(self, method: str, value: Any, given: Given, device: str) -> Any:
        for kind in self.kinds:
            with contextlib.suppress(WiringError):
                return kind.checked(method, value, given, device)
        raise WiringError(method, describe(value), self.wanted)


@dataclass(frozen=True)
class WithOutput:
    """Answers, and the whole output of the model that they were read from."""

    answers: Any
    output: Any


@dataclass(frozen=True)
class Beside:
    """A pair: answers, and the whole output beside them; the checks see a `WithOutput`."""

    answers: Any
    output: Any
    bare: str = "answers"

    def checked(self, method: str, value: Any, given: Given, device: str) -> Any:
        if not (is_a(value, list) or is_a(value, tuple)) or len(value) != 2:
            raise WiringError(method, describe(value), "a pair: the answers, and the whole output beside them")
        kinds = (self.answers, self.output)
        return WithOutput(*(k.checked(method, part, given, device) for k, part in zip(kinds, value, strict=True)))


@dataclass(frozen=True)
class PerSample:
    """A number for each sample of a batch; the checks see a list of tensors with one entry."""

    wanted: str

    def checked(self, method: str, value: Any, given: Given, device: str) -> Any:
        count = len(given["batch"].prompt_lengths)
        answer = Tensor(lambda _: (count,), self.wanted).checked(method, value, given, device)
        return list(answer.split(1))


@dataclass(frozen=True)
class Model:
    """Anything that later calls can be given."""

    def checked(self, method: str, value: Any, given: Given, device: str) -> Any:
        if value is None:
            raise WiringError(method, "None", "the model that later calls are to be given")
        return value


@dataclass(frozen=True)
class Named:
    """Parameters, or what else there is of each, by name."""

    what: str = "parameters"

    def checked(self, method: str, value: Any, given: Given, device: str, label: str = "") -> Any:
        wanted = f"a mapping of names to {self.what}"
        if not is_a(value, Mapping):
            raise WiringError(method, describe(value), wanted)
        found = dict(value)
        for name, parameter in found.items():
            if type(name) is not str:
                raise WiringError(method, f"a mapping with {describe(name)} among its keys", wanted)
            if not is_a(parameter, torch.Tensor):
                raise WiringError(method, f"{describe(parameter)} under {shown(name)!r}", wanted)
            odd = _oddity(parameter)
            if odd:
                came = f"{describe(parameter)} under {shown(name)!r}, {odd}"
                raise WiringError(method, came, f"{wanted}, each a dense tensor of real numbers")
        return found


def is_a(value: Any, kind: type) -> bool:
    """`isinstance`, by the type alone: `__class__` of an object may lie, or raise."""
    return issubclass(type(value), kind)


def _number(method: str, value: int, prefix: str, wanted: str) -> float:
    try:
        return float(value)
    except OverflowError:
        came = f"{prefix}an int of {value.bit_length()} bits, which no float can hold"
        raise WiringError(method, came, wanted) from None


def dense(method: str, value: Any, wanted: str, device: str, prefix: str = "") -> Any:
    """A plain tensor of real numbers on the device of the run. Raises WiringError for anything else."""
    if not is_a(value, torch.Tensor):
        raise WiringError(method, prefix + describe(value), wanted)
    odd = _oddity(value, device)
    if odd:
        raise WiringError(method, f"{prefix}{describe(value)}, {odd}", f"a dense tensor of real numbers on {device}")
    return value


def _oddity(value: torch.Tensor, device: str = "") -> str:
    """What keeps a tensor from being read as plain numbers, on a device if one is named, in words; empty where nothing
    does."""
    if value.is_nested:
        return "which is nested"
    if value.layout != torch.strided:
        return f"whose layout is {str(value.layout).removeprefix('torch.')}"
    if value.is_quantized:
        return "which is quantized"
    if value.is_complex():
        return "which is complex"
    if value.device.type == "meta":
        return "which is on the device meta and holds no numbers"
    if not _has_numbers(value.dtype):
        return "whose numbers torch cannot convert"
    if device and not _is_on(value.device, torch.device(device)):
        return f"which is on {value.device}"
    return ""


@functools.cache
def _has_numbers(dtype: torch.dtype) -> bool:
    """Whether torch makes float64 of a dtype: of some, which pack several numbers into a byte, it does not."""
    try:
        torch.empty(1, dtype=dtype).double()
    except (RuntimeError, NotImplementedError, TypeError):
        return False
    return True


def _is_on(device: torch.device, wanted: torch.device) -> bool:
    """Whether they are the same: one without a number is the current one of its kind."""
    if device.type != wanted.type or device.type == "cpu":
        return device.type == wanted.type
    current = torch.get_device_module(device).current_device()
    indices = [current if d.index is None else d.index for d in (device, wanted)]
    return indices[0] == indices[1]


def describe(value: Any) -> str:
    """What something is, in words that never fail, whatever it says of itself."""
    if value is None:
        return "None (is a return statement missing?)"
    name = kind_of(value)
    if is_a(value, torch.Tensor):
        return _of_tensor(value, name)
    for kind in (list, tuple, dict, set):
        if is_a(value, kind):
            return f"{_an(name)} of {kind.__len__(value)}"
    if is_a(value, Sequence) and not is_a(value, str):
        with contextlib.suppress(Exception):  # which its `__len__` may raise
            return f"{_an(name)} of {len(value)}"
    return _an(name)


def _of_tensor(value: torch.Tensor, name: str) -> str:
    try:
        with torch._C.DisableTorchFunctionSubclass():
            dtype = str(value.dtype).removeprefix("torch.")
            shape = "" if value.is_nested else f" of shape {tuple(value.shape)}"
    except Exception:  # a subclass may refuse even that
        return f"a tensor ({name})"
    plain = type(value) in (torch.Tensor, torch.nn.Parameter)
    return f"{_an(dtype)} {'tensor' if plain else f'tensor ({name})'}{shape}"


def _an(word: str) -> str:
    return f"{'an' if word[:1].lower() in 'aeio' else 'a'} {word}"


def _fits(shape: tuple[int, ...], wanted: Shape) -> bool:
    return len(shape) == len(wanted) and all(w is None or s == w for s, w in zip(shape, wanted, strict=True))


def _show(shape: Shape) -> str:
    inner = ", ".join("N" if n is None else str(n) for n in shape)
    return f"({inner},)" if len(shape) == 1 else f"({inner})"
