"""What the model of a probe says when it is called wrongly: pads attended, boundaries of a pack ignored, other
positions. The plain model of transformers is run on the batch as it is laid out; nothing comes from what is judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rlhf_conformance._lazy import torch
from rlhf_conformance.diagnosis.answers import Answer, Cell, Seen
from rlhf_conformance.judging.questions import Call
from rlhf_conformance.oracle.probes import MAX_POSITIONS

Arguments = tuple[Any, Any]
"""An attention mask (B, L), or which token sees which (1, N, N) in a pack, before causality; and positions (B, L)."""


@dataclass(frozen=True)
class World:
    """A way of calling the model.

    name, rule  of a diagnosis
    rows        `Rows` or `Packs`, which make the arguments from what is right
    """

    name: str
    rule: str
    of_packs: bool
    arguments: Callable[[Any], Arguments]

    def numbers(self, seen: Seen, answer: Answer) -> tuple[float, ...]:
        """What the answer would be; empty where the batch is not of the kind."""
        shape = _shape(seen, self.of_packs)
        if shape is None:
            return ()
        key = ("world", self.rule)
        if key not in seen.remembered:
            seen.remembered[key] = _tables(seen, shape, *self.arguments(shape))
        row, column = shape.cell(answer)
        return (seen.finish(seen.remembered[key][row][column][answer.column]),)


class Rows:
    """Padded rows: ids, mask and positions (B, L) as they should be handed to the model."""

    def __init__(self, seen: Seen) -> None:
        self.seen, self.ids = seen, seen.ids
        self.mask: Any = seen.batch.attention_mask
        self.by_id = (self.ids != seen.case.probe.pad_token_id).long()
        self.right = counted(self.mask)
        self.columns = torch.arange(self.ids.shape[1]).expand_as(self.ids)

    def cell(self, answer: Answer) -> Cell:
        return self.seen.cell(answer.sample, answer.position)


class Packs:
    """The samples behind one another in one row, with their numbers and positions (1, N)."""

    def __init__(self, seen: Seen) -> None:
        lengths = [len(s) for s in seen.case.samples]
        self.starts = [sum(lengths[:i]) for i in range(len(lengths))]
        if seen.packed:
            self.ids = seen.ids
        else:
            self.ids = torch.tensor([[token for s in seen.case.samples for token in s.tokens]])
        tail = self.ids.shape[1] - sum(lengths)
        lengths += [tail] if tail else []
        self.segments = torch.cat([torch.full((n,), i) for i, n in enumerate(lengths)])
        self.right = torch.cat([torch.arange(n) for n in lengths])[None]
        self.columns = torch.arange(self.ids.shape[1])[None]
        shards = seen.batch.input_ids.shape[0] if seen.packed else 1
        self.shards = self.columns[0] // (self.ids.shape[1] // shards)

    def cell(self, answer: Answer) -> Cell:
        return 0, self.starts[answer.sample] + answer.position

    def within(self, numbers: Any) -> Any:
        """Tokens see those that bear the same number; numbers (N,)."""
        return (numbers[:, None] == numbers[None, :])[None]

    @property
    def everything(self) -> Any:
        return torch.ones(1, *[self.ids.shape[1]] * 2, dtype=torch.bool)

    @property
    def first_for_all(self) -> Any:
        allowed = self.within(self.segments).clone()
        allowed[..., 0] = True
        return allowed

    @property
    def restarted_in_shards(self) -> Any:
        begins = (self.right == 0) | (self.columns % int((self.shards == 0).sum()) == 0)
        return self.columns - self.columns.where(begins, 0).cummax(1).values


def counted(mask: Any) -> Any:
    """Positions that count the tokens of a mask (B, L)."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


def _late(rows: Any) -> Any:
    return rows.mask * (rows.right > 0)


def _early(rows: Any) -> Any:
    return torch.cat([rows.mask[:, 1:], rows.mask[:, -1:]], dim=1) | rows.mask


def _ones(mask: Any) -> Any:
    return torch.ones_like(mask)


WORLDS = (
    World("mask", "pads are attended and counted, as without an attention mask", False,
          lambda r: (_ones(r.mask), r.columns)),
    World("mask", "pads are attended, though positions leave them out", False,
          lambda r: (_ones(r.mask), r.right)),
    World("mask", "the attention mask is guessed from the pad id", False,
          lambda r: (r.by_id, counted(r.by_id))),
    World("mask", "attention goes by the pad id, positions by the mask", False,
          lambda r: (r.by_id, r.right)),
    World("mask", "the attention mask begins one token late", False, lambda r: (_late(r), r.right)),
    World("mask", "the attention mask begins one column early", False, lambda r: (_early(r), r.right)),
    World("positions", "positions count columns, pads included", False, lambda r: (r.mask, r.columns)),
    World("positions", "positions are counted by the pad id, not by the mask", False,
          lambda r: (r.mask, counted(r.by_id))),
    World("positions", "positions begin at 1", False, lambda r: (r.mask, r.right + 1)),
    World("positions", "positions begin at 2", False, lambda r: (r.mask, r.right + 2)),
    World("positions", "the first two tokens share position 0", False,
          lambda r: (r.mask, (r.right - 1).clamp(min=0))),
    World("positions", "positions begin at 1 in rows with pads on the left", False,
          lambda r: (r.mask, r.right + (r.mask[:, :1] == 0).long())),
    World("positions", "every row is numbered as the longest is", False,
          lambda r: (r.mask, r.columns - int(r.mask.argmax(-1).min()))),
    World("neighbor", "the pack is read as one long sequence", True, lambda p: (p.everything, p.columns)),
    World("neighbor", "sequences see those before them in the pack, though positions restart", True,
          lambda p: (p.everything, p.right)),
    World("neighbor", "the first token of the pack is seen by every sequence", True,
          lambda p: (p.first_for_all, p.right)),
    World("neighbor", "sequences are parted one token too late: the first of each belongs to the one before", True,
          lambda p: (p.within(torch.cat([p.segments[:1], p.segments[:-1]])), p.right)),
    World("neighbor", "sequences are parted one token too early: the last of each belongs to the next", True,
          lambda p: (p.within(torch.cat([p.segments[1:], p.segments[-1:]])), p.right)),
    World("neighbor", "sequences are parted in pairs", True, lambda p: (p.within(p.segments // 2), p.right)),
    World("shards", "a shard does not see what came before the cut", True,
          lambda p: (p.within(p.segments + 1000 * p.shards), p.right)),
    World("positions", "positions run on through the pack, while attention keeps to each sequence", True,
          lambda p: (p.within(p.segments), p.columns)),
    World("positions", "positions begin at 1 in each sequence of the pack", True,
          lambda p: (p.within(p.segments), p.right + 1)),
    World("positions", "positions begin at 1 from the second sequence of the pack on", True,
          lambda p: (p.within(p.segments), p.right + (p.segments > 0))),
    World("positions", "positions restart at the cuts between shards", True,
          lambda p: (p.within(p.segments), p.restarted_in_shards)),
)  # fmt: skip


def _shape(seen: Seen, of_packs: bool) -> Any:
    key = ("shape", of_packs)
    if key not in seen.remembered:
        if of_packs:
            fits = seen.packed or seen.subject.adapter.packs_internally
            seen.remembered[key] = Packs(seen) if fits else None
        else:
            seen.remembered[key] = None if seen.packed else Rows(seen)
    return seen.remembered[key]


def _tables(seen: Seen, shape: Any, allowed: Any, positions: Any) -> Any:
    """What may be read in each cell, (B, L, W) as lists."""
    if allowed.ndim == 2:
        return _numbers(seen, shape.ids, allowed, positions)
    blocked = torch.zeros(allowed.shape, dtype=torch.float64)
    blocked = blocked.masked_fill(~allowed.tril(), torch.finfo(torch.float64).min)[:, None]
    return _numbers(seen, shape.ids, blocked, positions)


def _numbers(seen: Seen, ids: Any, attention_mask: Any, positions: Any) -> Any:
    module = seen.subject.truth.alone(seen.case.probe).module
    with torch.no_grad():
        hidden = module.base_model(
            input_ids=ids,
            attention_mask=attention_mask,
            position_ids=positions.clamp(0, MAX_POSITIONS - 1),
            use_cache=False,
        )[0]
        outputs = (module.lm_head if hasattr(module, "lm_head") else module.score)(hidden)
        return [seen.readout.table(row, seen.case.temperature).tolist() for row in outputs]


def at_pad(seen: Seen, cell: Cell, answer: Answer) -> tuple[float, ...]:
    """What stands in a cell that belongs to nobody. That depends on how the model was called: all the usual ways."""
    if "pads" not in seen.remembered:
        seen.remembered["pads"] = list(_pads(seen))
    row, column = cell
    return tuple({seen.finish(table[row][column][answer.column]) for table in seen.remembered["pads"]})


def _pads(seen: Seen) -> Any:
    if seen.packed:
        packs = Packs(seen)
        yield _tables(seen, packs, packs.within(packs.segments), packs.right)
        joined = packs.segments.clamp(max=len(seen.case.samples) - 1)
        lasting = packs.columns - torch.tensor([packs.starts[int(s)] for s in joined])
        yield _tables(seen, packs, packs.within(joined), lasting)
        yield _tables(seen, packs, packs.within(joined), packs.right)
    else:
        rows = Rows(seen)
        fixed = [rows.right.masked_fill(rows.mask == 0, value) for value in (0, 1)]
        for positions in (rows.right, *fixed, rows.columns, rows.mask.cumsum(-1)):
            yield _numbers(seen, rows.ids, rows.mask, positions)
        yield _tables(seen, rows, _ones(rows.mask), rows.columns)
    yield from _shown(seen)


def _shown(seen: Seen) -> Any:
    """The trainer's own raw output, where the adapter gives it."""
    subject, method = seen.subject, seen.readout.whole
    if method not in subject.provided:
        return
    try:
        raw = subject.answer(Call(method, seen.call.given)).raw
        outputs = raw.detach().double().cpu().reshape(*seen.ids.shape, -1)
        yield [seen.readout.table(row, seen.case.temperature).tolist() for row in outputs]
    except Exception:  # an adapter that raises here, or gives another shape, shows nothing
        return
