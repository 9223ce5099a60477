"""The three models as one table: how each is loaded, asked and judged against the truth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from rlhf_conformance.adapter import METHODS, Adapter
from rlhf_conformance.chapters._models.cases import Asked, ModelCase
from rlhf_conformance.chapters._temperatures import known_temperatures
from rlhf_conformance.judging.questions import Call, Loaded, Place, Question, sample_action
from rlhf_conformance.judging.subject import Subject
from rlhf_conformance.oracle import budgets
from rlhf_conformance.oracle.batch import Batch
from rlhf_conformance.oracle.layouts import Presentation, Sample, present
from rlhf_conformance.oracle.truth import Truth

Rows = list[list[float]]


def sample_only(index: tuple[int, ...]) -> str:
    return f"sample {index[0]}" if index else ""


@dataclass(frozen=True)
class Role:
    """One of actor, reward model, critic.

    chapter     its chapter, and the prefix of its slugs
    kind        what `Adapter.restore` is told
    load, ask_method    names of the adapter's methods
    what        what its answers are called
    answer      which answers `Truth.gradients` sums up
    truth       the right answers for one sample
    widen       their allowance, in those of a model's output
    beside      the method that gives the same answers with the whole output beside them
    """

    chapter: str
    kind: str
    load: str
    ask_method: str
    what: str
    answer: str
    truth: Callable[[Truth, ModelCase, Sample, bool], list[float]]
    place: Place = sample_action
    effort: int = 2
    widen: float = 1.0
    beside: str = ""

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.load, self.ask_method)

    @property
    def methods(self) -> tuple[str, ...]:
        """All methods that ask its model."""
        return tuple(name for name, row in METHODS.items() if row.model == self.load)

    @property
    def others(self) -> dict[str, Role]:
        """Other methods that answer for each action or sample, and what each is judged by."""
        found = {self.beside: replace(self, ask_method=self.beside)} if self.beside else {}
        return found | {ENTROPY.ask_method: ENTROPY} if self is ACTOR else found

    @property
    def head(self) -> bool:
        return self.answer in ("values", "rewards")

    @property
    def per_sample(self) -> bool:
        return self.answer == "rewards"

    def normalizes(self, adapter: Adapter) -> bool:
        """Whether the adapter declares that this model's scores can be normalized."""
        return bool(getattr(adapter, f"{self.chapter}_normalization", False))

    def asked(self, **changes: Any) -> Asked:
        """What a strategy is asked for, with this role's kind of probe."""
        return Asked(**{"head": self.head, **changes})

    def any_temperature(self, adapter: Adapter, **changes: Any) -> Asked:
        """The same, at 1 and at a temperature on either side of it where the answers depend on one: a model is loaded
        for each."""
        temperatures = (1.0,) if self.head else known_temperatures(adapter)[::2]
        return self.asked(temperatures=temperatures, **changes)

    def loaded(self, case: ModelCase, **how: Any) -> Loaded:
        """The model of a case, as it is asked for in a call."""
        return Loaded(self.load, case.probe, case.temperature, **how)

    def call(self, subject: Subject, case: ModelCase, model: Any = None, **more: Any) -> Call:
        """The adapter's answers to a case; by the model of the case, unless another is given."""
        return asks_model(self.ask_method, subject, case, self.loaded(case) if model is None else model, **more)

    def expected(self, subject: Subject, case: ModelCase, *, plain: bool = False) -> Rows:
        return [self.truth(subject.truth, case, sample, plain) for sample in case.samples]

    def budget(self, subject: Subject, case: ModelCase) -> list[float]:
        """The allowance of each sample's answers."""
        truth, plain = (sum(self.expected(subject, case, plain=p), []) for p in (False, True))
        temperature = 1.0 if self.head else case.temperature
        scale = self.widen * self.scale(subject, case)
        allowance = budgets.model_output(truth, plain, scale, subject.dtype, temperature)
        return [allowance] * len(case.samples)

    def scale(self, subject: Subject, case: ModelCase) -> float:
        """The largest magnitude of what the answers are read from."""
        return subject.truth.scale(case.probe, case.samples, head=self.head)

    def asks_truth(
        self,
        subject: Subject,
        case: ModelCase,
        what: str = "",
        call: Call | None = None,
        hint: Callable[[Any], str] | None = None,
    ) -> Question:
        """Are the answers those of every sequence alone? They are those to `call`, if one is given."""
        return Question(
            what or f"{self.what} in layout {case.how.layout!r}",
            call or self.call(subject, case),
            self.expected(subject, case),
            self.budget(subject, case),
            place=self.place,
            hint=hint,
            quantity=what or self.what,
        )


def asks_model(method: str, subject: Subject, case: ModelCase, model: Any, **more: Any) -> Call:
    """A call of a method that is given a model and a batch."""
    return Call(method, (model, presented(subject, case)), about=case, **more)


def presented(subject: Subject, case: ModelCase) -> Batch:
    """The case as it is laid out; whoever gives it to the adapter gives it a copy."""
    return _presented(case.samples, case.how, case.probe.pad_token_id, case.temperature, subject.device)


@lru_cache(64)
def _presented(
    samples: tuple[Sample, ...], how: Presentation, pad_token_id: int, temperature: float, device: str
) -> Batch:
    return present(samples, how, pad_token_id=pad_token_id, temperature=temperature, device=device)


ACTOR = Role(
    chapter="actor",
    kind="actor",
    load="load_actor",
    ask_method="action_log_probs",
    what="log-prob of the action",
    answer="log_probs",
    truth=lambda truth, case, sample, plain: truth.action_log_probs(case.probe, sample, case.temperature, plain=plain),
    beside="log_probs_with_output",
)
ENTROPY = replace(
    ACTOR,
    ask_method="action_entropy",
    what="entropy at the action",
    answer="entropies",
    truth=lambda truth, case, sample, plain: truth.action_entropies(case.probe, sample, case.temperature, plain=plain),
    widen=4.0,
    beside="",
)
REWARD = Role(
    chapter="reward",
    kind="reward",
    load="load_reward_model",
    ask_method="rewards",
    what="reward",
    answer="rewards",
    truth=lambda truth, case, sample, plain: [truth.reward(case.probe, sample, plain=plain)],
    place=sample_only,
    beside="rewards_with_output",
)
CRITIC = Role(
    chapter="critic",
    kind="critic",
    load="load_critic",
    ask_method="action_values",
    what="value of the action's state",
    answer="values",
    truth=lambda truth, case, sample, plain: truth.action_values(case.probe, sample, plain=plain),
    beside="action_values_with_output",
)
ROLES = (ACTOR, REWARD, CRITIC)
