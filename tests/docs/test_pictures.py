"""The guide's pictures of the layouts are what the suite lays out, drawn with letters."""

from __future__ import annotations

from typing import Any

import pytest

from rlhf_conformance.chapters._models.interface import LAYOUTS
from rlhf_conformance.oracle.layouts import Presentation, Sample, present

LETTERS = ".abcdUVWXY"
"""Token ids as letters: prompts are lower case, responses upper case, 0 is the pad id."""
SAMPLES = (("abc", "XY"), ("d", "UVW"))
PRESENTATIONS = {
    "padded": Presentation("padded"),
    "left": Presentation("left"),
    "right": Presentation("right"),
    "packed": Presentation("packed"),
    "packed-tail": Presentation("packed-tail", tail=3),
    "sharded": Presentation("sharded", shards=2),
    "segments": Presentation("segments", tail=3),
}


def picture(layout: str) -> str:
    """Two samples in a layout: each tensor that is not None, a row a line."""
    samples = [Sample(_ids(prompt), _ids(response)) for prompt, response in SAMPLES]
    batch = present(samples, PRESENTATIONS[layout], pad_token_id=0)
    lines: list[str] = []
    for name in ("input_ids", "attention_mask", "position_ids", "action_mask", "labels"):
        tensor = getattr(batch, name)
        if tensor is not None:
            draw = _letters if name in ("input_ids", "labels") else _digits
            rows = [draw(row) for row in tensor.tolist()]
            lines += [f"{label:<16}{row}" for label, row in zip([name, *[""] * len(rows)], rows, strict=False)]
    return "\n".join([*lines, f"{'num_actions':<16}{batch.num_actions}"]) + "\n"


def _ids(word: str) -> tuple[int, ...]:
    return tuple(LETTERS.index(letter) for letter in word)


def _letters(row: list[Any]) -> str:
    return " ".join("-" if token < 0 else LETTERS[token] for token in row)


def _digits(row: list[Any]) -> str:
    return " ".join(map(str, row))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_picture_of_a_layout_is_what_the_suite_lays_out(text, layout):
    section = text("docs/writing-an-adapter.md").split(f"\n`{layout}`: ")[1]
    assert section.split("```text\n")[1].split("```")[0] == picture(layout)
