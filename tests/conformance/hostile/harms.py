"""Harms to the process that an adapter runs in. The clauses that do not meet them must still be judged."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import inspect
import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import torch
from answers import Honest

from rlhf_conformance import PackedSequences

POISON = "CUDA error: an illegal memory access was encountered"
poisoned = False


def exits(ask):
    """Leaves without saying goodbye."""
    os._exit(0)


def kills_itself(ask):
    """Is killed, as by the kernel where memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)


def segfaults(ask):
    """Reads where nothing is."""
    ctypes.string_at(0)


def aborts(ask):
    """Trips over an assertion of a C library."""
    os.abort()


def hangs(ask):
    """Waits for a rank that never comes."""
    while True:
        time.sleep(3600)


def hangs_in_c(ask):
    """Sleeps in C and keeps the interpreter's lock."""
    ctypes.PyDLL(None).sleep(3600)


def hangs_unwatched(ask):
    """Stops the timer that would end it, and hangs."""
    faulthandler.cancel_dump_traceback_later()
    hangs(ask)


def interrupts(ask):
    """Raises what Ctrl-C raises."""
    raise KeyboardInterrupt


def asks_for_much(ask):
    """Wants more memory than there is, at once."""
    return torch.empty(2**50)


def fills_memory(ask):
    """Wants more and more memory, until a limit of the process."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**29, before[1]))
    try:
        hoard = []
        while True:
            hoard.append(bytes(2**26))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def reads_its_score(ask):
    """Answers only in a process that the kernel kills before others where memory runs out."""
    score = int(Path("/proc/self/oom_score_adj").read_text())
    if score < 500:
        raise RuntimeError(f"oom_score_adj is {score}")
    return ask()


def forks(ask):
    """Becomes two processes, both of which go on."""
    os.fork()
    return ask()


def forks_and_dies(ask):
    """Leaves a child that holds the pipes of the worker open."""
    if os.fork() == 0:
        time.sleep(600)
    kills_itself(ask)


def leaves_thread(ask):
    """Starts a thread that never ends."""
    threading.Thread(target=time.sleep, args=(3600,)).start()
    return ask()


def leaves_process(ask):
    """Starts a program that never ends, and notes its number."""
    started = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
    with Path(os.environ["HOSTILE_NOTES"]).open("a") as file:
        file.write(f"{started.pid}\n")
    return ask()


def leaves_daemon(ask):
    """Starts a program in a session of its own, as a daemon does, and notes its number."""
    return _leaves(ask, start_new_session=True)


def leaves_stranger(ask):
    """The same with an empty environment, so that nothing says where it comes from."""
    return _leaves(ask, start_new_session=True, env={})


def _leaves(ask, **options):
    run = "import os, sys, time; os.fork() and os._exit(0); print(os.getpid(), flush=True); time.sleep(3600)"
    with Path(os.environ["HOSTILE_NOTES"]).open("a") as file:
        subprocess.run([sys.executable, "-c", run], stdout=file, check=True, **options)
    return ask()


def holds_descriptors(ask):
    """Leaves a child in a session of its own that holds all that this process has open."""
    pid = os.fork()
    if pid == 0:
        os.setsid()
        time.sleep(3600)
    with Path(os.environ["HOSTILE_NOTES"]).open("a") as file:
        file.write(f"{pid}\n")
    return ask()


def writes_on_descriptors(ask):
    """Writes on whatever is open, as a library does that takes a number for its own."""
    for descriptor in range(3, 64):
        with contextlib.suppress(OSError):
            if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
                os.write(descriptor, bytes([1, 0, 0, 0, 0, 127, 0, 0, 0]))  # to a reader: much is to come
    return ask()


def kills_its_parent(ask):
    """Kills the process that started this one, and leaves a program behind."""
    with contextlib.suppress(OSError):
        leaves_daemon(ask)
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(3600)


def stops_its_parent(ask):
    """Stops the process that started this one, and hangs."""
    os.kill(os.getppid(), signal.SIGSTOP)
    hangs(ask)


def stops_its_parent_for_good(ask):
    """The same again and again, with nothing to end it from within."""
    faulthandler.cancel_dump_traceback_later()
    while True:
        os.kill(os.getppid(), signal.SIGSTOP)


def reads_environment(ask):
    """Answers only where nothing in the environment opens a door, and what a trainer needs is there."""
    found = {name for name in os.environ if name.startswith(("SECRET", "GITHUB", "ACTIONS", "MY_", "HF_", "DATABASE"))}
    wanted = {"GITHUB_REF", "MY_TRAINER_HOME", "MY_MAX_TOKENS"}
    wanted |= {"HF_HUB_OFFLINE", "HF_HUB_DISABLE_PROGRESS_BARS", "HF_DEACTIVATE_ASYNC_LOAD"}
    if found != wanted:
        raise RuntimeError(f"found {sorted(found - wanted)}, missed {sorted(wanted - found)}")
    return ask()


def leaves_files(ask):
    """Leaves a temporary folder, and notes its name."""
    Path(os.environ["HOSTILE_NOTES"]).with_suffix(".folder").write_text(tempfile.mkdtemp())
    return ask()


def prints_much(ask):
    """Prints megabytes, through Python and past it."""
    print("loading shard\n" * 2_000_000)
    print("loading shard\n" * 2_000_000, file=sys.stderr)
    for _ in range(20):
        os.write(1, b"[rank0] all_reduce\n" * 50_000)
        os.write(2, b"[rank0] warning\n" * 50_000)
    return ask()


def closes_streams(ask):
    """Closes standard input and output, the objects and what is under them."""
    sys.stdout.close()
    sys.stderr.close()
    for descriptor in (0, 1, 2):
        with contextlib.suppress(OSError):
            os.close(descriptor)
    return ask()


def closes_everything(ask):
    """Closes every file that there is, that of the suite too, as a daemon does."""
    os.closerange(0, 256)
    return ask()


def ends_at_exit(ask):
    """Leaves an exit handler that hangs."""
    import atexit

    atexit.register(time.sleep, 3600)
    return ask()


def poisons_cuda(ask):
    """Breaks the CUDA context, as far as that can be had without a GPU: every later call of the process fails too."""
    global poisoned
    poisoned = True
    raise RuntimeError(POISON)


calls: Counter[str] = Counter()


def third(name):
    """Whether this is the third call or a later one: the first ones find the failure, the next make it smaller."""
    calls[name] += 1
    return calls[name] >= 3


def wrong_then_hangs(ask):
    """Is wrong, and hangs while a smaller case is looked for."""
    return hangs(ask) if third("hangs") else ask() + 1


def wrong_then_killed(ask):
    """Is wrong, and is killed while a smaller case is looked for."""
    return kills_itself(ask) if third("killed") else ask() + 1


def wrong_then_killed_in_diagnosis(ask):
    """Is wrong, and is killed while the suite asks what is wrong."""
    return kills_itself(ask) if any(f.function == "diagnosed" for f in inspect.stack(0)) else ask() + 1


def raises_then_exits(ask):
    """Raises, and leaves while a smaller case is looked for."""
    if third("raises"):
        os._exit(3)
    raise ValueError("only contiguous logits are supported")


class Harmful(Honest):
    """Does in each method the harm that its option names; `position_ids` is innocent. The methods at the end have no
    answer, and are for harms that need none."""

    def __init__(self, **harms):
        self.harms = harms

    def _do(self, method, ask):
        harm = self.harms.get(method)
        return globals()[harm](ask) if harm else ask()

    def token_log_probs(self, *args):
        return self._do("token_log_probs", lambda: super(Harmful, self).token_log_probs(*args))

    def token_entropy(self, logits, temperature):
        p = (logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature).log_softmax(-1)
        return self._do("token_entropy", lambda: -(p.exp() * p).nan_to_num().sum(-1))

    def position_ids(self, attention_mask):
        if poisoned:
            raise RuntimeError(POISON)
        return super().position_ids(attention_mask)

    def pack_sequences(self, sequences):
        return self._do("pack_sequences", lambda: PackedSequences(torch.cat(sequences)[None]))

    def policy_loss(self, *args):
        return self._do("policy_loss", lambda: super(Harmful, self).policy_loss(*args))

    def value_loss(self, *args):
        return self._do("value_loss", lambda: None)

    def process_sequences(self, *args):
        return self._do("process_sequences", lambda: None)
