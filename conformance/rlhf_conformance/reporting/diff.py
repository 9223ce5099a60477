"""Two reports compared: which clauses pass no more, and which only just."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_conformance.reporting import parts
from rlhf_conformance.results import PASS, Report, Result

REGRESSED, SHRUNK, IMPROVED, CHANGED, NEW, GONE = "regressed", "margin", "improved", "changed", "new", "gone"
BAD = (REGRESSED, SHRUNK)


@dataclass(frozen=True)
class Change:
    """What became of a clause.

    kind    "regressed", "margin", "improved", "changed", "new" or "gone"
    """

    kind: str
    clause: str
    sentence: str

    def __str__(self) -> str:
        return f"{self.kind:<10} {self.clause}: {self.sentence}"


def changes(old: Report, new: Report, threshold: float) -> list[Change]:
    """What differs, the bad first.

    A clause regressed where it passed and passes no more, for whatever reason: broken, not judged, or not there. A
    margin is what is left of the budget, 1 - error / budget, in hundredths as it is shown; it is too small where it
    is below `threshold` and was larger before.
    """
    before, after = ({r.clause: r for r in report.results} for report in (old, new))
    found = [_change(before.get(slug), after.get(slug), threshold) for slug in {**before, **after}]
    order = (REGRESSED, SHRUNK, GONE, NEW, CHANGED, IMPROVED)
    return sorted((change for change in found if change is not None), key=lambda change: order.index(change.kind))


def _change(old: Result | None, new: Result | None, threshold: float) -> Change | None:
    if new is None:
        assert old is not None
        kind = REGRESSED if old.verdict == PASS else GONE
        return Change(kind, old.clause, f"was {old.verdict}, is not in the new report")
    if old is None:
        return Change(NEW, new.clause, _verdict(new))
    if old.verdict == new.verdict:
        return _shrunk(old, new, threshold)
    kind = REGRESSED if old.verdict == PASS else IMPROVED if new.verdict == PASS else CHANGED
    return Change(kind, new.clause, f"was {old.verdict}, is {_verdict(new)}")


def _verdict(result: Result) -> str:
    return f"{result.verdict}: {result.reason}" if result.reason else result.verdict


def _shrunk(old: Result, new: Result, threshold: float) -> Change | None:
    if new.verdict != PASS or new.margin is None:
        return None
    left, right = _left(old), _left(new)
    if right >= threshold or right >= left:
        return None
    sentence = f"{right:.0%} of the budget is left, was {left:.0%}; wanted {threshold:.0%}"
    return Change(SHRUNK, new.clause, sentence)


def _left(result: Result) -> float:
    return round(1 - (result.margin or 0.0), 2)


def heading(old: Report, new: Report) -> list[str]:
    """What is compared with what, and what else differs between the two."""
    lines = []
    for name, report in (("old", old), ("new", new)):
        env = report.environment
        where = f"{env.get('device')} {env.get('dtype')}, profile {report.run['profile']}, seed {report.run['seed']}"
        lines.append(f"{name}  {parts.subject_name(report)}, {where}: {report.verdict}, {parts.counts(report)}")
    apart = [
        f"{key} {old.environment.get(key)} -> {new.environment.get(key)}"
        for key in {**old.environment, **new.environment}
        if old.environment.get(key) != new.environment.get(key)
    ]
    if apart:
        lines.append(f"     {', '.join(apart)}")
    if old.environment.get("hypothesis") != new.environment.get("hypothesis"):
        lines.append(
            "     another Hypothesis may end at other failing cases, and draws others for plug-ins that leave it to it"
        )
    return lines


__all__ = ["BAD", "Change", "changes", "heading"]
