"""The checks of packs that models are given: several sequences in one row give what each gives alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from rlhf_conformance.adapter import Adapter
from rlhf_conformance.chapters._models import templates
from rlhf_conformance.chapters._models.cases import (
    PACKS,
    RECTANGLES,
    EditedCase,
    ModelCase,
    edited,
    model_cases,
    permuted,
    weighted,
)
from rlhf_conformance.chapters._models.roles import ACTOR, CRITIC, REWARD, Role
from rlhf_conformance.judging.checks import Cases, Questions, Template, check, offers_layout, use
from rlhf_conformance.judging.picks import Picks
from rlhf_conformance.judging.questions import ANSWER, Against, Attempt, Question, Shaped, selected
from rlhf_conformance.judging.subject import Subject
from rlhf_conformance.oracle.layouts import Sample


def packs_somehow(adapter: Adapter) -> str | None:
    if adapter.packs_internally or set(PACKS) & set(adapter.layouts):
        return None
    return "the adapter declares no pack: neither a layout nor packs_internally"


def pack_layouts(adapter: Adapter) -> tuple[str, ...]:
    """The layouts through which the adapter's packing is reached."""
    return RECTANGLES + PACKS if adapter.packs_internally else PACKS


def packed(strategy: Callable[..., Any], role: Role) -> Cases:
    """Cases of at least two samples in a pack."""

    def cases(subject: Subject) -> Any:
        return strategy(subject.adapter, role.asked(layouts=pack_layouts(subject.adapter), min_samples=2))

    return cases


def truth(role: Role) -> Template:
    return templates.truth_of(role, packed(model_cases, role), packs_somehow)


use("packing.equivalence", truth(ACTOR))
use("packing.reward", truth(REWARD))
use("packing.critic", truth(CRITIC))
use("packing.turns", templates.turns(ACTOR, packs_somehow, layouts=pack_layouts))
use("packing.tail", templates.truth(ACTOR, offers_layout(("packed-tail",)), layouts=("packed-tail",)))
use("packing.shards", templates.truth(ACTOR, offers_layout(("sharded",)), layouts=("sharded",)))
use("packing.segments", templates.truth(ACTOR, offers_layout(("segments",)), layouts=("segments",), effort=3))
use(
    "packing.isolation",
    templates.template(ACTOR, lambda s, case: templates.isolated(ACTOR, s, case), packed(edited, ACTOR), packs_somehow),
)
use(
    "packing.order",
    templates.template(
        ACTOR, lambda s, case: templates.permuted(ACTOR, s, case), packed(permuted, ACTOR), packs_somehow
    ),
)


def weighted_packs(subject: Subject) -> Any:
    adapter = subject.adapter
    return weighted(adapter, ACTOR.any_temperature(adapter, layouts=pack_layouts(adapter), min_samples=2), False)


use("packing.gradient", templates.gradient_on(ACTOR, weighted_packs, packs_somehow))


@check(
    "packing.action-counts",
    needs=ACTOR.needs,
    requires=(packs_somehow,),
    cases=packed(model_cases, ACTOR),
    effort=ACTOR.effort,
)
def action_counts(subject: Subject, case: ModelCase) -> Questions:
    call, counts = ACTOR.call(subject, case), [len(s.response) for s in case.samples]
    yield Shaped(call, "number of actions of each sequence", expected=str(counts))
    yield Question("number of actions", call, counts, reading=selected(lambda rows: [len(row) for row in rows]))


# --- sequences without a prompt -------------------------------------------------------------------------------------


def without_prompt(case: EditedCase, picks: Picks) -> EditedCase:
    """One sample, behind the one that will be exchanged more often than not, is all response: two tokens at least."""
    samples, edited_one = list(case.case.samples), case.index
    others = [i for i in range(len(samples)) if i != edited_one]
    behind = [i for i in others if i == edited_one + 1] or others
    chosen = picks.of(behind) if picks.chance(3, 4) else picks.of(others)
    samples[chosen] = replace(samples[chosen], prompt=(), response=samples[chosen].tokens)
    return replace(case, case=replace(case.case, samples=tuple(samples)))


def no_prompt(role: Role) -> Template:
    """What is predicted is right, and what nothing predicts is no neighbor's. An error is honest as well."""

    def cases(subject: Subject) -> Any:
        asked = role.asked(layouts=PACKS, min_samples=2)
        return edited(subject.adapter, asked).with_more(3, without_prompt)

    def check(subject: Subject, case: EditedCase) -> Questions:
        inner = case.case
        whole = replace(inner, samples=tuple(s if s.prompt else _with_prompt(s) for s in inner.samples))
        yield role.asks_truth(subject, whole, f"{role.what} where every sequence has a prompt")
        call, after = role.call(subject, inner), role.call(subject, case.edited)
        answered = yield Attempt(call)
        if answered is None:
            return
        bare = [i for i, s in enumerate(inner.samples) if not s.prompt]

        def predicted(rows: Sequence[Any]) -> list[Any]:
            return [row[1:] if i in bare else row for i, row in enumerate(rows)]

        budget = role.budget(subject, whole)
        yield Question(
            f"{role.what} in a pack of which a sequence has no prompt",
            call,
            role.expected(subject, whole),
            budget,
            reading=ANSWER if role.per_sample else selected(predicted),
            place=role.place,
        )
        if (yield Attempt(after)) is None or role.per_sample:
            return
        first = selected(lambda rows: [rows[i][:1] for i in bare])
        yield Question(
            f"{role.what} that nothing predicts, after sample {case.index} was exchanged",
            after,
            Against((call,), first),
            [2 * budget[i] for i in bare],
            reading=first,
            place=lambda at: role.place((bare[at[0]], *at[1:])),
        )

    return templates.template(role, check, cases, offers_layout(PACKS), effort=role.effort + 2)


def _with_prompt(sample: Sample) -> Sample:
    """The same tokens, of which the first is the prompt."""
    return Sample(sample.response[:1], sample.response[1:])


use("packing.no-prompt", no_prompt(ACTOR))
use("packing.reward-no-prompt", no_prompt(REWARD))
use("packing.critic-no-prompt", no_prompt(CRITIC))
