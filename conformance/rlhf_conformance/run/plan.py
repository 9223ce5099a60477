"""What a run is asked for: which adapter, which clauses, how much of each, on what."""

from __future__ import annotations

import datetime
import difflib
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import rlhf_spec.clauses
from rlhf_conformance.plain import from_plain, to_plain
from rlhf_conformance.run.known import DTYPES, KnownFailure, rows_of
from rlhf_conformance.run.loading import UsageError

PROFILES = ("smoke", "gate", "full")


@dataclass(frozen=True)
class Plan:
    """Everything that a run is asked for, as plain data that can be sent to a worker process.

    adapter     what the user named, or None if the adapter is an object
    only        slug prefixes; empty: all clauses
    time_limit  seconds for a clause; 0: the profile's
    budget      seconds for the whole run; 0: as long as it takes
    pass_env    variables that workers get, whatever they look like
    folder      where probes and the example database lie
    cases       stored cases by slug, which are tried in place of what could be drawn; empty: nothing is replayed
    known_file  where the known failures were read, or an empty string
    accepting   the run is to write the known failures anew: none is excused
    today       the day of the run, as 2030-12-31
    command     what runs the same again, for messages; empty where the run was not begun by a command
    path        where the caller's own Python looks for modules, in that order; empty: the process is the caller's
    """

    adapter: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    device: str = "cpu"
    dtype: str = "float32"
    profile: str = "gate"
    only: tuple[str, ...] = ()
    strict: bool = False
    seed: int = 0
    time_limit: float = 0.0
    budget: float = 0.0
    pass_env: tuple[str, ...] = ()
    folder: str = ""
    database: str = ""
    known_failures: tuple[KnownFailure, ...] = ()
    cases: dict[str, Any] = field(default_factory=dict)
    known_file: str = ""
    accepting: bool = False
    today: str = field(default_factory=lambda: datetime.date.today().isoformat())
    command: str = ""
    path: tuple[str, ...] = ()

    def to_json(self) -> str:
        return json.dumps(to_plain(self))

    @classmethod
    def from_json(cls, text: str) -> Plan:
        return from_plain(cls, json.loads(text))

    @property
    def limit(self) -> float:
        """Seconds that a clause may take."""
        from rlhf_conformance.judging.trying import PROFILES

        return self.time_limit or PROFILES[self.profile].time_limit

    @property
    def over_budget(self) -> str:
        """Why a clause was not tried, or not to its end, where the budget is used up."""
        return over_budget(self.budget)

    @property
    def where(self) -> str:
        """What stands behind a clause in ids and reports."""
        return f"{self.device}-{self.dtype}"


def over_budget(seconds: float) -> str:
    """What ended a run that took longer than it may."""
    return f"the budget of {seconds:g} s was used up"


def planned(known_failures: Path | str | Iterable[KnownFailure], only: Iterable[str], **asked: Any) -> Plan:
    """The plan of whoever asks from Python, validated. Raises UsageError."""
    known, known_file = rows_of(known_failures)
    plan = Plan(only=tuple(only), known_failures=known, known_file=known_file, **asked)
    validate_plan(plan)
    return plan


def validate_plan(plan: Plan) -> None:
    """Raises UsageError for a clause, profile, dtype, device or budget that there is not (or cannot be)."""
    selected(plan.only)
    for what, value, choices in (("dtype", plan.dtype, DTYPES), ("profile", plan.profile, PROFILES)):
        if value not in choices:
            raise UsageError(f"there is no {what} {value!r}; there are {', '.join(choices)}")
    if not 0 <= plan.budget < math.inf:
        raise UsageError(f"a budget of {plan.budget:g} s: wanted a number of seconds above 0, or 0 for none")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", plan.device):
        raise UsageError(f"there is no device {plan.device!r}; there are cpu, cuda, cuda:0, ...")


def selected(only: Sequence[str]) -> tuple[str, ...]:
    """The slugs that are asked for, in the order of the specification: a whole slug means that clause alone, anything
    else all that begin with it. Raises UsageError for a prefix that fits none.
    """
    slugs = tuple(clause.slug for clause in rlhf_spec.clauses.clauses())
    chosen: set[str] = set()
    for prefix in only:
        fitting = {prefix} & set(slugs) or {slug for slug in slugs if slug.startswith(prefix)}
        if not fitting:
            near = difflib.get_close_matches(prefix, slugs, n=2)
            hint = f"; is {' or '.join(near)} meant?" if near else "; `rlhf-conformance list` shows them"
            raise UsageError(f"no clause begins with {prefix!r}{hint}")
        chosen |= fitting
    return tuple(slug for slug in slugs if not only or slug in chosen)
