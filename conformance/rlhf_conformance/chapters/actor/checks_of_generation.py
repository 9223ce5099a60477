"""The checks of generation: what is sampled, and the rows it comes in."""

from __future__ import annotations

from dataclasses import replace

from rlhf_conformance.chapters._models.cases import PromptCase, prompts
from rlhf_conformance.judging.checks import Questions, check
from rlhf_conformance.judging.questions import Call, Fact, Loaded, Question, selected
from rlhf_conformance.judging.subject import Subject
from rlhf_conformance.oracle import budgets
from rlhf_conformance.oracle.layouts import present_prompts
from rlhf_conformance.oracle.probes import Probe

GENERATE = ("load_actor", "generate")


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
