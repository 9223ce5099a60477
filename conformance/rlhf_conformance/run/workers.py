"""The processes in which an adapter is tried: what keeps a dying one from harming others, and what is known of its end.

A worker leads a process group of its own, so that what the adapter starts ends with it; it is the first to go where
memory runs out; and what the adapter prints goes nowhere. The command watches the processes themselves besides the
pipes to them, since a child of the adapter may hold a pipe open long after the worker is dead.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

GRACE = 2.0
"""Seconds that threads and exit handlers of an adapter have after the last clause."""
LATE = 15.0
"""Seconds beyond the limit of a clause after which the command ends a worker whose own timer did not."""
ENDED = "the process of the adapter ended while this clause was tried"


# --- in a worker ---------------------------------------------------------------------------------------------------


def settle() -> None:
    """Make this process one that can be killed with all that it started, and that the kernel takes before others."""
    if hasattr(os, "setpgid"):
        with contextlib.suppress(OSError):
            os.setpgid(0, 0)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")
    silence()


def silence() -> None:
    """Standard input and output lead nowhere. Called before each clause, since an adapter may have closed them."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    if null > 2:
        os.close(null)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", errors="replace", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", errors="replace", closefd=False)  # noqa: SIM115


def end_soon() -> None:
    """End this process after a grace, whatever threads and exit handlers the adapter has left."""
    timer = threading.Timer(GRACE, end)
    timer.daemon = True
    timer.start()


def end(status: int = 0) -> None:
    """End this process and all that it started, without taking torch apart, which takes more than a second."""
    if hasattr(os, "getpgrp") and os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(status)


# --- in the command ------------------------------------------------------------------------------------------------


@dataclass
class Watch:
    """The processes of the workers by the names of their gateways, and the running clauses in `folder`."""

    folder: Path
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    overdue: set[str] = field(default_factory=set)
    _over: threading.Event = field(default_factory=threading.Event)

    @contextlib.contextmanager
    def over(self) -> Iterator[None]:
        """Watch while the body runs."""
        thread = threading.Thread(target=self._watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def add(self, gateway: Any) -> None:
        process = getattr(getattr(gateway, "_io", None), "popen", None)
        if process is not None:
            self.processes[gateway.id] = process

    def end_all(self) -> None:
        for process in self.processes.values():
            kill_group(process.pid)

    def end_of(self, name: str) -> str:
        """How a worker that is down came to its end, in words."""
        process = self.processes.get(name)
        if process is None:
            return "it exited, was killed, or crashed"
        try:
            return end_in_words(process.wait(timeout=GRACE))
        except subprocess.TimeoutExpired:
            process.kill()
            return "it closed the connection to the suite"
        finally:
            kill_group(process.pid)  # what it has started

    def _watch(self) -> None:
        while not self._over.wait(0.5):
            for process in list(self.processes.values()):
                if process.poll() is not None:
                    kill_group(process.pid)
            for path in self.folder.glob("*.running"):
                self._end_if_late(path)

    def _end_if_late(self, path: Path) -> None:
        with contextlib.suppress(OSError, ValueError):
            pid, until = path.read_text().split()
            for process in self.processes.values():
                if process.pid == int(pid) and time.time() > float(until) + LATE:
                    self.overdue.add(path.stem)
                    process.kill()


def kill_group(pid: int) -> None:
    """Kill the group that a worker led, if there is anybody left in it."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(OSError):
            os.killpg(pid, signal.SIGKILL)


def end_in_words(status: int) -> str:
    """What became of a process, of its `Popen.returncode`."""
    if status >= 0:
        return f"it exited with status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    if name == "SIGKILL":
        return "it was killed with SIGKILL, as the kernel does where memory runs out"
    return f"it was ended by {name}"


def innermost(stack: str) -> str:
    """Where faulthandler found a process: "in file.py:12 in method" of the thread that crashed, else of the main one,
    which comes last; the innermost frame is the first of its thread."""
    thread = stack.partition("Current thread ")[2] or stack.rpartition("Thread ")[2]
    frame = re.search(r'File "(.+)", line (\d+) in (.+)', thread)
    return f"in {Path(frame[1]).name}:{frame[2]} in {frame[3].strip()}" if frame else "in unknown code"
