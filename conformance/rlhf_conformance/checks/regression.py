"""Chapters reward and critic: where the score is read, the head, the normalisation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

import rlhf_spec.reward
from rlhf_conformance import budgets
from rlhf_conformance._lazy import torch
from rlhf_conformance.adapter import Adapter
from rlhf_conformance.cases.models import ModelCase, model_cases, with_statistics
from rlhf_conformance.checks import NotReturned, check, offers_layout
from rlhf_conformance.checks.roles import CRITIC, REWARD, Role
from rlhf_conformance.judge import Judge, sample_position
from rlhf_conformance.probes import Probe
from rlhf_conformance.subject import AdapterError, Subject, WiringError

REWARD_CASES = lambda s: model_cases(s.adapter, REWARD.asked())  # noqa: E731
CRITIC_CASES = lambda s: model_cases(s.adapter, CRITIC.asked())  # noqa: E731


@check("reward.last-attended", needs=REWARD.needs, cases=REWARD_CASES, effort=REWARD.effort)
def last_attended(subject: Subject, case: ModelCase, judge: Judge) -> None:
    REWARD.judge_truth(subject, case, judge, note="the score is read at the last attended position")


@check("reward.one-per-sequence", needs=REWARD.needs, cases=REWARD_CASES, effort=REWARD.effort)
def one_per_sequence(subject: Subject, case: ModelCase, judge: Judge) -> None:
    """The shape is checked before anything else sees the answer; here it is the clause."""
    try:
        subject.rewards(REWARD.model(subject, case), case)
    except WiringError as error:
        judge.fail("shape of the rewards", expected=f"({len(case.samples)},)", actual=str(error))
    judge.comparisons += 1


@check(
    "reward.pad-equals-eos",
    needs=REWARD.needs,
    cases=lambda s: model_cases(s.adapter, REWARD.asked(pad_is_eos=True, prompt_eos=True)),
    effort=REWARD.effort,
)
def pad_equals_eos(subject: Subject, case: ModelCase, judge: Judge) -> None:
    REWARD.judge_truth(subject, case, judge, note="an EOS inside the prompt, equal to the pad id, is not the end")


def without_padding(case: ModelCase) -> ModelCase:
    """The samples cut to one shape, so that no cell is padded."""
    prompt, response = min(len(s.prompt) for s in case.samples), min(len(s.response) for s in case.samples)
    samples = tuple(replace(s, prompt=s.prompt[-prompt:], response=s.response[:response]) for s in case.samples)
    return replace(case, samples=samples)


@check(
    "reward.truncated",
    needs=REWARD.needs,
    cases=lambda s: model_cases(s.adapter, REWARD.asked(ends="cut", prompt_eos=False, specials=False)).map(
        without_padding
    ),
    effort=REWARD.effort,
)
def truncated(subject: Subject, case: ModelCase, judge: Judge) -> None:
    REWARD.judge_truth(subject, case, judge, note="no pad and no EOS anywhere: the last token is the last attended one")


@check(
    "reward.unclamped",
    needs=REWARD.needs,
    cases=lambda s: model_cases(
        s.adapter, REWARD.asked(probe=Probe(head_scale=64.0), pad_is_eos=False, specials=False)
    ),
    effort=REWARD.effort,
)
def unclamped(subject: Subject, case: ModelCase, judge: Judge) -> None:
    REWARD.judge_truth(subject, case, judge, note="the head's score is passed on as it is, however large")


@check("critic.state-before", needs=CRITIC.needs, cases=CRITIC_CASES, effort=CRITIC.effort)
def state_before(subject: Subject, case: ModelCase, judge: Judge) -> None:
    CRITIC.judge_truth(subject, case, judge, note="the value of an action is that of the state before it: V[P-1 : L-1]")


@check("critic.shape", needs=CRITIC.needs, cases=CRITIC_CASES, effort=CRITIC.effort)
def shape(subject: Subject, case: ModelCase, judge: Judge) -> None:
    try:
        subject.actions("action_values", CRITIC.model(subject, case), case)
    except WiringError as error:
        judge.fail("shape of the values", expected="one number for each action", actual=str(error))
    judge.comparisons += 1


@check("critic.raw-output", needs=("load_critic", "values"), cases=CRITIC_CASES, effort=CRITIC.effort)
def raw_output(subject: Subject, case: ModelCase, judge: Judge) -> None:
    answer = subject.whole_output("values", CRITIC.model(subject, case), case)
    truth, plain = ([subject.truth.scores(case.probe, s.tokens, plain=p) for s in case.samples] for p in (False, True))
    allowed = budgets.model_output(sum(truth, []), sum(plain, []), CRITIC.scale(subject, case), subject.dtype)
    judge.close(answer, truth, allowed, what="value", place=sample_position)


@check(
    "critic.pads-zero",
    needs=CRITIC.needs,
    requires=(offers_layout(("padded",)),),
    cases=lambda s: model_cases(s.adapter, CRITIC.asked(layouts=("padded",))),
    effort=CRITIC.effort,
)
def pads_zero(subject: Subject, case: ModelCase, judge: Judge) -> None:
    answer = subject.raw_actions("action_values", CRITIC.model(subject, case), case)
    if not isinstance(answer, torch.Tensor):
        raise NotReturned("action_values returns a list, which has no pads")
    batch = subject.batch(case)
    subject.actions_of("action_values", answer, batch)
    assert batch.action_mask is not None
    outside = answer.masked_fill(batch.action_mask.bool(), 0.0)
    judge.equal(outside, torch.zeros_like(outside), what="value on a pad")


def declares_normalization(role: Role) -> Callable[[Adapter], str | None]:
    return lambda adapter: None if role.normalises(adapter) else f"{role.chapter}_normalization is not declared"


def more_than_one_head_name(adapter: Adapter) -> str | None:
    return None if len(adapter.head_names) > 1 else "head_names declares a single name"


def judge_normalized(
    role: Role, subject: Subject, case: ModelCase, judge: Judge, *, training: bool, normalized: bool
) -> None:
    """Ask a normalising model in train or eval mode, and compare with normalised or raw truth."""
    model = subject.load(role.load, case.probe, normalize=True)
    subject.uncopied("set_training", model, training)
    mean, std = (case.probe.mean, case.probe.std) if normalized else (0.0, 1.0)
    truth = [[rlhf_spec.reward.normalise(x, mean, std) for x in row] for row in role.expected(subject, case)]
    allowed = [b / std * 2 + 8 * budgets.unit(subject.dtype) * abs(mean) / std for b in role.budget(subject, case)]
    judge.close(
        role.ask(subject, model, case),
        truth,
        allowed,
        what=f"{role.what} in {'train' if training else 'eval'} mode, mean {case.probe.mean}, std {case.probe.std}",
        place=role.place,
        note="(r - mean) / std" if normalized else "in train mode the reward is raw",
    )


def normalized_cases(role: Role) -> Callable[[Subject], Any]:
    return lambda s: with_statistics(model_cases(s.adapter, role.asked()))


def other_head_names(role: Role) -> Callable[[Subject], Any]:
    """Cases whose checkpoint holds its head under one of the further declared names."""

    def cases(subject: Subject) -> Any:
        names = st.sampled_from(list(subject.adapter.head_names[1:]))
        return st.builds(_with_head_name, model_cases(subject.adapter, role.asked()), names)

    return cases


def _with_head_name(case: ModelCase, name: str) -> ModelCase:
    return replace(case, probe=replace(case.probe, head_name=name))


def headless(subject: Subject) -> Any:
    """Checkpoints without their head."""
    adapter = subject.adapter
    return st.sampled_from([Probe(a, head_name=adapter.head_names[0], headless=True) for a in adapter.architectures])


for _role in (REWARD, CRITIC):

    @check(
        f"{_role.chapter}.normalization",
        needs=_role.needs,
        requires=(declares_normalization(_role),),
        cases=normalized_cases(_role),
        effort=5,
    )
    def normalization(subject: Subject, case: ModelCase, judge: Judge, role: Role = _role) -> None:
        modes = (False,) if role is REWARD else (False, True)
        for training in modes:
            judge_normalized(role, subject, case, judge, training=training, normalized=True)

    @check(
        f"{_role.chapter}.head-name",
        needs=_role.needs,
        requires=(more_than_one_head_name,),
        cases=other_head_names(_role),
        effort=_role.effort,
    )
    def head_name(subject: Subject, case: ModelCase, judge: Judge, role: Role = _role) -> None:
        role.judge_truth(
            subject,
            case,
            judge,
            note=f"the checkpoint holds its head as {case.probe.head_name}.weight: a random one is used",
        )

    @check(
        f"{_role.chapter}.missing-head",
        needs=_role.needs,
        cases=headless,
        single=True,
    )
    def missing_head(subject: Subject, case: Probe, judge: Judge, role: Role = _role) -> None:
        try:
            subject.call(role.load, subject.checkpoint(case))
        except AdapterError:
            judge.comparisons += 1
            return
        judge.fail(
            f"{role.load} of a checkpoint without a head",
            expected="an error",
            actual="a model with random weights for head",
        )


@check(
    "reward.normalization-train",
    needs=REWARD.needs,
    requires=(declares_normalization(REWARD),),
    cases=normalized_cases(REWARD),
    effort=5,
)
def normalization_train(subject: Subject, case: ModelCase, judge: Judge) -> None:
    judge_normalized(REWARD, subject, case, judge, training=True, normalized=False)
