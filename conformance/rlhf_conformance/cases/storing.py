"""Cases as JSON: what a report stores of a failure, and `--replay` tries again."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from functools import cache
from typing import Any

from rlhf_conformance.adapter import PolicyLossOptions, ValueLossOptions
from rlhf_conformance.layouts import Presentation, Sample
from rlhf_conformance.probes import Probe

TYPE, NUMBER = "type", "float"


class StoredCaseError(ValueError):
    """Not a case that this version has stored."""


@cache
def kinds() -> Mapping[str, type]:
    """The classes that cases are made of, by name."""
    from rlhf_conformance.cases import logits, losses, models, sequences

    modules = (logits, losses, models, sequences)
    cases = [v for module in modules for n, v in vars(module).items() if n.endswith("Case") and isinstance(v, type)]
    return {kind.__name__: kind for kind in (*cases, PolicyLossOptions, ValueLossOptions, Presentation, Sample, Probe)}


def to_json(value: Any) -> Any:
    """A case as plain data. JSON has no NaN and no infinity: they are written as {"float": "nan"}."""
    if dataclasses.is_dataclass(value) and type(value).__name__ in kinds():
        fields = {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {TYPE: type(value).__name__, **fields}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {NUMBER: str(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a case holds a {type(value).__name__}, which has no place in JSON")


def from_json(data: Any) -> Any:
    """The case that `to_json` wrote. Raises StoredCaseError."""
    if isinstance(data, list):
        return tuple(from_json(item) for item in data)
    if not isinstance(data, dict):
        return data
    if set(data) == {NUMBER}:
        return float(data[NUMBER])
    fields = dict(data)
    name = fields.pop(TYPE, None)
    if name not in kinds():
        raise StoredCaseError(f"there is no kind of case {name!r}: was it stored by another version?")
    try:
        return kinds()[name](**{key: from_json(item) for key, item in fields.items()})
    except TypeError as error:
        raise StoredCaseError(f"not a {name} of this version: {error}") from error
