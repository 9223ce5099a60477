"""Chapter positions: numbering the tokens, and what a model with learned positions makes of it."""

from __future__ import annotations

from dataclasses import replace

from hypothesis.strategies import SearchStrategy

import rlhf_spec.positions as spec
from rlhf_conformance.cases.models import Asked, ModelCase, model_cases, padded_more
from rlhf_conformance.cases.sequences import MaskCase, PackCase, masks, packs
from rlhf_conformance.checks import NotReturned, check, offers_architecture, offers_layout, side_effects
from rlhf_conformance.checks.roles import ACTOR
from rlhf_conformance.judge import Judge, pack_position
from rlhf_conformance.subject import Subject

POSITIONS = ("position_ids",)
GPT2 = ("gpt2",)
learned = offers_architecture("gpt2")
rectangle = offers_layout(("padded", "left"))


@check("positions.cumsum", needs=POSITIONS, cases=lambda s: masks())
def cumsum(subject: Subject, case: MaskCase, judge: Judge) -> None:
    answer = subject.position_ids(subject.tensor(case.masks))
    truth = [spec.position_ids(mask) for mask in case.masks]
    attended = [[p for p, m in zip(*row, strict=True) if m] for row in zip(truth, case.masks, strict=True)]
    got = [row[mask.bool()] for row, mask in zip(answer.cpu(), subject.tensor(case.masks).cpu(), strict=True)]
    judge.equal(got, attended, what="positions of the tokens (pads left out)")


@check("positions.pads", needs=POSITIONS, cases=lambda s: masks())
def pads(subject: Subject, case: MaskCase, judge: Judge) -> None:
    answer = subject.position_ids(subject.tensor(case.masks))
    lowest, highest = int(answer.min()), int(answer.max())
    width = len(case.masks[0])
    judge.that(
        lowest >= 0 and highest < max(2, width),
        "positions of the whole rows, pads included",
        expected=f"within 0 and {max(2, width) - 1}, so that a table of positions can be indexed",
        actual=f"within {lowest} and {highest}",
    )


@check("positions.restart", needs=("pack_sequences",), cases=lambda s: packs())
def restart(subject: Subject, case: PackCase, judge: Judge) -> None:
    answer = subject.pack_sequences([subject.tensor(list(s)) for s in case.sequences])
    if answer.position_ids is None:
        raise NotReturned("pack_sequences makes no position_ids")
    total = sum(len(s) for s in case.sequences)
    truth = spec.packed_position_ids([len(s) for s in case.sequences])
    note = "each sequence starts at 0 again"
    judge.equal(answer.position_ids[0, :total], truth, what="position", place=pack_position, note=note)


def actor_cases(subject: Subject) -> SearchStrategy[ModelCase]:
    return padded_more(subject.adapter, Asked(layouts=("padded", "left"), architectures=GPT2))


@check(
    "positions.left-padding", needs=ACTOR.needs, requires=(learned, rectangle), cases=actor_cases, effort=ACTOR.effort
)
def left_padding(subject: Subject, case: ModelCase, judge: Judge) -> None:
    """Each sample alone, without and with pad columns on its left."""
    for sample in case.samples:
        bare = replace(case, samples=(sample,), how=case.how.plain())
        padded = replace(bare, how=replace(bare.how, extra_left=max(1, case.how.extra_left)))
        model = ACTOR.model(subject, bare)
        without, with_pads = ACTOR.ask(subject, model, bare), ACTOR.ask(subject, model, padded)
        judge.close(
            with_pads,
            without,
            [2 * b for b in ACTOR.budget(subject, bare)],
            what=f"log-probs with {padded.how.extra_left} pads on the left",
            place=ACTOR.place,
            note="positions must count tokens, not columns: cumsum(attention_mask) - 1",
        )
    ACTOR.judge_truth(subject, case, judge, note="each row counts its own tokens, whatever the pads of the others")


@check(
    "positions.start-at-zero",
    needs=ACTOR.needs,
    requires=(learned,),
    cases=lambda s: model_cases(s.adapter, Asked(architectures=GPT2)),
    effort=ACTOR.effort,
)
def start_at_zero(subject: Subject, case: ModelCase, judge: Judge) -> None:
    for sample in case.samples:
        alone = replace(case, samples=(sample,))
        ACTOR.judge_truth(subject, alone, judge, note="an unpadded row has positions 0, 1, 2, ...")


def _positions(subject: Subject, case: MaskCase) -> object:
    return subject.position_ids(subject.tensor(case.masks))


side_effects.register("positions", needs=POSITIONS, cases=lambda s: masks(), ask=_positions)
