"""Temporary folders that go with the process that made them, whatever ends it."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import weakref
from collections.abc import Iterator

_UNTIL_THE_END = 'read -r _; rm -rf -- "$1"; sleep 3; rm -rf -- "$1"'
"""Waits for the end of its input, which is the end of whoever holds the other end. What still writes into the folder
then has a moment to be ended itself."""


class OwnFolder:
    """A temporary folder that is removed by `close()`, or else with this object, or else at the end of this process. A
    small shell waits for that end, since a process that is killed can remove nothing."""

    def __init__(self, prefix: str) -> None:
        self.name = tempfile.mkdtemp(prefix=prefix)
        self.close = weakref.finalize(self, _remove, self.name, os.getpid(), _waiting(self.name))


@contextlib.contextmanager
def own_folder(prefix: str) -> Iterator[str]:
    """The path of a temporary folder that is removed at the end, and where this process is killed before."""
    folder = OwnFolder(prefix)
    try:
        yield folder.name
    finally:
        folder.close()


def _remove(folder: str, owner: int, shell: subprocess.Popen[bytes] | None) -> None:
    if os.getpid() != owner:  # forked off, which does not make it the owner
        return
    shutil.rmtree(folder, ignore_errors=True)
    if shell is not None and shell.stdin is not None:
        shell.kill()
        shell.wait()
        shell.stdin.close()


def _waiting(folder: str) -> subprocess.Popen[bytes] | None:
    """A shell that removes the folder when this process is gone; away from the terminal and from the group, to which
    signals are sent. None where there is no such shell: then a killed process leaves its folder."""
    if os.name != "posix":
        return None
    try:
        return subprocess.Popen(
            ["/bin/sh", "-c", _UNTIL_THE_END, "sh", folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )
    except OSError:
        return None
