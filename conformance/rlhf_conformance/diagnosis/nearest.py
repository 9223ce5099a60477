"""Which known fault, or which convention that is not declared, answers as the adapter does.

Faults are adapters, and so is the reference made to follow another convention: each of them is put in the place of the
adapter, declares what that declares, and is given the same cases by the same check. One that gives the same answers to
within the budget, fails on the cases that the adapter fails on and passes on the others, is named.

Agreement can be cheap: an adapter that returns NaN whatever it is asked agrees with every fault that returns NaN
where it is looked at. So where the failing answers are few, or all one and the same, and where several candidates
agree, the adapter and the candidates are examined once more on cases of the neighbouring clauses.
"""

from __future__ import annotations

import copy
import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import rlhf_spec.clauses
from rlhf_conformance import budgets
from rlhf_conformance.adapter import DECLARATIONS, METHODS, Adapter, provided
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.checks import Check, checks
from rlhf_conformance.diagnosis import Evidence, Observed, drawn, observe
from rlhf_conformance.diagnosis.conventions import conventions
from rlhf_conformance.faults import Fault, faults
from rlhf_conformance.judge import Comparison
from rlhf_conformance.results import Diagnosis
from rlhf_conformance.subject import Subject

ROUNDINGS = 16
"""How many roundings of its own size a wrong answer may be off by; the budget is that of the right answer."""
TELLING_FAILURES, TELLING_NUMBERS = 3, 4
"""So many failing cases, or different wrong numbers, are no coincidence."""
FURTHER_CASES, LEAST_FURTHER = 2, 4
"""Cases of each neighbouring clause, and how many in all must agree where the evidence itself tells little."""
LISTED = 3


# --- candidates ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Candidate:
    """Something to compare the adapter with.

    says    what it does wrong, or what is declared instead
    rank    the lower, the likelier where several agree
    """

    kind: str
    name: str
    says: str
    adapter: type[Adapter]
    rank: int

    @property
    def label(self) -> str:
        return f"`{self.name}`" if self.kind == "fault" else f"the convention {self.name}"


def candidates(check: Check, adapter: Adapter) -> list[Candidate]:
    """Whatever can be told from the reference by this check, the likeliest first: conventions that the adapter does
    not declare, the faults of the clause itself, of its chapter, and the rest."""
    found = []
    for convention in conventions():
        declared = convention.declared(adapter)
        if declared is not None and concerns(convention.adapter, check):
            found.append(
                Candidate("convention", convention.name, f"you declared {declared}", convention.adapter, 0)
            )
    for fault in faults().values():
        if concerns(fault.adapter, check):
            rank = 1 if fault.clause == check.slug else 2 if fault.may_fail(check.slug) else 3
            found.append(Candidate("fault", fault.name, _lie(fault), fault.adapter, rank))
    return sorted(found, key=lambda candidate: candidate.rank)


def _lie(fault: Fault) -> str:
    """What the fault does, and where that was seen."""
    lie = fault.lie.rstrip(".")
    if lie[1:2].islower() or lie.startswith("A "):  # a word, and not a symbol of a formula
        lie = lie[0].lower() + lie[1:]
    seen = _evidence().get(fault.bug)
    return f"{lie} (known bug {fault.bug}{f': {seen}' if seen else ''})" if fault.bug else lie


@cache
def _evidence() -> dict[str, str]:
    """Where each known bug was seen: project and issue."""
    return {
        bug: seen
        for clause in rlhf_spec.clauses.clauses()
        for bug, seen in zip(clause.bugs, clause.evidence, strict=True)
    }


@cache
def changed(kind: type[Adapter]) -> frozenset[str]:
    """The methods of the adapter that a variant of the reference may answer otherwise.

    One that changes something which several methods use may change all of them: every formula, or every model.
    """
    bases = kind.__mro__[: kind.__mro__.index(Reference)]
    own = {name for base in bases for name in vars(base) if not name.startswith("__")} - {"name", *DECLARATIONS}
    methods = own & set(METHODS)
    if own == methods and methods:
        return frozenset(methods)
    models = _of_models() & methods
    formulas = (methods - models) or (set() if models else set(METHODS) - _of_models())
    return frozenset((_of_models() if models or not methods else set()) | formulas)


@cache
def _of_models() -> frozenset[str]:
    """The methods that concern a model."""
    return frozenset(METHODS[METHODS.index("load_actor") : METHODS.index("policy_loss")])


def concerns(kind: type[Adapter], check: Check) -> bool:
    """Whether the check can tell this adapter from the reference."""
    return bool(changed(kind) & set(check.needs))


# --- in the adapter's place ---------------------------------------------------------------------------------------


class Models:
    """Models that the reference has loaded, for candidates: loading takes most of the time of asking one.

    A model is shared by those who load it as the reference does, as long as it stays as it was; whoever does more about
    loading gets a copy.
    """

    def __init__(self) -> None:
        self._masters: dict[Any, Any] = {}
        self._shared: dict[Any, tuple[Any, Any]] = {}

    def get(self, key: Any, load: Callable[[], Any], *, shared: bool) -> Any:
        if key not in self._masters:
            self._masters[key] = load()
        if not shared:
            return copy.deepcopy(self._masters[key])
        if key not in self._shared or _state(self._shared[key][0]) != self._shared[key][1]:
            model = copy.deepcopy(self._masters[key])
            self._shared[key] = model, _state(model)
        return self._shared[key][0]


def _state(model: Any) -> Any:
    """What somebody may have changed about a model: modes, hooks, attributes, and whether a tensor was written to."""
    modules = [(type(m), _shallow(vars(m)), len(m._parameters)) for m in model.modules()]
    tensors = [(id(x), x._version, x.requires_grad) for x in (*model.parameters(), *model.buffers())]
    configs = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}
    return modules, tensors, [_shallow(vars(config)) for config in configs.values()]


def _shallow(attributes: dict[str, Any]) -> list[Any]:
    plain = (bool, int, float, str, type(None))
    return [
        (name, value if isinstance(value, plain) else (id(value), len(value) if isinstance(value, dict) else 0))
        for name, value in attributes.items()
    ]


class _Loading(Reference):
    """Stands between a candidate and the reference, and loads models for it."""

    models: Models

    def load_actor(self, checkpoint):
        return self._had("load_actor", checkpoint, super().load_actor)

    def load_reward_model(self, checkpoint):
        return self._had("load_reward_model", checkpoint, super().load_reward_model)

    def load_critic(self, checkpoint):
        return self._had("load_critic", checkpoint, super().load_critic)

    def _had(self, name: str, checkpoint: Any, load: Callable[[Any], Any]) -> Any:
        if type(self)._options is not Reference._options:
            return load(checkpoint)
        key = name, checkpoint, self.attention, self.lora
        own = getattr(type(self), name) is not getattr(_Loading, name)
        return self.models.get(key, lambda: load(checkpoint), shared=not own)


class Impostors:
    """Makes subjects of candidates: each declares, and lacks, what the user's adapter does."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self._models = Models()
        self._made: dict[type[Adapter], Subject] = {}

    def of(self, kind: type[Adapter]) -> Subject:
        """The subject of a candidate, with an oracle that it shares with the user's."""
        if kind not in self._made:
            user = self.subject
            self._made[kind] = Subject(self._adapter(kind), user.device, user.dtype, user.store, user.truth)
        self._made[kind].forget_models()
        return self._made[kind]

    def _adapter(self, kind: type[Adapter]) -> Adapter:
        lacking = set(METHODS) - set(provided(self.subject.adapter))
        blanks = {name: getattr(Adapter, name) for name in lacking}
        bases = (_Loading,) if kind is Reference else (kind, _Loading)
        adapter: Any = type(kind.__name__, bases, {**blanks, "models": self._models})()
        for name in DECLARATIONS:
            setattr(adapter, name, getattr(self.subject.adapter, name))
        return adapter


# --- agreement ----------------------------------------------------------------------------------------------------


def agrees(user: Observed, other: Observed, unit: float) -> bool:
    """Whether two adapters answered a case alike: the same comparisons, the same outcome, and numbers that lie within
    the budget of each other."""
    if user.failed != other.failed or kind_of(user.ended) != kind_of(other.ended):
        return False
    if len(user.comparisons) != len(other.comparisons):
        return False
    return all(_alike(a, b, unit) for a, b in zip(user.comparisons, other.comparisons, strict=True))


def kind_of(ended: str) -> str:
    """What ended a check, without the numbers, the text and the place of an exception."""
    method, raised, rest = ended.partition(" raised ")
    text = f"{method}{raised}{rest.split(':')[0]}" if raised else ended
    return re.sub(r"-?\d+(\.\d+)?(e[+-]?\d+)?|\bnan\b|\binf\b", "#", text)


def _alike(a: Comparison, b: Comparison, unit: float) -> bool:
    if (a.broken is None) != (b.broken is None):
        return False
    if a.what != b.what:  # the entry that is furthest off is compared, and where none is wrong that is any
        return a.broken is None and kind_of(a.what) == kind_of(b.what)
    if a.indices != b.indices:
        return False
    numbers = zip(a.actual, b.actual, a.expected, b.expected, a.allowed, strict=True)
    return all(_near(*row, unit) for row in numbers)


def _near(a: float, b: float, wanted: float, b_wanted: float, allowed: float, unit: float) -> bool:
    """Two answers, each with what was expected of it (which may be an answer, too), within the budget of each other.

    Two right answers may lie on either side of the truth.
    """
    wrong = [not _within(x, y, allowed) for x, y in ((a, wanted), (b, b_wanted))]
    if wrong[0] != wrong[1]:
        return False
    largest = max((abs(x) for x in (a, b, wanted, b_wanted) if math.isfinite(x)), default=0.0)
    apart = allowed * (1 if wrong[0] else 2) + ROUNDINGS * unit * largest
    return _within(a, b, apart) and _within(wanted, b_wanted, apart)


def _within(a: float, b: float, apart: float) -> bool:
    return a == b or (math.isnan(a) and math.isnan(b)) or abs(a - b) <= apart


def distance(user: Observed, other: Observed) -> float:
    """The largest difference of two adapters that agree on a case, as a share of the budget."""
    pairs = zip(user.comparisons, other.comparisons, strict=True)
    shares = [
        abs(x - y) / allowed
        for a, b in pairs
        for x, y, allowed in zip(a.actual, b.actual, a.allowed, strict=False)
        if allowed > 0 and math.isfinite(x - y)
    ]
    return max(shares, default=0.0)


# --- the evidence -------------------------------------------------------------------------------------------------


def tells(seen: Sequence[Observed]) -> bool:
    """Whether an agreement on these cases is no coincidence: enough of them fail, and not all in the same way."""
    wrong = {kind_of(o.ended) for o in seen if o.ended} | {f"{x:.4g}" for o in seen for x in _wrong_numbers(o)}
    failing = sum(o.failed for o in seen)
    return len(wrong) >= TELLING_NUMBERS or (failing >= TELLING_FAILURES and len(wrong) > 1)


def _wrong_numbers(seen: Observed) -> Iterator[float]:
    for comparison in seen.broken:
        for actual, expected, allowed in zip(
            comparison.actual, comparison.expected, comparison.allowed, strict=True
        ):
            if not _within(actual, expected, allowed):
                yield actual


@dataclass
class Suspect:
    """A candidate that agrees with the adapter so far.

    apart       the largest difference, as a share of the budget
    further     cases of neighbouring clauses on which it agrees, and on which it does not
    """

    candidate: Candidate
    apart: float = 0.0
    agreed: int = 0
    parted: int = 0

    @property
    def order(self) -> tuple[Any, ...]:
        """The likeliest first: who agrees on the neighbouring clauses, and whose own clause this is."""
        known = "known bug" in self.candidate.says
        return self.parted, self.candidate.rank, not known, self.apart


def _suspects(evidence: Evidence, impostors: Impostors) -> list[Suspect]:
    """Those who agree on every case: all are asked for the smallest, and who is left for the others.

    Whoever could not be compared in full before it was late is let go.
    """
    unit = budgets.unit(evidence.subject.dtype)
    half = (time.monotonic() + evidence.until) / 2
    suspects = []
    for candidate in candidates(evidence.check, evidence.subject.adapter):
        suspect = Suspect(candidate)
        if time.monotonic() < half and _agrees_on(evidence.smallest, evidence.check, suspect, impostors, unit):
            suspects.append(suspect)
    for seen in evidence.more if suspects else ():
        suspects = [s for s in suspects if not evidence.late and _agrees_on(seen, evidence.check, s, impostors, unit)]
    return suspects


def _agrees_on(seen: Observed, check: Check, suspect: Suspect, impostors: Impostors, unit: float) -> bool:
    """Ask a suspect, whose errors are its own affair."""
    try:
        other = observe(check, impostors.of(suspect.candidate.adapter), seen.case)
    except Exception:
        return False
    if not agrees(seen, other, unit):
        return False
    suspect.apart = max(suspect.apart, distance(seen, other))
    return True


def _neighbours(check: Check, adapter: Adapter) -> list[Check]:
    """Checks of the chapter that ask the same methods, and that the adapter can be asked."""
    return [
        other
        for other in checks().values()
        if other.slug.split(".")[0] == check.slug.split(".")[0]
        and other is not check
        and set(other.needs) <= set(check.needs)
        and not other.single
        and other.not_provided(adapter) is None
    ]


def _examine(evidence: Evidence, suspects: list[Suspect], impostors: Impostors) -> None:
    """The suspects and the adapter on some cases of the neighbouring clauses, as long as there is time."""
    unit = budgets.unit(evidence.subject.dtype)
    for check in _neighbours(evidence.check, evidence.subject.adapter):
        for case in drawn(check, evidence.subject, FURTHER_CASES, evidence.seed):
            if evidence.late:
                return
            try:
                seen = observe(check, evidence.subject, case)
            except Exception:  # a part that the trainer does not return
                continue
            for suspect in suspects:
                if _agrees_on(seen, check, suspect, impostors, unit):
                    suspect.agreed += 1
                else:
                    suspect.parted += 1


# --- what is said -------------------------------------------------------------------------------------------------


def diagnoses(evidence: Evidence) -> tuple[Diagnosis, ...]:
    """Those that agree with the adapter on every case of the evidence, the likeliest first."""
    suspects = agreeing(evidence)
    return _said(suspects, (evidence.smallest, *evidence.more)) if suspects else ()


def agreeing(evidence: Evidence) -> list[Suspect]:
    """Everyone that answers as the adapter does, the likeliest first; nobody where that may be a coincidence."""
    impostors = Impostors(evidence.subject)
    suspects = _suspects(evidence, impostors)
    if not suspects:
        return []
    enough = tells((evidence.smallest, *evidence.more))
    if not enough or len(suspects) > 1:
        _examine(evidence, suspects, impostors)
    if not enough:
        suspects = [s for s in suspects if not s.parted and s.agreed >= LEAST_FURTHER]
    least = min((s.parted for s in suspects), default=0)
    return sorted((s for s in suspects if s.parted == least), key=lambda s: s.order)


def _said(suspects: Sequence[Suspect], seen: Sequence[Observed]) -> tuple[Diagnosis, ...]:
    """One diagnosis for each of a few; of many only the first, and how many more there are."""
    failing = sum(o.failed for o in seen)
    on = f"on {len(seen)} cases, {failing} of them failing" if len(seen) > 1 else "on the failing case"
    shown = suspects if len(suspects) <= LISTED else suspects[:1]
    others = "" if shown is suspects else f"; or {len(suspects) - 1} others that answer alike here"
    return tuple(
        Diagnosis(
            s.candidate.kind,
            s.candidate.name,
            f"agrees with {s.candidate.label} {on}: {s.candidate.says}{others}",
        )
        for s in shown
    )
