"""How a run goes, while it goes: a bar on a terminal, and elsewhere a line now and then."""

from __future__ import annotations

import contextlib
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from rlhf_conformance.reporting.terminal import STYLES
from rlhf_conformance.results import NOT_PROVIDED, PASS, Result
from rlhf_conformance.run.progress import Standing, in_words

EVERY = 9.0
"""Seconds between two lines, so that with what delays them there is one at least every 10 s."""
EACH = 25
"""Beside them, a line whenever so many clauses are done."""
SHOWN = 4
"""At most so many of the clauses that run are named."""


class Shown:
    """Shows the progress of a run on a console. Used as a context, so that the terminal is left as it was."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last = time.monotonic()
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        if is_live(console):
            columns = BarColumn(bar_width=20), TextColumn("{task.description}", markup=False)
            self._bar = Progress(*columns, console=console, transient=True, refresh_per_second=4)

    def __enter__(self) -> Shown:
        if self._bar is not None:
            self._task = self._bar.add_task("starting", total=None)
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bar is not None:
            with contextlib.suppress(OSError):  # the terminal may be gone
                self._bar.stop()

    def result(self, result: Result, done: int, total: int) -> None:
        """A line for each clause that is worth one; off a terminal, a line for some number of them."""
        if result.verdict not in (PASS, NOT_PROVIDED):
            style = STYLES[result.verdict]
            self._print(f"[{style}]{result.verdict:>15}[/] {result.clause}")
        if self._bar is None and (done % EACH == 0 or done == total):
            self._print(f"{done:>4} of {total} clauses")

    def standing(self, standing: Standing) -> None:
        """Off a terminal, nothing where the run is over before there is something to say."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=line(standing), completed=standing.done, total=standing.total)
        elif time.monotonic() - self._last > EVERY:
            self._last = time.monotonic()
            self._print(line(standing))

    def _print(self, text: str) -> None:
        with contextlib.suppress(OSError):  # where nobody listens any more, the report is still to be written
            self._console.print(text, highlight=False, soft_wrap=True)


def is_live(console: Console) -> bool:
    """Whether lines can be drawn over. CI services ask for colors, which makes no terminal of a file."""
    return console.is_terminal and not console.is_dumb_terminal and console.file.isatty()


def line(standing: Standing) -> str:
    """ "12 of 131 clauses, about 8 min left, trying log-probs.gradient": plain text for one line."""
    said = [f"{standing.done:>4} of {standing.total} clauses"]
    said += [f"about {in_words(standing.left)} left" if standing.left is not None else "time left not known yet"]
    if standing.budget_left is not None and (standing.left is None or standing.left > standing.budget_left):
        said += [f"budget ends in {in_words(max(0.0, standing.budget_left))}"]
    names = list(standing.running[:SHOWN])
    more = len(standing.running) - len(names)
    said += [f"trying {' and '.join(names)}" + (f" and {more} more" if more else "")] * bool(names)
    return ", ".join(said)
