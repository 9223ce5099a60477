"""Generated rows, attention masks and lists of sequences to pack."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hypothesis import strategies as st

from rlhf_conformance.cases.evenly import evenly
from rlhf_conformance.layouts import Sample

IDS = 10
"""Token ids are drawn below this, so that pad, stop and ordinary ids meet often."""


@dataclass(frozen=True)
class GeneratedCase:
    """What came out of generation: `samples` with their stop token where they have one, laid out as generation does it:
    prompts padded left, responses padded right to `width`. A response without stop token fills its row."""

    samples: tuple[Sample, ...]
    width: int
    stop_token_ids: tuple[int, ...]
    pad_token_id: int

    @property
    def prompt_length(self) -> int:
        return max(len(s.prompt) for s in self.samples)

    @property
    def rows(self) -> list[list[int]]:
        """(B, P + T) token ids."""
        return [
            [self.pad_token_id] * (self.prompt_length - len(s.prompt))
            + list(s.tokens)
            + [self.pad_token_id] * (self.width - len(s.response))
            for s in self.samples
        ]

    @property
    def prompt_masks(self) -> list[list[int]]:
        """(B, P), 1 on the prompt's tokens."""
        return [[0] * (self.prompt_length - len(s.prompt)) + [1] * len(s.prompt) for s in self.samples]


@dataclass(frozen=True)
class GeneratedShape:
    """What a strategy of generated rows may put in."""

    max_stops: int = 2
    pad_is_stop: bool | None = None  # None: either
    stop_zero: bool = False
    specials_in_prompt: bool = False
    pad_in_prompt: bool = True  # among those specials
    prompt_ends_in_stop: bool = False
    pad_first: bool = False
    sampled_pad: bool = False
    truncated: bool = False  # at least one row


@st.composite
def generated(draw: Callable, shape: GeneratedShape = GeneratedShape()) -> GeneratedCase:
    """Rows of a generation: up to 4 prompts of up to 5 tokens, responses of up to 6."""
    stops, pad = draw(_special_ids(shape))
    plain = [i for i in range(IDS) if i not in stops and i != pad]
    width = draw(st.integers(2 if shape.sampled_pad else 1, 6))
    count = draw(st.integers(1, 4))
    (square,) = evenly((stops, width, count), (False, False, False, True))
    count = width if square else count  # a square hides one wrong axis and shows another
    samples = []
    for row in range(count):
        prompt = draw(_prompts(shape, plain, stops, pad))
        must_be_cut = shape.truncated and row == 0
        samples.append(Sample(prompt, draw(_responses(shape, plain, stops, pad, width, must_be_cut))))
    order = draw(st.permutations(samples)) if shape.truncated else samples
    return GeneratedCase(tuple(order), width, tuple(stops), pad)


@st.composite
def _special_ids(draw: Callable, shape: GeneratedShape) -> tuple[list[int], int]:
    fewest = min(2, shape.max_stops) if shape.max_stops > 2 else 1
    stops = draw(st.lists(st.integers(0, IDS - 1), min_size=fewest, max_size=min(shape.max_stops, 3), unique=True))
    if shape.stop_zero:
        stops = [0, *(s for s in stops if s != 0)][: max(1, shape.max_stops)]
    either = shape.pad_is_stop is None and (shape.pad_in_prompt or not shape.specials_in_prompt)
    pad_is_stop = draw(st.booleans()) if either else bool(shape.pad_is_stop)
    if pad_is_stop:
        return stops, stops[0]
    return stops, draw(st.sampled_from([i for i in range(IDS) if i not in stops]))


@st.composite
def _prompts(draw: Callable, shape: GeneratedShape, plain: list[int], stops: list[int], pad: int) -> tuple[int, ...]:
    anything = st.sampled_from(plain)
    specials = st.sampled_from([*stops, pad] if shape.pad_in_prompt else stops)
    inner = st.one_of(anything, specials) if shape.specials_in_prompt else anything
    first = st.just(pad) if shape.pad_first else anything
    prompt = [draw(first), *draw(st.lists(inner, min_size=2 if shape.specials_in_prompt else 0, max_size=4))]
    if shape.specials_in_prompt and not set(prompt[1:]) & {*stops, pad}:
        prompt[-1] = draw(specials)
    if shape.prompt_ends_in_stop:
        prompt.append(draw(st.sampled_from(stops)))
    return tuple(prompt)


@st.composite
def _responses(
    draw: Callable, shape: GeneratedShape, plain: list[int], stops: list[int], pad: int, width: int, must_be_cut: bool
) -> tuple[int, ...]:
    token = st.sampled_from(plain)
    if must_be_cut or draw(st.integers(0, 3)) == 0:
        cut = draw(st.lists(token, min_size=width, max_size=width))
        if shape.sampled_pad:  # anywhere but at the end, where only lengths could tell it from padding
            cut[draw(st.integers(0, width - 2))] = pad
        return tuple(cut)
    length = draw(st.integers(2 if shape.sampled_pad else 1, width))
    body = draw(st.lists(token, min_size=length - 1, max_size=length - 1))
    if shape.sampled_pad:
        body[draw(st.integers(0, length - 2))] = pad
    return (*body, draw(st.sampled_from(stops)))


@dataclass(frozen=True)
class MaskCase:
    """Attention masks: `spans` holds (pads on the left, tokens, pads on the right) of each row, all of one width."""

    spans: tuple[tuple[int, int, int], ...]

    @property
    def masks(self) -> list[list[int]]:
        return [[0] * left + [1] * tokens + [0] * right for left, tokens, right in self.spans]


@st.composite
def masks(draw: Callable) -> MaskCase:
    """Up to 4 rows, up to 8 columns or more than bytes and bfloat16 can count, at least one token in each row."""
    width = draw(st.integers(1, 8) | st.sampled_from((130, 300)))
    spans = []
    for _ in range(draw(st.integers(1, 4))):
        tokens = draw(st.integers(1, width))
        left = draw(st.integers(0, width - tokens))
        spans.append((left, tokens, width - tokens - left))
    return MaskCase(tuple(spans))


@dataclass(frozen=True)
class PackCase:
    """Sequences to be put into one row."""

    sequences: tuple[tuple[int, ...], ...]


def packs() -> st.SearchStrategy[PackCase]:
    """Two to four sequences of one to six tokens."""
    sequence = st.lists(st.integers(0, IDS - 1), min_size=1, max_size=6).map(tuple)
    return st.lists(sequence, min_size=2, max_size=4).map(tuple).map(PackCase)
