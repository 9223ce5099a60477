"""Chapter actor: log-probs of the actions, entropy, raw output, generation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rlhf_conformance import budgets
from rlhf_conformance._lazy import torch
from rlhf_conformance.cases.models import Asked, ModelCase, PromptCase, model_cases, prompts
from rlhf_conformance.checks import check
from rlhf_conformance.checks.roles import ACTOR, TEMPERATURES, known_temperatures, temperature_declared
from rlhf_conformance.judge import Judge, sample_action, sample_position
from rlhf_conformance.layouts import present_prompts
from rlhf_conformance.probes import VOCAB_SIZE, Probe
from rlhf_conformance.subject import Subject

GENERATE = ("load_actor", "generate")


@check("actor.log-probs", needs=ACTOR.needs, cases=lambda s: model_cases(s.adapter), effort=ACTOR.effort)
def log_probs(subject: Subject, case: ModelCase, judge: Judge) -> None:
    ACTOR.judge_truth(subject, case, judge, note="action t is scored by the logits of the position before it")


@check(
    "actor.temperature",
    needs=ACTOR.needs,
    requires=(temperature_declared,),
    cases=lambda s: model_cases(s.adapter, Asked(temperatures=TEMPERATURES)),
    effort=ACTOR.effort,
)
def temperature(subject: Subject, case: ModelCase, judge: Judge) -> None:
    ACTOR.judge_truth(subject, case, judge, note=f"the logits are divided by the temperature, {case.temperature}")


@check(
    "actor.entropy",
    needs=("load_actor", "action_entropy"),
    cases=lambda s: model_cases(
        s.adapter, Asked(temperatures=(1.0, *TEMPERATURES) if s.adapter.temperature else (1.0,))
    ),
    effort=ACTOR.effort,
)
def entropy(subject: Subject, case: ModelCase, judge: Judge) -> None:
    t = case.temperature
    answer = subject.actions("action_entropy", ACTOR.model(subject, case), case)
    truth, plain = (
        [subject.truth.action_entropies(case.probe, s, t, plain=p) for s in case.samples] for p in (False, True)
    )
    allowed = budgets.model_output(sum(truth, []), sum(plain, []), 4 * ACTOR.scale(subject, case), subject.dtype, t)
    judge.close(answer, truth, allowed, what=f"entropy at the action, temperature {t}", place=sample_action)


@check(
    "actor.raw-output",
    needs=("load_actor", "logits"),
    cases=lambda s: model_cases(s.adapter, Asked(temperatures=known_temperatures(s.adapter))),
    effort=ACTOR.effort,
)
def raw_output(subject: Subject, case: ModelCase, judge: Judge) -> None:
    answer = subject.whole_output("logits", ACTOR.model(subject, case), case, VOCAB_SIZE)
    truth, plain = ([subject.truth.logits(case.probe, s.tokens, plain=p) for s in case.samples] for p in (False, True))
    flat, flat_plain = ([x for sample in rows for row in sample for x in row] for rows in (truth, plain))
    allowed = budgets.model_output(flat, flat_plain, ACTOR.scale(subject, case), subject.dtype)
    judge.close(answer, truth, allowed, what="logit", place=sample_position)


@check("actor.generate", needs=GENERATE, cases=lambda s: prompts(s.adapter), effort=5)
def generate(subject: Subject, case: PromptCase, judge: Judge) -> None:
    """Each row is compared up to the first step at which two tokens are so near that rounding decides."""
    case = _with_a_stop_that_comes(subject, case)
    answer, width = _generated(subject, case)
    for row, prompt in enumerate(case.prompts):
        truth = subject.truth.greedy(case.probe, prompt, case.max_new_tokens, case.stop_token_ids)
        decided = _decided_steps(subject, case.probe, prompt, truth)
        if decided == len(truth):
            truth = truth + [case.probe.pad_token_id] * (len(answer[row]) - width - decided)
        else:
            truth = truth[:decided]
        judge.equal(
            answer[row][width : width + len(truth)],
            truth,
            what=f"greedy continuation of prompt {row} in the batch",
            place=lambda index: f"generated token {index[0]}",
            note="a left-padded prompt must be continued as if it stood alone",
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


def _generated(subject: Subject, case: PromptCase) -> tuple[list[list[int]], int]:
    model = subject.model("load_actor", case.probe)
    batch = present_prompts(
        case.prompts,
        max_new_tokens=case.max_new_tokens,
        stop_token_ids=case.stop_token_ids,
        pad_token_id=case.probe.pad_token_id,
        device=subject.device,
    )
    return subject.generate(model, batch).tolist(), batch.input_ids.shape[1]


@check("actor.generate-layout", needs=GENERATE, cases=lambda s: prompts(s.adapter, more_stops=True), effort=5)
def generate_layout(subject: Subject, case: PromptCase, judge: Judge) -> None:
    case = _with_a_stop_that_comes(subject, case)
    rows, width = _generated(subject, case)
    pad = case.probe.pad_token_id
    new = len(rows[0]) - width
    judge.that(
        new <= case.max_new_tokens,
        "generated columns",
        expected=f"at most max_new_tokens = {case.max_new_tokens}",
        actual=str(new),
    )
    padded = [[pad] * (width - len(p)) + list(p) for p in case.prompts]
    judge.equal([row[:width] for row in rows], padded, what="prompt columns of the generated rows")
    for index, row in enumerate(rows):
        response = row[width:]
        stop = next((i for i, token in enumerate(response) if token in case.stop_token_ids), None)
        if stop is not None:
            judge.equal(
                response[stop + 1 :],
                [pad] * (new - stop - 1),
                what=f"row {index} after its stop token",
                note="a row ends at its first stop token and is filled with the pad id",
            )
        else:
            judge.that(
                new == case.max_new_tokens,
                f"row {index}, which has no stop token",
                expected=f"max_new_tokens = {case.max_new_tokens} tokens",
                actual=f"{new} tokens",
                note="a stop that is not in the stop set ended the batch early",
            )


@check(
    "actor.dropout-off",
    needs=ACTOR.needs,
    cases=lambda s: model_cases(s.adapter, Asked(probe=Probe(dropout=True))),
    effort=3,
)
def dropout_off(subject: Subject, case: ModelCase, judge: Judge) -> None:
    """The checkpoint's config asks for dropout; log-probs asked twice under different seeds agree."""
    model = ACTOR.model(subject, case)
    answers: list[Any] = []
    for seed in (1, 2):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            answers.append(ACTOR.ask(subject, model, case))
    judge.close(
        answers[1],
        answers[0],
        ACTOR.budget(subject, case),
        what="log-prob asked for a second time (the ratio before any step is the exponential of the difference)",
        place=sample_action,
        note="dropout is on: old log-probs are taken in eval mode",
    )
    alone = replace(case, samples=case.samples[:1])  # one sample has no padding that could be to blame
    ACTOR.judge_truth(subject, alone, judge, note="the config's dropout is on: take log-probs in eval mode")
