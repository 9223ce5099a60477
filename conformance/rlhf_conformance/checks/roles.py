"""The three models as one table: how each is loaded, asked and judged against the truth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rlhf_conformance import budgets
from rlhf_conformance.adapter import Adapter
from rlhf_conformance.cases.logits import TEMPERATURES
from rlhf_conformance.cases.models import Asked, ModelCase
from rlhf_conformance.checks import declares
from rlhf_conformance.judge import Judge, Place, sample_action
from rlhf_conformance.layouts import Sample
from rlhf_conformance.subject import Subject
from rlhf_conformance.truth import Truth

Rows = list[list[float]]


temperature_declared = declares("temperature", "temperature = False: the adapter knows no temperature")


def known_temperatures(adapter: Adapter) -> tuple[float, ...]:
    """Those that the adapter may be asked for."""
    return (1.0, *TEMPERATURES) if adapter.temperature else (1.0,)


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

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.load, self.ask_method)

    @property
    def head(self) -> bool:
        return self.answer != "log_probs"

    @property
    def per_sample(self) -> bool:
        return self.answer == "rewards"

    def normalises(self, adapter: Adapter) -> bool:
        """Whether the adapter declares that this model's scores can be normalised."""
        return bool(getattr(adapter, f"{self.chapter}_normalization", False))

    def asked(self, **changes: Any) -> Asked:
        """What a strategy is asked for, with this role's kind of probe."""
        return Asked(**{"head": self.head, **changes})

    def any_temperature(self, adapter: Adapter, **changes: Any) -> Asked:
        """The same, at any temperature where the answers depend on one."""
        temperatures = (1.0,) if self.head else known_temperatures(adapter)
        return self.asked(temperatures=temperatures, **changes)

    def model(self, subject: Subject, case: ModelCase) -> Any:
        return subject.model(self.load, case.probe, case.temperature)

    def ask(self, subject: Subject, model: Any, case: ModelCase) -> list[Any]:
        """The adapter's answers, one tensor for each sample."""
        if self.per_sample:
            return subject.rewards(model, case)
        return subject.actions(self.ask_method, model, case)

    def expected(self, subject: Subject, case: ModelCase, *, plain: bool = False) -> Rows:
        return [self.truth(subject.truth, case, sample, plain) for sample in case.samples]

    def budget(self, subject: Subject, case: ModelCase) -> list[float]:
        """The allowance of each sample's answers."""
        truth, plain = (sum(self.expected(subject, case, plain=p), []) for p in (False, True))
        allowance = budgets.model_output(truth, plain, self.scale(subject, case), subject.dtype, case.temperature)
        return [allowance] * len(case.samples)

    def scale(self, subject: Subject, case: ModelCase) -> float:
        """The largest magnitude of what the answers are read from."""
        if self.head:
            seen = max(abs(x) for s in case.samples for x in subject.truth.scores(case.probe, s.tokens))
            # A score near 0 is a sum of terms that cancel: it rounds as one of the head's usual size does.
            return max(seen, 2.0 * case.probe.head_scale)
        return max(abs(x) for s in case.samples for row in subject.truth.logits(case.probe, s.tokens) for x in row)

    def judge_truth(self, subject: Subject, case: ModelCase, judge: Judge, *, note: str = "") -> None:
        """Load, ask, and compare with every sequence alone."""
        answer = self.ask(subject, self.model(subject, case), case)
        self.judge_answer(subject, case, answer, judge, note=note)

    def judge_answer(self, subject: Subject, case: ModelCase, answer: Any, judge: Judge, *, note: str = "") -> None:
        judge.close(
            answer,
            self.expected(subject, case),
            self.budget(subject, case),
            what=f"{self.what} in layout {case.how.layout!r}",
            place=self.place,
            note=note,
        )


ACTOR = Role(
    chapter="actor",
    kind="actor",
    load="load_actor",
    ask_method="action_log_probs",
    what="log-prob of the action",
    answer="log_probs",
    truth=lambda truth, case, sample, plain: truth.action_log_probs(case.probe, sample, case.temperature, plain=plain),
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
)
CRITIC = Role(
    chapter="critic",
    kind="critic",
    load="load_critic",
    ask_method="action_values",
    what="value of the action's state",
    answer="values",
    truth=lambda truth, case, sample, plain: truth.action_values(case.probe, sample, plain=plain),
)
ROLES = (ACTOR, REWARD, CRITIC)
