"""What an adapter is handed: a batch in one layout, with helpers from and to its ragged form.

Truth is ragged (a list of prompts and responses), a layout is a presentation of it. A `Batch` holds tensors in its
layout and the lengths that lead back; it holds no expected answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rlhf_conformance._lazy import torch

RECTANGLES = ("padded", "left", "right")
PACKS = ("packed", "packed-tail", "sharded", "segments")
"""The layouts: a row for each sample, and several samples in one row."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Several sequences (prompt and response) in one layout.

    layout            "padded": prompts padded left to P, responses padded right to T (L = P + T); "left", "right":
                      whole rows padded on that side; "packed": one row of N tokens; "packed-tail": a pack followed by
                      padding; "sharded": a pack with tail, cut into S equal shards; "segments": a pack, now and then
                      with a tail, that a mask of segment numbers describes
    input_ids         int64, (B, L), (1, N), or (S, N / S) if sharded
    attention_mask    int64 (B, L), 1 on tokens; None in packs; in "segments" (1, N), 1 on the tokens of the first
                      sequence, 2 on those of the second, and so on, 0 on the tail
    position_ids      int64, in packs only, restarting at 0 for each sequence; None in padded layouts and in "segments",
                      where the trainer makes them from the mask
    action_mask       int64: (B, T) in "padded" and "left", the last T columns of each row; (B, L - 1) in "right", one
                      for each label `input_ids[:, 1:]`; None in packs
    num_actions       T in "padded" and "left"; a tuple with each sequence's own count elsewhere
    labels            int64 (S, N / S), sharded only: the next token of each position, -100 where the next token belongs
                      to another sequence
    prompt_lengths, response_lengths    in tokens, one for each sample
    response_masks    None where the policy wrote all of the responses; else one tuple for each sample, 1 on the tokens
                      of its response that are actions, 0 on observations between its turns, which are attended. They
                      count as tokens of the response: in `response_lengths`, in `num_actions`, and in T
    temperature       of the log-probs, equal to the checkpoint's
    pad_token_id      the id in masked cells
    """

    layout: str
    input_ids: torch.Tensor
    attention_mask: torch.Tensor | None
    position_ids: torch.Tensor | None
    action_mask: torch.Tensor | None
    num_actions: int | tuple[int, ...]
    prompt_lengths: tuple[int, ...]
    response_lengths: tuple[int, ...]
    temperature: float
    pad_token_id: int
    starts: tuple[int, ...] = field(repr=False)
    labels: torch.Tensor | None = None
    response_masks: tuple[tuple[int, ...], ...] | None = None

    @property
    def sequence_lengths(self) -> tuple[int, ...]:
        """Tokens of each sample, prompt and response together."""
        return tuple(p + t for p, t in zip(self.prompt_lengths, self.response_lengths, strict=True))

    @property
    def is_packed(self) -> bool:
        return self.layout in PACKS

    @property
    def sequences(self) -> list[torch.Tensor]:
        """Each sample's tokens without padding, a list of 1-D int64 tensors."""
        return self.to_ragged(self.input_ids)

    def to_ragged(self, per_token: torch.Tensor) -> list[torch.Tensor]:
        """A tensor with an entry for each cell of `input_ids` -> one tensor (length, ...) for each sample."""
        if self.is_packed:
            row = per_token.reshape(self.input_ids.numel(), *per_token.shape[2:])
            rows = [row] * len(self.starts)
        else:
            rows = list(per_token)
        return [
            row[start : start + length]
            for row, start, length in zip(rows, self.starts, self.sequence_lengths, strict=True)
        ]

    def from_ragged(self, rows: Sequence[torch.Tensor], fill: float = 0) -> torch.Tensor:
        """One tensor (length, ...) for each sample -> a tensor shaped like `input_ids`, `fill` in the other cells."""
        values = torch.cat(list(rows))
        cells = torch.arange(self.input_ids.numel(), device=values.device).reshape(self.input_ids.shape)
        blank = values.new_full((self.input_ids.numel(), *values.shape[1:]), fill)
        filled = blank.index_copy(0, torch.cat(self.to_ragged(cells)), values)
        return filled.reshape(*self.input_ids.shape, *values.shape[1:])

    def actions_to_ragged(self, answer: torch.Tensor | Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """An answer in one of the accepted shapes -> one 1-D tensor for each sample, an entry for each action.

        An answer has an entry for each token of the responses; of observations any is accepted, and none is kept.
        Raises ValueError with the shapes that are accepted in this layout.
        """
        if not isinstance(answer, torch.Tensor):
            self._check_rows([tuple(row.shape) for row in answer])
            return self._acted(answer)
        if self.action_mask is not None:
            if answer.shape != self.action_mask.shape:
                raise ValueError(
                    f"shape {tuple(answer.shape)}; wanted {tuple(self.action_mask.shape)} (the shape of "
                    f"batch.action_mask in layout {self.layout!r}), or a list of {len(self.starts)} 1-D tensors"
                )
            return [row[mask.bool()] for row, mask in zip(answer, self.action_mask.to(answer.device), strict=True)]
        total = sum(self.response_lengths)
        if answer.shape not in ((total,), (1, total)):
            raise ValueError(
                f"shape {tuple(answer.shape)}; wanted ({total},) or (1, {total}), the actions of all sequences "
                f"one after another, or a list of {len(self.starts)} 1-D tensors"
            )
        return self._acted(answer.reshape(-1).split(list(self.response_lengths)))

    def _acted(self, rows: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Of entries for each token of the responses those of the actions."""
        if self.response_masks is None:
            return list(rows)
        masks = (torch.tensor(mask, dtype=torch.bool) for mask in self.response_masks)
        return [row[mask.to(row.device)] for row, mask in zip(rows, masks, strict=True)]

    def _check_rows(self, shapes: list[tuple[int, ...]]) -> None:
        wanted = [(count,) for count in self.response_lengths]
        if shapes != wanted:
            raise ValueError(f"a list of shapes {shapes}; wanted {wanted}, one 1-D tensor for each sample")


@dataclass(frozen=True, eq=False)
class Prompts:
    """Left-padded prompts to continue greedily.

    input_ids, attention_mask   int64 (B, P)
    max_new_tokens              at most this many tokens are generated
    stop_token_ids              any of them ends a row, which is then filled with `pad_token_id`
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    max_new_tokens: int
    stop_token_ids: tuple[int, ...]
    pad_token_id: int


@dataclass(frozen=True, eq=False)
class StepSample:
    """One response and what was known of it when it was drawn: tensors with a number for each of the T tokens of the
    response, but for the prompt. Numbers are float32, or float64 where the run is.

    prompt         (P,) int64, at least one token
    response       (T,) int64, at least one token
    action_mask    (T,) int64, 1 on actions
    old_log_probs  (T,) of the policy that sampled, in nats
    advantages     (T,) in units of reward
    ref_log_probs  (T,) of the reference model, in nats
    old_values     (T,) of the critic that was asked then, in units of reward
    returns        (T,) what the critic is to learn, in units of reward
    rollout_log_probs  (T,) of the engine that sampled, in nats
    """

    prompt: torch.Tensor
    response: torch.Tensor
    action_mask: torch.Tensor
    old_log_probs: torch.Tensor
    advantages: torch.Tensor
    ref_log_probs: torch.Tensor
    old_values: torch.Tensor
    returns: torch.Tensor
    rollout_log_probs: torch.Tensor


HANDED = (Batch, Prompts, StepSample)
"""Objects that hold tensors, as adapters are given them."""
