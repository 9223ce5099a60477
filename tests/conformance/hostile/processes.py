"""Adapters that harm the process that they run in. The clauses that do not meet the harm must still be judged."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
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


class KillsItself(Survivor):
    """Is killed, as by the out-of-memory killer."""

    def pack_sequences(self, sequences):
        os.kill(os.getpid(), signal.SIGKILL)


class Segfaults(Survivor):
    """Reads where nothing is."""

    def pack_sequences(self, sequences):
        ctypes.string_at(0)


class Hangs(Survivor):
    """Waits for a rank that never comes."""

    def pack_sequences(self, sequences):
        while True:
            time.sleep(3600)


class LeavesThread(Survivor):
    """Starts a thread that never ends."""

    def position_ids(self, attention_mask):
        threading.Thread(target=time.sleep, args=(3600,)).start()
        return super().position_ids(attention_mask)


class PrintsMuch(Survivor):
    """Prints megabytes, through Python and past it."""

    def position_ids(self, attention_mask):
        print("loading shard\n" * 20_000)
        os.write(1, b"[rank0] all_reduce\n" * 20_000)
        os.write(2, b"[rank0] warning\n" * 20_000)
        return super().position_ids(attention_mask)
