"""Chapter packing: several sequences in one row give what each gives alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rlhf_conformance.adapter import Adapter
from rlhf_conformance.cases.models import (
    PACKS,
    RECTANGLES,
    EditedCase,
    ModelCase,
    PermutedCase,
    WeightedCase,
    edited,
    model_cases,
    permuted,
    weighted,
)
from rlhf_conformance.cases.sequences import PackCase, packs
from rlhf_conformance.checks import NotReturned, check, offers_layout
from rlhf_conformance.checks.models import judge_gradient, judge_isolation, judge_permuted
from rlhf_conformance.checks.roles import ACTOR, CRITIC, REWARD, Role
from rlhf_conformance.judge import Judge, pack_position
from rlhf_conformance.subject import Subject, WiringError

PACK = ("pack_sequences",)
IGNORE = -100


def packs_somehow(adapter: Adapter) -> str | None:
    if adapter.packs_internally or set(PACKS) & set(adapter.layouts):
        return None
    return "the adapter declares no pack: neither a layout nor packs_internally"


def pack_layouts(adapter: Adapter) -> tuple[str, ...]:
    """The layouts through which the adapter's packing is reached."""
    return RECTANGLES + PACKS if adapter.packs_internally else PACKS


def packed(strategy: Callable[..., Any], role: Role) -> Callable[[Subject], Any]:
    """Cases of at least two samples in a pack."""

    def cases(subject: Subject) -> Any:
        return strategy(subject.adapter, role.asked(layouts=pack_layouts(subject.adapter), min_samples=2))

    return cases


def ask_pack(subject: Subject, case: PackCase) -> Any:
    return subject.pack_sequences([subject.tensor(list(s)) for s in case.sequences])


@check("packing.tokens", needs=PACK, cases=lambda s: packs())
def tokens(subject: Subject, case: PackCase, judge: Judge) -> None:
    """A tail of padding may follow."""
    answer = ask_pack(subject, case)
    flat = [token for sequence in case.sequences for token in sequence]
    judge.equal(answer.input_ids[0, : len(flat)], flat, what="token ids of the pack", place=pack_position)


@check("packing.boundary", needs=PACK, cases=lambda s: packs())
def boundary(subject: Subject, case: PackCase, judge: Judge) -> None:
    answer = ask_pack(subject, case)
    if answer.labels is None:
        raise NotReturned("pack_sequences makes no labels")
    shifted = subject.adapter.packed_labels == "shifted"
    truth: list[int] = []
    for sequence in case.sequences:
        inner = list(sequence[1:])
        truth += [*inner, IGNORE] if shifted else [IGNORE, *inner]
    judge.equal(
        answer.labels[0, : len(truth)],
        truth,
        what=f"labels ({subject.adapter.packed_labels})",
        place=pack_position,
        note="the last token of a sequence is not scored on the first of the next",
    )
    tail = answer.labels[0, len(truth) :].tolist()
    judge.equal(tail, [IGNORE] * len(tail), what="labels of the padding behind the pack")


@check(
    "packing.equivalence",
    needs=ACTOR.needs,
    requires=(packs_somehow,),
    cases=packed(model_cases, ACTOR),
    effort=ACTOR.effort,
)
def equivalence(subject: Subject, case: ModelCase, judge: Judge) -> None:
    ACTOR.judge_truth(subject, case, judge, note="a pack gives what each sequence gives alone")


@check(
    "packing.isolation", needs=ACTOR.needs, requires=(packs_somehow,), cases=packed(edited, ACTOR), effort=ACTOR.effort
)
def isolation(subject: Subject, case: EditedCase, judge: Judge) -> None:
    judge_isolation(ACTOR, subject, case, judge)


@check(
    "packing.order", needs=ACTOR.needs, requires=(packs_somehow,), cases=packed(permuted, ACTOR), effort=ACTOR.effort
)
def order(subject: Subject, case: PermutedCase, judge: Judge) -> None:
    judge_permuted(ACTOR, subject, case, judge)


@check(
    "packing.action-counts",
    needs=ACTOR.needs,
    requires=(packs_somehow,),
    cases=packed(model_cases, ACTOR),
    effort=ACTOR.effort,
)
def action_counts(subject: Subject, case: ModelCase, judge: Judge) -> None:
    answer = subject.raw_actions("action_log_probs", ACTOR.model(subject, case), case)
    counts = [len(s.response) for s in case.samples]
    try:
        rows = subject.actions_of("action_log_probs", answer, subject.batch(case))
    except WiringError as error:
        judge.fail("number of actions of each sequence", expected=str(counts), actual=str(error))
    judge.equal([len(row) for row in rows], counts, what="number of actions")


@check(
    "packing.tail",
    needs=ACTOR.needs,
    requires=(offers_layout(("packed-tail",)),),
    cases=lambda s: model_cases(s.adapter, ACTOR.asked(layouts=("packed-tail",))),
    effort=ACTOR.effort,
)
def tail(subject: Subject, case: ModelCase, judge: Judge) -> None:
    ACTOR.judge_truth(subject, case, judge, note="padding at the end of a pack is nobody's")


@check(
    "packing.shards",
    needs=ACTOR.needs,
    requires=(offers_layout(("sharded",)),),
    cases=lambda s: model_cases(s.adapter, ACTOR.asked(layouts=("sharded",))),
    effort=ACTOR.effort,
)
def shards(subject: Subject, case: ModelCase, judge: Judge) -> None:
    ACTOR.judge_truth(subject, case, judge, note="shards put together are the pack once more")


@check(
    "packing.reward",
    needs=REWARD.needs,
    requires=(packs_somehow,),
    cases=packed(model_cases, REWARD),
    effort=REWARD.effort,
)
def reward(subject: Subject, case: ModelCase, judge: Judge) -> None:
    REWARD.judge_truth(subject, case, judge, note="each sequence of a pack is read at its own last token")


@check(
    "packing.critic",
    needs=CRITIC.needs,
    requires=(packs_somehow,),
    cases=packed(model_cases, CRITIC),
    effort=CRITIC.effort,
)
def critic(subject: Subject, case: ModelCase, judge: Judge) -> None:
    CRITIC.judge_truth(
        subject, case, judge, note="V[P-1 : L-1] of each sequence of the pack, counted from its own start"
    )


@check(
    "packing.gradient",
    needs=ACTOR.needs,
    requires=(packs_somehow,),
    cases=lambda s: weighted(
        s.adapter, ACTOR.any_temperature(s.adapter, layouts=pack_layouts(s.adapter), min_samples=2), False
    ),
    effort=4,
)
def gradient(subject: Subject, case: WeightedCase, judge: Judge) -> None:
    judge_gradient(ACTOR, subject, case, judge)
