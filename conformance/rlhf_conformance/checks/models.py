"""What the actor, the reward model and the critic have in common: one template for each clause, three chapters."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlhf_conformance import budgets
from rlhf_conformance._lazy import torch
from rlhf_conformance.adapter import Adapter
from rlhf_conformance.cases.models import (
    RECTANGLES,
    EditedCase,
    ModelCase,
    PermutedCase,
    WeightedCase,
    edited,
    garbage_under_mask,
    model_cases,
    padded_more,
    weighted,
    with_masked_cells,
    with_statistics,
)
from rlhf_conformance.checks import check, offers_layout, side_effects
from rlhf_conformance.checks.roles import ROLES, Role
from rlhf_conformance.judge import Judge
from rlhf_conformance.subject import AdapterError, Subject

rectangle = offers_layout(RECTANGLES)


def takes_mask(adapter: Adapter) -> str | None:
    return None if adapter.takes_attention_mask else "the adapter takes no attention mask"


def register(role: Role) -> None:
    """The clauses that every model has."""
    _register_metamorphic(role)
    _register_gradient(role)
    _register_round_trip(role)
    side_effects.register(
        role.chapter,
        needs=role.needs,
        cases=lambda s: with_masked_cells(s.adapter, role.asked()),
        ask=lambda subject, case: _ask_in_its_mode(role, subject, case),
        effort=role.effort,
    )


def _register_metamorphic(role: Role) -> None:
    @check(
        f"{role.chapter}.padding-invariance",
        needs=role.needs,
        requires=(rectangle,),
        cases=lambda s: padded_more(s.adapter, role.asked(layouts=RECTANGLES)),
        effort=role.effort,
    )
    def padding_invariance(subject: Subject, case: ModelCase, judge: Judge) -> None:
        bare = case.shown(case.how.plain())
        judge_same(role, subject, case, bare, judge, "with more pad columns")

    @check(
        f"{role.chapter}.garbage-under-mask",
        needs=role.needs,
        requires=(rectangle, takes_mask),
        cases=lambda s: garbage_under_mask(s.adapter, role.asked(layouts=RECTANGLES)),
        effort=role.effort,
    )
    def garbage(subject: Subject, case: ModelCase, judge: Judge) -> None:
        clean = case.shown(replace(case.how, garbage=()))
        judge_same(role, subject, case, clean, judge, "with other ids in the masked cells")

    @check(
        f"{role.chapter}.batch-independence",
        needs=role.needs,
        cases=lambda s: edited(s.adapter, role.asked()),
        effort=role.effort,
    )
    def batch_independence(subject: Subject, case: EditedCase, judge: Judge) -> None:
        judge_isolation(role, subject, case, judge)
        count = len(case.case.samples)
        judge_permuted(role, subject, PermutedCase(case.case, tuple(range(count - 1, -1, -1))), judge)


def judge_same(role: Role, subject: Subject, case: ModelCase, other: ModelCase, judge: Judge, how: str) -> None:
    """Two presentations of the same samples give the same answers."""
    model = role.model(subject, case)
    judge.close(
        role.ask(subject, model, case),
        role.ask(subject, model, other),
        [2 * b for b in role.budget(subject, case)],
        what=f"{role.what} {how}, against the same batch without",
        place=role.place,
    )


def judge_isolation(role: Role, subject: Subject, case: EditedCase, judge: Judge) -> None:
    """Exchanging one sample changes no other one's answers."""
    model = role.model(subject, case.case)
    before, after = role.ask(subject, model, case.case), role.ask(subject, model, case.edited)
    allowed = [2 * max(b) for b in zip(role.budget(subject, case.case), role.budget(subject, case.edited), strict=True)]
    others = [i for i in range(len(before)) if i != case.index]

    def place(index: tuple[int, ...]) -> str:
        return role.place((others[index[0]], *index[1:]))

    judge.close(
        [after[i] for i in others],
        [before[i] for i in others],
        [allowed[i] for i in others],
        what=f"{role.what} after only sample {case.index} was exchanged",
        place=place,
        note=f"sample {case.index} leaks into its neighbours",
    )


def judge_permuted(role: Role, subject: Subject, case: PermutedCase, judge: Judge) -> None:
    """Samples in another order give the answers in that order."""
    model = role.model(subject, case.case)
    before, after = role.ask(subject, model, case.case), role.ask(subject, model, case.permuted)
    judge.close(
        after,
        [before[i] for i in case.order],
        [2 * b for b in role.budget(subject, case.case)],
        what=f"{role.what} of the samples in the order {list(case.order)}",
        place=role.place,
        note="the answers do not come back in the caller's order",
    )


def _register_gradient(role: Role) -> None:
    @check(
        f"{role.chapter}.gradient",
        needs=role.needs,
        cases=lambda s: weighted(s.adapter, role.any_temperature(s.adapter), role.per_sample),
        effort=4,
    )
    def gradient(subject: Subject, case: WeightedCase, judge: Judge) -> None:
        judge_gradient(role, subject, case, judge)


def judge_gradient(role: Role, subject: Subject, case: WeightedCase, judge: Judge) -> None:
    """The gradient of the weighted answers with respect to every parameter that can be matched by its name."""
    model = role.model(subject, case.case)
    parameters = _judged_parameters(subject.parameters(model))
    answer = role.ask(subject, model, case.case)
    total = sum((a.double().cpu() * torch.tensor(w)).sum() for a, w in zip(answer, case.weights, strict=True))
    judge.that(
        isinstance(total, torch.Tensor) and total.requires_grad,
        f"{role.what}",
        expected="a graph back to the parameters",
        actual="no graph: detached, or computed under no_grad",
    )
    trained = [p for p in parameters.values() if p.requires_grad]
    grads = iter(subject.gradients(role.ask_method, total, trained))
    found = {n: next(grads) if p.requires_grad else torch.zeros_like(p) for n, p in parameters.items()}
    weights = [list(row) for row in case.weights]
    args = (case.case.probe, case.case.samples, weights)
    truth = subject.truth.gradients(*args, answer=role.answer, temperature=case.case.temperature)
    plain = subject.truth.gradients(*args, answer=role.answer, temperature=case.case.temperature, plain=True)
    pairs = match_by_name(found, truth)
    judge.that(
        bool(pairs) or _is_adapted(found),
        "parameters of the model",
        expected="names that end like those of the checkpoint, to compare gradients by",
        actual=", ".join(list(found)[:3]) or "none that requires a gradient",
        note="override Adapter.parameters to give them their names in the checkpoint",
    )
    largest = max(float(g.abs().max()) for g in truth.values())
    sampled = max(float((plain[n].double().cpu() - truth[n]).abs().max()) for n in truth)
    allowed = budgets.model_gradient(largest, sampled, subject.dtype)
    for mine, name in pairs:
        error = (found[mine].double().cpu() - truth[name]).abs()
        worst = int(error.argmax())
        judge.close(
            float(found[mine].reshape(-1)[worst]),
            float(truth[name].reshape(-1)[worst]),
            allowed,
            what=f"gradient of the weighted {role.what} with respect to {name}, entry {worst}",
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


def _register_round_trip(role: Role) -> None:
    def cases(subject: Subject) -> Any:
        plain = model_cases(subject.adapter, role.asked(specials=False))
        return plain | with_statistics(plain) if role.normalises(subject.adapter) else plain

    @check(f"{role.chapter}.round-trip", needs=(*role.needs, "save", "restore"), cases=cases, effort=10)
    def round_trip(subject: Subject, case: ModelCase, judge: Judge) -> None:
        """A model whose trainable weights have moved is saved, restored, and asked again."""
        asked = (case.probe, case.temperature, case.probe.std != 1.0)
        model = subject.load(role.load, *asked)
        _move_weights(subject.parameters(model))
        before = [row.detach() for row in role.ask(subject, model, case)]
        judge.that(  # else whatever comes back is as good
            all(bool(row.isfinite().all()) for row in before),
            f"{role.what} before saving",
            expected="finite numbers",
            actual="NaN or infinite ones",
            note="memory that a trainer allocates while loading and never sets is NaN here",
        )
        with tempfile.TemporaryDirectory() as folder:
            subject.call("save", model, Path(folder))
            restored = subject.call("restore", role.kind, subject.checkpoint(*asked), Path(folder))
        judge.close(
            role.ask(subject, restored, case),
            before,
            [2 * b / min(1.0, case.probe.std) for b in role.budget(subject, case)],
            what=f"{role.what} after saving and restoring",
            place=role.place,
            note="something that was trained or configured is not in the saved checkpoint, or not loaded from it",
        )


def _move_weights(parameters: Mapping[str, Any]) -> None:
    """What a training step does: every trainable weight moves a little, by an amount exact in bfloat16."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in parameters.values():
            if parameter.requires_grad and parameter.is_floating_point():
                step = torch.randint(-1, 2, parameter.shape, generator=generator) / 64
                moved = (parameter + step.to(parameter)).bfloat16()
                parameter.copy_(moved.to(parameter))


def _ask_in_its_mode(role: Role, subject: Subject, case: ModelCase) -> list[Any]:
    """Ask, and count a switch between train and eval mode among the disturbances, and undo it like the others."""
    model = role.model(subject, case)
    mode = getattr(model, "training", None)
    answer = role.ask(subject, model, case)
    if getattr(model, "training", None) != mode:
        record = subject.record
        record.disturbed.append("train or eval mode of the model")
        with contextlib.suppress(AdapterError):
            subject.uncopied("set_training", model, bool(mode))
        subject.record = record
    return answer


for _role in ROLES:
    register(_role)
