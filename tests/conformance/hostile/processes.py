"""Adapters that harm the process that they run in, as a user meets them; `harms.py` has all of the harms."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from rlhf_conformance import Adapter, PackedSequences


class Survivor(Adapter):
    """An honest `position_ids`, which needs no harm to be judged; each subclass harms in `pack_sequences`."""

    def position_ids(self, attention_mask):
        return (attention_mask.cumsum(-1) - 1).clamp(min=0)


class Exits(Survivor):
    """Leaves without saying goodbye."""

    def pack_sequences(self, sequences):
        os._exit(0)


class Hangs(Survivor):
    """Waits for a rank that never comes."""

    def pack_sequences(self, sequences):
        while True:
            time.sleep(3600)


class PrintsMuch(Survivor):
    """Prints megabytes, through Python and past it."""

    def position_ids(self, attention_mask):
        print("loading shard\n" * 20_000)
        os.write(1, b"[rank0] all_reduce\n" * 20_000)
        os.write(2, b"[rank0] warning\n" * 20_000)
        return super().position_ids(attention_mask)


def notes_and_waits(number):
    """Notes its process and another number, and comes to no end."""
    draft = Path(os.environ["HOSTILE_NOTES"]).with_suffix(".draft")
    draft.write_text(f"{os.getpid()} {number}")
    draft.rename(os.environ["HOSTILE_NOTES"])
    while True:
        time.sleep(0.01)


class Waits(Survivor):
    """Starts a program in a session of its own, notes both numbers, and waits for what never comes."""

    def pack_sequences(self, sequences):
        program = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"], start_new_session=True)
        tempfile.mkdtemp()
        notes_and_waits(program.pid)


class TakesHalfASecond(Adapter):
    """A trainer of half a second a call, as one is that starts a model anew each time."""

    def position_ids(self, attention_mask):
        time.sleep(0.5)
        return (attention_mask.cumsum(-1) - 1).clamp(min=0)

    def pack_sequences(self, sequences):
        time.sleep(0.5)
        return PackedSequences(torch.cat(sequences)[None])

    def token_log_probs(self, logits, labels, temperature):
        time.sleep(0.5)
        return (logits.float() / temperature).log_softmax(-1).gather(-1, labels[..., None])[..., 0]
