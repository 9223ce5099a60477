"""A failure with everything that a diagnosis can add, for tests of what is made of it."""

from __future__ import annotations

from rlhf_conformance.results import Call, Cell, Diagnosis, Exchange, Failure, Number, Picture, Result, Step

PAD, PROMPT, RESPONSE, EOS = "pad", "prompt", "response", "eos"


def row(*cells: tuple[str, str], expected: tuple[int, ...] = (), read: tuple[int, ...] = ()) -> tuple[Cell, ...]:
    """Cells from (token, kind); answers should be read at the positions `expected`, and were at `read`."""
    return tuple(Cell(text, kind, i in expected, i in read) for i, (text, kind) in enumerate(cells))


SHIFTED = Picture(
    caption="two samples, prompts padded left and responses padded right; the value of an action is read at the token "
    "before it",
    rows=(
        row(
            *(("0", PAD), ("17", PROMPT), ("5", PROMPT), ("41", RESPONSE), ("9", RESPONSE), ("2", EOS)),
            expected=(2, 3, 4),
            read=(3, 4, 5),
        ),
        row(
            *(("8", PROMPT), ("23", PROMPT), ("30", PROMPT), ("12", RESPONSE), ("2", EOS), ("0", PAD)),
            expected=(2, 3),
            read=(3, 4),
        ),
    ),
    labels=("sample 0", "sample 1"),
    remarks=("read one token late", "read one token late"),
)
STORED = {"type": "ModelCase", "samples": [{"type": "Sample", "prompt": [17, 5], "response": [41, 9, 2]}]}
SHIFTED_VALUES = Result(
    clause="critic.state-before",
    level="MUST",
    verdict="fail",
    reason="value of sample 0, action 0: expected 0.4171, came -1.2039",
    examples=12,
    floor=20,
    margin=8123.5,
    seconds=1.2,
    failure=Failure(
        what="value",
        place="sample 0, action 0",
        expected="0.4171",
        actual="-1.2039",
        error=1.621,
        budget=1.99e-4,
        count="5 of 5 numbers differ",
        note="the value of an action is that of the state before it",
        case="ModelCase(samples=(Sample(prompt=(17, 5), response=(41, 9, 2)),))",
        stored=STORED,
        diagnoses=(
            Diagnosis(
                kind="place",
                name="shift",
                sentence="Each value is that of the token itself, one position late: 5 of 5 actions, in 12 of 12 cases.",
            ),
            Diagnosis(
                kind="fault",
                name="critic-values-shifted",
                sentence="The answers are those of the known bug critic-values-shifted in all of 12 cases.",
            ),
        ),
        steps=(
            Step("positions of the actions", "P-1 .. L-2 = 2 .. 4", "2 .. 4"),
            Step("value at the state before action 0", "V[2] = 0.4171", "V[3] = -1.2039", parted=True),
            Step("mask", "1 1 1", "1 1 1"),
        ),
        picture=SHIFTED,
        exchange=Exchange(
            calls=(Call("action_values", {"num_actions": 3}),),
            numbers=(Number(0, "sample 0, action 0", "0.4171", "-1.2039", "0.000199"),),
            total=5,
        ),
    ),
)
