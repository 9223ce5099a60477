"""The parent of one worker, which sees to it that nothing of the worker outlives it. A script, without this package:

    python -I -S keeper.py PARENT [NAME=VALUE | NAME]... -- COMMAND...

starts COMMAND with variables set (or taken away, where there is no value) and ends as it ends. Everything that the
command has started is killed then, in whatever session it is: on Linux, orphans become children of the nearest
subreaper, which this process is. The same happens where PARENT is gone, however it went, or sends SIGTERM. Should this
process itself be killed, Linux kills the command.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Sequence

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
GLANCE = 0.5
"""Seconds between two looks at whether the parent is there."""
PATIENCE = 10.0
"""Seconds for killing what does not go at once, as in a driver of a GPU."""


def main(arguments: Sequence[str]) -> None:
    gap = arguments.index("--")
    parent, variables, command = int(arguments[0]), arguments[1:gap], arguments[gap + 1 :]
    environment = dict(os.environ)
    for variable in variables:
        name, given, value = variable.partition("=")
        environment.pop(name, None)
        if given:
            environment[name] = value
    if os.name != "posix":
        import subprocess

        sys.exit(subprocess.call(command, env=environment))
    keep(parent, command, environment)


def keep(parent: int, command: Sequence[str], environment: dict[str, str]) -> None:
    """Start the command, wait for its end or the parent's, kill what is left, and end as the command did."""
    os.setsid()
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    told: list[int] = []
    woken = _signals_to(told)
    worker = _start(command, environment)
    _let_go_of_streams()
    status = None
    while status is None and not told and os.getppid() == parent:
        select.select([woken], [], [], GLANCE)
        _drain(woken)
        status = _reap()[0].get(worker)
    left = _end_all(worker)
    _leave(left if status is None else status)


def prctl(option: int, value: int) -> None:
    """An option of this process that Linux alone has."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def _signals_to(told: list[int]) -> int:
    """Wake up where a child ends or a signal comes; a descriptor to wait for. Only SIGTERM is an order: what comes from
    a terminal is for the parent to decide on."""
    woken, wake = os.pipe()
    for descriptor in (woken, wake):
        os.set_blocking(descriptor, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
    for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, lambda *ignored: None)  # not SIG_IGN, which the command would inherit
    return woken


def _drain(descriptor: int) -> None:
    try:
        while os.read(descriptor, 4096):
            pass
    except BlockingIOError:
        pass


def _start(command: Sequence[str], environment: dict[str, str]) -> int:
    """Start the command in a session of its own, away from the terminal."""
    keeper = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == keeper:
            os.execvpe(command[0], list(command), environment)
    finally:
        os._exit(127)


def _let_go_of_streams() -> None:
    """The pipes are the worker's: they have to close when it ends."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)


def _reap() -> tuple[dict[int, int], bool]:
    """How the children ended that have ended, and whether there are others."""
    ended: dict[int, int] = {}
    try:
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return ended, True
            ended[pid] = status
    except ChildProcessError:
        return ended, False


def _end_all(worker: int) -> int | None:
    """Kill what is below this process until nothing is; how the worker ended, if it did so now."""
    until, status = time.monotonic() + PATIENCE, None
    while time.monotonic() < until:
        for pid in descendants(os.getpid()):
            kill(pid)
        if sys.platform != "linux":
            kill(-worker)
        ended, others = _reap()
        status = ended.get(worker, status)
        if not others:
            break
        time.sleep(0.01)
    return status


def kill(pid: int) -> None:
    """Kill a process, or the group of a negative number, if it is there."""
    try:
        if pid < 0:
            os.killpg(-pid, signal.SIGKILL)
        else:
            os.kill(pid, signal.SIGKILL)
    except OSError:
        pass


def descendants(root: int) -> list[int]:
    """The processes that a process has started, and what they started, as far as /proc shows them."""
    children = defaultdict(list)
    for name in os.listdir("/proc") if os.path.isdir("/proc") else ():
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    children[int(file.read().rpartition(b")")[2].split()[1])].append(int(name))
            except (OSError, IndexError, ValueError):
                continue
    found, at = list(children[root]), 0
    while at < len(found):
        found += children[found[at]]
        at += 1
    return found


def _leave(status: int | None) -> None:
    """End as the worker did, without a second core file."""
    if status is not None and os.WIFSIGNALED(status):
        import resource

        number = os.WTERMSIG(status)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        time.sleep(1.0)  # until it is delivered
    os._exit(0 if status is None else os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 1)


if __name__ == "__main__":
    main(sys.argv[1:])
