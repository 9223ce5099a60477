"""Cases that are read off bytes: many small choices from one draw."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from hypothesis import strategies as st

Choice = TypeVar("Choice")
Case = TypeVar("Case")
Other = TypeVar("Other")


class Picks:
    """Choices read off drawn bytes, one byte each, in equal shares.

    They shrink byte by byte towards zero, which stands for the first of the choices: write the simplest one there.
    After the end of the bytes there are only zeros.
    """

    def __init__(self, data: bytes) -> None:
        self._data, self._next = data, 0

    def below(self, n: int) -> int:
        """One of 0, ..., n - 1; of more than 256, some never."""
        self._next += 1
        return self._data[self._next - 1] * n >> 8 if self._next <= len(self._data) else 0

    def of(self, choices: Sequence[Choice]) -> Choice:
        return choices[self.below(len(choices))]

    def chance(self, k: int, n: int) -> bool:
        """True in k of n cases, and not in the simplest."""
        return self.below(n) >= n - k

    def some(self, n: int, least: int) -> list[int]:
        """Which of n places are taken, at least so many of them: each in five cases of eight, the simplest in none."""
        taken = {i for i in range(n) if self.chance(5, 8)}
        spare = [i for i in range(n) if i not in taken]
        return sorted(taken | set(spare[: max(0, least - len(taken))]))

    def again(self) -> Picks:
        """The same choices, from the first one on."""
        return Picks(self._data)

    def part(self, count: int) -> Picks:
        """The next `count` choices, so that what reads fewer of them leaves the places of the others alone."""
        self._next += count
        return Picks(self._data[self._next - count : self._next])


@dataclass(frozen=True)
class Picked(Generic[Case]):
    """Cases that `build` makes from `count` choices.

    Most cases pass, and leave nothing to be made smaller: their bytes are drawn here, which spares the records that
    Hypothesis keeps of every case, and gives the same cases in every version of Python and of Hypothesis. A case that
    fails is made smaller by Hypothesis, which reads the same bytes through `strategy`.
    """

    count: int
    build: Callable[[Picks], Case]

    @property
    def strategy(self) -> st.SearchStrategy[Case]:
        return st.binary(min_size=self.count, max_size=self.count).map(self.case)

    def case(self, data: bytes) -> Case:
        return self.build(Picks(data))

    def drawn(self, seed: int) -> Iterator[bytes]:
        """The bytes of one case after the other, without end: first the simplest case, then any."""
        yield bytes(self.count)
        for number in itertools.count():
            yield hashlib.shake_128(f"{seed}:{number}".encode()).digest(self.count)

    def map(self, change: Callable[[Case], Other]) -> Picked[Other]:
        return Picked(self.count, lambda picks: change(self.build(picks)))

    def with_more(self, count: int, change: Callable[[Case, Picks], Other]) -> Picked[Other]:
        """What `change` makes of a case and of `count` further choices."""
        return Picked(self.count + count, lambda picks: change(self.build(picks.part(self.count)), picks))

    def __or__(self, other: Picked[Any]) -> Picked[Any]:
        """Cases of the one kind or of the other, in equal shares."""
        size = max(self.count, other.count)

        def build(picks: Picks) -> Any:
            kind = (self, other)[picks.below(2)]
            return kind.build(picks.part(kind.count))

        return Picked(1 + size, build)


def outward(n: int) -> tuple[int, ...]:
    """0, 1, -1, 2, -2, ..., n, -n: whole numbers, the simplest first."""
    return (0, *(sign * k for k in range(1, n + 1) for sign in (1, -1)))
