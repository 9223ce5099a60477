"""Asking, comparing and printing in a script of its own.

The names in capitals stand above these functions in the script: what the trainer was given, and the numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

CALLS: list[dict[str, Any]] = []
PLACES: list[str] = []
EXPECTED: list[float] = []
ALLOWED: list[float] = []


def flat(answer: Any) -> list[float]:
    """All numbers of nested lists and tensors, in order."""
    if isinstance(answer, torch.Tensor):
        answer = answer.detach().cpu().double().tolist()
    if isinstance(answer, (list, tuple)):
        return [number for part in answer for number in flat(part)]
    return [float(answer)]


def gradient(answer: Any, leaf: Any) -> Any:
    """The gradient of a loss, zero where there is no graph."""
    if not answer.requires_grad:
        return torch.zeros_like(leaf)
    (found,) = torch.autograd.grad(answer.sum(), [leaf], allow_unused=True)
    return torch.zeros_like(leaf) if found is None else found


def plain(value: Any) -> Any:
    """A tensor as nested lists, whose numbers Python keeps in float64; anything else as it is."""
    return value.detach().tolist() if isinstance(value, torch.Tensor) else value


def differs(expected: float, returned: float, allowed: float) -> bool:
    """Whether two numbers lie further apart than is allowed; NaN and infinity are only close to themselves."""
    if expected == returned or (math.isnan(expected) and math.isnan(returned)):
        return False
    return not abs(expected - returned) <= allowed


def compare(returned: list[float]) -> int:
    """Print the numbers side by side; 1 where any of them differs, else 0."""
    if len(returned) != len(EXPECTED):
        raise SystemExit(f"the candidate gave {len(returned)} numbers; {len(EXPECTED)} were compared")
    width = max(len(place) for place in PLACES)
    print(f"{'':<{width}}  {'expected':>14}  {'returned':>14}  {'difference':>11}  {'allowed':>11}")
    status = 0
    for i, place in enumerate(PLACES):
        wanted, came, allowed, mark = EXPECTED[i], returned[i], ALLOWED[i], ""
        if differs(wanted, came, allowed):
            status, mark = 1, "  <-- differs"
        print(f"{place:<{width}}  {wanted:>14.7g}  {came:>14.7g}  {came - wanted:>11.3g}  {allowed:>11.3g}{mark}")
    return status


def answers(candidate: Callable[..., Any]) -> list[Any] | None:
    """What the candidate answers to each call; None while nothing is written in it."""
    found = [candidate(**call) for call in CALLS]
    return None if any(answer is None for answer in found) else found
