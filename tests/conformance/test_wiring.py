"""Every method times every kind of answer that is wrong for it: one table, made from the rows of the methods."""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy
import pytest
import torch

from rlhf_conformance.adapter import METHODS
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.judging import wiring
from rlhf_conformance.judging.checks import checks
from rlhf_conformance.judging.subject import Subject
from rlhf_conformance.judging.trying import PROFILES, try_clause
from rlhf_conformance.judging.wiring import WiringError
from rlhf_conformance.results import ERROR, FAIL

ANSWERING = [name for name, row in METHODS.items() if row.answer is not None and not row.loads and not row.optional]


class Raising(torch.Tensor):
    """A tensor that lets nobody do anything with it."""

    @classmethod
    def __torch_function__(cls, function: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError("not with me")


def raising(x: torch.Tensor) -> Any:
    return torch.Tensor._make_subclass(Raising, x.detach())


def quantized(x: torch.Tensor) -> torch.Tensor:
    return torch.quantize_per_tensor(x.detach().float(), 0.1, 0, torch.qint8)


def nested(x: torch.Tensor) -> torch.Tensor:
    return torch.nested.nested_tensor([x.detach().reshape(-1), x.detach().reshape(-1)[:1]])


OF_TENSORS: dict[str, Callable[[torch.Tensor], Any]] = {
    "None": lambda x: None,
    "str": lambda x: "0.5",
    "numpy": lambda x: numpy.asarray(x.detach()),
    "list of lists": lambda x: x.detach().reshape(1, -1).tolist(),
    "a number": lambda x: 0.5,
    "0-d": lambda x: x.detach().reshape(-1)[0],
    "wrong shape": lambda x: x.detach()[..., None, None].expand(*x.shape, 2, 2),
    "meta": lambda x: x.detach().to("meta"),
    "sparse": lambda x: x.detach().to_sparse(),
    "nested": nested,
    "complex": lambda x: x.detach().to(torch.complex64),
    "quantized": quantized,
    "a subclass that raises": raising,
    "a generator": lambda x: (row for row in [x.detach()]),
    "a tuple": lambda x: (x.detach(), x.detach(), x.detach(), x.detach()),
    "a dictionary": lambda x: {"answer": x.detach()},
    "whole numbers": lambda x: x.detach().round().long(),
    "fractions": lambda x: x.detach().double() + 0.5,
}
"""What may come in place of a tensor."""
FOR_CLAUSES: dict[str, Callable[[torch.Tensor], Any]] = {
    "NaN": lambda x: x.detach() * torch.nan if x.is_floating_point() else x.detach(),
    "no graph": lambda x: x.detach(),
    "float64": lambda x: x.double() if x.is_floating_point() else x.detach(),
}
"""What is well wired, be it right or wrong."""


def floats(kind: Any) -> bool:
    """Whether a kind of answer has to be of floating-point numbers."""
    return not isinstance(kind, wiring.Tensor) or kind.kind == "float"


def is_right(kind: Any, name: str) -> bool:
    """Whether that kind of answer is right for the method after all."""
    if isinstance(kind, wiring.Metric):
        return name in ("a number", "0-d", "whole numbers", "fractions", "None")
    if isinstance(kind, wiring.Scalar):
        return name in ("0-d", "fractions")
    if isinstance(kind, wiring.Named):
        return name == "a dictionary"
    if name == "whole numbers":
        return not floats(kind)
    if name == "fractions":
        return floats(kind) or (isinstance(kind, wiring.Tensor) and kind.kind == "number")
    return False


PAIR = tuple(field.name for field in fields(wiring.WithOutput))


def parts_of(name: str) -> list[str]:
    """The parts of a method's answer; the empty string where it is one tensor."""
    answer = METHODS[name].answer
    if isinstance(answer, wiring.Beside):
        return list(PAIR)
    return list(answer.parts) if isinstance(answer, wiring.Record) else [""]


def kind_of(name: str, part: str) -> Any:
    answer = METHODS[name].answer
    if isinstance(answer, wiring.Beside):
        return getattr(answer, part)
    return answer.parts[part] if part else answer


def is_required(name: str, part: str) -> bool:
    answer = METHODS[name].answer
    return not part or isinstance(answer, wiring.Beside) or part in answer.required


TABLE = [
    pytest.param(name, part, how, id=f"{name}{'.' if part else ''}{part}-{how}")
    for name in ANSWERING
    for part in parts_of(name)
    for how in OF_TENSORS
    if not is_right(kind_of(name, part), how) and (how != "None" or is_required(name, part))
]


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A subject, and one call of each method with what the reference answered to it."""
    from rlhf_conformance.oracle.probes import ProbeStore

    store = ProbeStore(tmp_path_factory.mktemp("probes"))
    subject = Subject.make(Reference(), device="cpu", dtype="float32", store=store)
    given: dict[str, tuple[Any, ...]] = {}
    subject.heard = lambda method, handed: given.setdefault(method, handed)
    for slug, check in checks().items():
        if not set(check.needs) <= set(given):
            try_clause(slug, subject, PROFILES["smoke"], 0)
    subject.heard = None
    assert set(ANSWERING) <= set(given)
    return subject, given


def answered(subject: Subject, name: str, given: tuple[Any, ...], change: Callable[[Any], Any]) -> Any:
    """What the suite makes of an answer that is changed first."""

    class Changed(Reference):
        pass

    setattr(Changed, name, lambda self, *args: change(getattr(Reference, name)(self, *args)))
    return Subject(Changed(), "cpu", torch.float32, subject.store, subject.truth).ask(name, *given)


def in_part(part: str, change: Callable[[torch.Tensor], Any], each: bool = False) -> Callable[[Any], Any]:
    """The change to one part of an answer, or to all of it; `each`: of a list or a mapping, to each tensor of it."""

    def changed(answer: Any) -> Any:
        if part in PAIR:
            at = PAIR.index(part)
            return (*answer[:at], in_part("", change)(answer[at]), *answer[at + 1 :])
        if part:
            made = [value for value in vars(answer).values() if value is not None]
            value = next((v for v in (getattr(answer, part),) if v is not None), made[0])  # as the first that is made
            value = torch.tensor(value) if isinstance(value, float) else value
            if isinstance(value, dict) and each:
                return replace(answer, **{part: {name: change(x) for name, x in value.items()}})
            value = next(iter(value.values())) if isinstance(value, dict) else value
            return replace(answer, **{part: change(value)})
        if is_dataclass(answer):
            return replace(answer, **{f.name: change(getattr(answer, f.name)) for f in fields(answer)})
        if isinstance(answer, list) and each:
            return [change(x) for x in answer]
        return change(torch.cat(list(answer)) if isinstance(answer, list | tuple) else answer)

    return changed


@pytest.mark.parametrize("name, part, how", TABLE)
def test_a_wrong_kind_of_answer_is_wrong_wiring_with_a_sentence(name: str, part: str, how: str, asked):
    subject, given = asked
    try:
        OF_TENSORS[how](torch.ones(2, 3))
    except (RuntimeError, NotImplementedError) as error:
        pytest.fail(f"this torch makes no such tensor: {error}")
    with pytest.raises((WiringError, Exception)) as raised:
        answered(subject, name, given[name], in_part(part, OF_TENSORS[how]))
    sentence = str(raised.value)
    assert type(raised.value).__name__ in ("WiringError", "AdapterError"), repr(raised.value)
    assert sentence.startswith((f"{name} returned ", f"{name} raised RuntimeError: not with me")), sentence
    if type(raised.value).__name__ == "WiringError":
        assert "; wanted " in sentence


@pytest.mark.parametrize("how", FOR_CLAUSES)
@pytest.mark.parametrize("name", ANSWERING)
def test_what_clauses_judge_is_well_wired(name: str, how: str, asked):
    subject, given = asked
    for part in parts_of(name):
        answered(subject, name, given[name], in_part(part, FOR_CLAUSES[how], each=True))


WHOLE = ("None", "sparse", "a generator", "a subclass that raises", "meta", "nested")


@pytest.mark.parametrize("how", WHOLE)
@pytest.mark.parametrize("name", ANSWERING)
def test_no_clause_is_lost_by_it(name: str, how: str, asked):
    """Through a whole clause, which says so: most as an error, those about shapes as their failure."""
    subject, _ = asked

    class Changed(Reference):
        pass

    setattr(Changed, name, lambda self, *args: OF_TENSORS[how](torch.ones(3, 3)))
    slug = next(slug for slug, check in checks().items() if name in check.needs)
    other = Subject(Changed(), "cpu", torch.float32, subject.store, subject.truth)
    result = try_clause(slug, other, PROFILES["smoke"], 0).result
    assert result.verdict in (ERROR, FAIL), result.reason
    assert name in result.reason
    assert "the suite itself" not in result.reason


@pytest.mark.parametrize("name", [name for name, row in METHODS.items() if row.loads])
def test_a_model_is_anything_but_nothing(name: str):
    row = METHODS[name]
    assert row.answer.checked(name, types.SimpleNamespace(), {}, "cpu")
    with pytest.raises(WiringError, match="returned None; wanted the model"):
        row.answer.checked(name, None, {}, "cpu")


def test_the_table_is_made_from_the_rows():
    """Every method that answers is in it, with each kind of answer that is wrong for it."""
    assert {parameter.values[0] for parameter in TABLE} == set(ANSWERING)
    assert len(TABLE) >= 14 * len(ANSWERING)
