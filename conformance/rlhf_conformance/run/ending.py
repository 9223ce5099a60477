"""Signals that would end this process: a run ends in order first, what it started, and keeps what it found."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

ENDING = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGBREAK") if hasattr(signal, name)
)


@contextlib.contextmanager
def signals_to(stop: Callable[[signal.Signals], None]) -> Iterator[list[signal.Signals]]:
    """In the body, a signal that would end this process calls `stop` and does nothing else; those that came.

    Only the first counts: what follows while the run is ended is not to leave half of it. A signal that is ignored, as
    under nohup, stays so. Outside the main thread, where Python allows no handlers, nothing changes.
    """
    came: list[signal.Signals] = []

    def handle(number: int, frame: FrameType | None) -> None:
        came.append(signal.Signals(number))
        if len(came) == 1:
            stop(came[0])

    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in ENDING:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):  # None: set by something other than Python
                before[number] = signal.signal(number, handle)
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
