"""Where the gate's time goes, in one run in one process.

    python -m tests.proof bench [ADAPTER]

prints the wall time, the shares of adapter, oracle and the rest, and the examples per second of each check. Red where
the share outside adapter, oracle and imports is more than 25 %.
"""

from __future__ import annotations

import collections
import functools
import inspect
import pkgutil
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

from rlhf_conformance.adapter import METHODS
from rlhf_conformance.results import Result
from rlhf_conformance.run.plan import Plan
from rlhf_conformance.run.suite import Suite

ALLOWED = 0.25


class Clock:
    """Seconds by part. Whoever is entered last has the time, until it is left."""

    def __init__(self) -> None:
        self.seconds: collections.Counter[str] = collections.Counter()
        self._inside = ["the rest"]
        self._since = time.perf_counter()

    def _turn(self) -> None:
        now = time.perf_counter()
        self.seconds[self._inside[-1]] += now - self._since
        self._since = now

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, whose time counts for `part`."""

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            self._turn()
            self._inside.append(part)
            try:
                return function(*args, **kwargs)
            finally:
                self._turn()
                self._inside.pop()

        return call

    def watch(self, owner: Any, part: str, *names: str) -> None:
        """Time these functions of a class, an object or a module."""
        for name in names:
            setattr(owner, name, self.timed(part, getattr(owner, name)))


def watched(suite: Suite) -> Clock:
    """A clock at everything that has a part of its own."""
    import rlhf_spec
    from rlhf_conformance.chapters._losses.loss import Loss
    from rlhf_conformance.chapters._models.roles import Role
    from rlhf_conformance.judging.judge import Judge
    from rlhf_conformance.judging.picks import Picked
    from rlhf_conformance.judging.subject import Subject
    from rlhf_conformance.judging.trying import _Trial
    from rlhf_conformance.oracle import budgets
    from rlhf_conformance.oracle.probes import ProbeStore
    from rlhf_conformance.oracle.truth import Truth

    clock = Clock()
    clock.watch(suite.adapter, "adapter", *(name for name in METHODS if hasattr(suite.adapter, name)))
    clock.watch(Subject, "adapter", "gradients")
    clock.watch(Truth, "oracle", *functions(Truth))
    for module in (
        *(pkgutil.resolve_name(f"rlhf_spec.{m.name}") for m in pkgutil.iter_modules(rlhf_spec.__path__)),
        budgets,
    ):
        clock.watch(module, "oracle", *functions(module))
    clock.watch(Loss, "oracle", "value", "gradient", "value_budget", "gradient_budgets")
    clock.watch(Role, "oracle", "expected", "budget")
    clock.watch(Picked, "drawing cases", "case")
    clock.watch(_Trial, "checks", "attempt")
    clock.watch(ProbeStore, "making probes", "path")
    clock.watch(Judge, "judging", "compare", "state")
    clock.watch(Subject, "isolating and validating", *set(functions(Subject)) - {"gradients"})
    return clock


def functions(owner: type | ModuleType) -> list[str]:
    """Its own public functions."""
    own = vars(owner).items()
    home = owner.__name__ if isinstance(owner, ModuleType) else owner.__module__
    return [n for n, f in own if inspect.isfunction(f) and f.__module__ == home and not n.startswith("_")]


def run(name: str = "reference") -> int:
    suite = Suite(Plan(adapter=name))
    suite.prepare()
    clock, started = watched(suite), time.perf_counter()
    results = [suite.run(slug) for slug in suite.slugs]
    clock._turn()
    return show(results, clock.seconds, time.perf_counter() - started, suite.import_seconds)


def show(results: list[Result], seconds: collections.Counter[str], wall: float, imports: float) -> int:
    tried = [result for result in results if result.examples]
    examples = sum(result.examples for result in tried)
    print(f"the gate, {len(tried)} clauses on one core: {wall:.1f} s after {imports:.1f} s of imports")
    print(f"{examples} examples, {examples / wall:.0f} a second")
    for part, spent in seconds.most_common():
        print(f"  {part:26}{spent:6.1f} s {spent / wall:7.1%}")
    rest = 1 - (seconds["adapter"] + seconds["oracle"]) / wall
    print(f"outside adapter and oracle: {rest:.1%} (allowed {ALLOWED:.0%})")
    print("examples a second:")
    for result in sorted(tried, key=lambda r: r.examples / max(r.seconds, 1e-3)):
        print(f"  {result.clause:36}{result.examples / max(result.seconds, 1e-3):8.1f}  ({result.seconds:.2f} s)")
    return 0 if rest <= ALLOWED else 1
