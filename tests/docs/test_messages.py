"""The messages that the guide explains are those of the suite: each is provoked once."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import rlhf_conformance
from rlhf_conformance import Adapter, LoadError, UsageError, check
from rlhf_conformance.reporting.terminal import describe
from rlhf_conformance.run.loading import load_adapter, validate
from rlhf_conformance.run.suite import require_device

GUIDE = "docs/writing-an-adapter.md"
PACKAGE = Path(rlhf_conformance.__file__).parent


def losses(answer):
    """An adapter whose policy loss is right and then spoilt."""
    import losses_only

    class Spoilt(losses_only.InHouse):
        def policy_loss(self, *arguments):
            return answer(super().policy_loss(*arguments))

    return Spoilt()


def models(**methods):
    """The adapter of the whole trainer with other methods, each given the right one's bound version."""
    import whole_trainer

    class Spoilt(whole_trainer.PlainTrainer):
        pass

    for name, method in methods.items():
        right = getattr(whole_trainer.PlainTrainer, name)
        setattr(Spoilt, name, lambda self, *args, right=right, method=method: method(right, self, *args))
    return Spoilt()


def declared(**attributes):
    return type("Declared", (Adapter,), attributes)()


class Narrow(Adapter):
    def policy_loss(self, log_probs, old_log_probs):
        return log_probs.sum()


def every_column(right, self, actor, batch):
    from whole_trainer import log_probs_of

    return log_probs_of(self.logits(actor, batch)[:, :-1], batch.input_ids[:, 1:], batch.temperature)


def without_graph(right, *arguments):
    return right(*arguments).detach()


def in_train_mode(right, *arguments):
    return right(*arguments).train()


class Wrapped:
    """A model inside of something that is no module."""

    def __init__(self, model):
        self.inside = model


def wrapped():
    def logits(right, self, actor, batch):
        return right(self, actor.inside, batch)

    return models(load_actor=lambda right, *args: Wrapped(right(*args)), logits=logits)


REFUSALS = {
    "is unknown to the suite; is 'policy_loss' meant?": lambda: validate(declared(polcy_loss=None)),
    "say which class:": lambda: load_adapter("examples/losses_only.py"),
    "it holds the adapters": lambda: load_adapter("examples/losses_only.py:Nobody"),
    "wanted a tuple with at least one entry": lambda: validate(declared(layouts="padded")),
    "wanted a number, at least": lambda: validate(declared(whitening_eps="1e-8")),
    "is not one of": lambda: validate(declared(layouts=("packd",))),
    "cannot be made with the options": lambda: load_adapter("examples/losses_only.py:InHouse", {"packing": True}),
    "is it installed in this environment?": lambda: load_adapter("no_such_package.adapter:MyTrainer"),
    "no device 'cuda'": lambda: require_device("cuda"),
}

VERDICTS = {
    "(is a return statement missing?)": (lambda: losses(lambda loss: None), "policy-loss.clip"),
    "positional arguments but": (Narrow, "policy-loss.clip"),
    "wanted the loss, a tensor with one number": (lambda: losses(lambda loss: loss.expand(2)), "policy-loss.clip"),
    "none: the loss is detached": (lambda: losses(lambda loss: loss.detach()), "policy-loss.scalar"),
    "wanted the model that later calls are to be given": (
        lambda: models(load_actor=lambda right, *args: None),
        "actor.log-probs",
    ),
    "the shape of batch.action_mask in layout": (lambda: models(action_log_probs=every_column), "actor.log-probs"),
    "an entry for every position": (
        lambda: models(values=lambda right, *args: right(*args)[..., None]),
        "critic.raw-output",
    ),
    "override Adapter.parameters": (wrapped, "actor.gradient"),
    "map them with Adapter.checkpoint_weights": (
        lambda: models(parameters=lambda right, *args: dict(list(right(*args).items())[:-1])),
        "actor.gradient",
    ),
    "not what the checkpoint holds under that name": (
        lambda: models(checkpoint_weights=lambda right, *args: {n: t.flip(0) for n, t in right(*args).items()}),
        "actor.gradient",
    ),
    "no graph: detached, or computed under no_grad": (
        lambda: models(action_log_probs=without_graph),
        "actor.gradient",
    ),
    "log-prob asked for a second time": (lambda: models(load_actor=in_train_mode), "actor.dropout-off"),
}


@pytest.mark.parametrize("message", REFUSALS)
def test_the_refusal_reads_as_in_the_guide(message, monkeypatch, examples):
    import torch

    if "cuda" in message and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    monkeypatch.chdir(examples.parent)
    with pytest.raises((LoadError, UsageError)) as caught:
        REFUSALS[message]()
    assert message in str(caught.value)


@pytest.mark.parametrize("message", VERDICTS)
def test_the_verdict_reads_as_in_the_guide(message):
    adapter, clause = VERDICTS[message]
    report = check(adapter(), profile="smoke", only=[clause])
    assert message in describe(report.result(clause))


@pytest.mark.parametrize("message", [*REFUSALS, *VERDICTS])
def test_the_guide_explains_the_message(table, message):
    assert message in {row[0].strip("`") for row in table(GUIDE, "message")}


@pytest.mark.parametrize("clause", ["policy-loss.clip", "actor.log-probs"])
def test_the_messages_in_full_are_those_of_the_suite(blocks, clause):
    message = {
        "policy-loss.clip": "(is a return statement missing?)",
        "actor.log-probs": "the shape of batch.action_mask in layout",
    }[clause]
    adapter, _ = VERDICTS[message]
    said = describe(check(adapter(), profile="smoke", only=[clause]).result(clause)).splitlines()
    (shown,) = (block for block in blocks(GUIDE, "text") if f"ERROR {clause} " in block)
    lines = [line for line in said if line.startswith(("ERROR", "  what"))]
    assert [_shapeless(line) for line in lines] == [_shapeless(line) for line in shown.splitlines()]


def _shapeless(line: str) -> str:
    """Without the sizes and the layout of the case that happened to be found."""
    return re.sub(r"'(padded|left)'", "LAYOUT", re.sub(r"\d+", "N", line))


def test_the_other_messages_of_the_guide_stand_in_the_code(table):
    """Those that take a crash, a time limit or a whole run to provoke; two are Python's own."""
    quoted = {row[0].strip("`") for row in table(GUIDE, "message") if re.fullmatch(r"`[^`]+`", row[0])}
    python = {"'NoneType' object has no attribute", "positional arguments but"}
    source = "".join(file.read_text(encoding="utf-8") for file in PACKAGE.rglob("*.py"))
    assert [message for message in quoted - {*REFUSALS, *VERDICTS} - python if message not in source] == []
