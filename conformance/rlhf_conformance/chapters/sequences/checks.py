"""The checks of the masks of generated rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import rlhf_spec.sequences as spec
from rlhf_conformance.chapters import _side_effects
from rlhf_conformance.chapters.sequences.cases import GeneratedCase, GeneratedShape, generated
from rlhf_conformance.judging.checks import Questions, check, declares, use
from rlhf_conformance.judging.picks import Picked
from rlhf_conformance.judging.questions import Against, Answered, Call, Question, Reading, part, row_column
from rlhf_conformance.judging.subject import Subject

PROCESS = ("process_sequences",)
ATTENTION, ACTIONS, TOKENS = "attention_mask", "action_mask", "sequences"


def drawn(**shape: Any) -> Any:
    """Cases of this shape, with one stop id where the adapter knows only one."""

    def cases(subject: Subject) -> Picked[GeneratedCase]:
        most = 1 if subject.adapter.stop_ids == "one" else shape.get("max_stops", 2)
        known = {"max_stops": most, "pad_in_prompt": subject.adapter.takes_attention_mask}
        return generated(GeneratedShape(**{**shape, **known}))

    return cases


takes_mask = declares("takes_attention_mask", "takes_attention_mask = False: the pad id is kept out of rows")

# --- calls and truth ------------------------------------------------------------------------------------------------


def call(subject: Subject, case: GeneratedCase, rows: slice = slice(None)) -> Call:
    given = (
        subject.tensor(case.rows[rows]),
        case.prompt_length,
        subject.tensor(case.prompt_masks[rows]),
        case.stop_token_ids,
        case.pad_token_id,
    )
    return Call("process_sequences", given, about=case)


def responses(case: GeneratedCase) -> list[list[int]]:
    """Each response with the pads behind it."""
    return [[*s.response, *([case.pad_token_id] * (case.width - len(s.response)))] for s in case.samples]


def action_masks(case: GeneratedCase) -> list[list[int]]:
    return [spec.action_mask(response, case.stop_token_ids) for response in responses(case)]


def attention_masks(case: GeneratedCase) -> list[list[int]]:
    rows = zip(case.prompt_masks, responses(case), strict=True)
    return [spec.attention_mask(prompt, response, case.stop_token_ids) for prompt, response in rows]


def asks_actions(subject: Subject, case: GeneratedCase) -> Question:
    return Question("action mask", call(subject, case), action_masks(case), reading=part(ACTIONS))


def asks_attention(subject: Subject, case: GeneratedCase) -> Question:
    return Question("attention mask", call(subject, case), attention_masks(case), reading=part(ATTENTION))


# --- checks ---------------------------------------------------------------------------------------------------------


@check("sequences.attention-span", needs=PROCESS, cases=drawn(specials_in_prompt=True))
def attention_span(subject: Subject, case: GeneratedCase) -> Questions:
    yield asks_attention(subject, case)


@check("sequences.action-mask", needs=PROCESS, cases=drawn(pad_is_stop=False))
def action_mask(subject: Subject, case: GeneratedCase) -> Questions:
    yield asks_actions(subject, case)


@check("sequences.truncation", needs=PROCESS, cases=drawn(truncated=True))
def truncation(subject: Subject, case: GeneratedCase) -> Questions:
    """A response that was cut off has no stop token: all its tokens are actions, and stay as they were sampled."""
    asked = call(subject, case)
    answer = (yield asked).value
    cut = [i for i, s in enumerate(case.samples) if s.response[-1] not in case.stop_token_ids]
    wanted = (
        (ACTIONS, "action mask of a cut-off response", [action_masks(case)[i] for i in cut], case.width),
        (ATTENTION, "attention mask of a cut-off response", [[1] * case.width for _ in cut], case.width),
        (TOKENS, "tokens of a cut-off response", [case.rows[i] for i in cut], len(case.rows[0])),
    )
    for name, what, truth, columns in wanted:
        if getattr(answer, name) is not None:
            reading = part(name, lambda x, n=columns: x[cut][:, -n:])  # type: ignore[misc]
            yield Question(what, asked, truth, reading=reading, place=lambda at: row_column((cut[at[0]], *at[1:])))


@check("sequences.tokens-unchanged", needs=PROCESS, cases=drawn(truncated=True, specials_in_prompt=True))
def tokens_unchanged(subject: Subject, case: GeneratedCase) -> Questions:
    yield Question("token ids", call(subject, case), case.rows, reading=part(TOKENS))


@check("sequences.pad-equals-eos", needs=PROCESS, cases=drawn(pad_is_stop=True))
def pad_equals_eos(subject: Subject, case: GeneratedCase) -> Questions:
    asked = call(subject, case)
    answer = (yield asked).value
    truth = action_masks(case)
    if answer.action_mask is not None:
        yield Question("action mask", asked, truth, reading=part(ACTIONS))
    if answer.attention_mask is not None:
        tail = part(ATTENTION, lambda mask: mask[:, case.prompt_length :])
        what, start = "attention mask of the response", case.prompt_length
        yield Question(what, asked, truth, reading=tail, place=lambda at: row_column((at[0], start + at[1])))


@check("sequences.sampled-pad", needs=PROCESS, requires=(takes_mask,), cases=drawn(pad_is_stop=False, sampled_pad=True))
def sampled_pad(subject: Subject, case: GeneratedCase) -> Questions:
    yield asks_actions(subject, case)


@check(
    "sequences.stop-set",
    needs=PROCESS,
    requires=(declares("stop_ids", 'stop_ids = "one": the adapter knows a single stop id', value="set"),),
    cases=drawn(max_stops=3, pad_is_stop=False),
)
def stop_set(subject: Subject, case: GeneratedCase) -> Questions:
    yield asks_actions(subject, case)


@check("sequences.stop-id-zero", needs=PROCESS, cases=drawn(stop_zero=True, pad_is_stop=False))
def stop_id_zero(subject: Subject, case: GeneratedCase) -> Questions:
    yield asks_actions(subject, case)


@check("sequences.prompt-ending-in-eos", needs=PROCESS, cases=drawn(prompt_ends_in_stop=True))
def prompt_ending_in_eos(subject: Subject, case: GeneratedCase) -> Questions:
    first = part(ACTIONS, lambda mask: mask[:, 0])
    what = "action mask of the first generated token"
    yield Question(what, call(subject, case), [1] * len(case.samples), reading=first)
    yield asks_actions(subject, case)


@check("sequences.rows-independent", needs=PROCESS, cases=drawn())
def rows_independent(subject: Subject, case: GeneratedCase) -> Questions:
    together = call(subject, case)
    answer = (yield together).value
    for row in range(len(case.samples)):
        alone = call(subject, case, slice(row, row + 1))
        yield alone
        for name in (ATTENTION, ACTIONS):
            if getattr(answer, name) is not None:
                yield Question(
                    f"{name} of row {row} in the batch and alone",
                    together,
                    Against((alone,), part(name, lambda mask: mask[0])),
                    reading=part(name, lambda mask, row=row: mask[row]),  # type: ignore[misc]
                )


@check(
    "sequences.pad-first-prompt", needs=PROCESS, requires=(takes_mask,), cases=drawn(pad_first=True, pad_is_stop=False)
)
def pad_first_prompt(subject: Subject, case: GeneratedCase) -> Questions:
    yield asks_attention(subject, case)


def _parts(subject: Subject, answers: Sequence[Answered]) -> list[Any]:
    """All parts of the last answer that are made."""
    answer = answers[-1].value
    return [p for p in (answer.sequences, answer.attention_mask, answer.action_mask) if p is not None]


asked_once = _side_effects.plainly(call, Reading(_parts))
use(
    "sequences.inputs-unwritten",
    _side_effects.inputs_unwritten(asked_once, PROCESS, drawn(specials_in_prompt=True)),
)
use("sequences.side-effects", _side_effects.side_effects(asked_once, PROCESS, drawn(specials_in_prompt=True)))
