"""The checks of the masks of generated rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import rlhf_spec.sequences as spec
from rlhf_conformance.adapter import relies_on, takes
from rlhf_conformance.chapters import _side_effects
from rlhf_conformance.chapters.sequences.cases import GeneratedCase, GeneratedShape, generated
from rlhf_conformance.judging.checks import Questions, check, declares, takes_extra, use
from rlhf_conformance.judging.picks import Picked
from rlhf_conformance.judging.questions import Against, Answered, Call, Question, Reading, part, row_column
from rlhf_conformance.judging.subject import Subject

PROCESS, LENGTHS = ("process_sequences",), "response_lengths"
ATTENTION, ACTIONS, TOKENS = "attention_mask", "action_mask", "sequences"


def drawn(**shape: Any) -> Any:
    """Cases of this shape, with one stop id where the adapter knows only one."""

    def cases(subject: Subject) -> Picked[GeneratedCase]:
        most = 1 if subject.adapter.stop_ids == "one" else shape.get("max_stops", 2)
        known = {"max_stops": most, "pad_in_prompt": subject.adapter.takes_attention_mask}
        return generated(GeneratedShape(**{**shape, **known}))

    return cases


takes_mask = declares("takes_attention_mask", "takes_attention_mask = False: the pad id is kept out of rows")

takes_lengths = takes_extra(*PROCESS, LENGTHS, "the number of generated tokens of each row")

# --- calls and truth ------------------------------------------------------------------------------------------------


def call(subject: Subject, case: GeneratedCase, rows: slice = slice(None), *, lengths: bool = False) -> Call:
    """The rows of a case; with the lengths of their responses where the adapter cannot do without, or if asked for and
    taken."""
    given = (
        subject.tensor(case.rows[rows]),
        case.prompt_length,
        subject.tensor(case.prompt_masks[rows]),
        case.stop_token_ids,
        case.pad_token_id,
    )
    known = takes(subject.adapter, *PROCESS, LENGTHS) if lengths else relies_on(subject.adapter, *PROCESS, LENGTHS)
    more = (subject.tensor(case.lengths[rows]),) if known else ()
    return Call("process_sequences", (*given, *more), about=case)


def action_masks(case: GeneratedCase) -> list[list[int]]:
    rows = zip(case.responses, case.lengths, strict=True)
    return [spec.action_mask(response, case.stop_token_ids, length) for response, length in rows]


def attention_masks(case: GeneratedCase) -> list[list[int]]:
    rows = zip(case.prompt_masks, case.responses, case.lengths, strict=True)
    return [spec.attention_mask(prompt, response, case.stop_token_ids, length) for prompt, response, length in rows]


def asks_actions(subject: Subject, case: GeneratedCase) -> Question:
    return Question("action mask", call(subject, case), action_masks(case), reading=part(ACTIONS))


def asks_attention(subject: Subject, case: GeneratedCase) -> Question:
    return Question("attention mask", call(subject, case), attention_masks(case), reading=part(ATTENTION))


def asks_made(answer: Any, questions: Sequence[Question]) -> Questions:
    """Those of the questions whose part of the answer is made; where none is, the first of them says so."""
    made = [q for q in questions if getattr(answer, q.reading.field) is not None]
    yield from (question for question in made or questions[:1])


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
    questions = []
    for name, what, truth, columns in wanted:
        reading = part(name, lambda x, n=columns: x[cut][:, -n:])  # type: ignore[misc]
        place = lambda at: row_column((cut[at[0]], *at[1:]))  # noqa: E731
        questions.append(Question(what, asked, truth, reading=reading, place=place))
    yield from asks_made(answer, questions)


@check("sequences.response-lengths", needs=PROCESS, requires=(takes_lengths,), cases=drawn(by_length=True))
def response_lengths(subject: Subject, case: GeneratedCase) -> Questions:
    """Whatever stands behind a response, a stop id included."""
    asked = call(subject, case, lengths=True)
    answer = (yield asked).value
    wanted = (
        Question("action mask", asked, action_masks(case), reading=part(ACTIONS)),
        Question("attention mask", asked, attention_masks(case), reading=part(ATTENTION)),
        Question("token ids", asked, case.rows, reading=part(TOKENS)),
    )
    yield from asks_made(answer, wanted)


@check("sequences.tokens-unchanged", needs=PROCESS, cases=drawn(truncated=True, specials_in_prompt=True))
def tokens_unchanged(subject: Subject, case: GeneratedCase) -> Questions:
    yield Question("token ids", call(subject, case), case.rows, reading=part(TOKENS))


@check("sequences.pad-equals-eos", needs=PROCESS, cases=drawn(pad_is_stop=True))
def pad_equals_eos(subject: Subject, case: GeneratedCase) -> Questions:
    asked = call(subject, case)
    answer = (yield asked).value
    truth, start = action_masks(case), case.prompt_length
    tail = part(ATTENTION, lambda mask: mask[:, start:])
    shifted = lambda at: row_column((at[0], start + at[1]))  # noqa: E731
    wanted = (
        Question("action mask", asked, truth, reading=part(ACTIONS)),
        Question("attention mask of the response", asked, truth, reading=tail, place=shifted),
    )
    yield from asks_made(answer, wanted)


@check("sequences.sampled-pad", needs=PROCESS, requires=(takes_mask,), cases=drawn(pad_is_stop=False, sampled_pad=True))
def sampled_pad(subject: Subject, case: GeneratedCase) -> Questions:
    yield asks_actions(subject, case)


@check(
    "sequences.stop-set",
    needs=PROCESS,
    requires=(declares("stop_ids", 'stop_ids = "one": the adapter knows a single stop id', value="set"),),
    cases=drawn(max_stops=3, pad_is_stop=False, anything_behind=True),
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
    together = call(subject, case, lengths=True)
    answer = (yield together).value
    for row in range(len(case.samples)):
        alone = call(subject, case, slice(row, row + 1), lengths=True)
        yield alone
        wanted = [
            Question(
                f"{name} of row {row} in the batch and alone",
                together,
                Against((alone,), part(name, lambda mask: mask[0])),
                reading=part(name, lambda mask, row=row: mask[row]),  # type: ignore[misc]
            )
            for name in (ATTENTION, ACTIONS)
        ]
        yield from asks_made(answer, wanted)


@check(
    "sequences.pad-first-prompt", needs=PROCESS, requires=(takes_mask,), cases=drawn(pad_first=True, pad_is_stop=False)
)
def pad_first_prompt(subject: Subject, case: GeneratedCase) -> Questions:
    yield asks_attention(subject, case)


def _parts(subject: Subject, answers: Sequence[Answered]) -> list[Any]:
    """All parts of the last answer that are made."""
    answer = answers[-1].value
    return [p for p in (answer.sequences, answer.attention_mask, answer.action_mask) if p is not None]


asked_once = _side_effects.plainly(lambda subject, case: call(subject, case, lengths=True), Reading(_parts))
use(
    "sequences.inputs-unwritten",
    _side_effects.inputs_unwritten(asked_once, PROCESS, drawn(specials_in_prompt=True)),
)
use("sequences.side-effects", _side_effects.side_effects(asked_once, PROCESS, drawn(specials_in_prompt=True)))
