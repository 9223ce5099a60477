"""The checks of packs that models are given: several sequences in one row give what each gives alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rlhf_conformance.adapter import Adapter
from rlhf_conformance.chapters._models import templates
from rlhf_conformance.chapters._models.cases import (
    PACKS,
    RECTANGLES,
    ModelCase,
    edited,
    model_cases,
    permuted,
    weighted,
)
from rlhf_conformance.chapters._models.roles import ACTOR, CRITIC, REWARD, Role
from rlhf_conformance.judging.checks import Cases, Questions, Template, check, offers_layout, use
from rlhf_conformance.judging.questions import Question, Shaped, selected
from rlhf_conformance.judging.subject import Subject


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
use("packing.tail", templates.truth(ACTOR, offers_layout(("packed-tail",)), layouts=("packed-tail",)))
use("packing.shards", templates.truth(ACTOR, offers_layout(("sharded",)), layouts=("sharded",)))
use("packing.segments", templates.truth(ACTOR, offers_layout(("segments",)), layouts=("segments",)))
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
