"""What reward model and critic check alike: the head, and the normalization."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import rlhf_spec.reward
from rlhf_conformance.adapter import Adapter
from rlhf_conformance.chapters._models.cases import (
    ModelCase,
    WeightedCase,
    loadable,
    model_cases,
    weighted,
    with_statistics,
)
from rlhf_conformance.chapters._models.roles import Role
from rlhf_conformance.chapters._models.templates import gradients, template, truth_of
from rlhf_conformance.chapters._models.weights import Weights
from rlhf_conformance.judging.checks import Questions, Requirement, Template
from rlhf_conformance.judging.picks import Picked
from rlhf_conformance.judging.questions import Call, Fact, Question, Refused
from rlhf_conformance.judging.subject import Subject
from rlhf_conformance.oracle import budgets
from rlhf_conformance.oracle.layouts import Presentation, Sample
from rlhf_conformance.oracle.probes import Probe


def declares_normalization(role: Role) -> Requirement:
    return lambda adapter: None if role.normalizes(adapter) else f"{role.chapter}_normalization is not declared"


def more_than_one_head_name(adapter: Adapter) -> str | None:
    return None if len(adapter.head_names) > 1 else "head_names declares a single name"


def head_may_have_a_bias(adapter: Adapter) -> str | None:
    return None if adapter.head_bias else "head_bias is not declared"


def normalization(role: Role, *modes: bool, normalized: bool = True) -> Template:
    """The answers of a normalizing model in eval mode (False) or train mode (True)."""

    def check(subject: Subject, case: ModelCase) -> Questions:
        for training in modes:
            yield asks_normalized(role, subject, case, training=training, normalized=normalized)

    cases = lambda s: with_statistics(model_cases(s.adapter, role.asked()))  # noqa: E731
    return template(role, check, cases, declares_normalization(role), effort=5)


def asks_normalized(
    role: Role, subject: Subject, case: ModelCase, *, training: bool, normalized: bool = True, fresh: bool = True
) -> Question:
    mean, std = (case.probe.mean, case.probe.std) if normalized else (0.0, 1.0)
    truth = [[rlhf_spec.reward.normalize(x, mean, std) for x in row] for row in role.expected(subject, case)]
    model = replace(role.loaded(case, normalize=True, training=training, fresh=fresh), temperature=1.0)
    return Question(
        f"{role.what} in {'train' if training else 'eval'} mode, mean {case.probe.mean}, std {case.probe.std}",
        role.call(subject, case, model, scored=(mean, std)),
        truth,
        [budgets.normalized(b, mean, std, subject.dtype) for b in role.budget(subject, case)],
        place=role.place,
    )


def head_name(role: Role) -> Template:
    """Cases whose checkpoint holds its head under one of the further declared names."""

    def cases(subject: Subject) -> Any:
        names = subject.adapter.head_names[1:]
        return model_cases(subject.adapter, role.asked()).with_more(
            1, lambda case, picks: replace(case, probe=replace(case.probe, head_name=picks.of(names)))
        )

    return truth_of(role, cases, more_than_one_head_name, effort=2 * role.effort)  # every case tells


def head_bias(role: Role) -> Template:
    """Answers and gradients of a checkpoint whose head has a bias."""

    def check(subject: Subject, case: WeightedCase) -> Questions:
        yield role.asks_truth(subject, case.case)
        yield from gradients(role, subject, case)

    def cases(subject: Subject) -> Any:
        return weighted(subject.adapter, role.asked(probe=Probe(head_bias=True)), role.per_sample)

    return template(role, check, cases, head_may_have_a_bias, effort=10)  # every case tells


def missing_head(role: Role) -> Template:
    """Checkpoints without their head, each after the same one with it."""

    def check(subject: Subject, case: Probe) -> Questions:
        yield role.asks_truth(subject, _small(subject, replace(case, headless=False)))
        yield Refused(
            Call(role.load, (subject.checkpoint(case),)),
            f"{role.load} of a checkpoint without a head",
            actual="a model with random weights for head",
        )

    return Template(check, role.needs, _headless, (refuses_a_missing_head(role),), single=True)


def new_head(role: Role) -> Template:
    """The answers of a model that was given a new head are those of the checkpoint's backbone under just that head."""

    def check(subject: Subject, case: Probe) -> Questions:
        small, whole = _small(subject, case), replace(case, headless=False, new_head=False)
        weights = Weights.of(subject, role.loaded(small))
        head = weights.drawn_head()
        yield Fact(
            "score.weight" in head,
            "parameters of the model",
            expected="one for the new head, of shape (1, hidden): override Adapter.parameters",
            actual=", ".join(list(weights.parameters)[-3:]),
        )
        yield Fact(  # else whatever comes of it is as good
            all(bool(weight.isfinite().all()) for weight in head.values()),
            "the new head (what is allocated while loading and never set is NaN)",
            expected="finite weights",
            actual="NaN or infinite ones",
        )
        now = replace(subject, truth=subject.truth.with_weights(whole, head))
        call = replace(role.call(subject, small), about=None)  # the model has weights of its own
        yield replace(
            role.asks_truth(now, replace(small, probe=whole), "", call),
            what=f"{role.what} under the new head",
        )

    def cases(subject: Subject) -> Any:
        return _headless(subject).map(lambda probe: replace(probe, new_head=True))

    return Template(check, role.needs, cases, (asks_for_a_new_head(role),), effort=10)


def asks_for_a_new_head(role: Role) -> Requirement:
    said = f"{role.chapter}_new_head is not declared"
    return lambda adapter: None if getattr(adapter, f"{role.chapter}_new_head") else said


def refuses_a_missing_head(role: Role) -> Requirement:
    name, value = f"{role.chapter}_new_head", "always"
    said = f'{name} = "{value}": a checkpoint without a head gets a new one'
    return lambda adapter: said if getattr(adapter, name) == value else None


def _small(subject: Subject, probe: Probe) -> ModelCase:
    how = Presentation(subject.adapter.layouts[0])
    return ModelCase(probe, (Sample((5, 9), (7, 11, 3)), Sample((8,), (4,))), how)


def _headless(subject: Subject) -> Any:
    adapter = subject.adapter
    probes = [Probe(a, head_name=adapter.head_names[0], headless=True) for a in loadable(adapter, head=True)]
    return Picked(1, lambda picks: picks.of(probes))
