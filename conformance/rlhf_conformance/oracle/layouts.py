"""Presentations of a ragged batch: from lists of tokens to a `Batch` in a layout, and nothing else.

Written for the suite alone: the reference implementation has its own, so that neither can hide the other's mistake.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from rlhf_conformance._lazy import torch
from rlhf_conformance.oracle.batch import PACKS, Batch, Prompts

IGNORE = -100
Entry = TypeVar("Entry")


@dataclass(frozen=True)
class Sample:
    """A prompt and a response, in token ids, without any padding.

    action_mask     1 on tokens of the response that the policy wrote, 0 on observations between its turns; empty where
                    it wrote all of them
    """

    prompt: tuple[int, ...]
    response: tuple[int, ...]
    action_mask: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.action_mask and len(self.action_mask) != len(self.response):
            raise ValueError(f"an action mask of {len(self.action_mask)} for a response of {len(self.response)} tokens")

    @property
    def tokens(self) -> tuple[int, ...]:
        return self.prompt + self.response

    @property
    def acts(self) -> tuple[int, ...]:
        """1 on each token of the response that is an action, 0 on observations."""
        return self.action_mask or (1,) * len(self.response)

    def of_actions(self, per_token: Sequence[Entry]) -> list[Entry]:
        """Of entries for each token of the response those of the actions."""
        return [entry for entry, acts in zip(per_token, self.acts, strict=True) if acts]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.response)


@dataclass(frozen=True)
class Presentation:
    """How a ragged batch is laid out: extra pad columns on each side, and the ids in masked cells.

    `garbage` are token ids put into the masked cells one after another (over again when they run out); empty means that
    every masked cell holds the pad id. The `tail` of "segments" is one shorter, so that there may be none.
    """

    layout: str = "padded"
    extra_left: int = 0
    extra_right: int = 0
    tail: int = 3
    shards: int = 2
    garbage: tuple[int, ...] = field(default=())

    def plain(self) -> Presentation:
        """The same layout with nothing added."""
        return replace(self, extra_left=0, extra_right=0, garbage=())


@dataclass(frozen=True)
class _Grid:
    """Where each sample lies in a padded layout: its first column, the number of columns, and the action columns."""

    starts: tuple[int, ...]
    width: int
    first_action: int  # column of the first entry of the action mask
    num_actions: int | tuple[int, ...]


def present(
    samples: Sequence[Sample],
    how: Presentation,
    *,
    pad_token_id: int,
    temperature: float = 1.0,
    device: str = "cpu",
) -> Batch:
    """The batch of `samples` laid out as `how` says, on `device`."""
    make = _packed if how.layout in PACKS else _rectangle
    return make(tuple(samples), how, pad_token_id, temperature, device)


def _grid(samples: tuple[Sample, ...], how: Presentation) -> _Grid:
    longest = max(len(s) for s in samples)
    response = max(len(s.response) for s in samples)
    if how.layout == "padded":
        edge = max(len(s.prompt) for s in samples) + how.extra_left
        starts = tuple(edge - len(s.prompt) for s in samples)
        return _Grid(starts, edge + response + how.extra_right, edge, response + how.extra_right)
    if how.layout == "left":
        width = longest + how.extra_left
        return _Grid(tuple(width - len(s) for s in samples), width, width - response, response)
    if how.layout == "right":
        counts = tuple(len(s.response) for s in samples)
        return _Grid((0,) * len(samples), longest + how.extra_right, 1, counts)
    raise ValueError(f"unknown layout {how.layout!r}")


def _rectangle(
    samples: tuple[Sample, ...], how: Presentation, pad_token_id: int, temperature: float, device: str
) -> Batch:
    grid = _grid(samples, how)
    filler = how.garbage or (pad_token_id,)
    rows, masks, actions, used = [], [], [], 0
    for sample, start in zip(samples, grid.starts, strict=True):
        row, mask, action = [], [], []
        for column in range(grid.width):
            inside = start <= column < start + len(sample)
            if inside:
                row.append(sample.tokens[column - start])
            else:
                row.append(filler[used % len(filler)])
                used += 1
            mask.append(int(inside))
            action.append(_acts(sample, column - start))
        rows.append(row)
        masks.append(mask)
        actions.append(action[grid.first_action :])
    return Batch(
        layout=how.layout,
        input_ids=torch.tensor(rows, device=device),
        attention_mask=torch.tensor(masks, device=device),
        position_ids=None,
        action_mask=torch.tensor(actions, device=device),
        num_actions=grid.num_actions,
        prompt_lengths=tuple(len(s.prompt) for s in samples),
        response_lengths=tuple(len(s.response) for s in samples),
        response_masks=_response_masks(samples),
        temperature=temperature,
        pad_token_id=pad_token_id,
        starts=grid.starts,
    )


def _acts(sample: Sample, position: int) -> int:
    """1 where an action of the sample stands at the position, which may lie outside of it."""
    behind = position - len(sample.prompt)
    return sample.acts[behind] if 0 <= behind < len(sample.response) else 0


def _response_masks(samples: tuple[Sample, ...]) -> tuple[tuple[int, ...], ...] | None:
    return tuple(s.acts for s in samples) if any(s.action_mask for s in samples) else None


def _packed(
    samples: tuple[Sample, ...], how: Presentation, pad_token_id: int, temperature: float, device: str
) -> Batch:
    tokens: list[int] = []
    positions: list[int] = []
    labels: list[int] = []
    segments: list[int] = []
    starts = []
    for number, sample in enumerate(samples, start=1):
        starts.append(len(tokens))
        tokens += sample.tokens
        positions += range(len(sample))
        labels += [*sample.tokens[1:], IGNORE]
        segments += [number] * len(sample)
    tails = {"packed-tail": how.tail, "sharded": -len(tokens) % how.shards, "segments": how.tail - 1}
    tail = tails.get(how.layout, 0)
    filler = how.garbage or (pad_token_id,)
    tokens += [filler[i % len(filler)] for i in range(tail)]
    positions += range(tail)
    labels += [IGNORE] * tail
    segments += [0] * tail
    rows = how.shards if how.layout == "sharded" else 1
    numbered = how.layout == "segments"
    return Batch(
        layout=how.layout,
        input_ids=torch.tensor(tokens, device=device).reshape(rows, -1),
        attention_mask=torch.tensor([segments], device=device) if numbered else None,
        position_ids=None if numbered else torch.tensor(positions, device=device).reshape(rows, -1),
        action_mask=None,
        num_actions=tuple(len(s.response) for s in samples),
        prompt_lengths=tuple(len(s.prompt) for s in samples),
        response_lengths=tuple(len(s.response) for s in samples),
        response_masks=_response_masks(samples),
        temperature=temperature,
        pad_token_id=pad_token_id,
        starts=tuple(starts),
        labels=torch.tensor(labels, device=device).reshape(rows, -1) if how.layout == "sharded" else None,
    )


def present_prompts(
    prompts: Sequence[tuple[int, ...]],
    *,
    max_new_tokens: int,
    stop_token_ids: tuple[int, ...],
    pad_token_id: int,
    device: str = "cpu",
) -> Prompts:
    """Prompts padded left to the longest."""
    width = max(len(p) for p in prompts)
    return Prompts(
        input_ids=torch.tensor([[pad_token_id] * (width - len(p)) + list(p) for p in prompts], device=device),
        attention_mask=torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device),
        max_new_tokens=max_new_tokens,
        stop_token_ids=stop_token_ids,
        pad_token_id=pad_token_id,
    )
