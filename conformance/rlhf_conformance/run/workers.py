"""The processes in which an adapter is tried: what keeps a dying one from harming others, and what is known of its end.

A worker is the child of a keeper (`keeper.py`), which ends with it and kills what the adapter has started, whatever
ends the run; it is the first to go where memory runs out; and what the adapter prints goes nowhere. The command does
not rely on the pipes to the workers, on which an adapter may write: a worker that is not heard from is ended.
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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf_conformance.run.inheriting import RUN

GRACE = 2.0
"""Seconds that threads and exit handlers of an adapter have after the last clause."""
LATE = 15.0
"""Seconds beyond the limit of a clause after which the command ends a worker whose own timer did not."""
STARTING = 120.0
"""Seconds that a worker may take until its first clause."""
SILENT = 30.0
"""Seconds between two clauses, or after the last one, after which a worker is taken for lost."""
PATIENCE = 12.0
"""Seconds that keepers have for killing what is below them; a little more than they take themselves."""
ENDED = "the process of the adapter ended while this clause was tried"


# --- in a worker ---------------------------------------------------------------------------------------------------


def settle() -> None:
    """Make this process one that the kernel takes before others, and that is not heard."""
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
    """End this process without taking torch apart, which takes more than a second. Its keeper ends what it started."""
    os._exit(status)


# --- in the command ------------------------------------------------------------------------------------------------


Worker = subprocess.Popen[bytes]
"""The keeper of a worker, which ends as the worker does."""


@dataclass
class Watch:
    """The workers by the names of their gateways, and the running clauses in `folder`.

    overdue     clauses that took too long, and whose worker did not end itself
    unheard     names of workers that were ended because nothing was heard of them
    tick        called twice a second
    """

    folder: Path
    tick: Callable[[], None]
    processes: dict[str, Worker] = field(default_factory=dict)
    overdue: set[str] = field(default_factory=set)
    unheard: set[str] = field(default_factory=set)
    _heard: dict[str, float] = field(default_factory=dict)
    _told: dict[str, float] = field(default_factory=dict)
    _over: threading.Event = field(default_factory=threading.Event)

    @contextlib.contextmanager
    def over(self) -> Iterator[None]:
        """Watch while the body runs; afterwards no worker is left, nor anything that one has started."""
        thread = threading.Thread(target=self._watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()
            self._clear_away()

    def add(self, gateway: Any) -> None:
        process = getattr(getattr(gateway, "_io", None), "popen", None)
        if process is not None:
            self.processes[gateway.id] = process
            self._heard[gateway.id] = time.monotonic() + STARTING - SILENT

    def end_all(self) -> None:
        """Begin to end all workers; nothing is waited for."""
        for name in list(self.processes):
            self._end(name)

    def _end(self, name: str) -> None:
        """Tell a keeper to end its worker, and all that the worker has started. One that does not obey, since an
        adapter stops it, is killed, and Linux kills its worker."""
        process = self.processes[name]
        if time.monotonic() > self._told.setdefault(name, time.monotonic()) + PATIENCE:
            process.kill()
        with contextlib.suppress(OSError):
            process.terminate()
            process.send_signal(getattr(signal, "SIGCONT", signal.SIGTERM))

    def end_of(self, name: str) -> str:
        """How a worker that is down came to its end, in words."""
        process = self.processes.get(name)
        if process is None:
            return "it exited, was killed, or crashed"
        if name in self.unheard:
            return "nothing was heard from it, and it was ended"
        try:
            return end_in_words(process.wait(timeout=GRACE))
        except subprocess.TimeoutExpired:
            self._end(name)
            return "it closed the connection to the suite"

    def _watch(self) -> None:
        while not self._over.wait(0.5):
            now, running = time.monotonic(), dict[str, Path]()
            for path in self.folder.glob("*.running"):
                with contextlib.suppress(OSError, ValueError):
                    name, until = path.read_text().split()
                    running[name] = path
                    self._end_if_late(path, name, float(until))
            for name, process in list(self.processes.items()):
                if name in running or process.poll() is not None:
                    self._heard[name] = now
                elif now > self._heard[name] + SILENT:
                    self.unheard.add(name)
                    self._end(name)
                if name in self._told:
                    self._end(name)
            with contextlib.suppress(Exception):  # whatever goes wrong there, the limits hold
                self.tick()

    def _end_if_late(self, path: Path, name: str, until: float) -> None:
        if name in self.processes and time.time() > until + LATE:
            self.overdue.add(path.stem)
            self._end(name)

    def _clear_away(self) -> None:
        """End what is left, by force where it does not go."""
        self.end_all()
        until = time.monotonic() + PATIENCE
        for process in self.processes.values():
            try:
                process.wait(timeout=max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        _kill_those_of(self.folder)


def _kill_those_of(folder: Path) -> None:
    """Kill what descends from the run's workers and lost its keeper, which an adapter may have killed. Linux alone
    shows the environments of processes."""
    mark = os.fsencode(f"{RUN}={folder}")
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark in path.read_bytes().split(b"\0"):
                os.kill(int(path.parent.name), signal.SIGKILL)


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
