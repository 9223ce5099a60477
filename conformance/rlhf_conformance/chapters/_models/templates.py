"""What the chapters of actor, reward model and critic check alike: one template for each clause."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlhf_conformance._lazy import torch
from rlhf_conformance.adapter import METHODS, Adapter
from rlhf_conformance.chapters import _side_effects
from rlhf_conformance.chapters._models.cases import (
    RECTANGLES,
    BackboneCase,
    EditedCase,
    ModelCase,
    PermutedCase,
    WeightedCase,
    edited,
    garbage_under_mask,
    in_turn,
    model_cases,
    offered,
    on_backbones,
    padded_more,
    turned,
    weighted,
    with_head,
    with_masked_cells,
    with_method,
    with_statistics,
    with_weights,
    without_specials,
)
from rlhf_conformance.chapters._models.roles import Role, asks_model
from rlhf_conformance.chapters._models.weights import Tensors, Weights, furthest_off, move_weights, pulled_back
from rlhf_conformance.judging.checks import Cases, Questions, Requirement, Template, declares, offers_layout
from rlhf_conformance.judging.picks import Picked
from rlhf_conformance.judging.questions import (
    ANSWER,
    Against,
    Answered,
    Call,
    Fact,
    Loaded,
    Question,
    Reading,
    known,
    main,
)
from rlhf_conformance.judging.subject import Subject
from rlhf_conformance.judging.wiring import WithOutput
from rlhf_conformance.oracle import budgets
from rlhf_conformance.oracle.layouts import present_prompts

rectangle = offers_layout(RECTANGLES)


def takes_mask(adapter: Adapter) -> str | None:
    return None if adapter.takes_attention_mask else "the adapter takes no attention mask"


def template(
    role: Role, check: Any, cases: Cases, *requires: Requirement, effort: int = 0, also: Sequence[str] = ()
) -> Template:
    return Template(check, role.needs, cases, requires, effort or role.effort, also=tuple(also))


def truth(role: Role, *requires: Requirement, effort: int = 0, **asked: Any) -> Template:
    """The answers are those of every sequence alone, on cases as asked for."""
    return truth_of(role, lambda s: model_cases(s.adapter, role.asked(**asked)), *requires, effort=effort)


def truth_of(role: Role, cases: Cases, *requires: Requirement, effort: int = 0) -> Template:
    def check(subject: Subject, case: ModelCase) -> Questions:
        yield role.asks_truth(subject, case)

    return template(role, check, cases, *requires, effort=effort)


def backbones(role: Role) -> Template:
    """The answers are those of the checkpoint's own model, whatever it does beside a plain transformer."""

    def check(subject: Subject, case: BackboneCase) -> Questions:
        for inner in case.each:
            probe = inner.probe
            tied = " with tied embeddings" if probe.is_tied else ""
            file = "" if probe.on_disk == "float32" else f" from {probe.on_disk}"
            what = f"{role.what} of {probe.architecture}{tied}{file}"
            yield role.asks_truth(subject, inner, what)

    return template(role, check, lambda s: on_backbones(s.adapter, role.asked()), effort=20)


# --- several turns --------------------------------------------------------------------------------------------------

several_turns = declares("turns", "turns is not declared: responses have one turn")


def turns(role: Role, *requires: Requirement, layouts: Callable[[Adapter], Sequence[str]] | None = None) -> Template:
    """The answers are those of every sequence alone, observations included, at its actions. By further methods that
    answer for each action, too."""
    others = [one for one in role.others.values() if one.ask_method != role.beside]

    def check(subject: Subject, case: ModelCase) -> Questions:
        for one in (role, *(one for one in others if one.ask_method in subject.provided)):
            yield one.asks_truth(subject, case, f"{one.what} in samples with several turns")

    def cases(subject: Subject) -> Picked[ModelCase]:
        adapter = subject.adapter
        shape = {"layouts": layouts(adapter), "min_samples": 2} if layouts else {}
        asked = role.any_temperature(adapter, **shape)
        return turned(model_cases(adapter, asked), adapter, asked)

    also = [one.ask_method for one in others]
    return template(role, check, cases, several_turns, *requires, effort=role.effort + 1, also=also)


def turns_gradient(role: Role) -> Template:
    """The gradient of the weighted answers at the actions of several turns."""

    def cases(subject: Subject) -> Picked[WeightedCase]:
        adapter = subject.adapter
        asked = without_specials(role.any_temperature(adapter))
        return with_weights(turned(model_cases(adapter, asked), adapter, asked), role.per_sample)

    return gradient_on(role, cases, several_turns, effort=8)


# --- presented otherwise --------------------------------------------------------------------------------------------


def padding_invariance(role: Role) -> Template:
    def check(subject: Subject, case: ModelCase) -> Questions:
        yield asks_same(role, subject, case, case.shown(case.how.plain()), "with more pad columns")

    return template(role, check, lambda s: padded_more(s.adapter, role.asked(layouts=RECTANGLES)), rectangle)


def garbage(role: Role) -> Template:
    def check(subject: Subject, case: ModelCase) -> Questions:
        clean = case.shown(replace(case.how, garbage=()))
        yield asks_same(role, subject, case, clean, "with other ids in the masked cells")

    cases = lambda s: garbage_under_mask(s.adapter, role.asked(layouts=RECTANGLES))  # noqa: E731
    return template(role, check, cases, rectangle, takes_mask)


def asks_same(role: Role, subject: Subject, case: ModelCase, other: ModelCase, how: str) -> Question:
    """Do two presentations of the same samples give the same answers?"""
    return Question(
        f"{role.what} {how}, against the same batch without",
        role.call(subject, case),
        Against((role.call(subject, other),)),
        [2 * b for b in role.budget(subject, case)],
        place=role.place,
    )


def batch_independence(role: Role) -> Template:
    def check(subject: Subject, case: EditedCase) -> Questions:
        yield from isolated(role, subject, case)
        count = len(case.case.samples)
        yield from permuted(role, subject, PermutedCase(case.case, tuple(range(count - 1, -1, -1))))
        if case.rows:
            yield from repeated(role, subject, case.case, case.rows)

    return template(role, check, lambda s: edited(s.adapter, role.asked()), effort=3)


def isolated(role: Role, subject: Subject, case: EditedCase) -> Questions:
    """Exchanging one sample changes no other one's answers."""
    before, after = role.call(subject, case.case), role.call(subject, case.edited)
    yield before
    allowed = [2 * max(b) for b in zip(role.budget(subject, case.case), role.budget(subject, case.edited), strict=True)]
    others = [i for i in range(len(case.case.samples)) if i != case.index]
    reading = replace(ANSWER, numbers=lambda subject, answers: [answers[-1].value[i] for i in others])

    def place(index: tuple[int, ...]) -> str:
        return role.place((others[index[0]], *index[1:]))

    yield Question(
        f"{role.what} after only sample {case.index} was exchanged",
        after,
        Against((before,), reading),
        [allowed[i] for i in others],
        reading=reading,
        place=place,
    )


def permuted(role: Role, subject: Subject, case: PermutedCase) -> Questions:
    """Samples in another order give the answers in that order."""
    yield from _in_order(role, subject, case.case, case.order, f"in the order {list(case.order)}")


def repeated(role: Role, subject: Subject, case: ModelCase, rows: int) -> Questions:
    """In a batch of many rows every row has the answers that its sample has among a few."""
    yield from _in_order(role, subject, case, in_turn(len(case.samples), rows), f"in {rows} rows, each again and again")


def _in_order(role: Role, subject: Subject, case: ModelCase, order: Sequence[int], how: str) -> Questions:
    """Each sample keeps its own budget, wherever it stands."""
    before, after = role.call(subject, case), role.call(subject, case.in_order(order))
    allowed = role.budget(subject, case)
    yield before
    reordered = replace(ANSWER, numbers=lambda subject, answers: [answers[-1].value[i] for i in order])
    yield Question(
        f"{role.what} of the samples {how}",
        after,
        Against((before,), reordered),
        [2 * allowed[i] for i in order],
        place=role.place,
    )


# --- the gradient ---------------------------------------------------------------------------------------------------


def gradient(role: Role, effort: int = 4) -> Template:
    """The gradient of the weighted answers with respect to every parameter, in train mode and in eval mode."""
    cases = lambda s: weighted(s.adapter, role.any_temperature(s.adapter, tied=True), role.per_sample)  # noqa: E731
    return gradient_on(role, cases, effort=effort)


def gradient_on(role: Role, cases: Cases, *requires: Requirement, effort: int = 4) -> Template:
    """The same on other cases."""
    return template(role, lambda subject, case: gradients(role, subject, case), cases, *requires, effort=effort)


def gradients(role: Role, subject: Subject, case: WeightedCase) -> Questions:
    """The gradient of the weighted answers with respect to every parameter, in the mode of the case."""
    inner = case.case
    weights = Weights.of(subject, role.loaded(inner))
    start = weights.leaves()
    found = weights.found(start)
    yield weights.covered(found)
    if not weights.adapted:
        yield from _gradient_now(role, weights, start, start, found, case)
        return
    with weights.moved():  # else LoRA's B is zero, and no gradient reaches A
        leaves = weights.leaves()
        yield from _gradient_now(role, weights, start, leaves, weights.found(leaves), case)


def _gradient_now(
    role: Role, weights: Weights, start: Tensors, leaves: Tensors, found: Tensors, case: WeightedCase
) -> Questions:
    """The gradient, where the weights of the checkpoint were `found` to be made of these leaves."""
    inner, subject = case.case, weights.subject
    hint = lambda _: weights.misplaced(start)  # noqa: E731
    call = yield from _call_in_mode(role, subject, inner, case.training)
    answer = main((yield call))
    total = sum((a.double().cpu() * torch.tensor(w)).sum() for a, w in zip(answer, case.weights, strict=True))
    yield Fact(
        isinstance(total, torch.Tensor) and total.requires_grad,
        f"{role.what}",
        expected="a graph back to the parameters",
        actual="no graph: detached, or computed under no_grad",
    )
    judged = weights.judged
    trained = [p for p in judged.values() if p.requires_grad]
    grads = iter(subject.trained(role.ask_method, total, trained))
    mine = {n: next(grads) if p.requires_grad else torch.zeros_like(p) for n, p in judged.items()}
    if weights.adapted:  # the truth stands on the scale that LoRA's product is said to have
        subject = weights.now(found)
        yield role.asks_truth(subject, inner, f"{role.what} after LoRA's weights moved", call, hint)
    numbers = [list(row) for row in case.weights]
    right, plain = (
        pulled_back(
            found,
            subject.truth.gradients(
                inner.probe, inner.samples, numbers, answer=role.answer, temperature=inner.temperature, plain=which
            ),
            leaves,
        )
        for which in (False, True)
    )
    largest = max(float(right[name].abs().max()) for name in judged)
    sampled = max(float((plain[name] - right[name]).abs().max()) for name in judged)
    allowed = budgets.model_gradient(largest, sampled, subject.dtype)
    for name in judged:
        worst = furthest_off((mine[name].double().cpu() - right[name]).abs())
        yield Question(
            f"gradient of the weighted {role.what} with respect to {name}, entry {worst}",
            call,
            float(right[name].reshape(-1)[worst]),
            allowed,
            reading=known(float(mine[name].reshape(-1)[worst])),
            beside={"weights": numbers},
            hint=hint,
            quantity=f"gradient of the weighted {role.what}",
        )


def _call_in_mode(role: Role, subject: Subject, case: ModelCase, training: bool) -> Generator[Any, Any, Call]:
    """The call in the mode asked for. Where train mode draws at random, as with an adapter's own dropout, nothing can
    be said of it, and the call is in eval mode."""
    first, second = (role.call(subject, case, role.loaded(case, training=training), seed=seed) for seed in (1, 2))
    if not training:
        return first
    once, again = _side_effects.flat(main((yield first))), _side_effects.flat(main((yield second)))
    largest = max(map(abs, once), default=0.0)
    apart = max((abs(a - b) for a, b in zip(once, again, strict=True)), default=0.0)
    if apart <= budgets.repeated(largest, subject.dtype):
        return second
    return role.call(subject, case, role.loaded(case, training=False))


# --- asked otherwise ------------------------------------------------------------------------------------------------


def train_mode(role: Role) -> Template:
    """The answers in train mode are those of eval mode."""

    def check(subject: Subject, case: ModelCase) -> Questions:
        call = yield from _call_in_mode(role, subject, case, True)
        yield role.asks_truth(subject, case, f"{role.what} in train mode, without dropout in the checkpoint", call)

    return template(role, check, _company(role), effort=4)


def no_grad(role: Role) -> Template:
    """The answers without a graph are those with one, by whichever method."""

    def check(subject: Subject, case: ModelCase) -> Questions:
        for one in (role, *_other(role, case)):
            what = f"{one.what} under no_grad, layout {case.how.layout!r}{_by(one, role)}"
            yield one.asks_truth(subject, case, what, one.call(subject, case, grad=False))

    cases = _company(role)
    return template(role, check, lambda s: with_method(cases(s), ["", *_offered(role, s)]), also=tuple(role.others))


def _offered(role: Role, subject: Subject) -> list[str]:
    return [method for method in role.others if method in subject.provided]


def _other(role: Role, case: ModelCase) -> list[Role]:
    """What the further method of a case is judged by, if it has one."""
    return [role.others[case.method]] if case.method else []


def _by(one: Role, role: Role) -> str:
    """Named where it is another method than the clause is named for."""
    return f", by {one.ask_method}" if one.ask_method != role.ask_method else ""


def _company(role: Role) -> Callable[[Subject], Picked[ModelCase]]:
    """Any case, or one with more padding than it needs: what another way through the model most often forgets."""

    def cases(subject: Subject) -> Picked[ModelCase]:
        asked = role.any_temperature(subject.adapter)
        anything = model_cases(subject.adapter, asked)
        if not offered(subject.adapter, RECTANGLES):
            return anything
        return anything | padded_more(subject.adapter, replace(asked, layouts=RECTANGLES))

    return cases


def follows_weights(role: Role) -> Template:
    """A model that has been asked, with a graph and without, is asked again after its weights have moved."""

    def check(subject: Subject, case: ModelCase) -> Questions:
        asked = [(one, grad) for one in (role, *_other(role, case)) for grad in (True, False)]
        for one, grad in asked:
            what = "" if grad and one is role else _graph(one, role, grad)
            yield one.asks_truth(subject, case, what, one.call(subject, case, grad=grad))
        weights = Weights.of(subject, role.loaded(case))
        start = weights.leaves()
        yield weights.covered(weights.found(start))
        with weights.moved():
            now = weights.now(weights.found(weights.leaves()))
            for one, grad in asked:
                yield one.asks_truth(
                    now,
                    case,
                    f"{_graph(one, role, grad)} after the weights moved",
                    replace(one.call(subject, case, grad=grad), about=None),  # the model has weights of its own
                    hint=lambda _: weights.misplaced(start),
                )

    def cases(subject: Subject) -> Any:
        asked = role.any_temperature(subject.adapter, tied=True)
        return with_method(model_cases(subject.adapter, asked), _offered(role, subject))

    return template(role, check, cases, effort=8, also=tuple(role.others))


def _graph(one: Role, role: Role, grad: bool) -> str:
    return f"{one.what}{_by(one, role)}{'' if grad else ' under no_grad'}"


# --- saving ---------------------------------------------------------------------------------------------------------


def round_trip(role: Role) -> Template:
    """A model whose trainable weights have moved is saved, restored, and asked again."""

    def cases(subject: Subject) -> Any:
        adapter = subject.adapter
        plain = model_cases(adapter, role.any_temperature(adapter, specials=False, tied=True))
        plain = with_head(adapter, plain) if role.head else plain
        return with_statistics(plain, 7, 8) if role.normalizes(adapter) else plain

    def check(subject: Subject, case: ModelCase) -> Questions:
        checkpoint = subject.checkpoint(case.probe, case.temperature, case.probe.std != 1.0)
        model = (yield Call(role.load, (checkpoint,))).value
        parameters = (yield Call("parameters", (model,), copies=False)).value
        move_weights(parameters)  # to numbers of bfloat16, since there are trainers that restore in half precision only

        def asks(what: str, model: Any, before: Call) -> Question:
            budget = [2 * b / min(1.0, case.probe.std) for b in role.budget(subject, case)]
            return Question(f"{role.what} {what}", ask(model), Against((before,)), budget, place=role.place)

        def ask(model: Any) -> Call:
            return replace(role.call(subject, case, model), about=None)  # it has weights of its own

        asked = ask(model)
        before = [row.detach() for row in (yield asked).value]
        yield Fact(  # else whatever comes back is as good
            all(bool(row.isfinite().all()) for row in before),
            f"{role.what} before saving (what is allocated while loading and never set is NaN)",
            expected="finite numbers",
            actual="NaN or infinite ones",
        )
        with tempfile.TemporaryDirectory() as folder:
            yield Call("save", (model, Path(folder)))
            restored = (yield Call("restore", (role.kind, checkpoint, Path(folder)))).value
        yield asks("after saving and restoring", restored, asked)
        move_weights(parameters, exact=subject.dtype not in (torch.float32, torch.float64))
        yield (fine := ask(model))
        with tempfile.TemporaryDirectory() as folder:
            yield Call("save", (model, Path(folder)))
        yield asks("by the model that was saved, against that before", model, fine)

    return Template(check, (*role.needs, "save", "restore"), cases, (), 10)


# --- side effects ---------------------------------------------------------------------------------------------------


def _asked(role: Role, training: bool) -> _side_effects.Calls:
    """The role's method and the further one of the case. A switch between train and eval mode counts among the
    disturbances, and is undone like the others."""

    def calls(subject: Subject, case: ModelCase) -> list[tuple[Call, Reading]]:
        model = role.loaded(case, training=training)
        methods = dict.fromkeys(filter(None, (role.ask_method, case.method)))
        return [(replace(_asking(method, subject, case, model), watches_mode=True), WHOLE) for method in methods]

    return calls


def _asking(method: str, subject: Subject, case: ModelCase, model: Loaded) -> Call:
    if METHODS[method].arguments[1] != "prompts":
        return asks_model(method, subject, case, model)
    pad, eos = case.probe.pad_token_id, case.probe.eos_token_id
    first = case.probe.ordinary[0]  # no prompt begins with a pad
    prompts = [s.prompt if s.prompt[0] != pad else (first, *s.prompt[1:]) for s in case.samples]
    batch = present_prompts(prompts, max_new_tokens=2, stop_token_ids=(eos,), pad_token_id=pad, device=subject.device)
    return Call(method, (model, batch))


def _numbers(subject: Subject, answers: Sequence[Answered]) -> Any:
    value = answers[-1].value
    return [value.answers, value.output] if isinstance(value, WithOutput) else value


WHOLE = Reading(_numbers)
"""All numbers of an answer, what stands beside it as well."""


def _masked(role: Role) -> Cases:
    """Each with a further method of the model, in equal shares."""

    def cases(subject: Subject) -> Any:
        methods = [name for name in role.methods if name in subject.provided and name != role.ask_method]
        return with_method(with_masked_cells(subject.adapter, role.asked()), methods)

    return cases


def inputs_unwritten(role: Role) -> Template:
    calls = _asked(role, False)
    also = role.methods
    return _side_effects.inputs_unwritten(calls, role.needs, _masked(role), effort=role.effort + 1, also=also)


def side_effects(role: Role) -> Template:
    """In train mode, which may draw random numbers, and in eval mode."""
    calls, between, also = _asked(role, False), _asked(role, True), role.methods
    return _side_effects.side_effects(
        calls, role.needs, _masked(role), effort=role.effort + 2, also=also, between=between
    )
