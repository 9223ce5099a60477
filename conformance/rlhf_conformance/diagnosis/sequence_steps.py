"""Masks of generated rows, positions and packs, row by row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import rlhf_spec.positions
import rlhf_spec.sequences
from rlhf_conformance.cases.sequences import GeneratedCase, MaskCase, PackCase
from rlhf_conformance.checks.packing import IGNORE, ask_pack
from rlhf_conformance.checks.sequences import ask
from rlhf_conformance.diagnosis import Evidence
from rlhf_conformance.diagnosis.lines import Block, Line, arranged, cells
from rlhf_conformance.results import Step

ATTENTION = ("attention-span", "pad-first-prompt")
TOKENS = ("tokens-unchanged",)
ACTIONS = ("action-mask", "sampled-pad", "stop-set", "stop-id-zero", "prompt-ending-in-eos")
"""Clauses that look at one part alone; the others look at all."""


def generated_steps(evidence: Evidence) -> tuple[Step, ...]:
    """The response of each row, where it ends, and what follows for its masks."""
    case: GeneratedCase = evidence.smallest.case
    answer, name = ask(evidence.subject, case), evidence.slug.split(".")[1]
    return arranged([_generated_row(case, row, answer, name) for row in range(len(case.samples))], what="rows")


def _generated_row(case: GeneratedCase, row: int, answer: Any, name: str) -> Block:
    tokens, prompt = case.rows[row], case.prompt_masks[row]
    response = tokens[case.prompt_length :]
    stop = rlhf_spec.sequences.first_stop(response, case.stop_token_ids)
    ids = ", ".join(map(str, case.stop_token_ids))
    place = f"row {row}"
    lines = [
        Line(f"{place}: generated tokens", cells(response)[0]),
        Line(f"{place}: first of them in the stop ids ({ids})", "none: cut off" if stop is None else str(stop)),
    ]
    actions = rlhf_spec.sequences.action_mask(response, case.stop_token_ids)
    attention = rlhf_spec.sequences.attention_mask(prompt, response, case.stop_token_ids)
    if name not in ATTENTION + TOKENS:
        lines.append(_row(f"{place}: action mask", actions, answer.action_mask, row))
    if name not in ACTIONS + TOKENS:
        lines.append(Line(f"{place}: mask of the prompt", cells(prompt)[0]))
        lines.append(_row(f"{place}: attention mask", attention, answer.attention_mask, row))
    if name not in ATTENTION + ACTIONS:
        lines.append(_row(f"{place}: tokens", tokens, answer.sequences, row))
    return lines


def _row(label: str, expected: Sequence[int], part: Any, row: int) -> Line:
    came = None if part is None else [_whole(x) for x in part[row].tolist()]
    return Line(label, *cells(expected, came, most=16))


def _whole(x: Any) -> Any:
    """1.0 and True are 1."""
    return int(x) if x == x and x in (int(x),) else x


def mask_steps(evidence: Evidence) -> tuple[Step, ...]:
    """Each row's positions, counted over its tokens; of pads only that a table of positions can be indexed."""
    case: MaskCase = evidence.smallest.case
    answer = evidence.subject.position_ids(evidence.subject.tensor(case.masks)).tolist()
    judges_pads = evidence.slug.endswith(".pads")
    return arranged(
        [_mask_row(row, mask, answer[row], judges_pads) for row, mask in enumerate(case.masks)], what="rows"
    )


def _mask_row(row: int, mask: list[int], answer: list[int], judges_pads: bool) -> Block:
    place = f"row {row}"
    if judges_pads:
        highest = max(2, len(mask)) - 1
        outside = [p for p in answer if not 0 <= p <= highest]
        wanted = f"within 0 and {highest}"
        came = f"{outside[0]} among them" if outside else wanted
        return [Line(f"{place}: attention mask", cells(mask)[0]), Line(f"{place}: all positions", wanted, came)]
    truth = [p for p, m in zip(rlhf_spec.positions.position_ids(mask), mask, strict=True) if m]
    came_cells = [p for p, m in zip(answer, mask, strict=True) if m]
    return [
        Line(f"{place}: attention mask", cells(mask)[0]),
        Line(f"{place}: cumsum(mask) - 1 at its tokens", *cells(truth, came_cells)),
    ]


def pack_steps(evidence: Evidence) -> tuple[Step, ...]:
    """Each sequence's tokens, positions and labels in the pack; only what the clause is about."""
    case: PackCase = evidence.smallest.case
    answer, name = ask_pack(evidence.subject, case), evidence.slug.split(".")[1]
    shifted = evidence.subject.adapter.packed_labels == "shifted"
    blocks: list[Block] = []
    start = 0
    for index, sequence in enumerate(case.sequences):
        inner = list(sequence[1:])
        parts = {
            "tokens": (list(sequence), answer.input_ids),
            "positions": (list(range(len(sequence))), answer.position_ids),
            "labels": ([*inner, IGNORE] if shifted else [IGNORE, *inner], answer.labels),
        }
        wanted = {"restart": ("tokens", "positions"), "boundary": ("tokens", "labels")}.get(name, ("tokens",))
        blocks.append([_part(f"sequence {index}: {key}", *parts[key], start) for key in wanted])
        start += len(sequence)
    return arranged(blocks, what="sequences")


def _part(label: str, expected: list[int], part: Any, start: int) -> Line:
    came = None if part is None else part[0, start : start + len(expected)].tolist()
    return Line(label, *cells(expected, came))
