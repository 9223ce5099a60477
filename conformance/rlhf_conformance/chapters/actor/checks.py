"""The checks of the actor: log-probs of the actions, entropy, raw output, generation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rlhf_conformance.chapters._models import templates
from rlhf_conformance.chapters._models.cases import Asked, ModelCase, PromptCase, model_cases, prompts
from rlhf_conformance.chapters._models.roles import ACTOR, ENTROPY, asks_model
from rlhf_conformance.chapters._temperatures import TEMPERATURES, temperature_declared
from rlhf_conformance.judging.checks import Questions, check, declares, use
from rlhf_conformance.judging.questions import (
    Against,
    Call,
    Fact,
    Loaded,
    Question,
    sample_action,
    sample_position,
    selected,
)
from rlhf_conformance.judging.subject import Subject
from rlhf_conformance.oracle import budgets
from rlhf_conformance.oracle.layouts import present_prompts
from rlhf_conformance.oracle.probes import Probe

GENERATE = ("load_actor", "generate")

declares_entropy_gradient = declares(
    "entropy_gradient", "entropy_gradient = False: the trainer's entropy is a metric, without a gradient"
)

use("actor.log-probs", templates.truth_of(ACTOR, lambda s: model_cases(s.adapter)))
use("actor.temperature", templates.truth(ACTOR, temperature_declared, temperatures=TEMPERATURES))
use("actor.padding-invariance", templates.padding_invariance(ACTOR))
use("actor.garbage-under-mask", templates.garbage(ACTOR))
use("actor.batch-independence", templates.batch_independence(ACTOR))
use("actor.gradient", templates.gradient(ACTOR))
use("actor.entropy-gradient", templates.gradient(ENTROPY, effort=8), declares_entropy_gradient)
use("actor.no-grad", templates.no_grad(ACTOR))
use("actor.train-mode", templates.train_mode(ACTOR))
use("actor.round-trip", templates.round_trip(ACTOR))
use("actor.inputs-unwritten", templates.inputs_unwritten(ACTOR))
use("actor.side-effects", templates.side_effects(ACTOR))


def any_known_temperature(subject: Subject) -> Any:
    return model_cases(subject.adapter, ACTOR.any_temperature(subject.adapter))


use("actor.entropy", templates.truth_of(ENTROPY, any_known_temperature))


@check("actor.raw-output", needs=("load_actor", "logits"), cases=any_known_temperature, effort=ACTOR.effort)
def raw_output(subject: Subject, case: ModelCase) -> Questions:
    truth, plain = ([subject.truth.logits(case.probe, s.tokens, plain=p) for s in case.samples] for p in (False, True))
    flat, flat_plain = ([x for sample in rows for row in sample for x in row] for rows in (truth, plain))
    yield Question(
        "logit",
        asks_model("logits", subject, case, ACTOR.loaded(case)),
        truth,
        budgets.model_output(flat, flat_plain, ACTOR.scale(subject, case), subject.dtype),
        place=sample_position,
    )


@check(
    "actor.dropout-off",
    needs=ACTOR.needs,
    cases=lambda s: model_cases(s.adapter, Asked(probe=Probe(dropout=True))),
    effort=3,
)
def dropout_off(subject: Subject, case: ModelCase) -> Questions:
    """The checkpoint's config asks for dropout; log-probs asked twice under different seeds agree."""
    first, second = (ACTOR.call(subject, case, seed=seed) for seed in (1, 2))
    yield first
    yield Question(
        "log-prob asked for a second time (the ratio before any step is the exponential of the difference)",
        second,
        Against((first,)),
        ACTOR.budget(subject, case),
        place=sample_action,
    )
    # One sample has no padding that could be to blame.
    yield ACTOR.asks_truth(subject, replace(case, samples=case.samples[:1]))


# --- generation -----------------------------------------------------------------------------------------------------


def generated(subject: Subject, case: PromptCase) -> Call:
    batch = present_prompts(
        case.prompts,
        max_new_tokens=case.max_new_tokens,
        stop_token_ids=case.stop_token_ids,
        pad_token_id=case.probe.pad_token_id,
        device=subject.device,
    )
    return Call("generate", (Loaded("load_actor", case.probe), batch))


@check("actor.generate", needs=GENERATE, cases=lambda s: prompts(s.adapter), effort=3)
def generate(subject: Subject, case: PromptCase) -> Questions:
    """Each row is compared up to the first step at which two tokens are so near that rounding decides."""
    case = _with_a_stop_that_comes(subject, case)
    call = generated(subject, case)
    columns = (yield call).value.shape[1]
    width = max(len(prompt) for prompt in case.prompts)
    for row, prompt in enumerate(case.prompts):
        truth = subject.truth.greedy(case.probe, prompt, case.max_new_tokens, case.stop_token_ids)
        decided = _decided_steps(subject, case.probe, prompt, truth)
        if decided == len(truth):
            truth = truth + [case.probe.pad_token_id] * (columns - width - decided)
        else:
            truth = truth[:decided]
        end = width + len(truth)
        yield Question(
            f"greedy continuation of prompt {row} in the batch",
            call,
            truth,
            reading=selected(lambda rows, row=row, end=end: rows[row].tolist()[width:end]),  # type: ignore[misc]
            place=lambda index: f"generated token {index[0]}",
        )


def _with_a_stop_that_comes(subject: Subject, case: PromptCase) -> PromptCase:
    """With a stop id that one of the rows will meet, which a drawn one seldom is; a lone EOS is left alone."""
    if len(case.stop_token_ids) == 1 and case.stop_token_ids[0] == case.probe.eos_token_id:
        return case
    prompt = case.prompts[len(case.stop_token_ids) % len(case.prompts)]
    met = subject.truth.greedy(case.probe, prompt, case.max_new_tokens, (case.probe.eos_token_id,))
    token = met[(len(met) - 1) // 2]
    ids = (token,) if subject.adapter.stop_ids == "one" else (*case.stop_token_ids, token)
    return replace(case, stop_token_ids=tuple(dict.fromkeys(ids)))


def _decided_steps(subject: Subject, probe: Probe, prompt: tuple[int, ...], continuation: list[int]) -> int:
    """How many steps from the first have a best token that leads the second by more than rounding can move them."""
    tokens = [*prompt, *continuation]
    rows, plain = (subject.truth.logits(probe, tokens, plain=p) for p in (False, True))
    flat, flat_plain = sum(rows, []), sum(plain, [])
    allowed = budgets.model_output(flat, flat_plain, max(map(abs, flat)), subject.dtype)
    for step, row in enumerate(rows[len(prompt) - 1 : -1]):
        *_, second, best = sorted(row)
        if best - second < allowed:
            return step
    return len(continuation)


@check("actor.generate-layout", needs=GENERATE, cases=lambda s: prompts(s.adapter, more_stops=True), effort=5)
def generate_layout(subject: Subject, case: PromptCase) -> Questions:
    case = _with_a_stop_that_comes(subject, case)
    call = generated(subject, case)
    rows = (yield call).value.tolist()
    width, pad = max(len(prompt) for prompt in case.prompts), case.probe.pad_token_id
    new = len(rows[0]) - width
    wanted = f"at most max_new_tokens = {case.max_new_tokens}"
    yield Fact(new <= case.max_new_tokens, "generated columns", expected=wanted, actual=str(new))
    padded = [[pad] * (width - len(p)) + list(p) for p in case.prompts]
    columns = selected(lambda answer: answer[:, :width])
    yield Question("prompt columns of the generated rows", call, padded, reading=columns)
    for index, row in enumerate(rows):
        response = row[width:]
        stop = next((i for i, token in enumerate(response) if token in case.stop_token_ids), None)
        if stop is not None:
            yield Question(
                f"row {index} after its stop token",
                call,
                [pad] * (new - stop - 1),
                reading=selected(lambda rows, i=index, start=width + stop + 1: rows[i].tolist()[start:]),  # type: ignore[misc]
            )
        else:
            yield Fact(
                new == case.max_new_tokens,
                f"row {index}, which has no stop token",
                expected=f"max_new_tokens = {case.max_new_tokens} tokens",
                actual=f"{new} tokens",
            )
