"""Answers of a wrong kind, and exceptions that are hard to read, in one method of an adapter that is else honest."""

from __future__ import annotations

import collections.abc

import torch
from answers import Honest

from rlhf_conformance import PackedSequences, PolicyLossResult, ProcessedSequences


class Refusing(torch.Tensor):
    """Refuses every function of torch."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError("only inside of the engine")


class Sub(torch.Tensor):
    """Does nothing else than a tensor."""


class LyingLength(list):
    """Has no length."""

    def __len__(self):
        raise RuntimeError("no length")


class LyingIterator(list):
    """Cannot be gone through."""

    def __iter__(self):
        raise RuntimeError("no iterator")


class LyingClass:
    """Does not say what it is."""

    @property
    def __class__(self):
        raise RuntimeError("no class")


class PretendsTensor:
    """Says that it is a tensor."""

    __class__ = torch.Tensor


class NoAttributes:
    """Has no attribute at all."""

    def __getattribute__(self, name):
        raise RuntimeError(f"no {name}")


class NoName(type):
    """A class that refuses to be named."""

    __name__ = property(lambda kind: 1 / 0)


class Nameless(metaclass=NoName):
    """Of a class that refuses to be named."""


class Unequal:
    """Cannot be compared."""

    __hash__ = None

    def __eq__(self, other):
        raise RuntimeError("no equality")


class LyingMapping(collections.abc.Mapping):
    """Has keys that nobody can see."""

    def __getitem__(self, key):
        raise KeyError(key)

    def __iter__(self):
        raise RuntimeError("no keys")

    def __len__(self):
        return 3


class Number(int):
    """Refuses to be a float."""

    def __float__(self):
        raise RuntimeError("no float")


def looped(answer):
    endless = [answer]
    endless.append(endless)
    return endless


def deep(answer):
    for _ in range(10_000):
        answer = [answer]
    return answer


def freed(answer):
    answer = answer.detach().clone()
    answer.untyped_storage().resize_(0)
    return answer


def escaped(answer):
    """A tensor that belongs to a vmap which is over."""
    kept = []
    torch.func.vmap(lambda row: (kept.append(row), row)[1])(torch.ones(2, 2))
    return kept[0]


VALUES = {
    "meta": lambda x: x.to("meta"),
    "coo": lambda x: x.detach().to_sparse(),
    "csr": lambda x: torch.eye(3).to_sparse_csr(),
    "csc": lambda x: torch.eye(3).to_sparse_csc(),
    "bsr": lambda x: torch.eye(4).to_sparse_bsr((2, 2)),
    "bsc": lambda x: torch.eye(4).to_sparse_bsc((2, 2)),
    "nested": lambda x: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "jagged": lambda x: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
    "complex": lambda x: x.detach().to(torch.complex64),
    "quantized": lambda x: torch.quantize_per_tensor(x.detach().float(), 0.1, 0, torch.qint8),
    "mkldnn": lambda x: torch.ones(2).to_mkldnn(),
    "bits8": lambda x: torch.empty(x.shape, dtype=torch.bits8),
    "bool": lambda x: True,
    "bools": lambda x: x.detach().bool(),
    "uint64": lambda x: x.detach().to(torch.uint64),
    "numpy": lambda x: x.detach().numpy(),
    "huge": lambda x: 10**5000,
    "number": lambda x: Number(3),
    "string": lambda x: "0.5",
    "bytes": lambda x: b"0.5",
    "generator": lambda x: (row for row in x),
    "odd keys": lambda x: {3: x, None: 1},
    "set": lambda x: {1, 2},
    "range": lambda x: range(3),
    "nothing in it": lambda x: [],
    "nones": lambda x: [None],
    "triple": lambda x: (x, x, x),
    "class": lambda x: torch.Tensor,
    "module": lambda x: torch.nn.Linear(1, 1),
    "ellipsis": lambda x: ...,
    "not implemented": lambda x: NotImplemented,
    "exception": lambda x: ValueError("returned, not raised"),
    "lambda": lambda x: lambda: x,
    "uninitialized": lambda x: torch.nn.parameter.UninitializedParameter(),
    "empty": lambda x: torch.empty(0),
    "five axes": lambda x: torch.ones(1, 1, 1, 1, 1),
    "refusing": lambda x: x.detach().as_subclass(Refusing),
    "subclass": lambda x: x.as_subclass(Sub),
    "lying length": lambda x: LyingLength([x]),
    "lying iterator": lambda x: LyingIterator([x]),
    "lying class": lambda x: LyingClass(),
    "pretends": lambda x: PretendsTensor(),
    "no attributes": lambda x: NoAttributes(),
    "nameless": lambda x: Nameless(),
    "unequal": lambda x: Unequal(),
    "lying mapping": lambda x: LyingMapping(),
    "looped": looped,
    "deep": deep,
    "freed": freed,
    "escaped": escaped,
    "double": lambda x: x.double(),
    "negative view": lambda x: torch._neg_view(-x.detach()),
}


class Wrong(Honest):
    """Answers with one of VALUES, made of the right answer, in one method."""

    def __init__(self, method, value):
        self.method, self.value = method, value

    def _made(self, method, right):
        return VALUES[self.value](right) if method == self.method else right

    def token_log_probs(self, *args):
        return self._made("token_log_probs", super().token_log_probs(*args))

    def position_ids(self, *args):
        return self._made("position_ids", super().position_ids(*args))

    def policy_loss(self, *args):
        loss = self._made("policy_loss", super().policy_loss(*args))
        return PolicyLossResult(loss, approx_kl=self._made("approx_kl", torch.tensor(0.0)))

    def pack_sequences(self, sequences):
        return PackedSequences(self._made("pack_sequences", torch.cat(sequences)[None]))

    def process_sequences(self, sequences, prompt_length, prompt_attention_mask, stop_token_ids, pad_token_id):
        return self._made("process_sequences", ProcessedSequences(sequences))


class Unreadable(Exception):
    """Lies about its causes, its class and its message."""

    __cause__ = __context__ = __class__ = property(lambda self: 1 / 0)

    def __str__(self):
        return 5


class NamelessError(Exception, metaclass=NoName):
    """Of a class that refuses to be named."""


def itself():
    error = ValueError("wrong")
    raise error from error


def lasso():
    error, first, second = ValueError("wrong"), KeyError("a"), TypeError("b")
    error.__context__, first.__context__, second.__context__ = first, second, first
    raise error


def thousands():
    error = ValueError("the first")
    for i in range(20_000):
        after = ValueError(f"number {i}")
        after.__cause__ = error
        error = after
    raise error


def causes():
    try:
        raise KeyError("head")
    except KeyError as error:
        raise ValueError("no head") from error


def handling():
    try:
        raise KeyError("head")
    except KeyError:
        raise ValueError("while that was handled")


def group():
    kinds = getattr(__builtins__, "ExceptionGroup", None) or __builtins__["ExceptionGroup"]
    inner = ValueError("one")
    several = kinds("several", [inner, KeyError("two")])
    inner.__cause__ = several
    raise several


def unreadable():
    raise Unreadable


def nameless():
    raise NamelessError("no name")


def command():
    raise ValueError("\n::error::take this\n##[error]and this\x1b[31m")


ERRORS = {f.__name__: f for f in (itself, lasso, thousands, causes, handling, group, unreadable, nameless, command)}


class Raising(Honest):
    """Raises one of ERRORS."""

    def __init__(self, error):
        self.error = error

    def token_log_probs(self, *args):
        ERRORS[self.error]()
