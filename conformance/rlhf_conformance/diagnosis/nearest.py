"""Which known fault, or which convention that is not declared, answers as the adapter does.

Faults are adapters, and so is the reference made to follow another convention: each of them is put in the place of the
adapter, declares what that declares, and is given the same cases by the same check. One that gives the same answers to
within the budget, fails on the cases that the adapter fails on and passes on the others, is named.

Agreement can be cheap: an adapter that returns NaN whatever it is asked agrees with every fault that returns NaN
where it is looked at. So where the failing answers are few, or all one and the same, and where several candidates
agree, the adapter and the candidates are examined once more on cases of the neighboring clauses.
"""

from __future__ import annotations

import ast
import copy
import functools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import rlhf_spec.clauses
from rlhf_conformance._lazy import torch
from rlhf_conformance.adapter import DECLARATIONS, METHODS, Adapter, provided
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.diagnosis.conventions import conventions
from rlhf_conformance.diagnosis.evidence import Evidence, Observed, Parted, drawn, observe, within
from rlhf_conformance.diagnosis.variations import Variation, conditions, narrowed, variations
from rlhf_conformance.diagnosis.work import OF_A_MODEL
from rlhf_conformance.faults import Fault, changed, faults
from rlhf_conformance.judging.checks import Check, checks
from rlhf_conformance.judging.judge import Comparison
from rlhf_conformance.judging.subject import Subject
from rlhf_conformance.oracle import budgets
from rlhf_conformance.oracle.truth import Truth
from rlhf_conformance.results import Diagnosis

TELLING_FAILURES, TELLING_NUMBERS = 3, 4
"""How many failing cases, and how many different numbers, are no coincidence."""
MORE_OF_THE_SAME, FURTHER_CASES = 8, 2
"""Cases of the clause itself and of each neighboring one, for a further examination."""
LEAST_FURTHER = 4
"""How many further cases must agree where the evidence itself tells little."""
CONFIRMING, DEAR = 8, 4
"""How many neighboring clauses a name has to hold on that nothing speaks against, none of them dearer than that."""
LISTED = 3
VARIED = 3
"""The rank of variations of the reference, of which no single one is likely."""
LIKELY = 1
"""The rank up to which candidates are asked first: conventions, and the faults of the clause itself."""


# --- candidates ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Candidate:
    """Something to compare the adapter with.

    says    what it does wrong, or what is declared instead
    rank    the lower, the likelier where several agree
    bug     the known bug that it re-enacts, empty where it is none
    """

    kind: str
    name: str
    says: str
    adapter: type[Adapter]
    rank: int
    bug: str = ""

    @property
    def label(self) -> str:
        if self.rank == VARIED:
            return self.name
        return f"`{self.name}`" if self.kind == "fault" else f"the convention {self.name}"


def candidates(check: Check, adapter: Adapter) -> list[Candidate]:
    """Whatever may fail this check, the likeliest first: conventions that the adapter does not declare, the faults of
    the clause itself, and other faults that show in its chapter."""
    found = []
    for convention in conventions():
        declared = convention.declared(adapter)
        kind: Any = convention.adapter
        methods = {*changed(kind), *convention.methods}
        if declared is not None and methods & set(check.needs):
            found.append(Candidate("convention", convention.name, f"you declared {declared}", convention.adapter, 0))
    for fault in faults().values():
        if fault.may_fail(check.slug) and concerns(fault.adapter, check):
            rank = 1 if fault.clause == check.slug else 2
            found.append(Candidate("fault", fault.name, _lie(fault), fault.adapter, rank, fault.bug))
    return sorted(found, key=lambda candidate: candidate.rank)


def _lie(fault: Fault) -> str:
    """What the fault does, and where that was seen."""
    lie = fault.lie.rstrip(".")
    if lie[:3] != "NaN" and (lie[1:2].islower() or lie.startswith("A ")):  # a word, and not a symbol of a formula
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


def concerns(kind: Any, check: Check) -> bool:
    """Whether the check can tell this adapter from the reference."""
    return bool(changed(kind) & check.concerns)


_REFERENCE = Candidate("reference", "", "", Reference, VARIED)


# --- in the adapter's place ---------------------------------------------------------------------------------------


class Models:
    """Models that the reference has loaded, for candidates: loading takes most of the time of asking one.

    A model is shared by those who load it as the reference does, as long as it stays as it was; whoever does more about
    loading gets a copy.
    """

    def __init__(self) -> None:
        self._masters: dict[Any, Any] = {}
        self._shared: dict[Any, _Shared] = {}

    def get(self, key: Any, load: Callable[[], Any], *, shared: bool) -> Any:
        """The model of a key, loaded once."""
        if key not in self._masters:
            self._masters[key] = load()
        if not shared:
            return copy.deepcopy(self._masters[key])
        if key not in self._shared or self._shared[key].has_changed():
            self._shared[key] = _Shared(copy.deepcopy(self._masters[key]))
        return self._shared[key].model


class _Shared:
    """A model, and what it was like: modes, hooks, attributes, and how often each tensor was written to."""

    def __init__(self, model: Any) -> None:
        self.model = model
        modules = list(model.modules())
        configs = {id(m.config): m.config for m in modules if hasattr(m, "config")}
        self._attributes = [vars(part) for part in (*modules, *configs.values())]
        self._inner = [x for found in self._attributes for x in found.values() if isinstance(x, dict)]
        self._tensors = [*model.parameters(), *model.buffers()]
        self._was = self._state()

    def has_changed(self) -> bool:
        return self._state() != self._was

    def _state(self) -> Any:
        attributes = [[*map(id, found.values())] for found in (*self._attributes, *self._inner)]
        return attributes, [(x._version, x.requires_grad) for x in self._tensors]


class _Loading(Reference):
    """Stands between a candidate and the reference, and loads models for it."""

    models: Models

    def _shared(self, name: str, checkpoint: Any, load: Callable[[Any], Any]) -> Any:
        if type(self)._options is not Reference._options:
            return load(checkpoint)
        key = name, checkpoint, self.attention, self.lora, self.dora
        own = getattr(type(self), name) is not getattr(_Loading, name)
        return self.models.get(key, lambda: load(checkpoint), shared=not own)


def _through(name: str) -> Any:
    """A method that loads what the reference's method of this name loads, as far as it may be shared."""

    def load(self: Any, checkpoint: Any) -> Any:
        return self._shared(name, checkpoint, getattr(Reference, name).__get__(self))

    return load


for _name, _row in METHODS.items():
    if _row.loads and _row.arguments == ("checkpoint",):
        setattr(_Loading, _name, _through(_name))


class _Remembering:
    """The oracle, which is asked the same for every candidate."""

    def __init__(self, truth: Truth) -> None:
        self._truth = truth
        self._answers: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        ask = getattr(self._truth, name)

        def remembered(*args: Any, **options: Any) -> Any:
            key = f"{name}{args}{options}"
            if key not in self._answers:
                self._answers[key] = ask(*args, **options)
            return self._answers[key]

        return remembered


class Impostors:
    """Makes subjects of candidates: each declares, and lacks, what the user's adapter does."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self._truth: Any = _Remembering(subject.truth)
        self._models = Models()
        self._made: dict[type[Adapter], Subject] = {}

    def of(self, kind: type[Adapter]) -> Subject:
        """The subject of a candidate, with an oracle that it shares with the user's."""
        if kind not in self._made:
            user = self.subject
            self._made[kind] = Subject(self._adapter(kind), user.device, user.dtype, user.store, self._truth)
        self._made[kind].forget_models()
        return self._made[kind]

    def can_be_asked(self, kind: type[Adapter], check: Check) -> bool:
        """Whether a candidate can be made, and takes what the check gives: an extra argument, for one."""
        try:
            return check.not_provided(self.of(kind).adapter) is None
        except Exception:  # its errors are its own affair
            return False

    def _adapter(self, kind: type[Adapter]) -> Adapter:
        asked_for = {name for name, row in METHODS.items() if not row.optional}
        lacking = asked_for - set(provided(self.subject.adapter))
        blanks = {name: getattr(Adapter, name) for name in lacking}
        bases = (_Loading,) if kind is Reference else (kind, _Loading)
        adapter: Any = type(kind.__name__, bases, {**blanks, "models": self._models})()
        for name in DECLARATIONS:
            setattr(adapter, name, getattr(self.subject.adapter, name))
        return adapter


# --- agreement ----------------------------------------------------------------------------------------------------


def agrees(user: Observed, other: Observed, dtype: torch.dtype) -> bool:
    """Whether two adapters answered a case alike: the same comparisons, the same outcome, and numbers that lie within
    the budget of each other. Of parts that the user's trainer does not return, nothing is asked."""
    other = as_far_as(user, other)
    if user.failed != other.failed or kind_of(user.ended) != kind_of(other.ended):
        return False
    if len(user.comparisons) != len(other.comparisons):
        return False
    return all(_alike(a, b, dtype) for a, b in zip(user.comparisons, other.comparisons, strict=True))


def parting(user: Observed, dtype: torch.dtype) -> Callable[[Comparison], None]:
    """Hears the comparisons of another adapter one by one, and raises Parted at the first that `agrees` would not let
    pass, whatever follows."""
    made = {quantity(c.what) for c in user.comparisons}
    left = iter(user.comparisons)

    def heard(comparison: Comparison) -> None:
        if quantity(comparison.what) in made:  # else it may be a part that the user's trainer does not return
            own = next(left, None)
            if own is None or not _alike(own, comparison, dtype):
                raise Parted

    return heard


def as_far_as(user: Observed, other: Observed) -> Observed:
    """What was observed of another adapter, as far as the user's returns the parts that were compared."""
    if user.ended or len(user.comparisons) >= len(other.comparisons):
        return other
    made = {quantity(c.what) for c in user.comparisons}
    return replace(other, comparisons=tuple(c for c in other.comparisons if quantity(c.what) in made))


def quantity(what: str) -> str:
    """What was compared, whichever of several it was."""
    return re.sub(r"\d", "", what)


def kind_of(ended: str) -> str:
    """What ended a check, without numbers and without the place of an exception. Its text counts: two adapters that
    raise a TypeError each may well have nothing else in common."""
    text = re.sub(r" \([^()]*:\d+ in [^()]*\)", "", ended)
    return re.sub(r"-?\d+(\.\d+)?(e[+-]?\d+)?", "#", text)


def _alike(a: Comparison, b: Comparison, dtype: torch.dtype) -> bool:
    if (a.broken is None) != (b.broken is None):
        return False
    if a.what != b.what:  # the entry that is furthest off is compared, and where none is wrong that is any
        return a.broken is None and quantity(a.what) == quantity(b.what)
    if a.indices != b.indices:  # one returns a part that the other does not, and each agrees with itself
        return a.broken is None and bool(a.against and b.against)
    numbers = zip(a.actual, b.actual, a.expected, b.expected, a.allowed, strict=True)
    return all(near_each_other(*row, dtype) for row in numbers)


def near_each_other(a: float, b: float, wanted: float, b_wanted: float, allowed: float, dtype: torch.dtype) -> bool:
    """Two answers, each with what was expected of it (which may be an answer, too), within the budget of each other.

    Two right answers may lie on either side of the truth.
    """
    wrong = [not within(x, y, allowed) for x, y in ((a, wanted), (b, b_wanted))]
    if wrong[0] != wrong[1]:
        return False
    largest = max((abs(x) for x in (a, b, wanted, b_wanted) if math.isfinite(x)), default=0.0)
    apart = budgets.two_answers(allowed, largest, not wrong[0], dtype)
    return within(a, b, apart) and within(wanted, b_wanted, apart)


def distance(user: Observed, other: Observed) -> float:
    """The largest difference of two adapters that agree on a case, as a share of the budget."""
    pairs = zip(user.comparisons, other.comparisons, strict=True)
    shares = [
        abs(x - y) / allowed
        for a, b in pairs
        if a.what == b.what
        for x, y, allowed in zip(a.actual, b.actual, a.allowed, strict=False)
        if allowed > 0 and math.isfinite(x - y)
    ]
    return max(shares, default=0.0)


# --- the evidence -------------------------------------------------------------------------------------------------


def tells(seen: Sequence[Observed]) -> bool:
    """Whether an agreement on these cases is no coincidence: there are several different wrong answers, or several
    failures of somebody who does not always answer the same."""
    failing = [o for o in seen if o.failed]
    wrong = {kind_of(o.ended) for o in failing if o.ended} | {f"{x:.4g}" for o in failing for x in _wrong_numbers(o)}
    answers = {f"{x:.4g}" for o in failing for c in o.comparisons for x in c.actual}
    patterns = {c.actual for o in failing for c in o.broken if not any(c.allowed) and len(set(c.actual)) > 1}
    return max(len(wrong), len(patterns)) >= TELLING_NUMBERS or (
        len(failing) >= TELLING_FAILURES and len(answers) >= TELLING_NUMBERS
    )


def _wrong_numbers(seen: Observed) -> Iterator[float]:
    for comparison in seen.broken:
        for actual, expected, allowed in zip(comparison.actual, comparison.expected, comparison.allowed, strict=True):
            if not within(actual, expected, allowed):
                yield actual


@dataclass
class Suspect:
    """A candidate that agrees with the adapter so far.

    apart       the largest difference, as a share of the budget
    refuted     it disagrees on further cases of the clause itself, or fails on a neighboring one about the same
                methods, where the adapter does not or does otherwise
    agreed      further cases of the clause that the adapter passes, and cases of neighboring clauses about the same
                methods, on which it agrees, too
    parted      cases of those neighboring clauses on which it does not
    elsewhere   cases of neighboring clauses about other methods on which it does not: those may have faults of
                their own
    wrong       it failed on the last case on which it did not agree
    """

    candidate: Candidate
    apart: float = 0.0
    refuted: bool = False
    agreed: int = 0
    parted: int = 0
    elsewhere: int = 0
    wrong: bool = False

    @property
    def against(self) -> tuple[int, int]:
        """What speaks against it."""
        return self.parted, self.elsewhere

    @property
    def order(self) -> tuple[Any, ...]:
        """The likeliest first: the fault of the clause itself, a known bug, the nearest."""
        return *self.against, self.candidate.rank, not self.candidate.bug, self.apart


def _suspects(evidence: Evidence, impostors: Impostors) -> list[Suspect]:
    """Those who agree on every case; the likeliest are asked first."""
    everyone = candidates(evidence.check, evidence.subject.adapter)
    everyone = [c for c in everyone if impostors.can_be_asked(c.adapter, evidence.check)]
    likely = [c for c in everyone if c.rank <= LIKELY]
    others = [c for c in everyone if c.rank > LIKELY]
    return _survivors(likely, evidence, impostors) + _survivors(others, evidence, impostors)


def _varied(made: Callable[..., list[Variation]], evidence: Evidence, impostors: Impostors) -> list[Suspect]:
    """The same of those that no library has."""
    rows = made(evidence.check, evidence.subject.adapter, evidence.smallest)
    found = [Candidate(v.kind, v.name, v.says, v.adapter, VARIED) for v in rows]
    return _survivors(found, evidence, impostors)


_VARIED = (functools.partial(_varied, variations), functools.partial(_varied, narrowed))
"""Those that are confined to some options are asked where no other holds."""


def _survivors(asked: Sequence[Candidate], evidence: Evidence, impostors: Impostors) -> list[Suspect]:
    """All are asked for the smallest case, and who is left for the others. Who could not be asked for all is let go,
    and counted."""
    suspects = [Suspect(candidate) for candidate in asked]
    untried = 0
    for seen in _one_by_one(evidence):
        left: list[Suspect] = []
        for suspect in suspects:
            if evidence.work.asked <= 0:
                untried += 1
            elif _agrees_on(seen, evidence.check, suspect, impostors, evidence, parting(seen, evidence.subject.dtype)):
                left.append(suspect)
        suspects = left
        if not suspects:
            break
    evidence.work.tried += len(asked) - untried
    evidence.work.untried += untried
    return suspects


def _one_by_one(evidence: Evidence) -> Iterator[Observed]:
    """The cases, of which all but the smallest are only tried on the adapter when they are asked for."""
    yield evidence.smallest
    yield from evidence.more


def _agrees_on(
    seen: Observed,
    check: Check,
    suspect: Suspect,
    impostors: Impostors,
    evidence: Evidence,
    heard: Callable[[Comparison], None] | None = None,
) -> bool:
    """Ask a suspect, whose errors are its own affair; `heard` may end it where it does not agree."""
    price = OF_A_MODEL if check.loads else 1
    evidence.work.spend(asked=price)
    try:
        other = observe(check, impostors.of(suspect.candidate.adapter), seen.case, heard)
    except Exception:
        return False
    evidence.work.spend(asked=price * len(other.calls))
    if not agrees(seen, other, evidence.subject.dtype):
        suspect.wrong = other.failed
        return False
    suspect.apart = max(suspect.apart, distance(seen, as_far_as(seen, other)))
    return True


def _neighbors(check: Check, adapter: Adapter) -> list[Check]:
    """Checks of the chapter that the adapter can be asked, those about the same methods first."""
    chapter = check.slug.split(".")[0] + "."
    found = [
        other
        for other in checks().values()
        if other.slug.startswith(chapter)
        and other is not check
        and not other.single
        and other.not_provided(adapter) is None
    ]
    return sorted(found, key=lambda other: not set(other.needs) <= set(check.needs))


def _examine(evidence: Evidence, suspects: list[Suspect], impostors: Impostors, *, thorough: bool) -> None:
    """The suspects and the adapter on more cases, also of the neighboring clauses: of all of them, or of a few about
    the same methods."""
    neighbors = _neighbors(evidence.check, evidence.subject.adapter)
    if not thorough:
        near = [c for c in neighbors if set(c.needs) <= set(evidence.check.needs) and c.effort <= DEAR]
        neighbors = near[:CONFIRMING]
    for check in (evidence.check, *neighbors):
        own = MORE_OF_THE_SAME if thorough else MORE_OF_THE_SAME // 2
        count = own if check is evidence.check else FURTHER_CASES if thorough else 1
        for case in drawn(check, evidence.subject, count, evidence.seed + 1):
            if evidence.spent and not evidence.has_seen(check, case):
                return
            try:
                seen = evidence.observe(check, case)
            except Exception:  # a part that the trainer does not return
                continue
            for suspect in suspects if evidence.counts(check, seen) else ():
                if not suspect.refuted and impostors.can_be_asked(suspect.candidate.adapter, check):
                    _confront(suspect, seen, check, impostors, evidence)


def _confront(suspect: Suspect, seen: Observed, check: Check, impostors: Impostors, evidence: Evidence) -> None:
    """A suspect with a further case."""
    agrees_too = _agrees_on(seen, check, suspect, impostors, evidence)
    if check is evidence.check:
        suspect.refuted |= not agrees_too
        suspect.agreed += agrees_too and not seen.failed
    elif set(check.needs) <= set(evidence.check.needs):
        suspect.agreed += agrees_too
        suspect.parted += not agrees_too
        suspect.refuted |= suspect.wrong and not agrees_too
    else:
        suspect.elsewhere += not agrees_too


# --- what is said -------------------------------------------------------------------------------------------------


def diagnoses(evidence: Evidence, *, vary: bool = True) -> tuple[Diagnosis, ...]:
    """Those that agree with the adapter on every case of the evidence, the likeliest first; with `vary`, variations of
    the reference where no other does, and then those that agree as far as a second slip does not show."""
    used, suspects = _agreeing_somewhere(evidence, vary=vary)
    return _said(suspects, (used.smallest, *used.more), used.where) if suspects else ()


def agreeing(evidence: Evidence, *, vary: bool = True) -> list[Suspect]:
    """Everyone that answers as the adapter does, the likeliest first; nobody where that may be a coincidence."""
    return _agreeing_somewhere(evidence, vary=vary)[1]


def _agreeing_somewhere(evidence: Evidence, *, vary: bool) -> tuple[Evidence, list[Suspect]]:
    """The suspects, and the evidence that they agree on."""
    if not evidence.smallest.failed:  # it does not fail every time: there is nothing to compare
        return evidence, []
    impostors = Impostors(evidence.subject)
    agreed: list[Candidate] = []
    # Where the reference itself answers so, whoever changes nothing that shows does, too.
    unchanged = _agrees_on(evidence.smallest, evidence.check, Suspect(_REFERENCE), impostors, evidence)
    for search in (_suspects, *(_VARIED if vary and not unchanged else ())):
        found = search(evidence, impostors)
        if unchanged:
            found = [one for one in found if one.candidate.kind == "convention"]
        agreed += [one.candidate for one in found if search is _suspects]
        suspects = _held(evidence, found, impostors)
        if suspects:
            return evidence, suspects
    for confined in _confined(evidence) if vary else ():
        own = [seen for seen in evidence.more if not confined.holds(seen)]
        again = _suspects(confined, impostors) if own else [Suspect(one) for one in agreed]
        suspects = _held(confined, again, impostors)
        if suspects:
            return confined, suspects
    return evidence, []


def _confined(evidence: Evidence) -> Iterator[Evidence]:
    """What counts less where an adapter has a second slip: neighboring clauses that it fails, too, and the cases in
    which an option is not what it is in the smallest one. Not where a gradient is wrong, which several slips share."""
    if any("gradient" in comparison.what for comparison in evidence.smallest.broken):
        return
    yield replace(evidence, alone=True)
    if not evidence.check.loads:
        for where, holds in conditions(evidence.smallest):
            yield replace(evidence, alone=True, holds=holds, where=where)


def _held(evidence: Evidence, suspects: list[Suspect], impostors: Impostors) -> list[Suspect]:
    """Those of the suspects that nothing speaks against on further cases, the likeliest first; nobody where what they
    agree on may be a coincidence."""
    if not suspects:
        return []
    enough = tells((evidence.smallest, *evidence.more))
    unlikely = any(s.candidate.rank == VARIED for s in suspects)
    _examine(evidence, suspects, impostors, thorough=unlikely or not enough or len(suspects) > 1)
    suspects = [s for s in suspects if not s.refuted]
    if not enough:
        suspects = [s for s in suspects if not s.parted and s.agreed >= LEAST_FURTHER]
    least = min((s.against for s in suspects), default=(0, 0))
    return _explained_first(evidence, sorted((s for s in suspects if s.against == least), key=lambda s: s.order))


def _explained_first(evidence: Evidence, suspects: list[Suspect]) -> list[Suspect]:
    """Of conventions that answer alike, the one comes first of which the failing case would pass if it were declared:
    a call or two, which are made however much work has been done."""
    declared = [s for s in suspects if s.candidate.kind == "convention"]
    if len(declared) < 2:
        return suspects
    first = next((s for s in declared if _would_pass(evidence, s.candidate.name)), None)
    return suspects if first is None else [first, *(s for s in suspects if s is not first)]


def _would_pass(evidence: Evidence, convention: str) -> bool:
    """Whether the smallest failing case passes where the adapter declares this, "attribute = value"."""
    attribute, _, value = convention.partition(" = ")
    adapter = evidence.subject.adapter
    if attribute not in DECLARATIONS:
        return False
    before = dict(vars(adapter))
    try:
        setattr(adapter, attribute, ast.literal_eval(value))
        seen = observe(evidence.check, evidence.subject, evidence.smallest.case)
    except AttributeError:  # which cannot be set
        return False
    finally:
        if attribute in before:
            setattr(adapter, attribute, before[attribute])
        else:
            adapter.__dict__.pop(attribute, None)
    evidence.work.spend(calls=max(1, len(seen.calls)))
    return not seen.failed


def _said(suspects: Sequence[Suspect], seen: Sequence[Observed], where: str = "") -> tuple[Diagnosis, ...]:
    """One diagnosis for each of a few; of many only the first, and how many more there are."""
    failing = sum(o.failed for o in seen)
    there = f" where {where}" if where else ""
    on = f"on {len(seen)} cases{there}, {failing} of them failing" if len(seen) > 1 else "on the failing case"
    shown = suspects if len(suspects) <= LISTED else suspects[:1]
    others = "" if shown is suspects else f"; or {len(suspects) - 1} others that answer alike here"
    found = []
    for s in shown:
        rivals = [other.candidate.label for other in shown if other is not s]
        or_else = f"; or {' or '.join(rivals)}, which cannot be told from it here" if rivals else ""
        agrees_with = "" if s.candidate.rank == VARIED else f"agrees with {s.candidate.label} "
        sentence = f"{agrees_with}{on}: {s.candidate.says}{or_else}{others}"
        alike = tuple(other.candidate.name for other in suspects[len(shown) :])
        c = s.candidate
        found.append(Diagnosis(c.kind, c.name, sentence, cause=c.says, alike=alike, bug=c.bug))
    return tuple(found[:1] if suspects[0].candidate.rank == VARIED else found)  # which says them all
