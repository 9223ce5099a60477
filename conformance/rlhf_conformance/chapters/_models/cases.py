"""Ragged batches for the model clauses: samples, a probe, a layout."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from rlhf_conformance._lazy import torch
from rlhf_conformance.adapter import Adapter
from rlhf_conformance.chapters._models.interface import ARCHITECTURES
from rlhf_conformance.judging.picks import Picked, Picks
from rlhf_conformance.judging.storing import stored
from rlhf_conformance.oracle.batch import PACKS, RECTANGLES
from rlhf_conformance.oracle.layouts import Presentation, Sample
from rlhf_conformance.oracle.probes import GENERATION_CONFIGS, MAX_POSITIONS, ON_DISK, Probe

if TYPE_CHECKING:
    from rlhf_conformance.judging.subject import Subject

POSITIONS = ("llama", "gpt2")
"""Backbones with positions of either kind, rotary and learned: what hides in one shows in the other."""
USUAL = Probe()

Choice = TypeVar("Choice")

for _kind in (Presentation, Probe, Sample):
    stored(_kind)


@stored
@dataclass(frozen=True)
class ModelCase:
    """Samples, the probe checkpoint that they are run through, and how they are presented.

    method  a further method that is asked about them, where the clause asks about several
    """

    probe: Probe
    samples: tuple[Sample, ...]
    how: Presentation = Presentation()
    temperature: float = 1.0
    method: str = ""

    @property
    def size(self) -> tuple[int, int]:
        """Samples and tokens."""
        return len(self.samples), sum(len(s) for s in self.samples)

    def shown(self, how: Presentation) -> ModelCase:
        """The same samples, presented otherwise."""
        return replace(self, how=how)

    def in_order(self, order: Sequence[int]) -> ModelCase:
        """The samples in this order, in which one may come again."""
        return replace(self, samples=tuple(self.samples[i] for i in order))


@dataclass(frozen=True)
class Asked:
    """What a strategy of model cases is asked for."""

    head: bool = False
    layouts: Sequence[str] = RECTANGLES + PACKS
    architectures: Sequence[str] = POSITIONS
    temperatures: Sequence[float] = (1.0,)
    min_samples: int = 1
    ends: str = "any"  # "any", or "cut": no response ends in EOS
    prompt_eos: bool | None = None  # True: an EOS inside every prompt; False: none; None: now and then
    pad_is_eos: bool | None = None
    specials: bool = True  # the pad id may stand in prompts and responses, where the trainer takes a mask
    probe: Probe = Probe()
    tied: bool = False  # the output layer of a causal LM is its input embedding in half of the cases
    samples: int = 4  # at most


def offered(adapter: Adapter, layouts: Sequence[str]) -> list[str]:
    """Those of `layouts` that the adapter declares."""
    return [layout for layout in layouts if layout in adapter.layouts]


def loadable(adapter: Adapter, architectures: Sequence[str] = POSITIONS, head: bool = False) -> list[str]:
    """Those of `architectures` that the adapter loads, or loads with a head; all that it loads so where it loads none
    of them."""
    own = [a for a in adapter.architectures if not head or a in adapter.head_architectures]
    return [a for a in architectures if a in own] or own


SAMPLES, LENGTH = 4, 6
SAMPLE_PICKS = 6 + 4 * LENGTH
HEAD_PICKS = 12
CASE_PICKS = HEAD_PICKS + SAMPLES * SAMPLE_PICKS
"""How many choices are read, at most: for a sample, for what samples share, for a case."""


def model_cases(adapter: Adapter, asked: Asked = Asked()) -> Picked[ModelCase]:
    """Up to 4 samples, prompts and responses of up to 6 tokens; lengths differ more often than not."""
    return Picked(CASE_PICKS, lambda picks: _model_case(picks, adapter, asked))


def _model_case(picks: Picks, adapter: Adapter, asked: Asked) -> ModelCase:
    head = picks.part(HEAD_PICKS)
    pad_is_eos = head.chance(1, 2)
    probe = replace(
        asked.probe,
        architecture=head.of(loadable(adapter, asked.architectures, asked.head)),
        head_name=adapter.head_names[0] if asked.head else None,
        pad_is_eos=pad_is_eos if asked.pad_is_eos is None else asked.pad_is_eos,
    )
    how = Presentation(head.of(offered(adapter, asked.layouts)), tail=1 + head.below(4), shards=2 + head.below(2))
    temperature = head.of(asked.temperatures)
    slots = [picks.part(SAMPLE_PICKS) for _ in range(SAMPLES)]
    present = head.some(SAMPLES, asked.min_samples)[: asked.samples]
    if asked.tied and not asked.head:
        probe = replace(probe, tied=head.chance(1, 2))
    samples = tuple(_sample(slots[i], adapter, asked, probe) for i in present)
    return ModelCase(probe, samples, how, temperature)


def _sample(picks: Picks, adapter: Adapter, asked: Asked, probe: Probe) -> Sample:
    eos, pad = probe.eos_token_id, probe.pad_token_id
    pad_allowed = adapter.takes_attention_mask and asked.specials
    eos_allowed = asked.prompt_eos is not False and (eos != pad or pad_allowed)
    ends_in_eos = asked.ends == "any" and (eos != pad or adapter.takes_attention_mask)
    in_prompt = [t for t, allowed in ((pad, pad_allowed), (eos, eos_allowed)) if allowed]
    in_response = [pad] if pad_allowed and pad != eos else []

    ends = picks.chance(1, 2)
    prompt = _tokens(picks.part(1 + 2 * LENGTH), 1, 3, in_prompt, probe)
    response = _tokens(picks.part(1 + 2 * LENGTH), 1, 4, in_response, probe)
    where, first = picks.below(max(1, len(prompt) - 1)), picks.of(probe.ordinary)
    if eos != pad and picks.chance(1, 4):
        first = eos
    if asked.prompt_eos:
        prompt.insert(where if len(prompt) > 1 else 1, eos)
        prompt = [first, *prompt]
    if ends and ends_in_eos:
        response[-1] = eos
    return Sample(tuple(prompt), tuple(response))


def _tokens(picks: Picks, k: int, n: int, specials: Sequence[int] = (), probe: Probe = USUAL) -> list[int]:
    """One to six tokens, k in n of them among the `specials`, where there are any."""
    length = 1 + picks.below(LENGTH)
    drawn = [(picks.chance(k, n), picks.part(1)) for _ in range(length)]
    return [token.of(specials) if special and specials else token.of(probe.ordinary) for special, token in drawn]


OPENING, TURN, TURNS = 3, 2, 2
"""Of a sample with several turns the first has at most so many tokens as the first number, the others at most so many
as the second, and there are at most so many others as the third. Observations may have a token more than they."""
TURN_PICKS = 4 + TURNS * (3 + 2 * TURN) + 2 + TURN
"""How many choices are read for the turns of a sample, at most."""


def turned(cases: Picked[ModelCase], adapter: Adapter, asked: Asked) -> Picked[ModelCase]:
    """The cases with two or three turns in each sample, now and then but never in all of a case one, and observations
    of one to three tokens between them. Now and then a sample ends in an observation, and a turn in EOS."""

    def change(case: ModelCase, picks: Picks) -> ModelCase:
        eos, pad = case.probe.eos_token_id, case.probe.pad_token_id
        stops = asked.ends == "any" and (eos != pad or adapter.takes_attention_mask)
        slots = [picks.part(TURN_PICKS) for _ in case.samples]
        single = [slot.chance(1, 4) for slot in slots]
        single[-1] &= not all(single)
        return replace(
            case,
            samples=tuple(
                sample if alone else _with_turns(sample, slot, case.probe, stops)
                for sample, slot, alone in zip(case.samples, slots, single, strict=True)
            ),
        )

    return cases.with_more(SAMPLES * TURN_PICKS, change)


def _with_turns(sample: Sample, picks: Picks, probe: Probe, stops: bool) -> Sample:
    """The sample with observations and further turns behind its response, of which the first tokens are kept."""
    stopped, observed_last = picks.chance(1, 2) and stops, picks.chance(1, 3)

    def tokens(most: int) -> list[int]:
        read = picks.part(1 + most)
        return [read.of(probe.ordinary) for _ in range(1 + read.below(most))]

    def turn(own: list[int]) -> list[int]:
        return [*own[:-1], probe.eos_token_id] if stopped else own

    response = turn(list(sample.response[:OPENING]))
    mask = [1] * len(response)
    for _ in range(1 + picks.below(TURNS)):
        observation, own = tokens(TURN + 1), turn(tokens(TURN))
        response += observation + own
        mask += [0] * len(observation) + [1] * len(own)
    if observed_last:
        observation = tokens(TURN + 1)
        response += observation
        mask += [0] * len(observation)
    return Sample(sample.prompt, tuple(response), tuple(mask))


def padded_more(adapter: Adapter, asked: Asked) -> Picked[ModelCase]:
    """A case in a padded layout with one to four pad columns too many."""
    return model_cases(adapter, asked).with_more(2, _padded_more)


def _padded_more(case: ModelCase, picks: Picks) -> ModelCase:
    layout = case.how.layout
    left, right = picks.below(4), picks.below(4)
    left, right = 0 if layout == "right" else left, 0 if layout == "left" else right
    if left + right == 0:
        left, right = (0, 1) if layout == "right" else (1, 0)
    return case.shown(replace(case.how, extra_left=left, extra_right=right))


def garbage_under_mask(adapter: Adapter, asked: Asked) -> Picked[ModelCase]:
    """A padded case with at least one masked cell, and ordinary ids in all of them."""
    return padded_more(adapter, asked).with_more(6, _garbage_under_mask)


def _garbage_under_mask(case: ModelCase, picks: Picks) -> ModelCase:
    garbage = tuple(picks.of(USUAL.ordinary) for _ in range(1 + picks.below(5)))
    return case.shown(replace(case.how, garbage=garbage))


def with_statistics(cases: Picked[ModelCase], k: int = 1, n: int = 1) -> Picked[ModelCase]:
    """In k of n cases with a mean that is not 0 and a standard deviation that is not 1, exact in bfloat16."""

    def change(case: ModelCase, picks: Picks) -> ModelCase:
        mean, std = picks.of((-1.5, 0.5, 2.0)), picks.of((0.5, 2.0, 4.0))
        if not picks.chance(k, n):
            return case
        return replace(case, probe=replace(case.probe, mean=mean, std=std))

    return cases.with_more(3, change)


def with_head(adapter: Adapter, cases: Picked[ModelCase]) -> Picked[ModelCase]:
    """With the head under any name that is declared, and mostly with a bias where one may have it."""

    def change(case: ModelCase, picks: Picks) -> ModelCase:
        name, bias = picks.of(list(adapter.head_names)), picks.chance(3, 4)
        return replace(case, probe=replace(case.probe, head_name=name, head_bias=bool(adapter.head_bias) and bias))

    return cases.with_more(2, change)


def with_masked_cells(adapter: Adapter, asked: Asked) -> Picked[ModelCase]:
    """Any case, or where the adapter takes a mask a padded one whose masked cells hold ordinary ids."""
    anything = model_cases(adapter, asked)
    if not adapter.takes_attention_mask or not offered(adapter, RECTANGLES):
        return anything
    garbage = garbage_under_mask(adapter, replace(asked, layouts=RECTANGLES))
    return anything | (anything | garbage)  # packs are among anything


@stored
@dataclass(frozen=True)
class EditedCase:
    """A case and the same case with sample `index` exchanged for another; `case` has at least two samples.

    rows    so many rows of the same samples again and again are asked about, too; 0: none
    """

    case: ModelCase
    index: int
    replacement: Sample
    rows: int = 0

    @property
    def edited(self) -> ModelCase:
        samples = list(self.case.samples)
        samples[self.index] = self.replacement
        return replace(self.case, samples=tuple(samples))


MANY = 33
"""More rows than trainers score at once, and a number that no usual size of micro-batches divides."""


def in_turn(count: int, rows: int) -> list[int]:
    """Which of `count` samples each of many rows is: one after the other, again and again."""
    return [row % count for row in range(rows)]


def edited(adapter: Adapter, asked: Asked) -> Picked[EditedCase]:
    """Mostly with a sample behind the one that is exchanged, in a third of the cases with prompts of one token: what
    leaks into the first token of a sequence shows in the action that it predicts. In half with many rows, too."""

    def edit(case: ModelCase, picks: Picks) -> EditedCase:
        short, last = picks.chance(1, 3), picks.chance(1, 5)
        if short:
            case = replace(case, samples=tuple(replace(s, prompt=s.prompt[-1:]) for s in case.samples))
        index = len(case.samples) - 1 if last else picks.below(len(case.samples) - 1)
        prompt, response = (tuple(_tokens(picks.part(1 + 2 * LENGTH), 0, 1)) for _ in range(2))
        return EditedCase(case, index, Sample(prompt, response), MANY if picks.chance(1, 2) else 0)

    return model_cases(adapter, replace(asked, min_samples=2)).with_more(6 + 4 * LENGTH, edit)


def with_method(cases: Picked[ModelCase], methods: Sequence[str]) -> Picked[ModelCase]:
    """Each of the methods in equal shares."""
    return cases.with_more(1, lambda case, picks: replace(case, method=picks.of(methods) if methods else ""))


@stored
@dataclass(frozen=True)
class PermutedCase:
    """A case and an order of its samples that is not the identity."""

    case: ModelCase
    order: tuple[int, ...]


def permuted(adapter: Adapter, asked: Asked) -> Picked[PermutedCase]:
    def permute(case: ModelCase, picks: Picks) -> PermutedCase:
        rest = list(range(len(case.samples)))
        order = tuple(rest.pop(picks.below(len(rest))) for _ in case.samples)
        return PermutedCase(case, order if list(order) != sorted(order) else (*order[1:], order[0]))

    return model_cases(adapter, replace(asked, min_samples=2)).with_more(SAMPLES, permute)


@stored
@dataclass(frozen=True)
class WeightedCase:
    """A case with a weight for every answer, for gradients in train mode or in eval mode."""

    case: ModelCase
    weights: tuple[tuple[float, ...], ...]
    training: bool = False


def weighted(adapter: Adapter, asked: Asked, per_sample: bool) -> Picked[WeightedCase]:
    """Weights of both signs, never zero: one for each action, or one for each sample."""
    return with_weights(model_cases(adapter, without_specials(asked)), per_sample)


def without_specials(asked: Asked) -> Asked:
    """The same with ordinary tokens alone, whose gradients a few weights tell apart."""
    return replace(asked, specials=False, prompt_eos=False, ends="cut")


def with_weights(cases: Picked[ModelCase], per_sample: bool) -> Picked[WeightedCase]:
    """Any cases with weights as for `weighted`."""

    def weigh(case: ModelCase, picks: Picks) -> WeightedCase:
        counts = [1 if per_sample else sum(s.acts) for s in case.samples]
        training = picks.chance(1, 2)
        return WeightedCase(case, tuple(tuple(picks.of(WEIGHTS) for _ in range(n)) for n in counts), training)

    return cases.with_more(1 + SAMPLES * (LENGTH + TURNS * TURN), weigh)


WEIGHTS = (1.0, -1.5, -0.7, 0.4, 2.2)


@stored
@dataclass(frozen=True)
class BackboneCase:
    """A case, and the probes that it is run through in place of its own, one after the other, each in the presentations
    of its turn in `hows`."""

    case: ModelCase
    probes: tuple[Probe, ...]
    hows: tuple[tuple[Presentation, ...], ...] = ()

    @property
    def each(self) -> list[ModelCase]:
        """Each probe with each of its presentations; with that of the case where it has none of its own."""
        hows = self.hows or ((self.case.how,),)
        return [
            replace(self.case, probe=probe, how=how)
            for i, probe in enumerate(self.probes)
            for how in hows[i % len(hows)]
        ]


WITHOUT_CLASSIFIER = ("granite", "gemma3_text")
"""Backbones that no version of transformers, or not every one, can put a scalar head on."""


def on_backbones(adapter: Adapter, asked: Asked) -> Picked[BackboneCase]:
    """Short samples on nearly all backbones that are declared, so that one case is enough to see any of them miscalled;
    their special tokens and their files are now and then other ones. Each meets a rectangle and a pack."""
    loaded = loadable(adapter, ARCHITECTURES, asked.head)
    names = [a for a in loaded if not (asked.head and a in WITHOUT_CLASSIFIER)]
    kinds = [Probe(name, tied=tied) for tied in (False, True) for name in names]
    kinds = [probe for probe in kinds if not probe.tied or (probe.architecture in POSITIONS and not asked.head)]
    kinds_of_layouts = [kind for kind in (offered(adapter, RECTANGLES), offered(adapter, PACKS)) if kind]

    def change(case: ModelCase, picks: Picks) -> BackboneCase:
        turn = picks.below(len(ON_DISK))
        probes = [
            replace(case.probe, architecture=p.architecture, tied=p.tied, on_disk=ON_DISK[(turn + i) % len(ON_DISK)])
            for i, p in enumerate(kinds)
        ]
        taken = nearly_all(picks, probes)
        first = picks.below(12)
        hows = tuple(
            tuple(replace(case.how, layout=kind[(first + i) % len(kind)]) for kind in kinds_of_layouts)
            for i in range(len(probes))
        )
        return BackboneCase(case, taken, hows)

    eos = Probe(eos_is_zero=True)
    some = model_cases(adapter, replace(asked, samples=2)) | model_cases(adapter, replace(asked, samples=2, probe=eos))
    return some.with_more(2 + 2 * len(kinds), change)


@stored
@dataclass(frozen=True)
class PromptCase:
    """Prompts to continue, with what ends a row."""

    probe: Probe
    prompts: tuple[tuple[int, ...], ...]
    max_new_tokens: int
    stop_token_ids: tuple[int, ...]
    pad: int | None = None

    @property
    def pad_token_id(self) -> int:
        """What finished rows are filled with: the pad id of the checkpoint, unless `pad` is another."""
        return self.probe.pad_token_id if self.pad is None else self.pad

    @property
    def size(self) -> tuple[int, int]:
        """Prompts and tokens."""
        return len(self.prompts), sum(len(prompt) for prompt in self.prompts)


PROMPT_PICKS = 12 + SAMPLES * (1 + 2 * LENGTH) + 17 + 3


@dataclass(frozen=True)
class AskedOfPrompts:
    """What a strategy of prompts is asked for.

    more_stops  not the EOS alone ends a row, and among what does is an id that a row will meet, as a drawn one seldom
                is; None: now and then
    stops       how many ids more are drawn then
    least       rows
    shortest    the least max_new_tokens, of which the largest is 5
    edges       in half of the cases the pad id is not the checkpoint's, and in a quarter nothing ends a row, which
                then meets EOS
    """

    more_stops: bool | None = None
    stops: Sequence[int] = range(4, 17)
    least: int = 1
    shortest: int = 1
    edges: bool = False


def prompts(subject: Subject, asked: AskedOfPrompts = AskedOfPrompts()) -> Picked[PromptCase]:
    """One to four prompts of one to six tokens, continued by up to five."""
    return Picked(PROMPT_PICKS, lambda picks: _prompt_case(picks, subject, asked))


def _prompt_case(picks: Picks, subject: Subject, asked: AskedOfPrompts) -> PromptCase:
    head, adapter = picks.part(12), subject.adapter
    either, pad_is_eos = head.chance(1, 2), head.chance(1, 2)
    architecture = head.of(loadable(adapter))
    max_new_tokens, present = asked.shortest + head.below(6 - asked.shortest), head.some(SAMPLES, asked.least)
    probe = Probe(architecture, pad_is_eos=pad_is_eos, eos_is_zero=head.chance(1, 4))
    twice, several = head.chance(1, 4), either if asked.more_stops is None else asked.more_stops
    slots = [picks.part(1 + 2 * LENGTH) for _ in range(SAMPLES)]
    ids: tuple[int, ...] = (probe.eos_token_id,)
    if several and adapter.stop_ids != "one":
        wanted = picks.of(asked.stops)
        ids += tuple(dict.fromkeys(picks.of(probe.ordinary) for _ in range(wanted)))
    pad = probe.pad_token_id
    specials = [*ids, pad] if adapter.takes_attention_mask else [token for token in ids if token != pad]
    rows = [_prompt(slots[i], probe, specials) for i in present]
    if twice:
        rows[-1] = rows[0]
    if several:
        met = subject.truth.greedy(probe, rows[len(ids) % len(rows)], max_new_tokens, (probe.eos_token_id,))
        token = met[(len(met) - 1) // 2]
        ids = (token,) if adapter.stop_ids == "one" else tuple(dict.fromkeys((*ids, token)))
    case = PromptCase(probe, tuple(rows), max_new_tokens, ids)
    return _at_an_edge(picks, subject, case) if asked.edges else case


def _at_an_edge(picks: Picks, subject: Subject, case: PromptCase) -> PromptCase:
    turn, seed = picks.below(4), picks.below(4)
    pad = picks.of([t for t in case.probe.ordinary if t not in case.stop_token_ids])
    if turn in (1, 2) and subject.adapter.takes_attention_mask:
        more = ((case.probe.ordinary[-1],),) if len(case.prompts) == 1 else ()  # else generation ends with the one row
        return replace(case, pad=pad, prompts=case.prompts + more, max_new_tokens=max(3, case.max_new_tokens))
    if turn == 3 and subject.adapter.stop_ids != "one":
        for probe in (case.probe, replace(case.probe, eos_is_zero=True)):
            prompt = _continued_by_eos(subject, probe, SEQUENCES * seed)
            if prompt:
                steps = max(2, case.max_new_tokens)
                return PromptCase(probe, (prompt,), steps, ())
    return case


SEQUENCES = 24
_BEFORE_EOS: dict[tuple[str, int, int], tuple[int, ...]] = {}


def _continued_by_eos(subject: Subject, probe: Probe, first: int) -> tuple[int, ...]:
    """A prompt whose greedy continuation begins with EOS: a piece of one of some drawn sequences. Empty if no piece of
    these does."""
    key = (probe.architecture, probe.eos_token_id, first)
    if key not in _BEFORE_EOS:
        pieces = (_before_eos(subject, probe, number) for number in range(first, first + SEQUENCES))
        _BEFORE_EOS[key] = next(filter(None, pieces), ())
    return _BEFORE_EOS[key]


def _before_eos(subject: Subject, probe: Probe, number: int) -> tuple[int, ...]:
    drawn = hashlib.shake_128(f"{number}".encode()).digest(MAX_POSITIONS - LENGTH)
    tokens = tuple(probe.ordinary[byte * len(probe.ordinary) >> 8] for byte in drawn)
    with torch.no_grad():
        next_tokens = subject.truth.alone(probe)(tokens).argmax(-1).tolist()
    return tokens[: next_tokens.index(probe.eos_token_id) + 1] if probe.eos_token_id in next_tokens else ()


def _prompt(picks: Picks, probe: Probe, specials: Sequence[int]) -> tuple[int, ...]:
    """A prompt may begin with any id but the pad's, also with one that ends a response."""
    first, *rest = _tokens(picks, 1, 4, specials, probe)
    return (probe.ordinary[0] if first == probe.pad_token_id else first, *rest)


@stored
@dataclass(frozen=True)
class ConfiguredCase:
    """Prompts, and which of `GENERATION_CONFIGS` are put beside the weights, one after the other."""

    case: PromptCase
    generation: tuple[str, ...]

    def beside(self, name: str) -> PromptCase:
        """The same prompts for a checkpoint with this generation config."""
        return replace(self.case, probe=replace(self.case.probe, generation=name))


def configured(subject: Subject) -> Picked[ConfiguredCase]:
    """Nearly always with all of the configs, so that one case is enough to see any of them obeyed."""
    names = [name for name in GENERATION_CONFIGS if name != Probe().generation]

    def configure(case: PromptCase, picks: Picks) -> ConfiguredCase:
        return ConfiguredCase(case, nearly_all(picks, names))

    return prompts(subject, AskedOfPrompts(True, range(1), least=2, shortest=5)).with_more(2 * len(names), configure)


def nearly_all(picks: Picks, choices: Sequence[Choice]) -> tuple[Choice, ...]:
    """All of the choices but for one in 65,536 of each; in the simplest case the first alone. Reads two for each."""
    taken = tuple(choice for choice in choices if any([picks.chance(255, 256), picks.chance(255, 256)]))
    return taken or tuple(choices[:1])
