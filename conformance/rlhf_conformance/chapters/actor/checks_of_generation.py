"""The checks of generation: what is sampled, and the rows it comes in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from rlhf_conformance.chapters._models.cases import (
    MANY,
    AskedOfPrompts,
    ConfiguredCase,
    PromptCase,
    configured,
    in_turn,
    prompts,
)
from rlhf_conformance.judging.checks import Questions, check
from rlhf_conformance.judging.questions import Against, Call, Fact, Loaded, Question, selected
from rlhf_conformance.judging.subject import Subject
from rlhf_conformance.oracle import budgets
from rlhf_conformance.oracle.layouts import present_prompts
from rlhf_conformance.oracle.probes import GENERATION_CONFIGS, Probe

GENERATE = ("load_actor", "generate")


def generated(subject: Subject, case: PromptCase) -> Call:
    batch = present_prompts(
        case.prompts,
        max_new_tokens=case.max_new_tokens,
        stop_token_ids=case.stop_token_ids,
        pad_token_id=case.pad_token_id,
        device=subject.device,
    )
    return Call("generate", (Loaded("load_actor", case.probe), batch))


@check("actor.generate", needs=GENERATE, cases=lambda s: prompts(s, AskedOfPrompts(least=2)), effort=3)
def generate(subject: Subject, case: PromptCase) -> Questions:
    """Each row is compared up to the first step at which two tokens are so near that rounding decides."""
    together = generated(subject, case)
    rows = (yield together).value.tolist()
    width = max(len(prompt) for prompt in case.prompts)
    for row, prompt in enumerate(case.prompts):
        alone = generated(subject, replace(case, prompts=(prompt,)))
        lonely = (yield alone).value.tolist()[0]
        answers = _ended(case, lonely[len(prompt) :]), _ended(case, rows[row][width:])
        count = _alike(subject, case, prompt, *answers)

        def response(answer: Any, row: int = 0, width: int = len(prompt), count: int = count) -> list[int]:
            return _filled(case, _ended(case, answer.tolist()[row][width:]), count)

        yield Question(
            f"continuation of prompt {row} in the batch, against that of the prompt alone",
            together,
            Against((alone,), selected(response)),
            reading=selected(partial(response, row=row, width=width)),
            place=lambda index: f"generated token {index[0]}",
        )
    yield from _in_many_rows(subject, case, together, [row[width:] for row in rows])


def _in_many_rows(subject: Subject, case: PromptCase, few: Call, responses: Sequence[list[int]]) -> Questions:
    """Of many rows each is continued as its prompt is among a few, whose responses are given."""
    turns = in_turn(len(case.prompts), MANY)
    many = generated(subject, replace(case, prompts=tuple(case.prompts[i] for i in turns)))
    rows, width = (yield many).value.tolist(), max(len(prompt) for prompt in case.prompts)
    counts = [
        _alike(subject, case, case.prompts[turn], _ended(case, responses[turn]), _ended(case, row[width:]))
        for turn, row in zip(turns, rows, strict=True)
    ]
    places = [(row, token) for row, count in enumerate(counts) for token in range(count)]

    def read(answer: Any, turns: Sequence[int]) -> list[int]:
        given, pairs = answer.tolist(), zip(turns, counts, strict=True)
        return [token for i, count in pairs for token in _filled(case, _ended(case, given[i][width:]), count)]

    yield Question(
        f"continuation of the prompts in {MANY} rows, each again and again",
        many,
        Against((few,), selected(partial(read, turns=turns))),
        reading=selected(partial(read, turns=range(MANY))),
        place=lambda index: "row {}, generated token {}".format(*places[index[0]]),
    )


def _ended(case: PromptCase, response: list[int]) -> list[int]:
    """A response up to its first stop token, that one included."""
    stop = next((i for i, token in enumerate(response) if token in case.stop_token_ids), len(response))
    return response[: stop + 1]


def _filled(case: PromptCase, response: list[int], count: int) -> list[int]:
    return (response + [case.pad_token_id] * count)[:count]


def _alike(subject: Subject, case: PromptCase, prompt: tuple[int, ...], one: list[int], other: list[int]) -> int:
    """How many tokens of two continuations are to be the same: all, unless they part where rounding decides."""
    longest = max(len(one), len(other))
    pairs = zip(_filled(case, one, longest), _filled(case, other, longest), strict=True)
    step = next((i for i, (a, b) in enumerate(pairs) if a != b), longest)
    if step >= min(len(one), len(other)):
        return longest
    tokens = [*prompt, *one[:step]]
    last = subject.truth.logits(case.probe, tokens)[-1]
    apart = abs(last[one[step]] - last[other[step]])
    return step if apart <= 2 * _of_a_logit(subject, case.probe, tokens) else longest


def _of_a_logit(subject: Subject, probe: Probe, tokens: Sequence[int]) -> float:
    """How far rounding may move one logit of a sequence."""
    flat, plain = (sum(subject.truth.logits(probe, tokens, plain=p), []) for p in (False, True))
    return budgets.model_output(flat, plain, max(map(abs, flat)), subject.dtype)


@check("actor.generate-greedy", needs=GENERATE, cases=lambda s: prompts(s), effort=5)
def generate_greedy(subject: Subject, case: PromptCase) -> Questions:
    yield from greedily(subject, case, generated(subject, case))


def greedily(subject: Subject, case: PromptCase, call: Call, when: str = "", **more: Any) -> Questions:
    """Is each token the one with the highest logit of the subject's truth? Judged on the row as it was generated, so
    that one token that rounding decides leaves the next to be judged."""
    rows = (yield call).value.tolist()
    width = max(len(prompt) for prompt in case.prompts)
    withheld = {*case.stop_token_ids, case.pad_token_id}
    for row, prompt in enumerate(case.prompts):
        response = _ended(case, rows[row][width:])
        tokens = [*prompt, *response]
        logits = subject.truth.logits(case.probe, tokens)[len(prompt) - 1 : -1]

        def taken(answer: Any, row: int = row, logits: Any = logits) -> list[float]:
            return [z[token] for z, token in zip(logits, answer.tolist()[row][width:], strict=False)]

        yield Question(
            f"logit of the token that was taken, beside the highest, in the continuation of prompt {row}{when}",
            call,
            [_highest(z, token, withheld) for z, token in zip(logits, response, strict=True)],
            2 * _of_a_logit(subject, case.probe, tokens),
            reading=selected(taken),
            place=lambda index, response=response: f"generated token {index[0]}, id {response[index[0]]}",  # type: ignore[misc]
            **more,
        )


def _highest(logits: list[float], token: int, withheld: set[int]) -> float:
    """The logit that a greedy choice has: a trainer may withhold stops (a least length) and pads, but not take them
    where they are not the highest."""
    return max(z for i, z in enumerate(logits) if token in withheld or i not in withheld)


@check("actor.generate-config", needs=GENERATE, cases=configured, effort=15)
def generate_config(subject: Subject, case: ConfiguredCase) -> Questions:
    """The same weights, and another generation_config.json beside them."""
    neutral = generated(subject, case.case)
    for name in case.generation:
        yield Question(
            f"token, with {_options(name)} in generation_config.json, against a neutral one",
            generated(subject, case.beside(name)),
            Against((neutral,), selected(lambda answer: answer.tolist())),
            reading=selected(lambda answer: answer.tolist()),
        )


def _options(name: str) -> str:
    return ", ".join(f"{key} = {str(value)[:20]}" for key, value in GENERATION_CONFIGS[name].items())


@check(
    "actor.generate-layout",
    needs=GENERATE,
    cases=lambda s: prompts(s, AskedOfPrompts(more_stops=True, edges=True)),
    effort=5,
)
def generate_layout(subject: Subject, case: PromptCase) -> Questions:
    call = generated(subject, case)
    rows = (yield call).value.tolist()
    width, pad = max(len(prompt) for prompt in case.prompts), case.pad_token_id
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
