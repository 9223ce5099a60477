"""One optimizer step: from samples that were drawn to weights that have moved.

A step minimises the objective of its samples, and its gradient does not depend on how they were cut into micro-batches,
padded or packed. Three things see to that. The denominators are those of the whole step: the loss of a micro-batch is
its share, and the shares add up. What a model answers is taken back to one row for each sample before it is averaged,
whatever layout it was asked in. And the norm is clipped once, over all weights, when all shares have been added.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rlhf_reference.actor import Actor
from rlhf_reference.critic import CriticModel
from rlhf_reference.objective import Objective, ObjectiveOutput
from rlhf_reference.ragged import RaggedBatch

Layout = Literal["padded", "packed"]
Cut = Sequence[Sequence[int]]
"""The samples of each micro-batch, by their numbers."""


@dataclass(frozen=True)
class Sample:
    """One response and what was known of it when it was drawn: 1-D tensors, of which all but the prompt have a number
    for each of the T tokens of the response.

    prompt         (P,) int64, at least one token
    response       (T,) int64; T may be 0
    old_log_probs  of the policy that sampled, in nats
    advantages     in units of reward
    action_mask    nonzero where a token of the response is an action; None: all of them are
    ref_log_probs, old_values, returns
                   what the KL and the value loss are made of, if the objective has these terms
    loss_weights   what the policy loss of each token is multiplied by, as `off_policy_weights` gives it; None: 1
    """

    prompt: Tensor
    response: Tensor
    old_log_probs: Tensor
    advantages: Tensor
    action_mask: Tensor | None = None
    ref_log_probs: Tensor | None = None
    old_values: Tensor | None = None
    returns: Tensor | None = None
    loss_weights: Tensor | None = None

    @property
    def mask(self) -> Tensor:
        """(T,) bool, True on actions."""
        return torch.ones_like(self.response).bool() if self.action_mask is None else self.action_mask.bool()


TABLES = tuple(f.name for f in fields(Sample) if f.name not in ("prompt", "response", "action_mask"))


@dataclass
class StepMetrics:
    """Of a whole step, and not of its last micro-batch: what it minimised, its terms before their coefficients (0 where
    there is none), and the actions that it was made of."""

    loss: float = 0.0
    policy_loss: float = 0.0
    value_loss: float = 0.0
    kl: float = 0.0
    entropy: float = 0.0
    actions: int = 0

    def add(self, share: ObjectiveOutput, actions: int) -> None:
        """Shares of the step add up, since each is divided by its counts."""
        for name, value in share._asdict().items():
            if value is not None:
                setattr(self, name, getattr(self, name) + value.item())
        self.actions += actions


class Trainer:
    """Steps of an actor, of a critic beside it, or of a critic alone.

    actor         None: what is minimised is the value loss alone, times its coefficient
    objective     what a step minimises; all of its terms are divided by one count
    optimizer     of the weights that are trained: those of the actor, and of the critic
    critic        needed where the objective has a value loss
    max_norm      of the gradient of a step; None: it is not clipped
    scheduler     of the learning rate, moved on once a step
    layout        how the models are asked: rows that are padded, or one row with all samples
    pad_token_id  anything may be one: pads are never attended
    raises        ValueError if terms of the objective have means of different counts, or the critic is missing
    """

    def __init__(
        self,
        actor: Actor | None,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        *,
        critic: CriticModel | None = None,
        max_norm: float | None = None,
        scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
        layout: Layout = "padded",
        pad_token_id: int = 0,
    ) -> None:
        own = {objective.value_aggregation, objective.kl_aggregation, objective.entropy_aggregation} - {None}
        if own - {objective.policy_loss.aggregation}:
            raise ValueError(f"terms with means of their own, {sorted(map(str, own))}, are divided by other counts")
        if objective.value_coef and critic is None:
            raise ValueError("value_coef is not 0: a critic is needed")
        if actor is None and not objective.value_coef:
            raise ValueError("without an actor value_coef has to be more than 0")
        self.actor, self.critic, self.objective = actor, critic, objective
        self.optimizer, self.scheduler, self.max_norm = optimizer, scheduler, max_norm
        self.layout: Layout = layout
        self.pad_token_id = pad_token_id

    # --- stopped, and resumed ----------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All that a step depends on, to be saved: weights, what the optimizer keeps, and where the schedule stands."""
        return {name: part.state_dict() for name, part in self._parts().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave, in a trainer that was made as the other one was."""
        for name, part in self._parts().items():
            part.load_state_dict(state[name])

    def _parts(self) -> dict[str, Any]:
        names = ("actor", "critic", "optimizer", "scheduler")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    # --- a step ------------------------------------------------------------------------------------------------------

    def step(self, samples: Sequence[Sample], cut: Cut | None = None) -> StepMetrics:
        """Accumulate the gradient of the samples, and move the weights."""
        self.optimizer.zero_grad(set_to_none=True)
        metrics = self.accumulate(samples, cut)
        self.update()
        return metrics

    def accumulate(self, samples: Sequence[Sample], cut: Cut | None = None) -> StepMetrics:
        """Add the gradient of the objective of the samples to those of the weights; `cut` says which of them are asked
        together, None: all. A micro-batch without an action has no share.

        raises  ValueError unless each sample is in one micro-batch, or where the objective lacks what a term needs
        """
        cut = [range(len(samples))] if cut is None else cut
        if sorted(i for part in cut for i in part) != [*range(len(samples))]:
            raise ValueError(
                f"a cut of {len(samples)} samples has each of them once, not {[list(part) for part in cut]}"
            )
        count, metrics = self._count(samples), StepMetrics()
        for part in cut:
            micro_batch = [samples[i] for i in part]
            actions = sum(int(sample.mask.sum()) for sample in micro_batch)
            if actions:
                share = self._objective(micro_batch, count)
                share.loss.backward()  # type: ignore[no-untyped-call]
                metrics.add(share, actions)
        return metrics

    def update(self) -> None:
        """Move the weights by the gradient that was accumulated, its norm clipped over all of them, and forget it."""
        self.clip()
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)

    def clip(self) -> float:
        """Clip the norm of the accumulated gradient, over all weights at once, if it is to be. -> what it was before"""
        weights = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        bound = math.inf if self.max_norm is None else self.max_norm
        return float(torch.nn.utils.clip_grad_norm_(weights, bound))

    def _count(self, samples: Sequence[Sample]) -> int | None:
        """The denominator of the step: its actions, or its samples that have one."""
        aggregation, counts = self.objective.policy_loss.aggregation, [int(sample.mask.sum()) for sample in samples]
        if aggregation == "token-sum":
            return None
        return sum(counts) if aggregation == "token-mean" else sum(count > 0 for count in counts)

    def _objective(self, samples: Sequence[Sample], count: int | None) -> ObjectiveOutput:
        """The share of a micro-batch."""
        tables = {name: rectangle([getattr(sample, name) for sample in samples]) for name in TABLES}
        mask = rectangle([sample.mask for sample in samples])
        values = rectangle(self._of_model(self.critic, samples)[0]) if self.objective.value_coef else None
        if self.actor is None:
            of_critic = (tables["old_values"], tables["returns"], mask)
            value = self.objective.value_loss(values, *of_critic, global_count=count)
            nothing = torch.zeros_like(value.detach())
            return ObjectiveOutput(self.objective.value_coef * value, nothing, value.detach(), None, None)
        log_probs, entropies = self._of_actor(samples)
        output: ObjectiveOutput = self.objective(
            rectangle(log_probs),
            action_mask=mask,
            entropies=rectangle(entropies) if self.objective.entropy_coef else None,
            values=values,
            global_count=count,
            **tables,
        )
        return output

    # --- what the models say -----------------------------------------------------------------------------------------

    @torch.no_grad()
    def log_probs(self, samples: Sequence[Sample], actor: Actor | None = None) -> list[Tensor]:
        """(T,) for each sample, of its response under the actor as it is, or under another one; no graph."""
        return self._of_model(actor or self.actor, samples)[0]

    @torch.no_grad()
    def values(self, samples: Sequence[Sample]) -> list[Tensor]:
        """(T,) for each sample, of the state before each token of its response; no graph."""
        return self._of_model(self.critic, samples)[0]

    def _of_actor(self, samples: Sequence[Sample]) -> tuple[list[Tensor], list[Tensor]]:
        if not self.objective.entropy_coef:
            return self._of_model(self.actor, samples)[0], []
        log_probs, entropies = self._of_model(self.actor, samples, return_entropy=True)
        return log_probs, entropies

    def _of_model(self, model: Any, samples: Sequence[Sample], **options: Any) -> tuple[list[Tensor], ...]:
        """The answers of a model, each as one tensor (T,) for each sample, asked in the layout of this trainer."""
        batch = RaggedBatch(tuple(sample.prompt for sample in samples), tuple(sample.response for sample in samples))
        if self.layout == "packed":
            pack = batch.pack(pad_token_id=self.pad_token_id)
            where = {"position_ids": pack.position_ids, "sequence_lengths": pack.lengths}
            answers = model(pack.input_ids, pack.num_actions, **where, **options)
            return tuple(pack.unpack_actions(answer) for answer in several(answers))
        rows = batch.pad(self.pad_token_id)
        answers = model(rows.input_ids, rows.num_actions, rows.attention_mask, **options)
        return tuple(rows.unpad_actions(answer) for answer in several(answers))


def by_rows(samples: Sequence[Sample], size: int) -> Cut:
    """Micro-batches of so many samples, in the order in which they stand; the last one may have fewer."""
    return [range(start, min(start + size, len(samples))) for start in range(0, len(samples), size)]


def by_tokens(samples: Sequence[Sample], most: int) -> Cut:
    """Micro-batches of at most so many tokens, prompts included: each sample goes to the first one that has room for
    it, the longest samples first. A sample that is longer is alone in its own."""
    lengths = [len(sample.prompt) + len(sample.response) for sample in samples]
    parts: list[list[int]] = []
    for i in sorted(range(len(samples)), key=lambda i: -lengths[i]):
        roomy = (part for part in parts if sum(lengths[j] for j in part) + lengths[i] <= most)
        part = next(roomy, None)
        if part is None:
            parts.append([i])
        else:
            part.append(i)
    return parts


def several(answers: Any) -> Iterable[Tensor]:
    """What a model returned, one tensor or a tuple."""
    return answers if isinstance(answers, tuple) else (answers,)


def rectangle(rows: Sequence[Tensor | None]) -> Any:
    """Rows of different lengths as (B, T), with 0 behind the shorter ones; None if there are none."""
    known = [row for row in rows if row is not None]
    return pad_sequence(known, batch_first=True) if len(known) == len(rows) else None
