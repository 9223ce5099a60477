"""Ragged batches for the model clauses: samples, a probe, a layout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from hypothesis import strategies as st

from rlhf_conformance.adapter import Adapter
from rlhf_conformance.cases.evenly import evenly
from rlhf_conformance.layouts import Presentation, Sample
from rlhf_conformance.probes import VOCAB_SIZE, Probe

PACKS = ("packed", "packed-tail", "sharded")
RECTANGLES = ("padded", "left", "right")


@dataclass(frozen=True)
class ModelCase:
    """Samples, the probe checkpoint that they are run through, and how they are presented."""

    probe: Probe
    samples: tuple[Sample, ...]
    how: Presentation = Presentation()
    temperature: float = 1.0

    def shown(self, how: Presentation) -> ModelCase:
        """The same samples, presented otherwise."""
        return replace(self, how=how)


@dataclass(frozen=True)
class Asked:
    """What a strategy of model cases is asked for."""

    head: bool = False
    layouts: Sequence[str] = RECTANGLES + PACKS
    architectures: Sequence[str] = ("llama", "gpt2")
    temperatures: Sequence[float] = (1.0,)
    min_samples: int = 1
    ends: str = "any"  # "any", or "cut": no response ends in EOS
    prompt_eos: bool | None = None  # True: an EOS inside every prompt; False: none; None: now and then
    pad_is_eos: bool | None = None
    specials: bool = True  # the pad id may stand in prompts and responses, where the trainer takes a mask
    probe: Probe = Probe()


def offered(adapter: Adapter, layouts: Sequence[str]) -> list[str]:
    """Those of `layouts` that the adapter declares."""
    return [layout for layout in layouts if layout in adapter.layouts]


@st.composite
def model_cases(draw: Callable, adapter: Adapter, asked: Asked = Asked()) -> ModelCase:
    """Up to 4 samples, prompts and responses of up to 6 tokens; lengths differ more often than not."""
    pad_is_eos = draw(st.booleans()) if asked.pad_is_eos is None else asked.pad_is_eos
    head_name = adapter.head_names[0] if asked.head else None
    probe = replace(asked.probe, head_name=head_name, pad_is_eos=pad_is_eos)
    samples = draw(_samples(adapter, asked, probe))
    architecture, layout = evenly(
        samples, [a for a in asked.architectures if a in adapter.architectures], offered(adapter, asked.layouts)
    )
    how = Presentation(layout, tail=draw(st.integers(1, 4)), shards=draw(st.integers(2, 3)))
    temperature = draw(st.sampled_from(list(asked.temperatures)))
    return ModelCase(replace(probe, architecture=architecture), samples, how, temperature)


@st.composite
def _samples(draw: Callable, adapter: Adapter, asked: Asked, probe: Probe) -> tuple[Sample, ...]:
    eos, pad = probe.eos_token_id, probe.pad_token_id
    plain = st.integers(2, VOCAB_SIZE - 1)
    pad_allowed = adapter.takes_attention_mask and asked.specials
    eos_allowed = asked.prompt_eos is not False and (eos != pad or pad_allowed)
    specials = [t for t, allowed in ((pad, pad_allowed), (eos, eos_allowed)) if allowed]
    inside_prompt = st.one_of(plain, plain, st.sampled_from(specials)) if specials else plain
    inside_response = st.one_of(plain, plain, plain, st.just(pad)) if pad_allowed and pad != eos else plain
    ends_in_eos = (
        st.booleans() if asked.ends == "any" and (eos != pad or adapter.takes_attention_mask) else st.just(False)
    )
    samples = []
    for _ in range(draw(st.integers(asked.min_samples, 4))):
        prompt = draw(st.lists(inside_prompt, min_size=1, max_size=6))
        if asked.prompt_eos:
            prompt.insert(draw(st.integers(0, len(prompt) - 1)) if len(prompt) > 1 else 1, eos)
            prompt = [draw(plain), *prompt]
        response = draw(st.lists(inside_response, min_size=1, max_size=6))
        if draw(ends_in_eos):
            response[-1] = eos
        samples.append(Sample(tuple(prompt), tuple(response)))
    return tuple(samples)


@st.composite
def padded_more(draw: Callable, adapter: Adapter, asked: Asked) -> ModelCase:
    """A case in a padded layout with one to four pad columns too many."""
    case = draw(model_cases(adapter, asked))
    layout = case.how.layout
    left = draw(st.integers(0, 3)) if layout != "right" else 0
    right = draw(st.integers(0, 3)) if layout != "left" else 0
    if left + right == 0:
        left, right = (0, 1) if layout == "right" else (1, 0)
    return case.shown(replace(case.how, extra_left=left, extra_right=right))


@st.composite
def garbage_under_mask(draw: Callable, adapter: Adapter, asked: Asked) -> ModelCase:
    """A padded case with at least one masked cell, and ordinary ids in all of them."""
    case = draw(padded_more(adapter, asked))
    garbage = draw(st.lists(st.integers(2, VOCAB_SIZE - 1), min_size=1, max_size=5))
    return case.shown(replace(case.how, garbage=tuple(garbage)))


def with_statistics(cases: st.SearchStrategy[ModelCase]) -> st.SearchStrategy[ModelCase]:
    """With a mean that is not 0 and a standard deviation that is not 1, exact in bfloat16."""
    pairs = st.tuples(st.sampled_from((-1.5, 0.5, 2.0)), st.sampled_from((0.5, 2.0, 4.0)))
    return st.builds(
        lambda case, pair: replace(case, probe=replace(case.probe, mean=pair[0], std=pair[1])), cases, pairs
    )


def with_masked_cells(adapter: Adapter, asked: Asked) -> st.SearchStrategy[ModelCase]:
    """Any case, or where the adapter takes a mask a padded one whose masked cells hold ordinary ids."""
    anything = model_cases(adapter, asked)
    if not adapter.takes_attention_mask or not offered(adapter, RECTANGLES):
        return anything
    return anything | garbage_under_mask(adapter, replace(asked, layouts=RECTANGLES))


@dataclass(frozen=True)
class EditedCase:
    """A case and the same case with sample `index` exchanged for another; `case` has at least two samples."""

    case: ModelCase
    index: int
    replacement: Sample

    @property
    def edited(self) -> ModelCase:
        samples = list(self.case.samples)
        samples[self.index] = self.replacement
        return replace(self.case, samples=tuple(samples))


@st.composite
def edited(draw: Callable, adapter: Adapter, asked: Asked) -> EditedCase:
    case = draw(model_cases(adapter, replace(asked, min_samples=2)))
    index = draw(st.integers(0, len(case.samples) - 1))
    token = st.integers(2, VOCAB_SIZE - 1)
    prompt = draw(st.lists(token, min_size=1, max_size=6))
    response = draw(st.lists(token, min_size=1, max_size=6))
    return EditedCase(case, index, Sample(tuple(prompt), tuple(response)))


@dataclass(frozen=True)
class PermutedCase:
    """A case and an order of its samples that is not the identity."""

    case: ModelCase
    order: tuple[int, ...]

    @property
    def permuted(self) -> ModelCase:
        return replace(self.case, samples=tuple(self.case.samples[i] for i in self.order))


@st.composite
def permuted(draw: Callable, adapter: Adapter, asked: Asked) -> PermutedCase:
    case = draw(model_cases(adapter, replace(asked, min_samples=2)))
    count = len(case.samples)
    order = draw(st.permutations(range(count)))
    if tuple(order) == tuple(range(count)):
        order = [*range(1, count), 0]
    return PermutedCase(case, tuple(order))


@dataclass(frozen=True)
class WeightedCase:
    """A case with a weight for every answer, for gradients."""

    case: ModelCase
    weights: tuple[tuple[float, ...], ...]


@st.composite
def weighted(draw: Callable, adapter: Adapter, asked: Asked, per_sample: bool) -> WeightedCase:
    """Weights of both signs, never zero: one for each action, or one for each sample."""
    case = draw(model_cases(adapter, replace(asked, specials=False, prompt_eos=False, ends="cut")))
    weight = st.sampled_from((-1.5, -0.7, 0.4, 1.0, 2.2))
    counts = [1 if per_sample else len(s.response) for s in case.samples]
    return WeightedCase(case, tuple(tuple(draw(weight) for _ in range(count)) for count in counts))


@dataclass(frozen=True)
class PromptCase:
    """Prompts to continue, with what ends a row."""

    probe: Probe
    prompts: tuple[tuple[int, ...], ...]
    max_new_tokens: int
    stop_token_ids: tuple[int, ...]


@st.composite
def prompts(draw: Callable, adapter: Adapter, *, stops: st.SearchStrategy[bool]) -> PromptCase:
    """One to four prompts of one to six tokens, continued by up to five; with `stops`, more stop ids than the EOS."""
    token = st.integers(2, VOCAB_SIZE - 1)
    rows = draw(st.lists(st.lists(token, min_size=1, max_size=6).map(tuple), min_size=1, max_size=4))
    (architecture,) = evenly(rows, list(adapter.architectures))
    probe = Probe(architecture, pad_is_eos=draw(st.booleans()))
    if not draw(stops):
        ids: tuple[int, ...] = (probe.eos_token_id,)
    elif adapter.stop_ids == "one":
        ids = (draw(token),)
    else:
        ids = (probe.eos_token_id, *draw(st.lists(token, min_size=4, max_size=16, unique=True)))
    return PromptCase(probe, tuple(rows), draw(st.integers(1, 5)), ids)
