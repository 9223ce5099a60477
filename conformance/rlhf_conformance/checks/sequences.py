"""Chapter sequences: the masks of generated rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

import rlhf_spec.sequences as spec
from rlhf_conformance.adapter import ProcessedSequences
from rlhf_conformance.cases.sequences import GeneratedCase, GeneratedShape, generated
from rlhf_conformance.checks import NotReturned, check, declares, side_effects
from rlhf_conformance.judge import Judge
from rlhf_conformance.subject import Subject

PROCESS = ("process_sequences",)


def drawn(**shape: Any) -> Callable[[Subject], st.SearchStrategy[GeneratedCase]]:
    """Cases of this shape, with one stop id where the adapter knows only one."""

    def cases(subject: Subject) -> st.SearchStrategy[GeneratedCase]:
        most = 1 if subject.adapter.stop_ids == "one" else shape.get("max_stops", 2)
        known = {"max_stops": most, "pad_in_prompt": subject.adapter.takes_attention_mask}
        return generated(GeneratedShape(**{**shape, **known}))

    return cases


takes_mask = declares("takes_attention_mask", "takes_attention_mask = False: the pad id is kept out of rows")


def ask(subject: Subject, case: GeneratedCase) -> ProcessedSequences:
    return subject.process_sequences(
        subject.tensor(case.rows),
        case.prompt_length,
        subject.tensor(case.prompt_masks),
        case.stop_token_ids,
        case.pad_token_id,
    )


def part(answer: ProcessedSequences, name: str) -> Any:
    value = getattr(answer, name)
    if value is None:
        raise NotReturned(f"the trainer's process_sequences makes no {name}")
    return value


def judge_actions(subject: Subject, case: GeneratedCase, judge: Judge, note: str = "") -> None:
    truth = [_action_row(case, row) for row in range(len(case.samples))]
    judge.equal(part(ask(subject, case), "action_mask"), truth, what="action mask", note=note)


def _action_row(case: GeneratedCase, row: int) -> list[int]:
    response = list(case.samples[row].response)
    filler = [case.pad_token_id] * (case.width - len(response))
    return spec.action_mask(response + filler, case.stop_token_ids)


def _attention_row(case: GeneratedCase, row: int) -> list[int]:
    response = list(case.samples[row].response)
    filler = [case.pad_token_id] * (case.width - len(response))
    return spec.attention_mask(case.prompt_masks[row], response + filler, case.stop_token_ids)


def judge_attention(subject: Subject, case: GeneratedCase, judge: Judge, note: str = "") -> None:
    truth = [_attention_row(case, row) for row in range(len(case.samples))]
    judge.equal(part(ask(subject, case), "attention_mask"), truth, what="attention mask", note=note)


@check("sequences.attention-span", needs=PROCESS, cases=drawn(specials_in_prompt=True))
def attention_span(subject: Subject, case: GeneratedCase, judge: Judge) -> None:
    judge_attention(subject, case, judge, "EOS and pad ids inside the prompt are tokens like any other")


@check("sequences.action-mask", needs=PROCESS, cases=drawn(pad_is_stop=False))
def action_mask(subject: Subject, case: GeneratedCase, judge: Judge) -> None:
    judge_actions(subject, case, judge, "actions are the generated tokens up to and including the first stop token")


@check("sequences.truncation", needs=PROCESS, cases=drawn(truncated=True))
def truncation(subject: Subject, case: GeneratedCase, judge: Judge) -> None:
    answer = ask(subject, case)
    note = "a response that was cut off has no stop token: all its tokens are actions and stay as sampled"
    cut = [i for i, s in enumerate(case.samples) if s.response[-1] not in case.stop_token_ids]
    if answer.action_mask is not None:
        truth = [_action_row(case, row) for row in cut]
        judge.equal(answer.action_mask[cut], truth, what="action mask of a cut-off response", note=note)
    if answer.attention_mask is not None:
        width = case.width
        truth = [[1] * width for _ in cut]
        judge.equal(
            answer.attention_mask[cut][:, -width:], truth, what="attention mask of a cut-off response", note=note
        )
    if answer.sequences is not None:
        judge.equal(
            answer.sequences[cut], [case.rows[row] for row in cut], what="tokens of a cut-off response", note=note
        )


@check("sequences.tokens-unchanged", needs=PROCESS, cases=drawn(truncated=True, specials_in_prompt=True))
def tokens_unchanged(subject: Subject, case: GeneratedCase, judge: Judge) -> None:
    judge.equal(part(ask(subject, case), "sequences"), case.rows, what="token ids", note="tokens are never overwritten")


@check("sequences.pad-equals-eos", needs=PROCESS, cases=drawn(pad_is_stop=True))
def pad_equals_eos(subject: Subject, case: GeneratedCase, judge: Judge) -> None:
    answer = ask(subject, case)
    note = "pad and EOS share an id: the first EOS of the response is still an action, and attended"
    truth = [_action_row(case, row) for row in range(len(case.samples))]
    if answer.action_mask is not None:
        judge.equal(answer.action_mask, truth, what="action mask", note=note)
    if answer.attention_mask is not None:
        tail = answer.attention_mask[:, case.prompt_length :]
        judge.equal(tail, truth, what="attention mask of the response", note=note)


@check("sequences.sampled-pad", needs=PROCESS, requires=(takes_mask,), cases=drawn(pad_is_stop=False, sampled_pad=True))
def sampled_pad(subject: Subject, case: GeneratedCase, judge: Judge) -> None:
    judge_actions(subject, case, judge, "a pad id that was sampled before the stop does not end the response")


@check(
    "sequences.stop-set",
    needs=PROCESS,
    requires=(declares("stop_ids", 'stop_ids = "one": the adapter knows a single stop id', value="set"),),
    cases=drawn(max_stops=3, pad_is_stop=False),
)
def stop_set(subject: Subject, case: GeneratedCase, judge: Judge) -> None:
    judge_actions(subject, case, judge, f"any of the stop ids {case.stop_token_ids} ends a response")


@check("sequences.stop-id-zero", needs=PROCESS, cases=drawn(stop_zero=True, pad_is_stop=False))
def stop_id_zero(subject: Subject, case: GeneratedCase, judge: Judge) -> None:
    judge_actions(subject, case, judge, "0 is a token id like any other")


@check("sequences.prompt-ending-in-eos", needs=PROCESS, cases=drawn(prompt_ends_in_stop=True))
def prompt_ending_in_eos(subject: Subject, case: GeneratedCase, judge: Judge) -> None:
    mask = part(ask(subject, case), "action_mask")
    note = "the first generated token is an action, whatever the prompt ends in"
    judge.equal(mask[:, 0], [1] * len(case.samples), what="action mask of the first generated token", note=note)
    judge_actions(subject, case, judge, note)


@check("sequences.rows-independent", needs=PROCESS, cases=drawn())
def rows_independent(subject: Subject, case: GeneratedCase, judge: Judge) -> None:
    together = ask(subject, case)
    args = (case.prompt_length, case.stop_token_ids, case.pad_token_id)
    for row in range(len(case.samples)):
        alone = subject.process_sequences(
            subject.tensor(case.rows[row : row + 1]),
            args[0],
            subject.tensor(case.prompt_masks[row : row + 1]),
            *args[1:],
        )
        for name in ("attention_mask", "action_mask"):
            if getattr(together, name) is not None:
                judge.equal(
                    getattr(together, name)[row],
                    getattr(alone, name)[0],
                    what=f"{name} of row {row} in the batch and alone",
                )


@check(
    "sequences.pad-first-prompt", needs=PROCESS, requires=(takes_mask,), cases=drawn(pad_first=True, pad_is_stop=False)
)
def pad_first_prompt(subject: Subject, case: GeneratedCase, judge: Judge) -> None:
    judge_attention(subject, case, judge, "the prompt's own mask says where it begins; ids alone do not")


def _numbers(subject: Subject, case: GeneratedCase) -> list[Any]:
    answer = ask(subject, case)
    return [p for p in (answer.sequences, answer.attention_mask, answer.action_mask) if p is not None]


side_effects.register("sequences", needs=PROCESS, cases=drawn(specials_in_prompt=True), ask=_numbers)
