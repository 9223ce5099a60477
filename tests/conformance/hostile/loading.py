"""Adapters that cannot be loaded, or should not be."""

from __future__ import annotations

import sys

from rlhf_conformance import Adapter


class ConstructorRaises(Adapter):
    """Its constructor looks for something that is not there."""

    def __init__(self):
        raise FileNotFoundError("no checkpoint of the trainer here")


class ConstructorExits(Adapter):
    """Its constructor ends the program, as argument parsers do."""

    def __init__(self):
        sys.exit("usage: train.py --model MODEL")


class Modes(Adapter):
    """Honest, with two modes."""

    def __init__(self, packing=False, rank=8):
        self.packing, self.rank = packing, rank

    def position_ids(self, attention_mask):
        return (attention_mask.cumsum(-1) - 1).clamp(min=0)


instance = Modes()


class NotAnAdapter:
    """A class of the trainer itself."""

    def policy_loss(self, *args):
        return 0.0


def function():
    """Not even a class."""


class StringForTuple(Modes):
    """Declares a string where a tuple is due: every letter would be a choice."""

    aggregations = "token-mean"


class UnknownLayout(Modes):
    """Declares a layout that there is not."""

    layouts = ("padded", "diagonal")


class NumberForTuple(Modes):
    """Declares a number where a tuple is due."""

    layouts = 3


class WordForFlag(Modes):
    """Declares a word where True or False is due."""

    global_count = "yes"


class MisspeltMethod(Adapter):
    """Means token_log_probs."""

    def token_logprobs(self, logits, labels, temperature):
        return logits.log_softmax(-1).gather(-1, labels[..., None])[..., 0]


class MisspeltDeclaration(Modes):
    """Means aggregations."""

    aggregation = ("token-mean",)


class Nothing(Adapter):
    """Overrides no method at all."""


class HalfPair(Adapter):
    """Can load an actor, and do nothing with it."""

    def load_actor(self, checkpoint):
        return object()
