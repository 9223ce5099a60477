"""What an exception of someone else's code says, in words that never fail.

An exception may refuse to be printed, lie about its class, name itself as its cause, or hang on thousands of others. It
is read here once, through the slots of `BaseException` that a subclass cannot override, and then let go. This module
imports no torch.
"""

from __future__ import annotations

import builtins
import traceback
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from rlhf_conformance.escaping import printable

LONGEST = 400
"""Characters of a message that are told."""
LINKS = 3
"""So many causes, and so many exceptions of a group, are told."""
_MOST = 100_000

_NAME = type.__dict__["__name__"]
_SLOTS = {name: BaseException.__dict__[name] for name in ("__cause__", "__context__", "__suppress_context__")}


def kind_of(value: object) -> str:
    """The name of its class, whatever the metaclass says of it."""
    return shown(_NAME.__get__(type(value)))


def text_of(error: BaseException) -> str:
    """Its message in one line, without what a terminal or a report could not show."""
    try:
        text = str(error)
    except BaseException as second:
        return f"(its message cannot be read: {kind_of(second)})"
    return shown(text)


def shown(text: str) -> str:
    """Text of whatever kind in one line of printable characters, at most 1,000."""
    return printable(" ".join(str.__str__(text)[:_MOST].split())[:1000])


def place_of(error: BaseException, skipped: int = 0) -> str:
    """Where it was raised, as "file.py:12 in function"; `skipped`: so many outer frames are the caller's own."""
    frames = list(traceback.walk_tb(error.__traceback__))[skipped:]
    if not frames:
        return ""
    frame, line = frames[-1]
    return shown(f"{Path(frame.f_code.co_filename).name}:{line} in {frame.f_code.co_name}")


def said(error: BaseException, skipped: int = 0) -> str:
    """It in a line: class, message, place."""
    text, place = text_of(error)[:LONGEST], place_of(error, skipped)
    return kind_of(error) + (f": {text}" if text else "") + (f" ({place})" if place else "")


def story(error: BaseException) -> str:
    """What stands behind it, in a line: the exceptions of a group, its causes. Empty where there is nothing."""
    parts = [f"of them {'; '.join(inner)}"] if (inner := list(_members(error))) else []
    links = list(_links(error))
    parts += [f"{how} {said(link)}" for how, link in links[:LINKS]]
    more = len(links) - LINKS
    return "; ".join([*parts, f"and {more} more causes"] if more > 0 else parts)


def passes_through(error: BaseException, files: Collection[str]) -> bool:
    """Whether it came by way of code in one of these files."""
    return any(frame.f_code.co_filename in files for frame, _ in traceback.walk_tb(error.__traceback__))


def let_go(error: BaseException) -> None:
    """Free what the frames of an error and of its causes hold, which may be all of the memory."""
    for each in (error, *(link for _, link in _links(error))):
        traceback.clear_frames(each.__traceback__)


def _links(error: BaseException) -> Iterator[tuple[str, BaseException]]:
    """Its causes as Python shows them, from the nearest one, each once; they may lead back to the error."""
    seen = {id(error)}
    while len(seen) < _MOST:
        cause, how = _slot(error, "__cause__"), "caused by"
        if cause is None and not _slot(error, "__suppress_context__"):
            cause, how = _slot(error, "__context__"), "raised while handling"
        if cause is None or id(cause) in seen:
            return
        seen.add(id(cause))
        yield how, cause
        error = cause


def _slot(error: BaseException, name: str) -> Any:
    return _SLOTS[name].__get__(error)


def _members(error: BaseException) -> Iterator[str]:
    """The first exceptions of a group."""
    groups = getattr(builtins, "BaseExceptionGroup", None)  # since Python 3.11
    if groups is not None and issubclass(type(error), groups):
        inner = groups.__dict__["exceptions"].__get__(error)
        yield from map(said, inner[:LINKS])
        if len(inner) > LINKS:
            yield f"and {len(inner) - LINKS} more"
