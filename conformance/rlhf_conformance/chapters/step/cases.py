"""Whole steps: samples, what was known of them when they were drawn, what is minimised, and how it is cut.

A case holds log-ratios, not log-probs: what the old policy and the reference are said to have given lies so far from
what the probe gives, whatever its weights are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from rlhf_conformance.chapters._losses.cases import (
    HEAD_PICKS,
    SPECIAL_PICKS,
    USUAL_ADVANTAGES,
    LossShape,
    log_ratios_of,
    policy_options,
)
from rlhf_conformance.chapters._masked import Rows, exactly
from rlhf_conformance.chapters._models.cases import (
    LENGTH,
    SAMPLES,
    TURN,
    TURNS,
    Asked,
    in_turn,
    model_cases,
    turned,
    without_specials,
)
from rlhf_conformance.chapters._temperatures import known_temperatures
from rlhf_conformance.chapters.corrected_loss.cases import APART, BINDING, weighable
from rlhf_conformance.chapters.kl.cases import clamps
from rlhf_conformance.chapters.kl.interface import ESTIMATORS
from rlhf_conformance.chapters.off_policy_correction.cases import OffPolicyCase, OffPolicyShape, clear_bounds
from rlhf_conformance.chapters.off_policy_correction.interface import OffPolicyOptions
from rlhf_conformance.chapters.step.interface import StepOptions
from rlhf_conformance.judging.picks import Picked, Picks, outward
from rlhf_conformance.judging.storing import stored
from rlhf_conformance.judging.subject import Subject
from rlhf_conformance.oracle import budgets
from rlhf_conformance.oracle.layouts import Sample
from rlhf_conformance.oracle.probes import Probe

COEFS = (0.5, 1.0, 0.3, 2.0)
FROM_REFERENCE = tuple(0.11 * k + 0.27 for k in outward(8))
"""Log-ratios of the policy to its reference."""
WIDE_EPS = 0.3
"""In half precision the band of the clip is wide: log-probs are off by nearly as much as a narrow one."""
VALUE_MOVES = {"equal": (0.0,), "inside": (0.05, -0.08, 0.02), "above": (0.6,), "below": (-0.6,)}
"""How far a value lies above the old one, in and out of the band of its clip, and far from its edges."""
VALUE_ERRORS = (0.7, -0.65, 0.9, -1.1, 0.8, -0.75, 1.2)
"""How far a return lies above the value: so far that no rounding decides between the two branches of the clip."""
STEPS = 4
"""Those that a schedule is made for."""
LONGER = 3
"""By how many tokens the last response is longer than it was drawn."""
TOKENS = LENGTH + TURNS * (2 * TURN + 1) + LONGER + 1
"""The most tokens of a response."""


TABLES = ("advantages", "log_ratios", "kl_ratios", "value_moves", "errors", "apart")


@stored
@dataclass(frozen=True)
class StepCase:
    """One step.

    samples     prompts and responses, with what of a response is an action
    advantages, log_ratios, kl_ratios
                for each token of a response: its advantage; the log of the ratio of the policy to the one that sampled;
                that to the reference
    value_moves, errors
                how far its value lies above the old one, and its return above the value
    apart       how far its old log-prob lies above that of the engine that sampled
    critic      whether the step is one of a critic
    """

    probe: Probe
    samples: tuple[Sample, ...]
    advantages: Rows
    log_ratios: Rows
    kl_ratios: Rows
    value_moves: Rows
    errors: Rows
    apart: Rows
    options: StepOptions
    temperature: float = 1.0
    critic: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """Samples and tokens."""
        return len(self.samples), sum(len(s) for s in self.samples)

    @cached_property
    def parts(self) -> list[range]:
        """The samples of each micro-batch, where these are of so many samples; all of them where they are not."""
        count, size = len(self.samples), self.options.micro_batch_size or len(self.samples)
        return [range(a, min(a + size, count)) for a in range(0, count, size)]

    def with_options(self, **changes: Any) -> StepCase:
        return replace(self, options=replace(self.options, **changes))

    def in_order(self, order: Sequence[int]) -> StepCase:
        """The samples in this order, in which some may be missing."""
        tables: dict[str, Any] = {name: tuple(getattr(self, name)[i] for i in order) for name in TABLES}
        return replace(self, samples=tuple(self.samples[i] for i in order), **tables)


@dataclass(frozen=True)
class StepShape:
    """What a strategy of steps is asked for.

    cut         "whole" (one micro-batch), "rows" (equal numbers of samples), "remainder" (of which the last has fewer),
                "tokens"
    terms       beside the policy loss, as far as they are declared
    estimators  of the KL, as far as they are declared; any where none of them is
    zones       of the log-ratios
    aggregations, surrogates    of these, as far as they are declared; None: the first of them
    silent      which samples have no action: "none", "one", "part" (all of a micro-batch), "most" (all but one)
    least       the fewest samples of a micro-batch
    several     responses have several turns
    layout      None: any that is declared
    tied, ties  the output layer is the input embedding in half of the cases, or in all
    critic      the step is one of a critic
    value_clip  its loss is clipped
    corrected   its policy loss is weighed for the engine that sampled
    momenta, schedules    as far as they are declared
    """

    cut: str = "rows"
    terms: Sequence[str] = ()
    estimators: Sequence[str] = ESTIMATORS
    zones: Sequence[str] = ("inside", "equal")
    aggregations: Sequence[str] | None = None
    surrogates: Sequence[str] | None = None
    silent: str = "none"
    least: int = 1
    several: bool = False
    layout: str | None = None
    any_temperature: bool = False
    tied: bool = False
    ties: bool = False
    learning_rates: Sequence[float] = (1.0,)
    norms: Sequence[float | None] = (None,)
    critic: bool = False
    value_clip: bool = False
    corrected: bool = False
    momenta: Sequence[float] = (0.0,)
    schedules: Sequence[str] = ("constant",)


@stored
@dataclass(frozen=True)
class SeveralSteps:
    """The same samples in steps that differ in what is asked for."""

    cases: tuple[StepCase, ...]

    @property
    def size(self) -> tuple[int, int]:
        return self.cases[0].size

    @property
    def probe(self) -> Probe:
        return self.cases[0].probe


ROW_PICKS = 3 * TOKENS
OWN_PICKS = 12
PICKS = HEAD_PICKS + SPECIAL_PICKS + OWN_PICKS + SAMPLES * ROW_PICKS


def step_cases(subject: Subject, **shape: Any) -> Picked[StepCase]:
    """Steps of four samples, or the least multiple of what is declared that is no smaller. The first response is short
    and the last one long, so that no cut has parts with equally many actions."""
    adapter, wanted = subject.adapter, StepShape(**shape)
    temperatures = known_temperatures(adapter)[::2] if wanted.any_temperature else (1.0,)
    asked = without_specials(
        Asked(
            head=wanted.critic,
            architectures=adapter.step_architectures,
            layouts=adapter.layouts,
            min_samples=SAMPLES,
            temperatures=temperatures,
            tied=wanted.tied,
        )
    )
    models = model_cases(adapter, asked)
    models = turned(models, adapter, asked) if wanted.several else models

    def build(model: Any, picks: Picks) -> StepCase:
        head, special, own = picks.part(HEAD_PICKS), picks.part(SPECIAL_PICKS), picks.part(OWN_PICKS)
        slots = [picks.part(ROW_PICKS) for _ in range(SAMPLES)]
        options = _options(head, special, own, subject, wanted)
        count = math.lcm(SAMPLES, round(adapter.step_samples))
        samples = _uneven([_unlike(model.samples[i], i, model.probe) for i in in_turn(SAMPLES, count)])
        options = _cut(options, own, samples, wanted)
        samples = _silenced(samples, own, options, wanted.silent)
        rows = [
            _row(slots[i % SAMPLES].again(), i, sample, options, subject, wanted) for i, sample in enumerate(samples)
        ]
        tables = {name: tuple(row[k] for row in rows) for k, name in enumerate(TABLES)}
        if wanted.corrected:
            options = replace(options, correction=_correction(own, samples, tables["apart"], options, subject))
        probe = replace(model.probe, tied=True) if wanted.ties else model.probe
        return StepCase(
            probe,
            tuple(samples),
            **tables,
            options=options,
            temperature=model.temperature,
            critic=wanted.critic,
        )

    return models.with_more(PICKS, build)


def each_of(subject: Subject, names: str, choices: Sequence[str], **shape: Any) -> Picked[SeveralSteps]:
    """Steps made of the same choices, one with each of what may be asked for."""
    every = [step_cases(subject, **{names: (choice,)}, **shape) for choice in choices]
    return Picked(every[0].count, lambda picks: SeveralSteps(tuple(cases.build(picks.again()) for cases in every)))


def _options(head: Picks, special: Picks, own: Picks, subject: Subject, wanted: StepShape) -> StepOptions:
    adapter = subject.adapter
    shape = LossShape(unequal_eps=None, aggregations=wanted.aggregations, surrogates=wanted.surrogates)
    policy = policy_options(head, adapter, shape, special)
    if not budgets.is_fine(subject.dtype) and policy.clip_eps_high < 1:
        policy = replace(policy, clip_eps_low=WIDE_EPS, clip_eps_high=WIDE_EPS)
    drawn = {"kl": own.of(COEFS), "entropy": own.of(COEFS)}
    terms = set(wanted.terms) & set(adapter.step_terms)
    coefs: dict[str, Any] = {f"{name}_coef": coef if name in terms else 0.0 for name, coef in drawn.items()}
    clips = adapter.value_clip and (wanted.value_clip or not adapter.unclipped_value)
    estimator = own.of([e for e in adapter.kl_estimators if e in wanted.estimators] or adapter.kl_estimators)
    held: dict[str, Any] = clamps(adapter, estimator)
    return StepOptions(
        **vars(policy),
        **coefs,
        **held,
        estimator=estimator,
        kl_correction=adapter.kl_correction,
        kl_gradient=adapter.kl_gradient or "plain",
        kl_aggregation=adapter.kl_aggregation,
        entropy_aggregation=adapter.entropy_aggregation,
        value_coef=float(wanted.critic),
        value_clip_eps=WIDE_EPS if wanted.critic and clips else None,
        value_aggregation=adapter.value_aggregation,
        layout=wanted.layout or own.of(adapter.step_layouts),
        learning_rate=own.of(wanted.learning_rates),
        max_norm=own.of(wanted.norms),
        momentum=wanted.momenta[-1] if adapter.step_momentum else 0.0,
        schedule=wanted.schedules[-1] if wanted.schedules[-1] in adapter.step_schedules else "constant",
        total_steps=STEPS,
    )


def _unlike(sample: Sample, number: int, probe: Probe) -> Sample:
    """The sample with other tokens, so that even the simplest samples of a step differ."""
    ids = probe.ordinary

    def other(tokens: Sequence[int]) -> tuple[int, ...]:
        return tuple(ids[(t - ids[0] + 11 * number + j) % len(ids)] if t in ids else t for j, t in enumerate(tokens))

    return replace(sample, prompt=other(sample.prompt), response=other(sample.response))


def _uneven(samples: list[Sample]) -> list[Sample]:
    """The first response cut to one turn of at most two tokens, the last one longer by some."""
    first, last = samples[0], samples[-1]
    more = tuple(last.response[i % len(last.response)] for i in range(LONGER))
    mask = (*last.action_mask, *(1,) * LONGER) if last.action_mask else ()
    longer = replace(last, response=last.response + more, action_mask=mask)
    shorter = first if first.action_mask else replace(first, response=first.response[:2])
    return [shorter, *samples[1:-1], longer]


def _cut(options: StepOptions, picks: Picks, samples: Sequence[Sample], wanted: StepShape) -> StepOptions:
    count, either, room = len(samples), picks.below(256), picks.below(8)
    if wanted.cut == "tokens":
        return replace(options, max_tokens=max(len(s) for s in samples) + room)
    sizes = [size for size in range(wanted.least, count) if (count % size != 0) == (wanted.cut == "remainder")]
    size = count if wanted.cut == "whole" else sizes[either * len(sizes) >> 8]
    return replace(options, micro_batch_size=size)


def _silenced(samples: list[Sample], picks: Picks, options: StepOptions, silent: str) -> list[Sample]:
    """Some of the samples without any action."""
    count, size, which = len(samples), options.micro_batch_size or 1, picks.below(256)
    parts = [range(a, min(a + size, count)) for a in range(0, count, size)]
    chosen: Sequence[int] = {
        "none": (),
        "one": (which * count >> 8,),
        "part": parts[which * len(parts) >> 8],
        "most": [i for i in range(count) if i != which * count >> 8],
    }[silent]
    return [replace(s, action_mask=(0,) * len(s.response)) if i in chosen else s for i, s in enumerate(samples)]


def _row(
    picks: Picks, number: int, sample: Sample, options: StepOptions, subject: Subject, wanted: StepShape
) -> tuple[tuple[float, ...], ...]:
    """What the tables hold: a row of each, with a number for each token of a response."""
    alike = subject.adapter.step_advantages == "sample" or options.surrogate == "gspo"
    found = []
    for _ in sample.response:
        sign, size = picks.of((1, -1)), picks.below(len(USUAL_ADVANTAGES)) + 3 * number
        found.append((sign * USUAL_ADVANTAGES[size % len(USUAL_ADVANTAGES)], picks.below(256)))
    advantages = [exactly(found[0 if alike else j][0], subject.dtype) for j in range(len(found))]
    choices = [d for zone in wanted.zones for d in log_ratios_of(zone, options)]
    drawn = [choices[byte * len(choices) >> 8] for _, byte in found]
    if options.surrogate == "gspo":  # the mean of a row is that of its first action
        apart = [0.05 * ((5 * k + 2) % 7 - 3) for k in range(len(drawn))]
        acts = [j for j, marked in enumerate(sample.acts) if marked]
        centre = math.fsum(apart[j] for j in acts) / max(1, len(acts))
        drawn = [drawn[0] + (x - centre if drawn[0] else 0.0) for x in apart]
    kls = [FROM_REFERENCE[(7 * byte + j) % len(FROM_REFERENCE)] for j, (_, byte) in enumerate(found)]
    moves = [d for zone in wanted.zones for d in VALUE_MOVES[zone]]
    of_value = [moves[byte * len(moves) >> 8] for _, byte in found]
    errors = [VALUE_ERRORS[(5 * byte + j) % len(VALUE_ERRORS)] for j, (_, byte) in enumerate(found)]
    apart = [APART[(3 * byte + j) % len(APART)] for j, (_, byte) in enumerate(found)]
    return tuple(advantages), tuple(drawn), tuple(kls), tuple(of_value), tuple(errors), tuple(apart)


def _correction(
    picks: Picks, samples: Sequence[Sample], apart: Rows, options: StepOptions, subject: Subject
) -> OffPolicyOptions:
    """Weights of a kind that is declared, between bounds that none of them lies too near to."""
    wanted = OffPolicyShape(**BINDING)
    kind = picks.of(weighable(subject.adapter, options.surrogate, wanted))
    upper, lower = picks.below(len(wanted.uppers)), picks.below(len(wanted.lowers))
    width = max(len(row) for row in apart)
    old, rollout, mask = (
        tuple((*row, *(0,) * (width - len(row))) for row in rows)
        for rows in (
            tuple((-2.0,) * len(row) for row in apart),
            tuple(tuple(-2.0 - x for x in row) for row in apart),
            tuple(sample.acts for sample in samples),
        )
    )
    asked = OffPolicyOptions(*kind[:2], sequence_weight=kind[2])
    engines = OffPolicyCase(old, rollout, mask, asked)
    bounds = clear_bounds(engines, [kind], wanted, upper, lower, subject.adapter, subject.dtype)
    return replace(asked, upper=bounds[0], lower=bounds[1])
