"""The pytest plugin: a `Suite` in a test module is collected as one item for each clause.

Items are named `clause[device-dtype]`, so that -k, -x, --lf, xdist and JUnit work as with any test. The result of each
travels with its report (`user_properties`), which is how the command line gets it back from the workers.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rlhf_conformance.loading import LoadError
from rlhf_conformance.results import (
    ERROR,
    FAIL,
    INCONCLUSIVE,
    KNOWN_FAILURE,
    NOT_PROVIDED,
    PASS,
    SKIP,
    UNEXPECTED_PASS,
    Result,
)
from rlhf_conformance.suite import Plan, Suite, UsageError

PROPERTY = "rlhf_conformance"
LOADING_LIMIT = 300.0
"""Seconds for importing and constructing the adapter, which a worker does once."""
UNUSABLE = "rlhf_conformance_unusable"
PLAN_OPTION = "--rlhf-conformance-plan"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("rlhf-conformance")
    group.addoption(PLAN_OPTION, default=None, help="used by the rlhf-conformance command to reach its workers")


def pytest_pycollect_makeitem(collector: Any, name: str, obj: Any) -> Any:
    if isinstance(obj, Suite):
        return ClauseCollector.from_parent(collector, name=name, suite=obj)
    return None


def pytest_configure(config: Any) -> None:
    """A worker of the command ends without taking its libraries apart, which takes torch more than a second."""
    if hasattr(config, "workerinput") and config.getoption(PLAN_OPTION) is not None:
        atexit.register(_end_now)  # the first to be registered is the last to be called


def _end_now() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def pytest_collect_file(file_path: Path, parent: Any) -> Any:
    """The command's own entry: a file that is never imported, behind which stands the plan on the command line."""
    text = parent.config.getoption(PLAN_OPTION)
    if text is None or file_path.name != ENTRY.name:
        return None
    return PlanFile.from_parent(parent, path=file_path, suite=_suite_of(parent.config, text))


def _suite_of(config: Any, text: str) -> Suite:
    if not hasattr(config, "_rlhf_conformance_suite"):
        config._rlhf_conformance_suite = Suite(Plan.from_json(text))
    return config._rlhf_conformance_suite  # type: ignore[no-any-return]


ENTRY = Path(__file__).with_name("clauses.plan")


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

    def runtest(self) -> None:
        try:
            with _time_limit(self.suite, self.slug, LOADING_LIMIT):
                self.suite.prepare()
                if self.suite.plan.folder:
                    loaded_marker(self.suite.plan).touch()
            with _time_limit(self.suite, self.slug, self.suite.plan.limit):
                result = self.suite.run(self.slug, self._keep)
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
        if result.verdict in (FAIL, ERROR, UNEXPECTED_PASS, INCONCLUSIVE):
            raise ClauseFailed(result)
        assert result.verdict == PASS

    def _keep(self, result: Result) -> None:
        """What was found stays found, whatever the adapter does while it is looked into."""
        if self.suite.plan.folder:
            path = found_file(self.suite.plan, self.slug)
            path.write_text(json.dumps(result.to_json()))

    @property
    def _lenient(self) -> bool:
        return not self.suite.plan.strict

    def repr_failure(self, excinfo: Any, style: Any = None) -> Any:
        if isinstance(excinfo.value, ClauseFailed):
            from rlhf_conformance.terminal import describe

            return describe(excinfo.value.result)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int, str]:
        return self.path, 0, f"clause {self.name}"


@contextlib.contextmanager
def _time_limit(suite: Suite, slug: str, seconds: float) -> Iterator[None]:
    """In a worker of the command: end the process where a clause hangs, and leave the stack where the command finds it.

    faulthandler's timer needs no cooperation of what hangs, not even the interpreter's lock.
    """
    if not suite.plan.folder:
        yield
        return
    path = stack_file(suite.plan, slug)
    with path.open("w") as file:
        faulthandler.dump_traceback_later(seconds, exit=True, file=file)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
    path.unlink()


def stack_file(plan: Plan, slug: str) -> Path:
    """Where the stack of a clause that ran out of time is written."""
    return Path(plan.folder) / f"{slug}.stack"


def found_file(plan: Plan, slug: str) -> Path:
    """Where the failure of a clause is kept until its result has been handed over."""
    return Path(plan.folder) / f"{slug}.found.json"


def loaded_marker(plan: Plan) -> Path:
    """Exists as soon as any worker has imported and constructed the adapter."""
    return Path(plan.folder) / "loaded"


def pytest_sessionfinish(session: Any) -> None:
    """A worker tells the command what it ran with."""
    suite = getattr(session.config, "_rlhf_conformance_suite", None)
    if suite is not None and hasattr(session.config, "workeroutput") and suite._subject is not None:
        from rlhf_conformance.suite import environment

        session.config.workeroutput["rlhf_environment"] = environment(suite.plan)
        session.config.workeroutput["rlhf_subject"] = suite.describe()
        session.config.workeroutput["rlhf_import_seconds"] = suite.import_seconds
