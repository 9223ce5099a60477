"""Adapters that harm the process that they run in, as a user meets them; `harms.py` has all of the harms."""

from __future__ import annotations

import os
import time

from rlhf_conformance import Adapter


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
