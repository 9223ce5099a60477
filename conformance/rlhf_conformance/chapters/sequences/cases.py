"""Generated rows."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_conformance.judging.picks import Picked, Picks
from rlhf_conformance.judging.storing import stored
from rlhf_conformance.oracle.layouts import Sample

IDS = 10
"""Token ids are drawn below this, so that pad, stop and ordinary ids meet often."""


@stored
@dataclass(frozen=True)
class GeneratedCase:
    """What came out of generation: `samples` with their stop token where they have one, laid out as generation does it:
    prompts padded left, responses padded right to `width`. A response without stop token fills its row, unless lengths
    are given. `behind` are the ids behind the responses, over again when they run out; pads where there are none."""

    samples: tuple[Sample, ...]
    width: int
    stop_token_ids: tuple[int, ...]
    pad_token_id: int
    behind: tuple[int, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """Samples and tokens."""
        return len(self.samples), sum(len(s) for s in self.samples)

    @property
    def prompt_length(self) -> int:
        return max(len(s.prompt) for s in self.samples)

    @property
    def rows(self) -> list[list[int]]:
        """(B, P + T) token ids."""
        return [
            [self.pad_token_id] * (self.prompt_length - len(s.prompt)) + [*s.prompt, *response]
            for s, response in zip(self.samples, self.responses, strict=True)
        ]

    @property
    def responses(self) -> list[list[int]]:
        """(B, T) each response with what stands behind it."""
        behind = self.behind or (self.pad_token_id,)
        return [
            [*s.response, *(behind[i % len(behind)] for i in range(self.width - len(s.response)))] for s in self.samples
        ]

    @property
    def lengths(self) -> list[int]:
        """(B,) the number of generated tokens of each row."""
        return [len(s.response) for s in self.samples]

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
    anything_behind: bool = False  # now and then other ids than pads stand behind a stop, other stop ids among them
    by_length: bool = False  # a response may end anywhere without a stop token, one at least does; then anything.
    # Some have no token at all.


ROWS, WIDTH, PROMPT = 6, 6, 4
MANY_ROWS = (9, 17, 12)
"""Now and then: more than what small batches are cut into."""
ROW_PICKS = 6 + 2 * PROMPT + 6 + WIDTH
HEAD_PICKS = 24
CASE_PICKS = HEAD_PICKS + ROWS * ROW_PICKS
"""How many choices are read, at most: for a row, for what rows share, for a case."""


def generated(shape: GeneratedShape = GeneratedShape()) -> Picked[GeneratedCase]:
    """Rows of a generation: up to 6 prompts of up to 6 tokens, responses of up to 6; now and then the rows again and
    again."""
    return Picked(CASE_PICKS, lambda picks: _generated(picks, shape))


def _generated(picks: Picks, shape: GeneratedShape) -> GeneratedCase:
    head = picks.part(HEAD_PICKS)
    stops, pad = _special_ids(head, shape)
    least = 2 if shape.sampled_pad or shape.by_length else 1
    width = least + head.below(WIDTH + 1 - least)
    # A square hides one wrong axis and shows another.
    square, present, cut = head.chance(1, 4), head.some(4, 1), head.below(256)
    short = head.chance(1, 8) and not shape.prompt_ends_in_stop  # all prompts have one token
    slots = [picks.part(ROW_PICKS) for _ in range(ROWS)]
    rows = slots[:width] if square else [slots[i] for i in present]
    samples = []
    for i, row in enumerate(rows):
        chosen = i == cut % len(rows)
        prompt = _prompt(row.part(6 + 2 * PROMPT), shape, stops, pad)
        prompt = prompt[:1] if short else prompt
        if shape.by_length:
            samples.append(Sample(prompt, _aborted(row, shape, stops, pad, width, chosen)))
        else:
            samples.append(Sample(prompt, _response(row, shape, stops, pad, width, shape.truncated and chosen)))
    behind: tuple[int, ...] = ()
    if shape.by_length and head.chance(1, 2):
        behind = tuple(head.below(IDS) for _ in range(3))
    if shape.anything_behind and head.chance(1, 2):
        behind = (head.of(stops), head.below(IDS), head.of(stops))
    if head.chance(1, 12):
        samples = (samples * max(MANY_ROWS))[: head.of(MANY_ROWS)]
    if head.chance(1, 2):  # the pad, where it is a stop id, is not always the first of them
        stops.reverse()
    return GeneratedCase(tuple(samples), width, tuple(stops), pad, behind)


def _special_ids(picks: Picks, shape: GeneratedShape) -> tuple[list[int], int]:
    """The stop ids and the pad id."""
    most = min(shape.max_stops, 3)
    fewest = 2 if most > 2 else 1
    count, ids = fewest + picks.below(most - fewest + 1), list(range(IDS))
    stops = [ids.pop(picks.below(len(ids))) for _ in range(3)][:count]
    if shape.stop_zero:
        stops = [0, *(s for s in stops if s != 0)][: max(1, shape.max_stops)]
    either = shape.pad_is_stop is None and (shape.pad_in_prompt or not shape.specials_in_prompt)
    pad_is_stop, pad = picks.chance(1, 2), picks.of([i for i in range(IDS) if i not in stops])
    return stops, stops[0] if (pad_is_stop if either else shape.pad_is_stop) else pad


def _prompt(picks: Picks, shape: GeneratedShape, stops: list[int], pad: int) -> tuple[int, ...]:
    plain = [i for i in range(IDS) if i not in stops and i != pad]
    specials = [*stops, pad] if shape.pad_in_prompt else stops
    first, last, one = picks.of(plain), picks.of(stops), picks.of(specials)
    # Models that begin a text with the token that also ends one; the pad is a case of its own.
    begins = [stop for stop in stops if stop != pad]
    if picks.chance(1, 4) and begins:
        first = picks.of(begins)
    more = 2 + picks.below(PROMPT - 1) if shape.specials_in_prompt else picks.below(PROMPT + 1)
    inner = [(picks.chance(1, 2), picks.part(1)) for _ in range(more)]
    tokens = [
        token.of(specials) if special and shape.specials_in_prompt else token.of(plain) for special, token in inner
    ]
    if shape.specials_in_prompt and not set(tokens) & set(specials):
        tokens[-1] = one
    return (pad if shape.pad_first else first, *tokens, *([last] if shape.prompt_ends_in_stop else []))


def _response(
    picks: Picks, shape: GeneratedShape, stops: list[int], pad: int, width: int, must_be_cut: bool
) -> tuple[int, ...]:
    """Ends in a stop token, or fills the width without one."""
    plain = [i for i in range(IDS) if i not in stops and i != pad]
    is_cut, stop, hole = picks.chance(1, 4) or must_be_cut, picks.of(stops), picks.part(1)
    least = 2 if shape.sampled_pad else 1
    length = least + picks.below(width - least + 1)
    body = [picks.of(plain) for _ in range(width if is_cut else length - 1)]
    if shape.sampled_pad:  # anywhere but at the end, where only lengths could tell it from padding
        end = len(body) - 1 if is_cut else len(body)
        first = hole.below(end)
        for place in (first, first + 1)[: 1 + picks.below(2)]:  # one pad, or two behind one another
            if place < end:
                body[place] = pad
    return tuple(body) if is_cut else (*body, stop)


def _aborted(
    picks: Picks, shape: GeneratedShape, stops: list[int], pad: int, width: int, must_be_short: bool
) -> tuple[int, ...]:
    """Ends in a stop token or without one, after any number of tokens, among which the pad id may be; or is empty."""
    plain = [i for i in range(IDS) if i not in stops and i != pad]
    stopped, stop = picks.chance(1, 3) and not must_be_short, picks.of(stops)
    length = 1 + picks.below(width - 1 if must_be_short else width)
    sampled = [*plain, pad] if shape.pad_in_prompt and pad not in stops else plain
    body = [picks.of(sampled) for _ in range(length - 1 if stopped else length)]
    if body and sampled is not plain and picks.chance(1, 3):
        body[-1] = pad
    if picks.chance(1, 8) and not must_be_short:  # aborted before its first token
        return ()
    return (*body, stop) if stopped else tuple(body)
