"""How fast the reference takes token log-probs, against `log_softmax(logits.float())` and a gather; docs/speed.md.

    python -m tests.proof speed

Both in turn in one process on one thread, after one turn each that is not counted. Red where a median is below what is
promised, or where more memory is taken than is.
"""

from __future__ import annotations

import itertools
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from rlhf_reference import token_log_probs

from .files import MEASURED, by_line, table

NUMBERS = MEASURED / "speed.json"
SIZES = ((2048, 32_000), (512, 151_936))
"""Positions and words."""
PROMISED = {
    ("float32", False): 2.0,
    ("bfloat16", False): 2.0,
    ("float32", True): 1.5,
    ("bfloat16", True): 2.5,
}
"""By dtype, and whether the backward pass is in it: how often as fast."""
MOST = 32
"""MB beyond the logits and their gradient."""
TURNS = 9


def plain(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return logits.float().log_softmax(-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)


def seconds(compute: Callable[..., torch.Tensor], logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Of one pass forward, and backward if the logits want it."""
    logits.grad = None
    started = time.perf_counter()
    result = compute(logits, labels)
    if logits.requires_grad:
        result.sum().backward()
    return time.perf_counter() - started


def megabytes(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """The most that a pass of the reference holds beyond the logits and their gradient, as torch's allocator counts."""
    logits.grad = None
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        seconds(token_log_probs, logits, labels)
    assert profile.profiler is not None
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = itertools.accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns()))
    gradient = logits.nbytes if logits.requires_grad else 0
    return (max(held) - gradient) / 1e6


def measured(positions: int, words: int, dtype: torch.dtype, backward: bool) -> dict[str, Any]:
    torch.manual_seed(0)
    logits = (3 * torch.randn(1, positions, words)).to(dtype).requires_grad_(backward)
    labels = torch.randint(words, (1, positions))
    ratios = []
    for turn in range(TURNS + 1):
        ratio = seconds(plain, logits, labels) / seconds(token_log_probs, logits, labels)
        ratios += [ratio] if turn else []
    return {
        "positions": positions,
        "words": words,
        "dtype": str(dtype).removeprefix("torch."),
        "backward": backward,
        "ratio": round(statistics.median(ratios), 2),
        "least": round(min(ratios), 2),
        "most": round(max(ratios), 2),
        "megabytes": round(megabytes(logits, labels), 1),
    }


def run() -> int:
    torch.set_num_threads(1)
    rows = {}
    for positions, words in SIZES:
        for dtype in (torch.float32, torch.bfloat16):
            for backward in (False, True):
                row = measured(positions, words, dtype, backward)
                rows[f"{words} {row['dtype']} {'with backward' if backward else 'forward'}"] = row
                print(json.dumps(row), flush=True)
    NUMBERS.write_text(by_line(rows) + "\n")
    return 1 if below(rows) else 0


def below(rows: dict[str, Any]) -> list[str]:
    """The rows that do not hold what is promised."""
    return [
        name
        for name, row in rows.items()
        if row["ratio"] < PROMISED[row["dtype"], row["backward"]] or row["megabytes"] > MOST
    ]


def page(rows: dict[str, Any]) -> str:
    cells = [
        (
            f"{row['positions']} x {row['words']}",
            row["dtype"],
            "forward and backward" if row["backward"] else "forward",
            f"{row['ratio']} ({row['least']} to {row['most']})",
            f"{row['megabytes']} MB",
        )
        for row in rows.values()
    ]
    head = ("positions x words", "dtype of the logits", "passes", "times as fast", "beyond the logits")
    return f"{INTRODUCTION}\n\n{table(head, cells)}\n"


INTRODUCTION = """\
# How fast the reference takes token log-probs

`rlhf_reference.token_log_probs` against `log_softmax(logits.float())` and a gather: how many times as fast it is, as
the median of nine turns with the least and the most, both in turn on one thread of one CPU; and the most memory that
it takes beyond the logits and, for the backward pass, their gradient. Made by `python -m nox -s bench`, which is red
below twice as fast forward, below 1.5 times (float32) and 2.5 times (bfloat16) with the backward pass, and above
32 MB."""
