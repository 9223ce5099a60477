"""Text of an adapter in places where some of it would be a command: a line on a terminal, a job's log, Markdown."""

from __future__ import annotations

import re

_COMMAND = re.compile(r"^(\s*)::", re.MULTILINE)
_LINK = re.compile(r"([@#])(?=\w)")
_BLOCK = re.compile(r"^([#>+=-](?!\d)|\d+(?=[.)](?:\s|$)))")


def printable(text: str) -> str:
    """Characters that nobody sees, as escapes of Python: control characters, escape sequences, lone surrogates,
    marks that turn the direction of writing."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def line(text: str) -> str:
    """Text as one line that can be printed."""
    return printable(" ".join(text.split()))


def logged(text: str) -> str:
    """Lines that can be printed, none of which is a command to GitHub: it reads `::` at the start of a line as one,
    and `##[` anywhere."""
    lines = "\n".join(printable(part) for part in text.split("\n"))
    return _COMMAND.sub(r"\1\\::", lines).replace("##[", r"##\[")


def markdown(text: str) -> str:
    """Text outside of code as Markdown that shows it: no markup, and neither a mention nor the number of an issue,
    which GitHub makes links of even where the sign is written as an entity."""
    for sign in "\\*_[]~`":
        text = text.replace(sign, f"\\{sign}")
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _LINK.sub(r"\1&#8203;", text)


def unblocked(text: str) -> str:
    """A line of Markdown that is neither a heading nor an item of a list."""
    return _BLOCK.sub(lambda match: match[0] + "&#8203;" if match[0].isdigit() else "\\" + match[0], text)
