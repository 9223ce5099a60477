"""The checks of an actor that is made of a module in memory."""

from __future__ import annotations

import copy
from typing import Any

import rlhf_spec.actor
from rlhf_conformance._lazy import torch
from rlhf_conformance.chapters._models.cases import ModelCase
from rlhf_conformance.chapters._models.roles import presented
from rlhf_conformance.chapters._models.templates import move_weights
from rlhf_conformance.chapters.actor.cases import ModuleCase, modules
from rlhf_conformance.judging.checks import Questions, check
from rlhf_conformance.judging.questions import Call, Question, sample_action
from rlhf_conformance.judging.subject import Subject
from rlhf_conformance.oracle import budgets
from rlhf_conformance.oracle.truth import Alone

NEEDS = ("wrap_actor", "action_log_probs")


def in_memory(subject: Subject, case: ModuleCase) -> Any:
    """A module that was trained a little since it was loaded."""
    module = subject.checkpoint(case.case.probe).module()
    move_weights(dict(module.named_parameters()))
    return module.train(case.training)


@check("actor.from-module", needs=NEEDS, cases=modules, effort=5)
def from_module(subject: Subject, case: ModuleCase) -> Questions:
    module = in_memory(subject, case)
    alone = _alone(subject, module, case.case)
    actor = (yield _wrapped(subject, module, case.case)).value
    yield _asks(subject, case.case, actor, *alone, "log-prob of the action, by an actor made of a module")


@check("actor.from-module-shared", needs=NEEDS, cases=modules, effort=5)
def from_module_shared(subject: Subject, case: ModuleCase) -> Questions:
    """What moves when the actor is trained are the weights of the module that was handed over."""
    module = in_memory(subject, case)
    actor = (yield _wrapped(subject, module, case.case)).value
    move_weights((yield Call("parameters", (actor,), copies=False)).value)
    alone = _alone(subject, module, case.case)
    yield _asks(subject, case.case, actor, *alone, "log-prob of the action, after a step, against the module alone")


def _wrapped(subject: Subject, module: Any, case: ModelCase) -> Call:
    return Call("wrap_actor", (module, subject.checkpoint(case.probe, case.temperature)), copies=False)


def _asks(subject: Subject, case: ModelCase, actor: Any, truth: Any, plain: Any, what: str) -> Question:
    log_probs, plain_log_probs = (
        [
            rlhf_spec.actor.action_log_probs(rows, list(s.tokens), len(s.prompt), case.temperature)
            for rows, s in zip(logits, case.samples, strict=True)
        ]
        for logits in (truth, plain)
    )
    largest = max(abs(z) for rows in truth for row in rows for z in row)
    flat, flat_plain = sum(log_probs, []), sum(plain_log_probs, [])
    return Question(
        what,
        Call("action_log_probs", (actor, presented(subject, case))),
        log_probs,
        budgets.model_output(flat, flat_plain, largest, subject.dtype, case.temperature),
        place=sample_action,
        beside={"module": "the checkpoint's weights, each moved by -1/64, 0 or 1/64 as `move_weights` draws it"},
    )


def _alone(subject: Subject, module: Any, case: ModelCase) -> tuple[list[Any], list[Any]]:
    """Logits (L, V) of each sample alone, in eval mode: of a copy in float64 on the CPU, and of the module as it is."""
    modes = [(part, part.training) for part in module.modules()]
    runs = Alone(copy.deepcopy(module).double().cpu().eval(), "cpu"), Alone(module.eval(), subject.device)
    with torch.no_grad():
        exact, plain = ([run(sample.tokens).double().tolist() for sample in case.samples] for run in runs)
    for part, training in modes:
        part.training = training
    return exact, plain
