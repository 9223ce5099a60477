"""Where the gate's time goes, in one run in one process: a sample of the stack every few milliseconds.

    python -m tests.proof bench [ADAPTER]

prints the wall time, the shares of adapter, oracle and the rest, and the examples per second of each check. Red where
the share outside adapter, oracle and imports is more than 25 %.
"""

from __future__ import annotations

import collections
import sys
import threading
import time
from types import FrameType

from rlhf_conformance.results import Result
from rlhf_conformance.suite import Plan, Suite

INTERVAL = 0.002
ALLOWED = 0.25

PLACES = (
    ("adapter", "subject.py", ("uncopied", "gradients")),
    ("oracle", "truth.py", ()),
    ("oracle", "/rlhf_spec/", ()),
    ("oracle", "budgets.py", ()),
    ("probes", "probes.py", ()),
    ("drawing cases", "hypothesis/control.py", ("prep_args_kwargs_from_strategies",)),
    ("judging", "judge.py", ()),
    ("isolation", "subject.py", ()),
    ("checks", "/checks/", ()),
    ("Hypothesis", "/hypothesis/", ()),
)
"""What a frame of the stack says about the time: the outermost row that fits it. (part, in the file's path, functions)"""


def part_of(frame: FrameType | None) -> str:
    """Which part of the suite a stack belongs to: the first row of PLACES that fits any of its frames."""
    stack = []
    while frame is not None:
        code = frame.f_code
        stack.append((getattr(code, "co_filename", ""), getattr(code, "co_name", "")))  # compiled frames may lack them
        frame = frame.f_back
    for part, file, functions in PLACES:
        if any(file in name and (not functions or function in functions) for name, function in stack):
            return part
    return "the rest"


class Sampler(threading.Thread):
    """Counts, for the thread that made it, which part it is in."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.watched = threading.get_ident()
        self.counts: collections.Counter[str] = collections.Counter()
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(INTERVAL):
            self.counts[part_of(sys._current_frames().get(self.watched))] += 1


def run(adapter: str = "reference") -> int:
    sys.setswitchinterval(INTERVAL / 4)
    suite = Suite(Plan(adapter=adapter))
    suite.prepare()
    sampler, started = Sampler(), time.perf_counter()
    sampler.start()
    results = [suite.run(slug) for slug in suite.slugs]
    sampler.over.set()
    wall = time.perf_counter() - started
    return show(results, sampler.counts, wall, suite.import_seconds)


def show(results: list[Result], counts: collections.Counter[str], wall: float, imports: float) -> int:
    tried = [result for result in results if result.examples]
    print(f"gate of {len(tried)} clauses on one core: {wall:.1f} s after {imports:.1f} s of imports")
    print(f"{sum(r.examples for r in tried)} examples, {sum(r.examples for r in tried) / wall:.0f} a second")
    total = sum(counts.values())
    for part, count in counts.most_common():
        print(f"  {part:14}{count / total:7.1%}")
    rest = 1 - (counts["adapter"] + counts["oracle"]) / total
    print(f"outside adapter and oracle: {rest:.1%} (allowed {ALLOWED:.0%})")
    print("examples a second:")
    for result in sorted(tried, key=lambda r: r.examples / max(r.seconds, 1e-3)):
        print(f"  {result.clause:36}{result.examples / max(result.seconds, 1e-3):8.1f}  ({result.seconds:.2f} s)")
    return 0 if rest <= ALLOWED else 1
