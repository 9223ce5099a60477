"""Logits with labels. Values come from a seed, so that a shrunk case is a small shape rather than many small
numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

from rlhf_conformance._lazy import torch
from rlhf_conformance.judging.picks import Picked, Picks
from rlhf_conformance.judging.storing import stored

ODD_SIZES = (1, 2, 3, 7, 9, 15, 17, 31, 33, 63, 65, 127, 129, 255, 257, 1023, 1025)
SMALL_SIZES = (2, 1, *range(3, 12))
WIDE = (40_000, 100_000)
"""More ids than 15 bits can count, and than 16."""
MANY_ROWS, LONG = (9, 17, 33), (257, 513)
"""More rows and positions than what small batches are cut into, and not a multiple of it."""
IGNORE = -100
WRITTEN_OUT = 300
"""Logits of a case that are kept one by one; of more, how they are drawn."""


@stored
@dataclass(frozen=True)
class LogitsCase:
    """Logits (B, T, V) of spread `scale`, shifted by `offset`, with labels (B, T).

    likeliest   every label is the likeliest id of its position
    ruled_out   about half of the ids of each position have the logit -inf; the likeliest and the label have not
    """

    batch_size: int
    length: int
    vocab_size: int
    seed: int
    scale: float = 2.0
    offset: float = 0.0
    temperature: float = 1.0
    dtype: str = "float32"
    ignored: tuple[int, ...] = ()  # flat indices of labels that are -100
    likeliest: bool = False
    ruled_out: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """Rows and positions."""
        return self.batch_size, self.batch_size * self.length

    def of_length(self, length: int) -> LogitsCase:
        """The same with another number of positions."""
        return replace(self, length=length)

    @cached_property
    def logits(self) -> torch.Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        shape = (self.batch_size, self.length, self.vocab_size)
        noise = (torch.randn(shape, generator=generator) * self.scale + self.offset).to(getattr(torch, self.dtype))
        if not self.ruled_out:
            return noise
        out = torch.rand(shape, generator=generator) < 0.5
        return noise.masked_fill(out.scatter(-1, noise.argmax(-1, keepdim=True), value=False), -math.inf)

    @cached_property
    def labels(self) -> torch.Tensor:
        generator = torch.Generator().manual_seed(self.seed + 1)
        shape = (self.batch_size, self.length)
        labels = torch.randint(self.least_label, self.vocab_size, shape, generator=generator)
        if self.likeliest or self.ruled_out:
            best = self.logits.argmax(-1)
            out = self.logits.gather(-1, labels.unsqueeze(-1)).squeeze(-1) == -math.inf
            labels = best if self.likeliest else best.where(out, labels)
        for index in self.ignored:
            labels.view(-1)[index % labels.numel()] = IGNORE
        return labels

    @property
    def least_label(self) -> int:
        """0, or of a large vocabulary the first id that 15 bits cannot count."""
        return 2**15 if self.vocab_size > 2**15 else 0

    @property
    def recipes(self) -> dict[str, str]:
        """The source that makes the tensors anew, where they are too many numbers to be written out."""
        shape = (self.batch_size, self.length, self.vocab_size)
        if self.batch_size * self.length * self.vocab_size <= WRITTEN_OUT:
            return {}
        noise = f"torch.randn({shape}, generator=torch.Generator().manual_seed({self.seed}))"
        drawn = f"torch.Generator().manual_seed({self.seed + 1})"
        logits = {"logits": f"({noise} * {self.scale} + {self.offset}).to(torch.{self.dtype})"}
        if self.ignored or self.likeliest:
            return logits
        return logits | {
            "labels": f"torch.randint({self.least_label}, {self.vocab_size}, {shape[:2]}, generator={drawn})",
        }


def logits_cases(
    *dtypes: str,
    temperatures: tuple[float, ...] = (1.0,),
    scales: tuple[float, ...] = (1.0, 2.0, 4.0),
    offsets: tuple[float, ...] = (0.0,),
    ignored: bool = False,
    likeliest: bool = False,
    ruled_out: bool = False,
    wide: bool = False,
) -> Picked[LogitsCase]:
    """Small batches: up to 4 rows of up to 6 positions, over up to 11 tokens or more than a top-k would hold. Now and
    then many rows, or long ones, or logits that are all alike; and if asked for a vocabulary of which no label fits
    into 15 bits."""

    def build(picks: Picks) -> LogitsCase:
        case = usual(picks.part(15))
        rare, kind = picks.chance(1, 4) and not ruled_out, picks.below(4)
        rows, length = picks.of(MANY_ROWS), picks.of(LONG)
        few = min(case.vocab_size, 5)
        if wide and picks.chance(1, 8):
            return replace(case, batch_size=1, length=1, vocab_size=picks.of(WIDE))
        if not rare:
            return case
        return (
            replace(case, scale=0.0),
            replace(case, batch_size=rows),
            replace(case, batch_size=1, length=length, vocab_size=few),
            replace(case, batch_size=1, length=length, vocab_size=few),
        )[kind]

    def usual(picks: Picks) -> LogitsCase:
        large = picks.chance(1, 2) and not likeliest and not ruled_out  # these have no recipe
        left = list(range(24))
        return LogitsCase(
            batch_size=1 + picks.below(4),
            length=1 + picks.below(6),
            vocab_size=picks.of((33, 130)) if large else picks.of(SMALL_SIZES),
            seed=_seed(picks),
            scale=picks.of(scales),
            offset=picks.of(offsets),
            temperature=picks.of(temperatures),
            dtype=picks.of(dtypes),
            ignored=tuple(left.pop(picks.below(len(left))) for _ in range(1 + picks.below(4))) if ignored else (),
            likeliest=likeliest,
            ruled_out=ruled_out,
        )

    return Picked(15 + 6, build)


def long_logits_cases(dtype: str) -> Picked[LogitsCase]:
    """One position; `of_length` makes it as long as the check wants."""

    def build(picks: Picks) -> LogitsCase:
        return LogitsCase(1 + picks.below(3), 1, 2 + picks.below(4), _seed(picks), dtype=dtype)

    return Picked(4, build)


def _seed(picks: Picks) -> int:
    return 100 * picks.below(100) + picks.below(100)
