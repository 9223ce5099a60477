"""A plain trainer for the faults to bend: right as it stands, one sample after the other, and a liar exchanges one part
of it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from rlhf_conformance import StepResult
from rlhf_conformance._lazy import torch
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.chapters.corrected_loss import bending as correcting
from rlhf_conformance.chapters.objective import bending as bent
from rlhf_conformance.chapters.objective.bending import Given

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from rlhf_conformance import StepSample


@dataclass
class Plain:
    """An actor, its optimizer, and what is asked for.

    actor   as the reference loads it
    steps   how many gradients there have been
    made    how many steps of the optimizer
    kept    whatever a liar keeps from one call to the next
    """

    actor: Any
    options: Any
    optimizer: Any
    steps: int = 0
    made: int = 0
    kept: dict[str, Any] = field(default_factory=dict)

    @property
    def trained(self) -> list[Any]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]


@dataclass
class Part:
    """A micro-batch: its samples, its number, and what of the whole step its loss needs.

    count   what all losses of the step are divided by; None for sums
    of      the number of micro-batches
    """

    samples: list[StepSample]
    number: int
    of: int
    count: float | None


class _Steps(Reference):
    """The plain trainer, in parts that liars exchange."""

    def plain(self, model: Any, options: Any) -> Plain:
        trained = [p for p in model.parameters() if p.requires_grad]
        return Plain(model, options, torch.optim.SGD(trained, lr=options.learning_rate, momentum=options.momentum))

    def gradients_of(self, t: Plain, samples: Sequence[StepSample]) -> StepResult:
        t.optimizer.zero_grad()
        logged = self.accumulate(t, samples)
        norm = self.clip(t)
        found = self.found(t)
        t.optimizer.zero_grad()
        return replace(logged, gradients=found, grad_norm=norm)

    def make(self, t: Plain, samples: Sequence[StepSample]) -> None:
        t.optimizer.zero_grad()
        self.accumulate(t, samples)
        self.clip(t)
        self.hold_rate(t)
        self.move(t)
        t.made += 1
        t.optimizer.zero_grad()

    def accumulate(self, t: Plain, samples: Sequence[StepSample]) -> Any:
        """Add up the gradients of all micro-batches. -> what is logged"""
        t.steps += 1
        parts, count = self.cut(t, samples), self.count(t, samples)
        logged = []
        for number, part in enumerate(parts):
            micro_batch = Part([samples[i] for i in part], number, len(parts), count)
            terms = self.share(t, micro_batch)
            terms["loss"].backward()
            logged.append({name: float(x.detach()) for name, x in terms.items()})
        return self.logged(logged)

    def logged(self, shares: list[dict[str, float]]) -> Any:
        return StepResult(**{name: sum(share[name] for share in shares) for name in shares[0]})

    def cut(self, t: Plain, samples: Sequence[StepSample]) -> list[list[int]]:
        o = t.options
        if o.max_tokens is None:
            return [
                list(range(a, min(a + o.micro_batch_size, len(samples))))
                for a in range(0, len(samples), o.micro_batch_size)
            ]
        parts: list[list[int]] = [[]]
        room = o.max_tokens
        for i, sample in enumerate(samples):
            size = len(sample.prompt) + len(sample.response)
            if size > room and parts[-1]:
                parts.append([])
                room = o.max_tokens
            parts[-1].append(i)
            room -= size
        return parts

    def count(self, t: Plain, samples: Sequence[StepSample]) -> float | None:
        """What the losses of all micro-batches are divided by."""
        actions = [int(sample.action_mask.sum()) for sample in samples]
        if t.options.aggregation == "token-sum":
            return None
        return max(1, sum(actions) if t.options.aggregation == "token-mean" else sum(n > 0 for n in actions))

    def share(self, t: Plain, part: Part) -> dict[str, Any]:
        """What a micro-batch adds to the loss of the step, and the terms that it is made of."""
        if self.step_denominators == "micro-batch":
            own = self.own_share(t, replace(part, count=self.count(t, part.samples)))
            return {name: x / part.of for name, x in own.items()}
        return self.own_share(t, part)

    def own_share(self, t: Plain, part: Part) -> dict[str, Any]:
        """The loss of a micro-batch, divided by the count that it is given."""
        raise NotImplementedError

    def mask(self, t: Plain, sample: StepSample) -> Tensor:
        return sample.action_mask

    def clip(self, t: Plain) -> float:
        """-> the norm before"""
        bound = float("inf") if t.options.max_norm is None else t.options.max_norm
        return float(torch.nn.utils.clip_grad_norm_(t.trained, bound))

    def found(self, t: Plain) -> dict[str, Tensor]:
        return {name: p.grad.clone() for name, p in self.parameters(t).items() if p.grad is not None}

    def hold_rate(self, t: Plain) -> None:
        """Set the learning rate of the step that is next."""
        o = t.options
        if o.schedule == "linear":
            t.optimizer.param_groups[0]["lr"] = o.learning_rate * max(0.0, 1 - self.number(t) / o.total_steps)

    def number(self, t: Plain) -> int:
        """Which step of its schedule the next one is."""
        return t.made

    def move(self, t: Plain) -> None:
        t.optimizer.step()


class Stepping(_Steps):
    """The reference with the plain trainer of an actor in the place of its own."""

    def load_trainer(self, checkpoint, options):
        return self.plain(self.load_actor(checkpoint), options)

    def step_gradients(self, t, samples):
        return self.gradients_of(t, samples)

    def step_update(self, t, samples):
        self.make(t, samples)

    def step_log_probs(self, t, samples):
        with torch.no_grad():
            return [self.answers(t, sample)[0] for sample in samples]

    def save_trainer(self, t, folder):
        torch.save(self.saved(t), Path(folder) / "trainer.pt")

    def resume_trainer(self, checkpoint, options, folder):
        t = self.load_trainer(checkpoint, options)
        self.take_up(t, torch.load(Path(folder) / "trainer.pt"))
        return t

    def saved(self, t: Plain) -> dict[str, Any]:
        return {"actor": t.actor.state_dict(), "optimizer": t.optimizer.state_dict(), "made": t.made}

    def take_up(self, t: Plain, state: dict[str, Any]) -> None:
        t.actor.load_state_dict(state["actor"])
        t.optimizer.load_state_dict(state["optimizer"])
        t.made = state["made"]

    def own_share(self, t: Plain, part: Part) -> dict[str, Any]:
        given = self.given(t, part)
        terms = {"policy_loss": self.policy_term, "kl": self.kl_term, "entropy": self.entropy_term}
        found = {name: term(t, part, given) for name, term in terms.items()}
        o = t.options
        loss = found["policy_loss"]
        if o.kl_coef:
            loss = loss + o.kl_coef * found["kl"]
        if o.entropy_coef:
            loss = loss - o.entropy_coef * found["entropy"]
        return {"loss": loss, **found}

    def policy_term(self, t: Plain, part: Part, g: Given) -> Tensor:
        if t.options.correction is None:
            return bent.policy(g)
        weights = self.weights(t, part, g)
        return bent.mean(bent.policy_losses(g).masked_fill(weights == 0, 0.0) * weights, g)

    def weights(self, t: Plain, part: Part, g: Given) -> Tensor:
        """(B, T) for the engine that sampled."""
        engine = rectangle([sample.rollout_log_probs for sample in part.samples])
        return self.weights_of(g, g.old, engine)

    def weights_of(self, g: Given, old: Tensor, engine: Tensor) -> Tensor:
        asked = SimpleNamespace(**vars(g.options.correction), log_clamp=self.correction_log_clamp)
        return correcting.weight(correcting.Given(g.new, old, g.advantages, engine, g.mask, asked))

    def kl_term(self, t: Plain, part: Part, g: Given) -> Tensor:
        return bent.kl(g)

    def entropy_term(self, t: Plain, part: Part, g: Given) -> Tensor:
        return bent.entropy(g)

    def given(self, t: Plain, part: Part) -> Given:
        """The rectangle that the objective is asked about."""
        answers = [self.answers(t, sample, in_step=True) for sample in part.samples]
        zeros = [torch.zeros_like(sample.advantages) for sample in part.samples]
        tables = [
            [row for row, _ in answers],
            [sample.old_log_probs for sample in part.samples],
            [sample.advantages for sample in part.samples],
            [row for _, row in answers],
            [sample.ref_log_probs for sample in part.samples],
            *[zeros] * 3,
            [self.mask(t, sample) for sample in part.samples],
        ]
        o = replace(t.options, global_count=part.count)
        return Given(*map(rectangle, tables), o)

    def answers(self, t: Plain, sample: StepSample, in_step: bool = False) -> tuple[Tensor, Tensor]:
        """Log-probs and entropies, (T,) each, of a response that is run alone."""
        ids = torch.cat([sample.prompt, sample.response])[None]
        mask = torch.ones_like(ids)
        log_probs, entropies = t.actor(ids, len(sample.response), mask, return_entropy=True)
        return log_probs[0], entropies[0]


class CriticStepping(_Steps):
    """The reference with the plain trainer of a critic in the place of its own."""

    def load_critic_trainer(self, checkpoint, options):
        return self.plain(self.load_critic(checkpoint), options)

    def critic_step_gradients(self, t, samples):
        return self.gradients_of(t, samples)

    def critic_step_update(self, t, samples):
        self.make(t, samples)

    def own_share(self, t: Plain, part: Part) -> dict[str, Any]:
        return {"loss": self.value_term(t, part, self.given(t, part))}

    def value_term(self, t: Plain, part: Part, g: Given) -> Tensor:
        return bent.value(g)

    def given(self, t: Plain, part: Part) -> Given:
        """The rectangle that the value loss is asked about."""
        zeros = [torch.zeros_like(sample.returns) for sample in part.samples]
        tables = [
            *[zeros] * 5,
            [self.answers(t, sample) for sample in part.samples],
            [sample.old_values for sample in part.samples],
            [sample.returns for sample in part.samples],
            [self.mask(t, sample) for sample in part.samples],
        ]
        return Given(*map(rectangle, tables), replace(t.options, global_count=part.count))

    def answers(self, t: Plain, sample: StepSample) -> Tensor:
        """Values (T,) of a response that is run alone."""
        ids = torch.cat([sample.prompt, sample.response])[None]
        return t.actor(ids, len(sample.response), torch.ones_like(ids))[0]


def rectangle(rows: Any) -> Tensor:
    """Rows of different lengths as (B, T), with 0 behind the shorter ones."""
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def all_where_none(mask: Tensor) -> Tensor:
    """An action mask without a one is taken for no mask."""
    return mask if mask.any() else torch.ones_like(mask)


def all_where_any(mask: Tensor) -> Tensor:
    """Every token of a response with an action is one."""
    return torch.ones_like(mask) if mask.any() else mask


def in_one_row(samples: Sequence[StepSample]) -> list[StepSample]:
    """Each with all that stands before it in a pack as its prompt."""
    found: list[StepSample] = []
    before: list[Tensor] = []
    for sample in samples:
        found.append(replace(sample, prompt=torch.cat([*before, sample.prompt])))
        before += [sample.prompt, sample.response]
    return found
