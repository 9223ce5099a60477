"""The checks of a whole step."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from typing import Any

from rlhf_conformance._lazy import torch
from rlhf_conformance.adapter import Adapter
from rlhf_conformance.chapters._losses.cases import aggregations_of
from rlhf_conformance.chapters._models.lora import is_adapters
from rlhf_conformance.chapters._models.templates import several_turns
from rlhf_conformance.chapters._models.weights import Weights, furthest_off
from rlhf_conformance.chapters.corrected_loss.cases import BINDING, weighable
from rlhf_conformance.chapters.off_policy_correction.cases import OffPolicyShape
from rlhf_conformance.chapters.step.cases import SeveralSteps, StepCase, each_of, step_cases
from rlhf_conformance.chapters.step.interface import StepOptions
from rlhf_conformance.chapters.step.relations import relation
from rlhf_conformance.chapters.step.standing import Due, Known, Standing, moved_adapters
from rlhf_conformance.judging.checks import Questions, Requirement, Template, declares, use
from rlhf_conformance.judging.picks import Picked
from rlhf_conformance.judging.questions import (
    Answered,
    Call,
    Fact,
    NotReturned,
    Question,
    Reading,
    known,
    metric,
    sample_action,
)
from rlhf_conformance.judging.subject import Subject
from rlhf_conformance.oracle import budgets
from rlhf_spec import step as spec
from rlhf_spec.aggregation import MEANS

LOAD, ASK, UPDATE, LOG_PROBS = "load_trainer", "step_gradients", "step_update", "step_log_probs"
SAVE, RESUME = "save_trainer", "resume_trainer"
OF_CRITIC = {LOAD: "load_critic_trainer", ASK: "critic_step_gradients", UPDATE: "critic_step_update"}
"""What the methods are called where the step is one of a critic."""
TERMS = ("kl", "entropy")
OF_REFERENCE = ("k2", "k3")
"""Estimators of the KL whose gradient depends on how far the reference is."""
SMALL_RATE = 1 / 64
"""A learning rate after whose step the ratios are still within every band, and no longer 1."""


# --- what an adapter declares ---------------------------------------------------------------------------------------

cuts_rows = lambda adapter: None if "rows" in adapter.step_cuts else "'rows' is not among step_cuts"  # noqa: E731
cuts_tokens = lambda adapter: None if "tokens" in adapter.step_cuts else "'tokens' is not among step_cuts"  # noqa: E731
takes_remainder = declares("step_remainder", "step_remainder is not declared")
takes_empty = declares("step_empty", "step_empty is False: it takes no sample without an action")
clips_norm = declares("step_max_norm", "step_max_norm is False: it clips no norm")
one_denominator = declares(
    "step_denominators",
    "step_denominators is not 'step': what is due depends on a cut that the trainer makes by itself",
    value="step",
)


def has(term: str) -> Requirement:
    return lambda adapter: None if term in adapter.step_terms else f"{term!r} is not among step_terms"


def packs(adapter: Adapter) -> str | None:
    return None if "packed" in adapter.step_layouts else "'packed' is not among step_layouts"


def has_other_means(adapter: Adapter) -> str | None:
    several = len(aggregations_of("policy-loss", adapter)) > 1
    return None if several else "one aggregation is declared: there is no other"


def has_other_surrogates(adapter: Adapter) -> str | None:
    return None if len(adapter.surrogates) > 1 else "one surrogate is declared: there is no other"


def knows_temperatures(adapter: Adapter) -> str | None:
    return None if adapter.temperature else "temperature is False: it scores at 1"


def corrects(adapter: Adapter) -> str | None:
    if not adapter.step_corrections:
        return "step_corrections is not declared"
    offered = weighable(adapter, adapter.surrogates[0], OffPolicyShape(**BINDING))
    return None if offered else f"no weights are declared that {adapter.surrogates[0]!r} can have"


def has_schedule(adapter: Adapter) -> str | None:
    return None if "linear" in adapter.step_schedules else "'linear' is not among step_schedules"


def takes_half(adapter: Adapter) -> str | None:
    return None if adapter.step_samples in (1, 2) else "half of the samples of a case are no step: step_samples"


def counts_empty(adapter: Adapter) -> str | None:
    """A mean over samples says whether it counts those without actions; over actions there is no question."""
    if takes_empty(adapter):
        return takes_empty(adapter)
    of_tokens = set(aggregations_of("policy-loss", adapter)) & {*MEANS} <= {"token-mean"}
    return None if of_tokens or adapter.count_empty_rows is not None else "count_empty_rows is not declared"


# --- asking ---------------------------------------------------------------------------------------------------------


def ready(subject: Subject, case: StepCase) -> Generator[Any, Any, Weights]:
    """A trainer as the case asks for it, loaded anew, and its weights."""
    checkpoint = subject.checkpoint(case.probe, case.temperature)
    trainer = (yield Call(_of_role(LOAD, case), (checkpoint, case.options))).value
    weights = Weights.of_model(subject, case.probe, trainer)
    yield weights.covered(weights.found(weights.leaves()))
    return weights


def _of_role(method: str, case: StepCase) -> str:
    return OF_CRITIC[method] if case.critic else method


def asking(standing: Standing, then: Known, method: str = ASK) -> Call:
    """The call about a step on the samples of the case."""
    return Call(_of_role(method, standing.case), (standing.weights.model, standing.samples(then)))


def asks(standing: Standing, call: Call, due: Due, what: str = "gradient of the step") -> Questions:
    """Is the gradient the one that is due, in every parameter?"""
    answered: Answered = yield call
    given = answered.value.gradients
    zeros = {name: torch.zeros(p.shape, dtype=torch.float64) for name, p in standing.weights.judged.items()}
    mine = {name: given[name].detach().double().cpu() if name in given else x for name, x in zeros.items()}
    yield from compared(call, mine, due.gradient, due.allowed, what, related(standing, mine, due))


def related(standing: Standing, mine: dict[str, Any], due: Due) -> Callable[[Any], str]:
    """What a wrong gradient is of the one that is due; worked out once, where it is asked for."""
    parts = standing.case.parts if standing.case.options.max_tokens is None else []
    said: list[str] = []

    def hint(_: Any) -> str:
        said[:] = said or [relation(mine, due.gradient, due.allowed, due.shares, parts)]
        return said[0]

    return hint


def compared(
    call: Call, mine: dict[str, Any], right: Any, allowed: Any, what: str, hint: Callable[[Any], str] | None = None
) -> Questions:
    """Of each parameter the entry that is furthest off."""
    for name, gradient in mine.items():
        wanted = right[name]
        yield Fact(
            gradient.shape == wanted.shape,
            f"shape of the {what} with respect to {name}",
            expected=str(tuple(wanted.shape)),
            actual=str(tuple(gradient.shape)),
        )
        worst = furthest_off((gradient - wanted).abs())
        yield Question(
            f"{what} with respect to {name}, entry {worst}",
            call,
            float(wanted.reshape(-1)[worst]),
            allowed[name] if isinstance(allowed, dict) else allowed,
            reading=known(float(gradient.reshape(-1)[worst])),
            hint=hint,
            quantity=what,
        )


def asks_step(subject: Subject, case: StepCase) -> Questions:
    """Is the gradient of the step the one that is due?"""
    weights = yield from ready(subject, case)
    with moved_adapters(weights):
        standing = Standing.of(weights, case)
        then = standing.known()
        yield from asks(standing, asking(standing, then), standing.due(then))


Check = Callable[[Subject, Any], Questions]


def template(
    check: Check,
    *requires: Requirement,
    effort: int = 10,
    needs: Sequence[str] = (LOAD, ASK),
    cases: Any = None,
    **shape: Any,
) -> Template:
    return Template(check, tuple(needs), cases or (lambda s: step_cases(s, **shape)), requires, effort)


def gradient(*requires: Requirement, **shape: Any) -> Template:
    """The gradient of the step on cases of a shape."""
    return template(asks_step, *requires, **shape)


# --- cut and laid out -----------------------------------------------------------------------------------------------

use("step.gradient", gradient(cut="whole", tied=True))
use("step.micro-batches", gradient(cuts_rows))
use("step.remainder", gradient(cuts_rows, takes_remainder, cut="remainder"))
use("step.dynamic-batches", gradient(cuts_tokens, one_denominator, cut="tokens"))
use("step.empty-row", gradient(cuts_rows, counts_empty, silent="one", least=2))
use("step.empty-micro-batch", gradient(cuts_rows, counts_empty, silent="part"))
use("step.packed", gradient(cuts_rows, packs, layout="packed", terms=TERMS))
use("step.turns", gradient(cuts_rows, several_turns, several=True, terms=TERMS))
use("step.temperature", gradient(cuts_rows, knows_temperatures, any_temperature=True, terms=TERMS))


def order(subject: Subject, case: StepCase) -> Questions:
    """As the samples stand, and the other way round, by one trainer."""
    weights = yield from ready(subject, case)
    with moved_adapters(weights):
        standing = Standing.of(weights, case)
        then, due = standing.known(), None
        due = standing.due(then)
        yield from asks(standing, asking(standing, then), due)
        back_to_front = range(len(case.samples))[::-1]
        turned, back = replace(standing, case=case.in_order(back_to_front)), then.rows(back_to_front)
        yield from asks(turned, asking(turned, back), due, "gradient of the step with its samples in reverse order")


use("step.order", template(order, cuts_rows, one_denominator, terms=TERMS))

# --- what is minimised ----------------------------------------------------------------------------------------------

use("step.clip", gradient(cuts_rows, zones=("above", "below", "equal")))
use("step.kl-term", gradient(cuts_rows, has("kl"), terms=("kl",)))
use("step.entropy-term", gradient(cuts_rows, has("entropy"), terms=("entropy",)))
use("step.terms", gradient(cuts_rows, has("kl"), has("entropy"), terms=TERMS, zones=("inside", "above", "below")))


def each(names: str, *requires: Requirement, **shape: Any) -> Template:
    """The gradient of the step with each of what is declared."""

    def check(subject: Subject, case: SeveralSteps) -> Questions:
        for one in case.cases:
            yield from asks_step(subject, one)

    def cases(subject: Subject) -> Picked[SeveralSteps]:
        adapter = subject.adapter
        declared = adapter.surrogates if names == "surrogates" else aggregations_of("policy-loss", adapter)
        return each_of(subject, names, declared, **shape)

    return template(check, *requires, cases=cases, effort=15)


use("step.aggregations", each("aggregations", cuts_rows, has_other_means, terms=TERMS))
use("step.surrogates", each("surrogates", cuts_rows, has_other_surrogates, least=2))

use("step.correction", gradient(cuts_rows, corrects, corrected=True))

# --- one after the other --------------------------------------------------------------------------------------------


def again(subject: Subject, case: StepCase) -> Questions:
    """After a step on half of the samples, and then once more."""
    weights = yield from ready(subject, case)
    with moved_adapters(weights):
        standing = Standing.of(weights, case)
        then = standing.known()
        yield asking(*_half(standing, then))
        due = standing.due(then)
        yield from asks(standing, asking(standing, then), due, "gradient of a second step")
        yield from asks(standing, asking(standing, then), due, "gradient of a third step")


def _half(standing: Standing, then: Known) -> tuple[Standing, Known]:
    """The step on the second half of its samples."""
    half = range(len(standing.case.samples) // 2, len(standing.case.samples))
    part = replace(standing, case=standing.case.in_order(half))
    return part, then.rows(half)


use("step.again", template(again, cuts_rows, takes_half))


def after_evaluation(subject: Subject, case: StepCase) -> Questions:
    weights = yield from ready(subject, case)
    with moved_adapters(weights):
        standing = Standing.of(weights, case)
        then = standing.known()
        yield replace(asking(standing, then, LOG_PROBS), grad=False)
        yield from asks(standing, asking(standing, then), standing.due(then), "gradient of a step after an evaluation")


use("step.after-evaluation", template(after_evaluation, cuts_rows, needs=(LOAD, ASK, LOG_PROBS), terms=TERMS))

# --- the norm -------------------------------------------------------------------------------------------------------

NEAR, FAR = (0.02, 0.05, 0.1), (30.0, 100.0)
"""Bounds of the norm: below that of nearly every gradient, and above it."""
use("step.max-norm", gradient(cuts_rows, clips_norm, terms=TERMS, norms=NEAR))
use("step.norm-unreached", gradient(cuts_rows, clips_norm, norms=FAR))


def grad_norm(subject: Subject, case: StepCase) -> Questions:
    weights = yield from ready(subject, case)
    with moved_adapters(weights):
        standing = Standing.of(weights, case)
        then = standing.known()
        call, due = asking(standing, then), standing.due(then)
        if (yield call).value.grad_norm is None:
            raise NotReturned("step_gradients returns no grad_norm")
        yield Question("grad_norm, as it is logged", call, due.norm, due.norm_allowed, reading=metric("grad_norm"))


use("step.grad-norm", template(grad_norm, cuts_rows, norms=(None, 0.01), terms=TERMS))

# --- what is logged -------------------------------------------------------------------------------------------------


def metrics(subject: Subject, case: StepCase) -> Questions:
    """Those that are returned, of terms that have a coefficient."""
    weights = yield from ready(subject, case)
    with moved_adapters(weights):
        standing = Standing.of(weights, case)
        then = standing.known()
        call = asking(standing, then)
        came = (yield call).value
        terms = {"policy_loss": "policy", **{name: name for name in TERMS if getattr(case.options, f"{name}_coef")}}
        shown = [name for name in ("loss", *terms) if getattr(came, name) is not None]
        if not shown:
            raise NotReturned("step_gradients returns nothing of what is logged")
        for name in shown:
            term = terms.get(name, "")  # of all together there is no term
            right, rounding = standing.logged(then, term)
            rough, _ = standing.logged(then, term, plain=True)
            allowed = budgets.PLAIN * abs(rough - right) + rounding
            yield Question(f"{name} of the step, as it is logged", call, right, allowed, reading=metric(name))


use("step.metrics", template(metrics, cuts_rows, terms=TERMS))

# --- the update -----------------------------------------------------------------------------------------------------


def moves(subject: Subject, case: StepCase, rate: float, what: str) -> Questions:
    """A step is made, and every trained parameter is compared with where it should be."""
    case = case.with_options(learning_rate=rate)
    weights = yield from ready(subject, case)
    with moved_adapters(weights):
        standing = Standing.of(weights, case)
        then = standing.known()
        due = standing.due(then)
        yield from makes_step(standing, asking(standing, then, UPDATE), due, rate, what)


def makes_step(standing: Standing, call: Call, due: Due, rate: float, what: str) -> Questions:
    """Does the step move every trained parameter by the gradient that is due, times the rate?"""
    before = {name: x.detach() for name, x in standing.leaves.items()}
    yield call
    after = standing.weights.leaves()
    mine = {name: after[name].detach() for name, p in standing.weights.judged.items() if p.requires_grad}
    right = {name: before[name] - rate * due.gradient[name] for name in mine}
    allowed = {
        name: budgets.updated(
            float(before[name].abs().max()),
            float((right[name] - before[name]).abs().max()),
            rate * due.allowed,
            standing.subject.dtype,
        )
        for name in mine
    }
    moved = {name: (before[name] - after[name].detach()) / rate for name in mine}
    yield from compared(call, mine, right, allowed, what, related(standing, moved, due))


def update(subject: Subject, case: StepCase) -> Questions:
    yield from moves(subject, case, 1.0, "weight after a step with the learning rate 1")


def learning_rate(subject: Subject, case: StepCase) -> Questions:
    for rate in (0.5, 4.0):
        yield from moves(subject, case, rate, f"weight after a step with the learning rate {rate:g}")


use("step.update", template(update, cuts_rows, needs=(LOAD, UPDATE), effort=12, terms=TERMS))
use("step.learning-rate", template(learning_rate, cuts_rows, needs=(LOAD, UPDATE), effort=20))
use("step.tied", template(update, cuts_rows, needs=(LOAD, UPDATE), effort=15, ties=True))


def schedule(subject: Subject, case: StepCase) -> Questions:
    """Two steps, the second one on samples that are drawn anew by the weights that the first one left."""
    weights = yield from ready(subject, case)
    with moved_adapters(weights):
        for number in range(2):
            standing = Standing.of(weights, case, moved=number > 0)
            then = standing.known()
            what = f"weight after step {number + 1} of a linear schedule of {case.options.total_steps}"
            call = asking(standing, then, UPDATE)
            yield from makes_step(standing, call, standing.due(then), rate_of(case.options, number), what)


def rate_of(options: StepOptions, number: int) -> float:
    """The learning rate of a step, the first of which has the number 0."""
    return spec.learning_rate(options.learning_rate, number, options.total_steps, options.schedule)


def resumed(subject: Subject, case: StepCase) -> Questions:
    """A step, and the next one by a trainer that was made of what the first one wrote."""
    weights = yield from ready(subject, case)
    with moved_adapters(weights), tempfile.TemporaryDirectory() as folder:
        first = Standing.of(weights, case)
        then = first.known()
        before = first.due(then)
        yield asking(first, then, UPDATE)
        left = {name: x.detach() for name, x in weights.leaves().items()}
        yield Call(SAVE, (weights.model, folder))
        call = Call(RESUME, (subject.checkpoint(case.probe, case.temperature), case.options, folder))
        again = Weights.of_model(subject, case.probe, (yield call).value)
        mine = {name: x.detach() for name, x in again.leaves().items()}
        yield from compared(call, mine, left, 0.0, "weight of the trainer that is resumed")
        second = Standing.of(again, case, moved=True)
        then = second.known()
        due, kept = second.due(then), case.options.momentum
        due = replace(
            due,
            gradient={name: x + kept * before.gradient[name] for name, x in due.gradient.items()},
            allowed=due.allowed + kept * before.allowed,
            shares=list,
        )
        what = "weight after the first step of the trainer that is resumed"
        yield from makes_step(second, asking(second, then, UPDATE), due, rate_of(case.options, 1), what)


use(
    "step.schedule",
    template(schedule, cuts_rows, has_schedule, needs=(LOAD, UPDATE), effort=15, schedules=("linear",)),
)
use(
    "step.resumed",
    template(
        resumed,
        cuts_rows,
        needs=(LOAD, UPDATE, SAVE, RESUME),
        effort=20,
        momenta=(0.5,),
        schedules=("linear",),
    ),
)


def frozen(subject: Subject, case: StepCase) -> Questions:
    """What is not trained is the same to the last bit."""
    weights = yield from ready(subject, case)
    below = {name: p for name, p in weights.parameters.items() if not p.requires_grad and not is_adapters(name)}
    if not below:
        raise NotReturned("all parameters are trained: without adapters nothing is frozen")
    with weights.moved():
        standing = Standing.of(weights, case)
        then = standing.known()
        before = {name: p.detach().clone() for name, p in below.items()}
        call = asking(standing, then, UPDATE)
        yield call
        now = weights.subject.uncopied("parameters", weights.model)
        mine = {name: now[name].detach().double().cpu() for name in below}
        yield from compared(call, mine, {n: x.double().cpu() for n, x in before.items()}, 0.0, "frozen weight")


use("step.frozen", template(frozen, cuts_rows, needs=(LOAD, UPDATE), effort=20))

# --- log-probs ------------------------------------------------------------------------------------------------------

OF_RESPONSES = Reading(
    lambda subject, answers: [
        row[sample.action_mask.bool().to(row.device)]
        for row, sample in zip(answers[-1].value, answers[-1].argument("samples"), strict=True)
    ]
)
"""Of the answers those at actions."""


def asks_log_probs(standing: Standing, call: Call, what: str) -> Question:
    case = standing.case
    exact, rough = standing.answers("log_probs"), standing.answers("log_probs", plain=True)
    scale = standing.subject.truth.scale(case.probe, case.samples, head=False)
    allowed = budgets.model_output(sum(exact, []), sum(rough, []), scale, standing.subject.dtype, case.temperature)
    return Question(what, call, exact, allowed, reading=OF_RESPONSES, place=sample_action)


def log_probs(subject: Subject, case: StepCase) -> Questions:
    weights = yield from ready(subject, case)
    standing = Standing.of(weights, case)
    call = replace(asking(standing, standing.known(), LOG_PROBS), grad=False)
    yield asks_log_probs(standing, call, "log-prob of the action, as the trainer takes it for an old one")


def first_ratio(subject: Subject, case: StepCase) -> Questions:
    """The gradient with the trainer's own old log-probs is that at ratios of 1."""
    weights = yield from ready(subject, case)
    with moved_adapters(weights):
        standing = Standing.of(weights, case)
        then = standing.known()
        asked = asking(standing, then, LOG_PROBS)
        own = (yield replace(asked, grad=False)).value
        samples = [
            replace(sample, old_log_probs=row.detach().to(sample.old_log_probs))
            for sample, row in zip(asked.argument("samples"), own, strict=True)
        ]
        call = Call(ASK, (weights.model, samples))
        own_old = standing.of_responses(standing.answers("log_probs"))  # ratios of 1, which no dtype rounds
        exact = replace(then, old=own_old)
        what = "gradient of the step with the trainer's own old log-probs"
        yield from asks(standing, call, standing.due(exact), what)


use("step.log-probs", template(log_probs, needs=(LOAD, LOG_PROBS), any_temperature=True))
use("step.first-ratio", template(first_ratio, cuts_rows, needs=(LOAD, ASK, LOG_PROBS), any_temperature=True))


def follows_update(subject: Subject, case: StepCase) -> Questions:
    """Asked before the step, and after it."""
    weights = yield from ready(subject, case)
    with moved_adapters(weights):
        standing = Standing.of(weights, case)
        then = standing.known()
        asked = replace(asking(standing, then, LOG_PROBS), grad=False)
        yield asked
        yield asking(standing, then, UPDATE)
        now = Standing.of(weights, case, moved=True)
        yield asks_log_probs(now, replace(asked), "log-prob of the action after a step")


use("step.follows-update", template(follows_update, cuts_rows, needs=(LOAD, UPDATE, LOG_PROBS), effort=15))


def second_epoch(subject: Subject, case: StepCase) -> Questions:
    """The gradient on the same samples after a step on them."""
    weights = yield from ready(subject, case)
    with moved_adapters(weights):
        standing = Standing.of(weights, case)
        then = standing.known()
        yield asking(standing, then, UPDATE)
        now = Standing.of(weights, case, moved=True)
        yield from asks(now, asking(standing, then), now.due(then), "gradient of a second epoch")


use(
    "step.second-epoch",
    template(
        second_epoch,
        cuts_rows,
        needs=(LOAD, ASK, UPDATE),
        effort=15,
        zones=("equal",),
        learning_rates=(SMALL_RATE,),
        terms=TERMS,
        estimators=OF_REFERENCE,
    ),
)

# --- the critic -----------------------------------------------------------------------------------------------------

clips_values = declares("value_clip", "value_clip is False: the value loss cannot be clipped")


def critic(check: Check, *requires: Requirement, needs: Sequence[str] = (LOAD, ASK), **shape: Any) -> Template:
    """The same of a step of the critic."""
    needed = tuple(OF_CRITIC[method] for method in needs)
    return template(check, cuts_rows, *requires, needs=needed, critic=True, **shape)


use("step.critic-gradient", critic(asks_step, cut="whole"))
use("step.critic-micro-batches", critic(asks_step))
use("step.critic-clip", critic(asks_step, clips_values, zones=("above", "below", "inside"), value_clip=True))
use("step.critic-empty-row", critic(asks_step, counts_empty, silent="one"))
use("step.critic-turns", critic(asks_step, several_turns, several=True))
use("step.critic-packed", critic(asks_step, packs, layout="packed", least=2))
use("step.critic-update", critic(update, needs=(LOAD, UPDATE)))

# --- what changes nothing -------------------------------------------------------------------------------------------


def inputs_unwritten(subject: Subject, case: StepCase) -> Questions:
    yield from recorded(subject, case, "written", "samples after {}", "as they were given")


def side_effects(subject: Subject, case: StepCase) -> Questions:
    yield from recorded(subject, case, "disturbed", "global state after {}", "as it was before")


def recorded(subject: Subject, case: StepCase, noted: str, what: str, expected: str) -> Questions:
    """What was noted of each kind of call: nothing."""
    weights = yield from ready(subject, case)
    with moved_adapters(weights):
        standing = Standing.of(weights, case)
        then = standing.known()
        for method in (ASK, LOG_PROBS, UPDATE):
            if method in subject.provided:
                call = asking(standing, then, method)
                found = getattr((yield call).record, noted)
                said = f"changed: {', '.join(dict.fromkeys(found))}"
                yield Fact(not found, what.format(method), expected=expected, actual=said)
                yield Question(what.format(method), call, [0.0], reading=known([float(len(found))]))


use("step.inputs-unwritten", template(inputs_unwritten, cuts_rows, terms=TERMS, effort=12))
use("step.side-effects", template(side_effects, cuts_rows, terms=TERMS, effort=12))
