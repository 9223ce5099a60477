"""Tables of numbers for each token under an action mask: what the cases of losses and of credit are made of."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from rlhf_conformance._lazy import torch
from rlhf_conformance.judging.picks import Picked, Picks
from rlhf_conformance.judging.storing import stored

if TYPE_CHECKING:
    from typing_extensions import Self

    Case = Any  # of whichever kind the check draws

Rows = tuple[tuple[float, ...], ...]
Masks = tuple[tuple[int, ...], ...]
Kind = TypeVar("Kind", bound="MaskedCase")


class MaskedCase:
    """One call of a formula: tables of numbers (B, T), what is an action, and what is asked for.

    TABLES      the names of the tables
    PER_ROW     the names of what each row has one number of, (B,)
    """

    TABLES: ClassVar[tuple[str, ...]]
    PER_ROW: ClassVar[tuple[str, ...]] = ()

    if TYPE_CHECKING:
        action_mask: Masks
        options: Any

    @property
    def size(self) -> tuple[int, int]:
        """Rows and cells."""
        return len(self.action_mask), sum(len(row) for row in self.action_mask)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.action_mask), len(self.action_mask[0])

    @property
    def actions(self) -> list[tuple[int, int]]:
        """Row and column of each action."""
        return [(i, j) for i, row in enumerate(self.action_mask) for j, m in enumerate(row) if m]

    @property
    def counts(self) -> list[int]:
        """Actions in each row."""
        return [sum(row) for row in self.action_mask]

    def mapped(self, change: Callable[[tuple[Any, ...]], tuple[Any, ...]]) -> Self:
        """Every table and the mask changed alike."""
        return self.changed(**{name: change(getattr(self, name)) for name in (*self.TABLES, "action_mask")})

    def rows(self, order: Sequence[int]) -> Self:
        """Only these rows, in this order."""
        names = (*self.TABLES, *self.PER_ROW, "action_mask")
        return self.changed(**{name: tuple(getattr(self, name)[i] for i in order) for name in names})

    def repeated(self, times: int) -> Self:
        """Every row repeated along its length."""
        return self.mapped(lambda table: tuple(row * times for row in table))

    def with_options(self, **changes: Any) -> Self:
        return self.changed(options=replace(self.options, **changes))

    def changed(self, **fields: Any) -> Self:
        """The same with other fields."""
        return replace(self, **fields)  # type: ignore[type-var]


if not TYPE_CHECKING:
    Case = MaskedCase


def exactly(x: float, dtype: torch.dtype) -> float:
    """The number nearest to x that the dtype holds (ties to even), without making a tensor for it. In float64 it is
    that of float32: a trainer may compute in float32 whatever it is handed, and no budget is for rounding inputs."""
    name = str(dtype).removeprefix("torch.")
    if name == "float16":
        return float(struct.unpack("e", struct.pack("e", x))[0])
    bits = struct.unpack("I", struct.pack("f", x))[0]
    if name == "bfloat16":  # the upper half of a float32
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return float(struct.unpack("f", struct.pack("I", bits))[0])


@stored
@dataclass(frozen=True)
class DressedCase:
    """A case and the same case with other numbers under its mask, which has at least one hole."""

    case: Case
    dressed: Case

    def with_options(self, **changes: Any) -> DressedCase:
        return DressedCase(self.case.with_options(**changes), self.dressed.with_options(**changes))

    def tamed(self, largest: float) -> DressedCase:
        """With what stands under the mask no larger than this, of either sign."""
        return DressedCase(self.case, masked(self.dressed, lambda x: min(max(x, -largest), largest)))


def dressed(
    cases: Picked[Any], filler: Sequence[float], dtype: torch.dtype, columns: int, most: int
) -> Picked[DressedCase]:
    """Masked cells filled from `filler`, in each of the tables, and so many masked columns more; one more where there
    would be no such cell. At most so many cells are filled with choices of their own."""
    values = [exactly(x, dtype) for x in filler]

    def dress(case: Any, picks: Picks) -> DressedCase:
        without_hole = all(all(row) for row in case.action_mask)
        case = widened(case, columns or int(without_hole))
        return DressedCase(case, masked(case, lambda _: picks.of(values)))

    return cases.with_more(most, dress)


def masked(case: Kind, change: Callable[[float], float]) -> Kind:
    """The case with another number in each masked cell of its tables, made of the one that is there."""
    fields: dict[str, Any] = {}
    for name in case.TABLES:
        rows = zip(getattr(case, name), case.action_mask, strict=True)
        fields[name] = tuple(tuple(x if m else change(x) for x, m in zip(*row, strict=True)) for row in rows)
    return case.changed(**fields)


def widened(case: Kind, columns: int, *, left: bool = False) -> Kind:
    """The case with masked columns of zeros added on one side."""

    def wider(row: tuple[Any, ...], zero: float) -> tuple[Any, ...]:
        extra = (zero,) * columns
        return extra + row if left else row + extra

    fields = {name: tuple(wider(row, 0.0) for row in getattr(case, name)) for name in case.TABLES}
    return case.changed(action_mask=tuple(wider(row, 0) for row in case.action_mask), **fields)


@stored
@dataclass(frozen=True)
class WidenedCase:
    """A case, and how many masked columns are added on which side."""

    case: Case
    columns: int
    left: bool
