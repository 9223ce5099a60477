"""The decisions of the specification, read from ``decisions.md``: each a name and the paragraphs below it."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path


@functools.cache
def decisions() -> Mapping[str, str]:
    """The text of each decision, by its name, in the order of the file.

    >>> decisions()["truncation"].split()[0]
    'A'
    """
    _, *sections = ("\n" + Path(__file__).with_suffix(".md").read_text(encoding="utf-8")).split("\n## ")
    pairs = (section.partition("\n") for section in sections)
    return {name.strip(): text.strip() for name, _, text in pairs}
