"""A failure with everything that a diagnosis can add, for tests of what is made of it."""

from __future__ import annotations

from rlhf_conformance.results import Call, Cell, Diagnosis, Exchange, Failure, Number, Picture, Report, Result, Step

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
                sentence="Each value is that of the token itself, one position late, for all actions of 12 cases.",
                cause="shifted by +1",
            ),
            Diagnosis(
                kind="fault",
                name="critic-values-unshifted",
                sentence="The answers are those of the known bug critic-values-unshifted in all of 12 cases.",
                cause="values are read one position late",
                bug="critic-values-unshifted",
            ),
        ),
        steps=(
            Step("positions of the actions", "P-1 .. L-2 = 2 .. 4", "2 .. 4"),
            Step("value at the state before action 0", "V[2] = 0.4171", "V[3] = -1.2039", parted=True),
            Step("mask", "1 1 1", "1 1 1"),
        ),
        picture=SHIFTED,
        exchange=Exchange(
            calls=(Call("load_critic", {"dtype": "float32"}),),
            numbers=(Number(0, "sample 0, action 0", "0.4171", "-1.2039", "0.000199"),),
            total=5,
        ),
    ),
)
SUBJECT = {
    "adapter": "my_trainer.py:Mine",
    "name": "Mine",
    "options": {"packing": True},
    "provides": ["load_critic", "policy_loss"],
    "declares": {},
}
ENVIRONMENT = {
    "python": "3.11.7",
    "platform": "Linux",
    "torch": "2.13.0",
    "transformers": None,
    "peft": None,
    "hypothesis": "6.170.15",
    "rlhf-conformance": "0.1.0",
    "device": "cpu",
    "device_name": "x86_64",
    "dtype": "float32",
    "tf32": False,
    "deterministic_algorithms": False,
    "threads": 1,
}
RUN = {
    "command": "rlhf-conformance check my_trainer.py:Mine -o packing=true --seed 3",
    "report": "out/report.json",
    "profile": "gate",
    "seed": 3,
    "time_limit": 30.0,
    "only": [],
    "clauses": 131,
    "replayed": [],
    "strict": False,
    "workers": 4,
    "seconds": 41.5,
    "import_seconds": 5.5,
}
HOSTILE = '<script>alert("&amp;")</script> `|` *%* \x1b[31m \x00 ]]> é ::error::'
"""Text of an adapter that breaks whatever it is put into unescaped."""


def passed(clause: str, margin: float | None = 0.25) -> Result:
    return Result(clause, "MUST", "pass", examples=100, floor=50, margin=margin, seconds=0.5)


RESULTS = (
    passed("log-probs.temperature"),
    Result("positions.pads", "SHOULD", "not-provided", "there is no method position_ids"),
    SHIFTED_VALUES,
    passed("critic.shape", 0.0),
    Result("critic.head-name", "MUST", "error", "load_critic raised KeyError: 'score'", seconds=0.1),
    Result("critic.gradient", "MUST", "error", "load_critic raised KeyError: 'score'", seconds=0.1),
    passed("policy-loss.clip", 0.93),
    Result(
        "policy-loss.overflow",
        "SHOULD",
        "fail",
        f"clip fraction: expected 0.5, got {HOSTILE}",
        examples=3,
        floor=50,
        failure=Failure(f"clip fraction {HOSTILE}", "", "0.5", HOSTILE, 0.1, 0.05, "", HOSTILE, HOSTILE),
    ),
    Result("policy-loss.mask", "MUST", "known-failure", "accepted: no entropy here. It is 0"),
    Result("value-loss.clip", "MUST", "lost", "the process of the adapter ended while this clause was tried"),
    Result("value-loss.half", "MUST", "inconclusive", "only 2 valid cases of at least 50", examples=2, floor=50),
)
"""One of everything that a run can say, with a verdict of each effect."""


def sample_report(*results: Result, **changes: object) -> Report:
    """A report of the given results, or of one of everything; `strict`, `subject`, `environment` and `run` as given."""
    parts = {"subject": SUBJECT, "environment": ENVIRONMENT, "run": RUN}
    parts = {name: {**part, **changes.pop(name, {})} for name, part in parts.items()}
    return Report(results or RESULTS, strict=bool(parts["run"]["strict"]), **parts)
