"""What the chapters of actor, reward model and critic check alike: one template for each clause."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlhf_conformance._lazy import torch
from rlhf_conformance.adapter import Adapter
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
    model_cases,
    on_backbones,
    padded_more,
    weighted,
    with_masked_cells,
    with_statistics,
)
from rlhf_conformance.chapters._models.roles import Role
from rlhf_conformance.judging.checks import Cases, Questions, Requirement, Template, offers_layout
from rlhf_conformance.judging.questions import ANSWER, Against, Call, Fact, Question, known
from rlhf_conformance.judging.subject import Subject
from rlhf_conformance.oracle import budgets

rectangle = offers_layout(RECTANGLES)


def takes_mask(adapter: Adapter) -> str | None:
    return None if adapter.takes_attention_mask else "the adapter takes no attention mask"


def template(role: Role, check: Any, cases: Cases, *requires: Requirement, effort: int = 0) -> Template:
    return Template(check, role.needs, cases, requires, effort or role.effort)


def truth(role: Role, *requires: Requirement, **asked: Any) -> Template:
    """The answers are those of every sequence alone, on cases as asked for."""
    return truth_of(role, lambda s: model_cases(s.adapter, role.asked(**asked)), *requires)


def truth_of(role: Role, cases: Cases, *requires: Requirement) -> Template:
    def check(subject: Subject, case: ModelCase) -> Questions:
        yield role.asks_truth(subject, case)

    return template(role, check, cases, *requires)


def backbones(role: Role) -> Template:
    """The answers are those of the checkpoint's own model, whatever it does beside a plain transformer."""

    def check(subject: Subject, case: BackboneCase) -> Questions:
        for inner in case.each:
            probe = inner.probe
            tied = " with tied embeddings" if probe.is_tied else ""
            file = "" if probe.on_disk == "float32" else f" from {probe.on_disk}"
            yield role.asks_truth(subject, inner, f"{role.what} of {probe.architecture}{tied}{file}")

    return template(role, check, lambda s: on_backbones(s.adapter, role.asked()), effort=30)


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

    return template(role, check, lambda s: edited(s.adapter, role.asked()))


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
    before, after = role.call(subject, case.case), role.call(subject, case.permuted)
    yield before
    reordered = replace(ANSWER, numbers=lambda subject, answers: [answers[-1].value[i] for i in case.order])
    yield Question(
        f"{role.what} of the samples in the order {list(case.order)}",
        after,
        Against((before,), reordered),
        [2 * b for b in role.budget(subject, case.case)],
        place=role.place,
    )


# --- the gradient ---------------------------------------------------------------------------------------------------


def gradient(role: Role) -> Template:
    """The gradient of the weighted answers with respect to every parameter that can be matched by its name."""
    return gradient_on(role, lambda s: weighted(s.adapter, role.any_temperature(s.adapter), role.per_sample))


def gradient_on(role: Role, cases: Cases, *requires: Requirement) -> Template:
    """The same on other cases."""
    return template(role, lambda subject, case: _gradient(role, subject, case), cases, *requires, effort=4)


def _gradient(role: Role, subject: Subject, case: WeightedCase) -> Questions:
    inner, call = case.case, role.call(subject, case.case)
    named = (yield Call("parameters", (role.loaded(inner),), copies=False)).value
    parameters = _judged_parameters(named)
    answer = (yield call).value
    total = sum((a.double().cpu() * torch.tensor(w)).sum() for a, w in zip(answer, case.weights, strict=True))
    yield Fact(
        isinstance(total, torch.Tensor) and total.requires_grad,
        f"{role.what}",
        expected="a graph back to the parameters",
        actual="no graph: detached, or computed under no_grad",
    )
    trained = [p for p in parameters.values() if p.requires_grad]
    grads = iter(subject.gradients(role.ask_method, total, trained))
    found = {n: next(grads) if p.requires_grad else torch.zeros_like(p) for n, p in parameters.items()}
    weights = [list(row) for row in case.weights]
    right, plain = (
        subject.truth.gradients(
            inner.probe, inner.samples, weights, answer=role.answer, temperature=inner.temperature, plain=which
        )
        for which in (False, True)
    )
    pairs = match_by_name(found, right)
    yield Fact(
        bool(pairs) or _is_adapted(found),
        "parameters of the model",
        expected="names that end like those of the checkpoint, to compare gradients by: override Adapter.parameters",
        actual=", ".join(list(found)[:3]) or "none that requires a gradient",
    )
    largest = max(float(g.abs().max()) for g in right.values())
    sampled = max(float((plain[n].double().cpu() - right[n]).abs().max()) for n in right)
    allowed = budgets.model_gradient(largest, sampled, subject.dtype)
    for mine, name in pairs:
        error = (found[mine].double().cpu() - right[name]).abs()
        worst = int(error.argmax())
        yield Question(
            f"gradient of the weighted {role.what} with respect to {name}, entry {worst}",
            call,
            float(right[name].reshape(-1)[worst]),
            allowed,
            reading=known(float(found[mine].reshape(-1)[worst])),
            beside={"weights": weights},
        )


def match_by_name(found: dict[str, Any], truth: dict[str, Any]) -> list[tuple[str, str]]:
    """(adapter's name, checkpoint's name) of the parameters whose names end alike and whose shapes agree."""
    pairs = []
    for name, tensor in truth.items():
        tails = [name, name.split(".", 1)[-1]]
        for tail in tails:
            mine = [n for n, p in found.items() if (n == tail or n.endswith("." + tail)) and p.shape == tensor.shape]
            if len(mine) == 1:
                pairs.append((mine[0], name))
                break
    return pairs


def _judged_parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """All floating-point parameters, a frozen one having a gradient of zero; with LoRA only those that are trained."""
    lora = any("lora_" in name for name in parameters)
    return {n: p for n, p in parameters.items() if p.is_floating_point() and (p.requires_grad or not lora)}


def _is_adapted(found: Mapping[str, Any]) -> bool:
    """Only LoRA's own weights are trained: there is nothing in the checkpoint to compare them with."""
    return any("lora_" in name for name in found)


# --- saving ---------------------------------------------------------------------------------------------------------


def round_trip(role: Role) -> Template:
    """A model whose trainable weights have moved is saved, restored, and asked again."""

    def cases(subject: Subject) -> Any:
        plain = model_cases(subject.adapter, role.asked(specials=False))
        return with_statistics(plain, 7, 8) if role.normalizes(subject.adapter) else plain

    def check(subject: Subject, case: ModelCase) -> Questions:
        checkpoint = subject.checkpoint(case.probe, case.temperature, case.probe.std != 1.0)
        model = (yield Call(role.load, (checkpoint,))).value
        move_weights((yield Call("parameters", (model,), copies=False)).value)
        asked = replace(role.call(subject, case, model), about=None)  # which has weights of its own
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
        yield Question(
            f"{role.what} after saving and restoring",
            replace(role.call(subject, case, restored), about=None),
            Against((asked,)),
            [2 * b / min(1.0, case.probe.std) for b in role.budget(subject, case)],
            place=role.place,
        )

    return Template(check, (*role.needs, "save", "restore"), cases, (), 10)


def move_weights(parameters: Mapping[str, Any]) -> None:
    """What a training step does: every trainable weight moves a little, by an amount exact in bfloat16."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in parameters.values():
            if parameter.requires_grad and parameter.is_floating_point():
                step = torch.randint(-1, 2, parameter.shape, generator=generator) / 64
                moved = (parameter + step.to(parameter)).bfloat16()
                parameter.copy_(moved.to(parameter))


# --- side effects ---------------------------------------------------------------------------------------------------


def _asked_once(role: Role) -> _side_effects.Calls:
    """A switch between train and eval mode counts among the disturbances, and is undone like the others."""
    return _side_effects.plainly(lambda subject, case: role.call(subject, case, watches_mode=True))


def _masked(role: Role) -> Cases:
    return lambda s: with_masked_cells(s.adapter, role.asked())


def inputs_unwritten(role: Role) -> Template:
    return _side_effects.inputs_unwritten(_asked_once(role), role.needs, _masked(role), effort=role.effort)


def side_effects(role: Role) -> Template:
    return _side_effects.side_effects(_asked_once(role), role.needs, _masked(role), effort=role.effort)
