"""What the model faults are made of: answers read from the wrong place, models called with the wrong arguments."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rlhf_conformance._lazy import torch
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.oracle.layouts import Presentation, Sample, present

if TYPE_CHECKING:
    from torch import Tensor

    from rlhf_conformance.oracle.batch import Batch

LAYOUT_CHAPTERS = ("packing.", "positions.")
"""Chapters that ask the actor for log-probs as well, and so fail along with it."""


class WithLora(Reference):
    """The reference with adapters of LoRA on frozen models, for lies about just these."""

    def __init__(self):
        super().__init__(lora=True)


class WithDora(Reference):
    """The same with adapters of DoRA."""

    def __init__(self):
        super().__init__(dora=True)


def by_column(batch: Batch) -> Tensor:
    """Positions of padded rows that count the pads."""
    return torch.arange(batch.input_ids.shape[1], device=batch.input_ids.device).expand_as(batch.input_ids)


def redrawn(model: Any) -> Any:
    """A regression model whose head is drawn anew in each forward pass."""
    scores = model.scores

    def other(inputs: Any) -> Tensor:
        held = model.head.weight.data
        model.head.weight.data = torch.randn_like(held)
        try:
            return scores(inputs)
        finally:
            model.head.weight.data = held

    model.scores = other
    return model


@contextlib.contextmanager
def shown_by_column(model: Any, batch: Batch, wrong: bool, **more: Any) -> Iterator[None]:
    """Where `wrong`, the backbone of a regression model is given padded rows with the positions of their columns, and
    with `more` in place of what it should be given."""

    def count_pads(_: Any, args: Any, options: Any) -> Any:
        return args, {**options, "position_ids": by_column(batch), **more}

    if not wrong or batch.is_packed:
        yield
        return
    hook = model.backbone.register_forward_pre_hook(count_pads, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


def copied_head(model: Any) -> Any:
    """A regression model whose scores come from a copy of its head that is taken now; the gradient is the head's."""
    first, scores = model.head.weight.detach().clone(), model.scores

    def stale(inputs: Any) -> Tensor:
        now, right = model.head.weight.data, scores(inputs)
        model.head.weight.data = first
        with torch.no_grad():
            old = scores(inputs)
        model.head.weight.data = now
        return right + (old - right).detach()

    model.scores = stale
    return model


def read(batch: Batch, per_token: Tensor, shift: int = 0) -> list[Tensor]:
    """Entries at the positions that predict the actions, P - 1 .. L - 2 of each sample, or `shift` further on.

    per_token   shaped like `batch.input_ids`, with further axes or without
    """
    rows = []
    for row, prompt, length in zip(
        batch.to_ragged(per_token), batch.prompt_lengths, batch.sequence_lengths, strict=True
    ):
        at = torch.arange(prompt - 1, length - 1, device=row.device) + shift
        rows.append(row[at.clamp(0, length - 1)])
    return rows


def responses(batch: Batch) -> list[Tensor]:
    """The action tokens of each sample."""
    return [tokens[prompt:] for tokens, prompt in zip(batch.sequences, batch.prompt_lengths, strict=True)]


def score(batch: Batch, logits: Tensor, shift: int = 0, temperature: float | None = None) -> list[Tensor]:
    """Log-probs of each sample's actions under logits read `shift` positions from where they should be."""
    temperature = temperature or batch.temperature
    return [
        (z.float() / temperature).log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
        for z, tokens in zip(read(batch, logits, shift), responses(batch), strict=True)
    ]


def logits(adapter: Reference, actor: Any, batch: Batch, **changes: Any) -> Tensor:
    """The logits of the batch, with some arguments of the actor's forward pass exchanged."""
    ids, options = adapter._inputs(batch)
    return actor(ids, **{**options, **changes}).logits.reshape(*batch.input_ids.shape, -1)


def model_logits(adapter: Reference, actor: Any, batch: Batch, **arguments: Any) -> Tensor:
    """The logits from the transformers model itself, called with `arguments` (and the positions of a pack)."""
    ids, options = adapter._inputs(batch)
    arguments = {"position_ids": options.get("position_ids"), "use_cache": False, **arguments}
    return actor.model(input_ids=ids, **arguments).logits.reshape(*batch.input_ids.shape, -1)


def segment_mask(segments: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive mask (1, 1, N, N): a token sees those before it that bear the same number; segments (N,)."""
    allowed = (segments[:, None] == segments[None, :]).tril()
    return torch.zeros_like(allowed, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)[None, None]


def segments_of(positions: Tensor) -> Tensor:
    """0, 0, 0, 1, 1, ... : which sequence of a pack each token belongs to; positions (1, N)."""
    return (positions[0] == 0).cumsum(0) - 1


def positions_of(mask: Tensor) -> Tensor:
    """What the positions of padded rows should be."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


def scores(adapter: Reference, model: Any, batch: Batch) -> Tensor:
    """What a regression model's head says at each position, not normalized, pads not zeroed; like `input_ids`."""
    from rlhf_reference.inputs import ModelInputs

    ids, options = adapter._inputs(batch)
    inputs = ModelInputs.of(ids, options.pop("attention_mask", None), options.pop("position_ids", None), **options)
    return model.scores(model.run(inputs)).reshape(batch.input_ids.shape)


def normalized(model: Any, answer: Tensor) -> Tensor:
    """As the reward model of the reference normalizes: in eval mode only."""
    return model.normalized(answer) if model.normalize and not model.training else answer


def reward_at(adapter: Reference, model: Any, batch: Batch, column: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Rewards of padded rows, read at `column(ids, mask)`, (B,)."""
    per_token = scores(adapter, model, batch)
    at = column(batch.input_ids, batch.attention_mask) % batch.input_ids.shape[1]
    return normalized(model, per_token.gather(1, at[:, None])[:, 0])


def last_where(condition: Tensor) -> Tensor:
    """The last column where a condition (B, L) holds; 0 if it holds nowhere."""
    columns = torch.arange(condition.shape[1], device=condition.device)
    return (condition.long() * columns).argmax(-1)


def first_where(condition: Tensor) -> Tensor:
    """The first column where a condition (B, L) holds; 0 if it holds nowhere."""
    return condition.long().argmax(-1)


def detach_backbone(model: Any) -> None:
    """Cut the graph between the backbone of a regression model and its head."""

    def cut(_: Any, __: Any, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state.detach()
        return output

    model.backbone.register_forward_hook(cut)


def packed(batch: Batch) -> Batch:
    """A padded batch as a pack, samples in their order."""
    lengths = list(batch.sequence_lengths)
    ids = torch.cat(batch.sequences)[None]
    return replace(
        batch,
        layout="packed",
        input_ids=ids,
        attention_mask=None,
        position_ids=torch.cat([torch.arange(n, device=ids.device) for n in lengths])[None],
        action_mask=None,
        num_actions=batch.response_lengths,
        starts=tuple(sum(lengths[:i]) for i in range(len(lengths))),
    )


def copied(batch: Batch) -> Batch:
    """The batch on tensors of its own, for a lie that writes to the caller's after the forward pass."""
    parts = {
        name: getattr(batch, name).clone()
        for name in ("input_ids", "attention_mask", "position_ids")
        if getattr(batch, name) is not None
    }
    return replace(batch, **parts)


# --- several turns --------------------------------------------------------------------------------------------------


def marks(batch: Batch) -> list[Tensor]:
    """True on the actions of each response, one 1-D tensor for each sample."""
    masks = batch.response_masks or [[1] * count for count in batch.response_lengths]
    return [torch.tensor(mask, device=batch.input_ids.device).bool() for mask in masks]


def without_observations(batch: Batch) -> list[Tensor]:
    """1 on the prompt and the actions of each sample, 0 on its observations, one 1-D tensor for each."""
    return [
        torch.cat([torch.ones(prompt, dtype=torch.long, device=acts.device), acts.long()])
        for prompt, acts in zip(batch.prompt_lengths, marks(batch), strict=True)
    ]


def is_later(acts: Tensor) -> Tensor:
    """True on the actions behind the first observation; acts (T,)."""
    return acts & (~acts).cumsum(0).bool()


def is_last_turn(acts: Tensor) -> Tensor:
    """True on the actions of the last turn; acts (T,)."""
    begins = acts & ~torch.nn.functional.pad(acts[:-1], (1, 0))
    turn = begins.cumsum(0)
    return acts & (turn == turn.max())


def at_counts(batch: Batch, rows: list[Tensor], first: Callable[[int, int], int]) -> list[Tensor]:
    """Of entries for each token of a response as many in a row as there are actions, from `first(tokens, actions)` on,
    put where the actions stand."""
    found = []
    for row, acts in zip(rows, marks(batch), strict=True):
        count = int(acts.sum())
        start = first(len(row), count)
        found.append(torch.zeros_like(row).masked_scatter(acts, row[start : start + count]))
    return found


def shortened(batch: Batch) -> Batch:
    """The samples without their observations, padded."""
    kept = [m.bool() for m in without_observations(batch)]
    samples = [
        Sample(tuple(ids[:prompt].tolist()), tuple(ids[prompt:][own[prompt:]].tolist()))
        for ids, prompt, own in zip(batch.sequences, batch.prompt_lengths, kept, strict=True)
    ]
    more = {"pad_token_id": batch.pad_token_id, "temperature": batch.temperature, "device": batch.input_ids.device}
    return present(samples, Presentation("padded"), **more)


def spread(batch: Batch, rows: list[Tensor]) -> list[Tensor]:
    """An entry for each action -> one for each token of the responses, 0 on observations."""
    return [
        torch.zeros(len(acts), dtype=row.dtype, device=row.device).masked_scatter(acts, row)
        for row, acts in zip(rows, marks(batch), strict=True)
    ]
