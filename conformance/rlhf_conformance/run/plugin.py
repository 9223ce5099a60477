"""The pytest plugin: a `Suite` in a test module is collected as one item for each clause.

Items are named `clause[device-dtype]`, so that -k, -x, --lf, xdist and JUnit work as with any test. The result of each
travels with its report (`user_properties`), which is how the command line gets it back from the workers.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rlhf_conformance.results import (
    ERROR,
    FAIL,
    INCONCLUSIVE,
    KNOWN_FAILURE,
    LOST,
    NOT_PROVIDED,
    PASS,
    SKIP,
    UNEXPECTED_PASS,
    Result,
)
from rlhf_conformance.run import workers
from rlhf_conformance.run.loading import LoadError, UsageError
from rlhf_conformance.run.plan import Plan
from rlhf_conformance.run.suite import Suite, environment

PROPERTY = "rlhf_conformance"
LOADING_LIMIT = 300.0
"""Seconds for importing and constructing the adapter, which a worker does once."""
COUNTING = 2.0
"""Seconds between two words on how far a clause has come."""
UNUSABLE = "rlhf_conformance_unusable"
UNSEEN = "rlhf_conformance_unseen"
"""Under this a worker says at its end what `Suite.unseen` found."""
PLAN_OPTION = "--rlhf-conformance-plan"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("rlhf-conformance")
    group.addoption(PLAN_OPTION, default=None, help="used by the rlhf-conformance command to reach its workers")


def pytest_pycollect_makeitem(collector: Any, name: str, obj: Any) -> Any:
    if isinstance(obj, Suite):
        return ClauseCollector.from_parent(collector, name=name, suite=obj)
    return None


def pytest_configure(config: Any) -> None:
    """A worker of the command takes nothing else down where it dies, and ends without taking its libraries apart."""
    if hasattr(config, "workerinput") and config.getoption(PLAN_OPTION) is not None:
        workers.settle()
        atexit.register(workers.end)  # the first to be registered is the last to be called
        config.pluginmanager.register(_Worker(config))


class _Worker:
    """What a worker of the command does besides running clauses."""

    def __init__(self, config: Any) -> None:
        self.config = config

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: Any) -> None:
        """Where CUDA is beyond use, end, now that the verdict has been sent: the next clause gets a new process."""
        suite = getattr(self.config, "_rlhf_conformance_suite", None)
        if report.when == "call" and suite is not None and suite.poisoned:
            workers.end(1)

    def pytest_sessionfinish(self) -> None:
        """Before xdist takes leave: whether this process still judges."""
        suite = getattr(self.config, "_rlhf_conformance_suite", None)
        if suite is not None:
            self.config.workeroutput[UNSEEN] = suite.unseen()

    def pytest_unconfigure(self) -> None:
        workers.end_soon()


def pytest_runtest_teardown(item: Any, nextitem: Any) -> None:
    """Behind the last clause of a suite in a test module: whether this process still judges."""
    if isinstance(item, ClauseItem) and not item.suite.plan.folder:
        if not isinstance(nextitem, ClauseItem) or nextitem.suite is not item.suite:
            why = item.suite.unseen()
            if why:
                pytest.fail(f"INCOMPLETE: no pass of this suite is believed: {why}", pytrace=False)


def pytest_collect_file(file_path: Path, parent: Any) -> Any:
    """The command's own entry: a file that is never imported, behind which stands the plan on the command line."""
    text = parent.config.getoption(PLAN_OPTION)
    if text is None or file_path.name != ENTRY:
        return None
    return PlanFile.from_parent(parent, path=file_path, suite=_suite_of(parent.config, text))


def _suite_of(config: Any, text: str) -> Suite:
    if not hasattr(config, "_rlhf_conformance_suite"):
        plan = Plan.from_json(text)
        # pytest and xdist have their own ideas of it; what the caller's Python would import is what is judged.
        sys.path[:] = plan.path or sys.path
        config._rlhf_conformance_suite = Suite(plan)
    return config._rlhf_conformance_suite  # type: ignore[no-any-return]


ENTRY = "clauses.plan"
"""The name of the file that the command lets pytest collect. It lies in a folder of its own: beside modules, pytest
would put their folder first on the path."""


class _Clauses(pytest.Collector):
    """Collects one item for each clause of a suite."""

    refuses_nothing = False

    def __init__(self, *, suite: Suite, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.suite = suite

    def collect(self) -> Iterator[pytest.Item]:
        slugs = self.suite.slugs
        if self.refuses_nothing and self.suite.provides_nothing:
            raise pytest.Collector.CollectError(
                f"{type(self.suite.adapter).__name__} provides no method that a selected clause needs: "
                "nothing would be tested"
            )
        for slug in slugs:
            name = f"{slug}[{self.suite.plan.where}]"
            # The id as text, since pytest would take the brackets of a name without parameters for something else.
            node = {"nodeid": f"{self.nodeid}::{name}"}
            yield ClauseItem.from_parent(self, name=name, slug=slug, suite=self.suite, **node)


class ClauseCollector(_Clauses):
    """The clauses of a suite in a test module. A suite that would test nothing is an error, never green."""

    refuses_nothing = True


class PlanFile(_Clauses, pytest.File):
    """The clauses of the plan on the command line."""


class ClauseFailed(Exception):
    """Carries a result that is not a pass to pytest."""

    def __init__(self, result: Result) -> None:
        super().__init__(result.reason)
        self.result = result


class ClauseItem(pytest.Item):
    """One clause, tried on the suite's subject."""

    def __init__(self, *, slug: str, suite: Suite, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.slug = slug
        self.suite = suite
        self._counted = 0.0

    def runtest(self) -> None:
        try:
            with self._time_limit(LOADING_LIMIT):
                self.suite.prepare()
                if self.suite.plan.folder:
                    _say_what_is_run(self.suite)
            with self._time_limit(self.suite.plan.limit) as again:
                result = self.suite.run(self.slug, self._keep, self._count, again)
        except (LoadError, UsageError) as error:
            self.user_properties.append((UNUSABLE, str(error)))
            raise
        self.user_properties.append((PROPERTY, result.to_json()))
        if result.verdict in (NOT_PROVIDED, SKIP):
            pytest.skip(f"{result.verdict}: {result.reason}")
        if result.verdict == KNOWN_FAILURE or (
            result.level == "SHOULD" and result.verdict in (FAIL, ERROR) and self._lenient
        ):
            pytest.xfail(f"{result.level} {result.verdict}: {result.reason}")
        if result.verdict in (FAIL, ERROR, UNEXPECTED_PASS, INCONCLUSIVE, LOST):
            raise ClauseFailed(result)
        assert result.verdict == PASS

    def _keep(self, result: Result) -> None:
        """What was found stays found, whatever the adapter does while it is looked into."""
        if self.suite.plan.folder:
            _write_at_once(found_file(self.suite.plan, self.slug), json.dumps(result.to_json()))

    def _count(self, tried: int) -> None:
        """Tell the command how many cases have been tried, which it makes an estimate of."""
        if self.suite.plan.folder and time.monotonic() > self._counted + COUNTING:
            self._counted = time.monotonic()
            _write_at_once(count_file(self.suite.plan, self.slug), str(tried))

    def _time_limit(self, seconds: float) -> contextlib.AbstractContextManager[Callable[[], None] | None]:
        if not self.suite.plan.folder:
            return contextlib.nullcontext()
        worker = getattr(self.config, "workerinput", {}).get("workerid", "")
        return _time_limit(self.suite.plan, self.slug, seconds, worker)

    @property
    def _lenient(self) -> bool:
        return not self.suite.plan.strict

    def repr_failure(self, excinfo: Any, style: Any = None) -> Any:
        if isinstance(excinfo.value, ClauseFailed):
            from rlhf_conformance.reporting.terminal import describe

            return describe(excinfo.value.result)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int, str]:
        return self.path, 0, f"clause {self.name}"


@contextlib.contextmanager
def _time_limit(plan: Plan, slug: str, seconds: float, worker: str) -> Iterator[Callable[[], None]]:
    """In a worker of the command: end the process where a clause hangs, and leave the stack where the command finds it.
    The time begins anew whenever what is yielded is called.

    faulthandler's timer needs no cooperation of what hangs, not even the interpreter's lock. Should the adapter stop
    it, the command ends the process a little later.
    """
    workers.silence()
    stack, running = stack_file(plan, slug), stack_file(plan, slug).with_suffix(".running")
    begun = -math.inf
    with stack.open("w") as file:

        def begin() -> None:
            nonlocal begun
            if time.monotonic() > begun + min(COUNTING, seconds / 4):
                begun = time.monotonic()
                faulthandler.dump_traceback_later(seconds, exit=True, file=file)
                _write_at_once(running, f"{worker} {time.time() + seconds}")

        faulthandler.enable(file)
        begin()
        try:
            yield begin
        finally:
            faulthandler.cancel_dump_traceback_later()
            faulthandler.disable()
            running.unlink()
    stack.unlink()


def _write_at_once(path: Path, text: str) -> None:
    """So that nobody finds half of it."""
    part = path.with_name(f"{path.name}.{os.getpid()}")
    part.write_text(text)
    part.replace(path)


def stack_file(plan: Plan, slug: str) -> Path:
    """Where the stack of a clause that ran out of time is written."""
    return Path(plan.folder) / f"{slug}.stack"


def found_file(plan: Plan, slug: str) -> Path:
    """Where the failure of a clause is kept until its result has been handed over."""
    return Path(plan.folder) / f"{slug}.found.json"


def count_file(plan: Plan, slug: str) -> Path:
    """How many cases of a clause have been tried, as far as it was told."""
    return Path(plan.folder) / f"{slug}.count"


def loaded_marker(plan: Plan) -> Path:
    """Exists as soon as any worker has imported and constructed the adapter, and says what is run."""
    return Path(plan.folder) / "loaded.json"


def _say_what_is_run(suite: Suite) -> None:
    """Tell the command at the first clause, since there may be no process left to do so at the end."""
    if suite.told:
        return
    said = {
        "environment": environment(suite.plan),
        "subject": suite.describe(),
        "import_seconds": suite.import_seconds,
        "cases": suite.cases_to_try(),
        "not_provided": suite.not_provided(),
    }
    _write_at_once(loaded_marker(suite.plan), json.dumps(said))
    suite.told = True
