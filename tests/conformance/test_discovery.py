"""Strategies leave the inputs that hide bugs often enough. A statistical test: event E is drawn with probability at
least p.

A suite that only draws square batches cannot see a mean over the wrong axis, and no other test would notice. Each
row below names what hides a bug, and how often cases must be different from that.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from rlhf_conformance.chapters._losses.cases import LossCase
from rlhf_conformance.chapters._models.cases import ModelCase
from rlhf_conformance.chapters._models.interface import ARCHITECTURES, LAYOUTS
from rlhf_conformance.chapters.group_advantages.cases import GroupCase
from rlhf_conformance.chapters.off_policy_correction.checks import truth as off_policy_weights
from rlhf_conformance.chapters.sequences.cases import GeneratedCase
from rlhf_conformance.diagnosis import evidence
from rlhf_conformance.judging.checks import checks
from rlhf_conformance.oracle import batch

from .test_clauses_and_checks import cases_of

SAMPLES = 120


@cache
def drawn(slug: str, count: int = SAMPLES) -> Sequence[Any]:
    """Cases of a clause, drawn as for a reference that declares everything."""
    from rlhf_conformance.adapters.reference import Reference
    from rlhf_conformance.judging.subject import Subject
    from rlhf_conformance.oracle.probes import ProbeStore

    with TemporaryDirectory() as folder:
        subject = Subject.make(Reference(), device="cpu", dtype="float32", store=ProbeStore(Path(folder)))
        return evidence.drawn(checks()[slug], subject, count, seed=20240607)


Event = Callable[[Any], bool]
Row = tuple[str, str, Event, float]
"""What hides bugs, the clause, the event that leaves it, and its least share."""


def holds_often(slug: str, rows: Sequence[tuple[str, Event, float]]) -> None:
    """Each event has a share of at least p among the clause's cases."""
    cases = drawn(slug)
    assert len(cases) >= SAMPLES / 2, f"only {len(cases)} cases could be drawn"
    shares = [(hides, sum(map(event, cases)) / len(cases), p) for hides, event, p in rows]
    rare = [f"{hides}: left by {share:.3f} of the cases, wanted {p}" for hides, share, p in shares if share < p]
    assert not rare


def by_slug(rows: Sequence[Row]) -> Any:
    """One test for each clause of a table, so that its cases are drawn once."""
    table: dict[str, list[tuple[str, Event, float]]] = {}
    for hides, slug, event, p in rows:
        table.setdefault(slug, []).append((hides, event, p))
    return pytest.mark.parametrize("slug, rows", table.items(), ids=list(table))


# --- losses -------------------------------------------------------------------------------------------------------


def actions(case: LossCase) -> list[tuple[float, float, float]]:
    """The three numbers of each action."""
    return [case.token(i, j) for i, j in case.actions]


def full(case: LossCase) -> bool:
    return all(all(row) for row in case.action_mask)


def has_hole(row: Sequence[int]) -> bool:
    """A masked token between two actions."""
    return "0" in "".join(map(str, row)).strip("0")


def no_prefix(row: Sequence[int]) -> bool:
    """A masked token before an action: the count of actions does not say where they are."""
    return list(row) != sorted(row, reverse=True)


def zones(case: LossCase) -> set[str]:
    """Where the case's ratios lie."""
    import math

    low, high = math.log(1 - case.options.clip_eps_low), math.log(1 + case.options.clip_eps_high)
    return {"below" if n - o < low else "above" if n - o > high else "inside" for n, o, _ in actions(case)}


def signs(case: LossCase) -> set[bool]:
    return {target > 0 for _, _, target in actions(case)}


LOSSES = [
    ("one sample", "policy-loss.aggregation", lambda c: len(c.action_mask) >= 2, 1.0),
    ("one sample", "policy-loss.mask", lambda c: len(c.case.action_mask) >= 2, 0.5),
    ("a square batch", "policy-loss.mask", lambda c: len(c.case.action_mask) != len(c.case.action_mask[0]), 0.6),
    ("a square batch", "value-loss.aggregation", lambda c: c.shape[0] != c.shape[1], 0.6),
    ("one token", "policy-loss.gradient", lambda c: c.shape[1] > 1, 0.5),
    ("full rows", "policy-loss.gradient", lambda c: not full(c), 0.5),
    ("rows of equal length", "policy-loss.aggregation", lambda c: len(set(c.counts)) > 1, 1.0),
    ("rows of equal length", "policy-loss.micro-batches", lambda c: len(set(c.case.counts)) > 1, 1.0),
    ("rows of equal length", "value-loss.gradient", lambda c: len(set(c.counts)) > 1, 0.3),
    ("masks without holes", "policy-loss.gradient", lambda c: any(map(has_hole, c.action_mask)), 0.02),
    ("masks that are prefixes", "policy-loss.gradient", lambda c: any(map(no_prefix, c.action_mask)), 0.25),
    ("masks that begin with 1", "policy-loss.gradient", lambda c: any(not row[0] for row in c.action_mask), 0.3),
    ("one sign of advantages", "policy-loss.clip", lambda c: len(signs(c)) == 2, 0.2),
    ("one sign of advantages", "policy-loss.clipped-gradient", lambda c: len(signs(c)) == 2, 0.5),
    ("advantages of one", "policy-loss.clip", lambda c: any(abs(t) != 1 for *_, t in actions(c)), 1.0),
    (
        "advantages of zero mean",
        "policy-loss.aggregation",
        lambda c: abs(sum(t for *_, t in actions(c))) > 1e-3,
        0.9,
    ),
    ("ratios in one zone", "policy-loss.clip", lambda c: len(zones(c)) >= 2, 0.2),
    ("ratios in one zone", "policy-loss.clipped-gradient", lambda c: len(zones(c)) == 3, 0.2),
    (
        "a clip that binds nowhere",
        "policy-loss.clip",
        lambda c: any((n > o) == (t > 0) and zones(c) != {"inside"} for n, o, t in actions(c)),
        0.3,
    ),
    (
        "equal clip ranges",
        "policy-loss.asymmetric-clip",
        lambda c: c.options.clip_eps_low != c.options.clip_eps_high,
        1.0,
    ),
    ("no dual clip", "policy-loss.mask", lambda c: c.case.options.dual_clip is not None, 0.3),
    (
        "a dual clip that binds nowhere",
        "policy-loss.dual-clip",
        lambda c: any(n - o > 0 and 2.71828 ** (n - o) > c.options.dual_clip for n, o, _ in actions(c)),
        0.3,
    ),
    ("one aggregation", "policy-loss.mask", lambda c: c.case.options.aggregation == "sequence-mean", 0.3),
    ("one aggregation", "policy-loss.mask", lambda c: c.case.options.aggregation == "token-mean", 0.3),
    ("a value inside the band", "value-loss.clip", lambda c: any(abs(n - o) > 0.31 for n, o, _ in actions(c)), 0.3),
    (
        "values on one side of the return",
        "value-loss.aggregation",
        lambda c: len({n > t for n, _, t in actions(c)}) == 2,
        0.4,
    ),
    (
        "the clipped branch is never the larger",
        "value-loss.clip",
        lambda c: any(abs(n - o) > c.options.clip_eps and abs(n - t) < abs(o - t) for n, o, t in actions(c)),
        0.12,
    ),
    (
        "two micro-batches of equal size",
        "value-loss.micro-batches",
        lambda c: len({sum(map(sum, part.action_mask)) for part in c.parts}) > 1,
        0.5,
    ),
    (
        "micro-batches of one row",
        "policy-loss.micro-batches",
        lambda c: any(len(p.action_mask) > 1 for p in c.parts),
        0.3,
    ),
    (
        "nothing different under the mask",
        "policy-loss.mask",
        lambda c: c.case.tables != c.dressed.tables,
        1.0,
    ),
    ("pads on the right only", "policy-loss.padding-invariance", lambda c: c.left, 0.2),
    ("few rows", "policy-loss.token-mean", lambda c: len(c.action_mask) > 8, 0.04),
    ("few rows", "value-loss.sequence-mean", lambda c: len(c.action_mask) > 8, 0.04),
    ("no return of 0", "value-loss.half", lambda c: any(t == 0 for *_, t in actions(c)), 0.08),
    ("no value of 0", "value-loss.half", lambda c: any(n == 0 for n, *_ in actions(c)), 0.08),
    ("old values that are not all 0", "value-loss.clip", lambda c: not any(o for _, o, _ in actions(c)), 0.05),
    ("no log-prob of 0", "policy-loss.ratio", lambda c: any(n == 0 for n, *_ in actions(c)), 0.08),
    ("no old log-prob of 0", "policy-loss.ratio", lambda c: any(o == 0 for _, o, _ in actions(c)), 0.08),
    ("advantages that are not all 0", "policy-loss.aggregation", lambda c: not any(t for *_, t in actions(c)), 0.04),
    ("the empty row is the last", "policy-loss.empty-row", lambda c: any(c.action_mask[-1]), 0.3),
]


@by_slug(LOSSES)
def test_loss_cases_leave(slug, rows):
    holds_often(slug, rows)


# --- credit -------------------------------------------------------------------------------------------------------


def ends_in_observation(row: Sequence[int]) -> bool:
    """The last cell is masked, and the mask is not that of a row that was padded."""
    return not row[-1] and any(row) and no_prefix(row)


def contiguous(case: GroupCase) -> bool:
    """No group has a row of another one between two of its own."""
    return all(group == list(range(group[0], group[-1] + 1)) for group in case.groups)


def all_but_one_alike(case: GroupCase) -> bool:
    groups = [Counter(case.scores[i] for i in group) for group in case.groups]
    return any(sum(g.values()) > 3 and sorted(g.values()) == [1, sum(g.values()) - 1] for g in groups)


def dyadic(numbers: Sequence[float]) -> bool:
    return all((64 * x).is_integer() for x in numbers)


def clip_binds(case: Any) -> bool:
    return any(abs(score) > case.options.score_clip for score in case.scores)


def only_the_last_rewarded(case: Any) -> bool:
    rows = zip(case.token_rewards, case.counts, strict=True)
    return any(count > 2 and sum(map(bool, row)) == 1 for row, count in rows)


def ends_with_the_row(case: Any) -> bool:
    """Some row's last action is in the last column."""
    return any(row[-1] for row in getattr(case, "case", case).action_mask)


def weights(case: Any) -> list[float]:
    """The weights of the actions of a case, as they are right for the reference."""
    from rlhf_conformance.adapters.reference import Reference

    table = off_policy_weights(Reference(), case)
    return [table[i][j] for i, j in case.actions]


def at_its_bound(case: Any) -> bool:
    """A weight is equal to a bound without being held there."""
    free = weights(case.with_options(mode="truncate", upper=1e30, lower=None))
    return any(w in (case.options.upper, case.options.lower) for w in free)


def beyond(case: Any, size: float) -> bool:
    return any(abs(d) > size for i in range(case.shape[0]) for d in case.log_ratios(i))


def own(case: Any) -> Any:
    return getattr(case, "case", case)


CREDIT = [
    ("one sample", "whitening.definition", lambda c: c.shape[0] > 1, 0.5),
    ("one sample", "whitening.whole-batch", lambda c: c.shape[0] > 1, 1.0),
    ("a square batch", "whitening.whole-batch", lambda c: c.shape[0] != c.shape[1], 0.5),
    ("a batch that is not square", "whitening.whole-batch", lambda c: c.shape[0] == c.shape[1], 0.2),
    ("few rows", "whitening.definition", lambda c: c.shape[0] > 8, 0.05),
    ("full rows", "whitening.definition", lambda c: not full(c), 0.4),
    ("masks without holes", "whitening.definition", lambda c: any(map(has_hole, c.action_mask)), 0.2),
    ("masks without holes", "whitening.holes", lambda c: any(map(has_hole, c.action_mask)), 1.0),
    ("a hole in the middle alone", "whitening.holes", lambda c: any(map(ends_in_observation, c.action_mask)), 0.4),
    ("rows of equal length", "whitening.definition", lambda c: len(set(c.counts)) > 1, 0.4),
    ("many actions", "whitening.variance", lambda c: len(c.actions) < 5, 0.3),
    ("a mean of zero", "whitening.definition", lambda c: abs(sum(c.numbers)) > 0.1 * len(c.numbers), 0.5),
    ("dyadic numbers", "whitening.definition", lambda c: not dyadic(c.numbers), 0.9),
    ("the mean removed", "whitening.mask", lambda c: not c.case.options.shift_mean, 0.3),
    ("the mean kept", "whitening.mask", lambda c: c.case.options.shift_mean, 0.3),
    ("the empty row is the last", "whitening.empty-row", lambda c: any(c.action_mask[-1]), 0.3),
    ("one group", "group-advantages.group-std", lambda c: len(c.groups) > 1, 0.6),
    ("one group", "group-advantages.interleaved", lambda c: len(c.groups) > 1, 1.0),
    ("contiguous groups", "group-advantages.interleaved", lambda c: not contiguous(c), 0.9),
    ("contiguous groups", "group-advantages.leave-one-out", lambda c: not contiguous(c), 0.3),
    ("interleaved groups", "group-advantages.group-std", contiguous, 0.2),
    ("groups of one size", "group-advantages.unequal-sizes", lambda c: len(set(map(len, c.groups))) > 1, 1.0),
    ("groups of one size", "group-advantages.group-std", lambda c: len(set(map(len, c.groups))) > 1, 0.4),
    ("small groups", "group-advantages.mean", lambda c: max(map(len, c.groups)) > 8, 0.05),
    ("groups that are of many minds", "group-advantages.nearly-unanimous", all_but_one_alike, 0.5),
    (
        "as many rows as columns",
        "group-advantages.mask",
        lambda c: c.other.shape[0] != c.other.shape[1],
        0.7,
    ),
    ("as many rows as groups", "group-advantages.mean", lambda c: len(c.scores) != len(c.groups), 1.0),
    ("as many columns as groups", "group-advantages.group-std", lambda c: c.shape[1] != len(c.groups), 0.6),
    ("dyadic scores", "group-advantages.group-std", lambda c: not dyadic(c.scores), 0.9),
    ("masks without holes", "group-advantages.mask", lambda c: any(map(has_hole, c.other.action_mask)), 1.0),
    ("responses of equal length", "group-advantages.group-std", lambda c: len(set(c.counts)) > 1, 0.5),
    ("ids that a float32 can hold", "group-advantages.group-names", lambda c: max(c.other.group_ids) > 2**24, 0.5),
    *(
        row
        for slug in ("kl.k3", "token-rewards.sum", "advantages.definition", "credit.definition")
        for row in (
            ("one sample", slug, lambda c: c.shape[0] > 1, 0.5),
            ("few rows", slug, lambda c: c.shape[0] > 8, 0.05),
            ("a square batch", slug, lambda c: c.shape[0] != c.shape[1], 0.5),
            ("masks without holes", slug, lambda c: any(map(has_hole, c.action_mask)), 0.2),
            ("full rows", slug, lambda c: not full(c), 0.4),
            ("rows that begin with an action", slug, lambda c: any(not row[0] for row in c.action_mask), 0.2),
            ("rows of equal length", slug, lambda c: len(set(c.counts)) > 1, 0.35),
            ("rows that end in padding", slug, lambda c: any(row[-1] for row in c.action_mask), 0.3),
        )
    ),
    *(
        row
        for slug in ("kl.holes", "token-rewards.holes", "advantages.observations", "credit.holes")
        for row in (
            ("masks without holes", slug, lambda c: any(map(has_hole, c.case.action_mask)), 1.0),
            ("a hole in the middle alone", slug, lambda c: any(map(ends_in_observation, c.case.action_mask)), 0.4),
        )
    ),
    ("a log-ratio of one sign", "kl.k3", lambda c: len({c.log_ratio(*place) > 0 for place in c.actions}) > 1, 0.6),
    ("policy and reference that differ", "kl.agreement", lambda c: any(not c.log_ratio(*p) for p in c.actions), 0.7),
    ("usual log-ratios", "kl.clamped-gradient", lambda c: any(c.log_ratio(*p) < -89 for p in c.actions), 0.2),
    ("a clamp that does not bind", "kl.clamp", lambda c: any(abs(c.log_ratio(*p)) > 20 for p in c.actions), 0.3),
    ("two tokens", "kl.expectation", lambda c: c.shape[1] > 2, 0.5),
    ("dyadic scores", "token-rewards.sum", lambda c: not dyadic(c.scores), 0.9),
    ("a KL of 0", "token-rewards.penalty", lambda c: any(map(any, c.kl)), 0.9),
    ("scores that no clip holds", "token-rewards.score-clip", clip_binds, 0.6),
    ("scores that a clip holds", "token-rewards.score-clip", lambda c: not clip_binds(c), 0.1),
    ("a gamma of 1", "advantages.definition", lambda c: c.options.gamma < 1, 0.7),
    ("a lambda of 1", "advantages.definition", lambda c: c.options.lam < 1, 0.7),
    ("gammas below 1", "advantages.definition", lambda c: c.options.gamma == 1, 0.1),
    ("values of 0", "advantages.definition", lambda c: any(map(any, c.values)), 0.8),
    ("dyadic rewards", "advantages.definition", lambda c: not dyadic([x for r in c.token_rewards for x in r]), 0.8),
    ("rewards at every action", "advantages.definition", only_the_last_rewarded, 0.05),
    ("single actions", "advantages.definition", lambda c: max(c.counts) > 1, 0.6),
    ("something behind the last action", "advantages.last-action", ends_with_the_row, 0.1),
    ("the score alone", "credit.penalty", lambda c: not any(c.scores), 1.0),
    *(
        row
        for slug in ("off-policy-correction.band", "off-policy-correction.options", "off-policy-correction.own-row")
        for row in (
            ("few rows", slug, lambda c: own(c).shape[0] > 8, 0.05),
            ("a square batch", slug, lambda c: own(c).shape[0] != own(c).shape[1], 0.5),
            ("masks without holes", slug, lambda c: any(map(has_hole, own(c).action_mask)), 0.2),
            ("full rows", slug, lambda c: not full(own(c)), 0.4),
            ("rows of equal length", slug, lambda c: len(set(own(c).counts)) > 1, 0.35),
            ("tokens alone", slug, lambda c: own(c).options.level == "sequence", 0.4),
            ("sequences alone", slug, lambda c: own(c).options.level == "token", 0.2),
            ("products alone", slug, lambda c: own(c).options.sequence_weight == "geometric", 0.2),
            ("no lower bound", slug, lambda c: own(c).options.lower is not None, 0.5),
            ("log-ratios of 0", slug, lambda c: any(own(c).log_ratios(0)), 0.8),
        )
    ),
    ("a batch that is not square", "off-policy-correction.square", lambda c: c.shape[0] == c.shape[1], 1.0),
    (
        "bounds that do not bind",
        "off-policy-correction.truncation",
        lambda c: any(w == c.options.upper for w in weights(c)),
        0.4,
    ),
    (
        "bounds that do not bind",
        "off-policy-correction.truncation-below",
        lambda c: any(w == c.options.lower for w in weights(c)),
        0.4,
    ),
    ("bands that hold everything", "off-policy-correction.band", lambda c: not all(weights(c)), 0.5),
    ("bands that hold nothing", "off-policy-correction.band", lambda c: any(weights(c)), 0.5),
    ("bounds that no weight equals", "off-policy-correction.bounds", at_its_bound, 0.15),
    ("bounds above 1", "off-policy-correction.bounds", lambda c: c.options.upper < 1, 0.2),
    ("log-ratios within a clamp", "off-policy-correction.log-clamp", lambda c: beyond(c, 20.0), 0.5),
    ("log-ratios of a usual size", "off-policy-correction.overflow", lambda c: beyond(c, 89.0), 0.6),
    ("masks without holes", "off-policy-correction.holes", lambda c: any(map(has_hole, c.case.action_mask)), 1.0),
    (
        "a hole in the middle alone",
        "off-policy-correction.holes",
        lambda c: any(map(ends_in_observation, c.case.action_mask)),
        0.4,
    ),
    ("an engine that differs", "off-policy-correction.agreement", lambda c: 1.0 in weights(c), 0.6),
    (
        "one baseline and one scale",
        "group-advantages.batch-order",
        lambda c: (c.options.baseline, c.options.scale) != ("mean", "group-std"),
        0.5,
    ),
]


@by_slug(CREDIT)
def test_cases_of_credit_leave(slug, rows):
    holds_often(slug, rows)


# --- models -------------------------------------------------------------------------------------------------------


def lengths(case: ModelCase) -> set[int]:
    return {len(s) for s in case.samples}


def has_pads(case: ModelCase) -> bool:
    """The presentation has a masked cell."""
    prompts, responses = {len(s.prompt) for s in case.samples}, {len(s.response) for s in case.samples}
    return len(lengths(case)) > 1 or (case.how.layout == "padded" and (len(prompts) > 1 or len(responses) > 1))


MODELS = [
    ("one sample", lambda c: len(c.samples) >= 2, 0.6),
    ("one sample", lambda c: len(c.samples) >= 3, 0.3),
    ("equal lengths", lambda c: len(lengths(c)) > 1, 0.5),
    ("equal prompts", lambda c: len({len(s.prompt) for s in c.samples}) > 1, 0.45),
    ("equal action counts", lambda c: len({len(s.response) for s in c.samples}) > 1, 0.45),
    ("no pads", has_pads, 0.5),
    ("single-token responses only", lambda c: any(len(s.response) > 1 for s in c.samples), 0.7),
    (
        "no single-token response next to a longer one",
        lambda c: {len(s.response) == 1 for s in c.samples} == {True, False},
        0.15,
    ),
    ("no single-token prompt", lambda c: any(len(s.prompt) == 1 for s in c.samples), 0.2),
    ("a square batch", lambda c: len(c.samples) != max(len(s.response) for s in c.samples), 0.6),
    ("pad other than EOS", lambda c: c.probe.pad_is_eos, 0.3),
    ("pad equal to EOS", lambda c: not c.probe.pad_is_eos, 0.3),
    ("no EOS in prompts", lambda c: any(c.probe.eos_token_id in s.prompt for s in c.samples), 0.3),
    ("no pad id in prompts", lambda c: any(c.probe.pad_token_id in s.prompt for s in c.samples), 0.3),
    (
        "no pad id at the beginning of a prompt",
        lambda c: any(s.prompt[0] == c.probe.pad_token_id for s in c.samples),
        0.1,
    ),
    (
        "no pad id in responses",
        lambda c: not c.probe.pad_is_eos and any(c.probe.pad_token_id in s.response for s in c.samples),
        0.1,
    ),
    ("every response is cut off", lambda c: any(s.response[-1] == c.probe.eos_token_id for s in c.samples), 0.3),
    ("every response ends in EOS", lambda c: any(s.response[-1] != c.probe.eos_token_id for s in c.samples), 0.5),
    ("rotary positions", lambda c: c.probe.architecture == "gpt2", 0.3),
    ("learned positions", lambda c: c.probe.architecture == "llama", 0.3),
    (
        "shards that end where a sequence ends",
        lambda c: c.how.layout == "sharded" and sum(map(len, c.samples)) % c.how.shards != 0,
        0.04,
    ),
    ("one repeated token", lambda c: all(len(set(s.tokens)) > 1 for s in c.samples), 0.5),
]


def test_model_cases_leave():
    holds_often("actor.log-probs", MODELS)


def test_no_layout_is_rare():
    """A trainer may be wrong in one layout alone; by itself Hypothesis would draw the first half of the time."""
    rows = [(f"no layout {it}", lambda c, it=it: c.how.layout == it, 0.08) for it in LAYOUTS]
    holds_often("actor.log-probs", rows)


def test_the_gate_meets_every_layout(strategy_subject):
    """With the seed that everybody runs."""
    rare = {}
    for slug in ("actor.log-probs", "reward.last-attended", "critic.state-before"):
        cases = cases_of(slug, strategy_subject())
        found = Counter(re.search(r"layout='([a-z-]+)'", case).group(1) for case in cases)
        rare |= {f"{slug} in {layout}": found[layout] for layout in LAYOUTS if not found[layout]}
    assert not rare


def test_model_cases_leave_greedy_tokens(store):
    """A label that is always the largest logit hides an argmax in its place."""
    import torch

    from rlhf_conformance.oracle.truth import Truth

    truth = Truth(store, torch.float32, "cpu")

    def not_greedy(case: ModelCase) -> bool:
        for sample in case.samples:
            rows = truth.logits(case.probe, sample.tokens)[len(sample.prompt) - 1 : -1]
            if any(row[token] < max(row) for row, token in zip(rows, sample.response, strict=True)):
                return True
        return False

    cases = drawn("actor.log-probs")[:60]
    assert sum(map(not_greedy, cases)) >= 0.9 * len(cases)


OTHER_MODEL_CLAUSES = [
    ("one sample", "packing.equivalence", lambda c: len(c.samples) >= 2, 1.0),
    ("equal action counts", "packing.action-counts", lambda c: len({len(s.response) for s in c.samples}) > 1, 0.6),
    ("the first sample is edited", "packing.isolation", lambda c: c.index > 0, 0.3),
    (
        "an edit of the same length",
        "packing.isolation",
        lambda c: len(c.replacement) != len(c.case.samples[c.index]),
        0.6,
    ),
    ("a reversal", "packing.order", lambda c: c.order != tuple(reversed(range(len(c.order)))), 0.3),
    ("pads on the right only", "actor.padding-invariance", lambda c: c.how.extra_left > 0, 0.3),
    ("pads on the left only", "actor.padding-invariance", lambda c: c.how.extra_right > 0, 0.2),
    ("weights of one", "actor.gradient", lambda c: len({w for row in c.weights for w in row}) > 1, 0.6),
    ("one sample", "actor.gradient", lambda c: len(c.case.samples) > 1, 0.5),
    ("a temperature of one", "actor.temperature", lambda c: c.temperature != 1, 1.0),
    ("temperatures below one", "actor.temperature", lambda c: c.temperature > 1, 0.3),
    ("temperatures above one", "actor.temperature", lambda c: c.temperature < 1, 0.3),
    ("prompts of one length", "actor.generate", lambda c: len({len(p) for p in c.prompts}) > 1, 0.2),
    ("a stop that is never met", "actor.generate-layout", lambda c: len(c.stop_token_ids) > 1, 0.5),
    ("one prompt", "actor.generate", lambda c: len(c.prompts) > 1, 1.0),
    ("one step", "actor.generate", lambda c: c.max_new_tokens > 1, 0.6),
    ("no prompt twice", "actor.generate", lambda c: len(set(c.prompts)) < len(c.prompts), 0.1),
    ("an EOS that is not 0", "actor.generate", lambda c: c.probe.eos_token_id == 0 == c.stop_token_ids[0], 0.1),
    (
        "no stop token in a prompt",
        "actor.generate",
        lambda c: any(set(prompt) & set(c.stop_token_ids) for prompt in c.prompts),
        0.3,
    ),
    (
        "no stop token at the start of a prompt",
        "actor.generate",
        lambda c: any(prompt[0] in c.stop_token_ids for prompt in c.prompts),
        0.1,
    ),
    (
        "an EOS that no prompt begins with",
        "actor.log-probs",
        lambda c: any(s.prompt[0] == c.probe.eos_token_id for s in c.samples),
        0.1,
    ),
    ("one backbone", "actor.backbones", lambda c: len({p.architecture for p in c.probes}) == len(ARCHITECTURES), 0.9),
    ("outputs of their own", "actor.backbones", lambda c: any(p.tied for p in c.probes), 0.9),
    (
        "padded rows without a pack",
        "actor.backbones",
        lambda c: all({h.layout in batch.PACKS for h in hows} == {False, True} for hows in c.hows),
        1.0,
    ),
    ("outputs of their own", "actor.gradient", lambda c: c.case.probe.tied, 0.3),
    ("outputs of their own", "actor.follows-weights", lambda c: c.probe.tied, 0.3),
    ("a temperature of one", "actor.round-trip", lambda c: c.temperature != 1, 0.5),
    ("outputs of their own", "actor.round-trip", lambda c: c.probe.tied, 0.3),
    ("a head without a bias", "reward.round-trip", lambda c: c.probe.head_bias, 0.3),
    ("one name of the head", "critic.round-trip", lambda c: c.probe.head_name != "score", 0.3),
    ("scores as they are", "critic.with-output", lambda c: c.probe.std != 1, 0.3),
    ("generation that is not asked for", "actor.side-effects", lambda c: c.method == "generate", 0.15),
    ("the method of the clause alone", "critic.side-effects", lambda c: c.method == "values", 0.3),
    ("the method of the clause alone", "actor.no-grad", lambda c: c.method == "action_entropy", 0.2),
    ("pads of the checkpoint", "actor.generate-layout", lambda c: c.pad_token_id != c.probe.pad_token_id, 0.3),
    ("something that ends a row", "actor.generate-layout", lambda c: not c.stop_token_ids, 0.1),
    ("one kind of file", "reward.backbones", lambda c: len({p.on_disk for p in c.probes}) == 3, 0.9),
    ("one generation config", "actor.generate-config", lambda c: len(c.generation) > 3, 0.9),
    (
        "no pad in the prompt",
        "reward.pad-equals-eos",
        lambda c: all(1 in s.prompt for s in c.samples) and c.probe.pad_is_eos,
        1.0,
    ),
    ("a mean of zero", "reward.normalization", lambda c: c.probe.mean != 0 and c.probe.std != 1, 1.0),
]


@by_slug(OTHER_MODEL_CLAUSES)
def test_cases_of_single_clauses_leave(slug, rows):
    holds_often(slug, rows)


# --- log-probs ----------------------------------------------------------------------------------------------------


def not_greedy(case: Any) -> bool:
    return bool((case.logits.argmax(-1) != case.labels).any())


LOGITS = [
    ("one sample", "log-probs.definition", lambda c: c.batch_size > 1, 0.45),
    ("one token", "log-probs.definition", lambda c: c.length > 1, 0.45),
    ("a square batch", "log-probs.definition", lambda c: c.batch_size != c.length, 0.45),
    ("greedy labels", "log-probs.definition", not_greedy, 0.8),
    ("as many tokens as words", "log-probs.definition", lambda c: c.length != c.vocab_size, 0.7),
    ("a temperature of one", "log-probs.temperature", lambda c: c.temperature != 1, 1.0),
    ("a temperature of one", "log-probs.entropy", lambda c: c.temperature != 1, 0.5),
    ("one half dtype", "log-probs.float32", lambda c: c.dtype == "bfloat16", 0.3),
    ("one half dtype", "log-probs.float32", lambda c: c.dtype == "float16", 0.3),
    ("a multiple of a power of two", "log-probs.every-position", lambda c: c.batch_size * c.length % 8 != 0, 0.6),
    ("logits that exp can hold", "log-probs.stable", lambda c: float(c.logits.max()) > 89, 0.3),
    ("logits that exp can hold", "log-probs.stable", lambda c: float(c.logits.max()) < -104, 0.1),
    ("few rows", "log-probs.definition", lambda c: c.batch_size > 8, 0.02),
    ("short rows", "log-probs.gradient", lambda c: c.length > 256, 0.02),
    ("short rows", "log-probs.entropy", lambda c: c.length > 256, 0.03),
    ("logits that differ", "log-probs.entropy", lambda c: c.scale == 0, 0.03),
    ("labels that 15 bits can count", "log-probs.definition", lambda c: int(c.labels.max()) > 2**15, 0.06),
    (
        "no ignored label where ids are ruled out",
        "log-probs.ignored-label",
        lambda c: bool((c.logits[c.labels < 0][:, 0] < -1e30).any()),
        0.15,
    ),
    ("every label ignored", "log-probs.ignored-label", lambda c: bool((c.labels >= 0).any()), 0.5),
]


@by_slug(LOGITS)
def test_logits_cases_leave(slug, rows):
    holds_often(slug, rows)


# --- generated sequences, masks, packs ----------------------------------------------------------------------------


def stopped(case: GeneratedCase) -> set[bool]:
    return {s.response[-1] in case.stop_token_ids for s in case.samples if s.response}


def responses(case: GeneratedCase) -> set[int]:
    return {len(s.response) for s in case.samples}


def inside(case: GeneratedCase, token: int) -> bool:
    return any(token in s.prompt for s in case.samples)


def begins_with_stop(case: GeneratedCase) -> bool:
    return any(s.prompt[0] in case.stop_token_ids and s.prompt[0] != case.pad_token_id for s in case.samples)


SEQUENCES = [
    ("one sample", "sequences.action-mask", lambda c: len(c.samples) > 1, 0.5),
    ("equal responses", "sequences.action-mask", lambda c: len(responses(c)) > 1, 0.25),
    ("equal prompts", "sequences.action-mask", lambda c: len({len(s.prompt) for s in c.samples}) > 1, 0.3),
    ("a square batch", "sequences.action-mask", lambda c: len(c.samples) != c.width, 0.4),
    ("nothing is cut off", "sequences.action-mask", lambda c: False in stopped(c), 0.3),
    ("everything is cut off", "sequences.action-mask", lambda c: True in stopped(c), 0.6),
    ("all or nothing is cut off", "sequences.truncation", lambda c: stopped(c) == {True, False}, 0.3),
    ("responses of one token", "sequences.action-mask", lambda c: max(responses(c)) > 1, 0.5),
    (
        "no response of one token beside a longer one",
        "sequences.action-mask",
        lambda c: min(responses(c)) == 1 < max(responses(c)),
        0.1,
    ),
    ("pad other than stop", "sequences.attention-span", lambda c: c.pad_token_id in c.stop_token_ids, 0.3),
    ("pad equal to stop", "sequences.attention-span", lambda c: c.pad_token_id not in c.stop_token_ids, 0.3),
    (
        "no stop inside a prompt",
        "sequences.attention-span",
        lambda c: any(inside(c, t) for t in c.stop_token_ids),
        0.5,
    ),
    ("no pad inside a prompt", "sequences.attention-span", lambda c: inside(c, c.pad_token_id), 0.4),
    ("few rows", "sequences.action-mask", lambda c: len(c.samples) > 8, 0.04),
    ("the pad is the first stop id", "sequences.pad-equals-eos", lambda c: c.pad_token_id != c.stop_token_ids[0], 0.15),
    (
        "one stop id in a row",
        "sequences.stop-set",
        lambda c: any(len(set(row) & set(c.stop_token_ids)) > 1 for row in c.responses),
        0.2,
    ),
    ("no empty response", "sequences.response-lengths", lambda c: any(not s.response for s in c.samples), 0.15),
    ("one stop id", "sequences.stop-set", lambda c: len(c.stop_token_ids) > 1, 1.0),
    (
        "the first stop id is the one that is met",
        "sequences.stop-set",
        lambda c: any(s.response[-1] in c.stop_token_ids[1:] for s in c.samples),
        0.35,
    ),
    ("a pad id of zero", "sequences.action-mask", lambda c: c.pad_token_id != 0, 0.5),
    ("a prompt that begins with a plain token", "sequences.attention-span", begins_with_stop, 0.3),
    (
        "nothing ends early without a stop",
        "sequences.response-lengths",
        lambda c: any(
            s.response and len(s.response) < c.width and s.response[-1] not in c.stop_token_ids for s in c.samples
        ),
        1.0,
    ),
    (
        "no response that stopped",
        "sequences.response-lengths",
        lambda c: True in stopped(c),
        0.4,
    ),
    ("pads behind responses alone", "sequences.response-lengths", lambda c: bool(c.behind), 0.3),
    ("something else behind responses", "sequences.response-lengths", lambda c: not c.behind, 0.3),
    (
        "no stop id behind a response that did not stop",
        "sequences.response-lengths",
        lambda c: any(
            not set(s.response[-1:]) & set(c.stop_token_ids) and set(row[len(s.response) :]) & set(c.stop_token_ids)
            for s, row in zip(c.samples, c.responses, strict=True)
        ),
        0.3,
    ),
    (
        "no sampled pad at the end",
        "sequences.response-lengths",
        lambda c: any(
            s.response[-1:] == (c.pad_token_id,) and c.pad_token_id not in c.stop_token_ids for s in c.samples
        ),
        0.1,
    ),
    ("a long prompt in every case", "sequences.attention-span", lambda c: c.prompt_length == 1, 0.05),
    (
        "sampled pads apart from each other",
        "sequences.sampled-pad",
        lambda c: any(
            (c.pad_token_id,) * 2 == s.response[i : i + 2] for s in c.samples for i in range(len(s.response))
        ),
        0.1,
    ),
    ("no sampled pad", "sequences.sampled-pad", lambda c: any(c.pad_token_id in s.response for s in c.samples), 0.6),
]


@by_slug(SEQUENCES)
def test_generated_cases_leave(slug, rows):
    holds_often(slug, rows)


MASKS = [
    ("one row", lambda c: len(c.spans) > 1, 0.4),
    ("no pads", lambda c: any(0 in row for row in c.masks), 0.6),
    ("right pads only", lambda c: any(left for left, _, _ in c.spans), 0.5),
    ("left pads only", lambda c: any(right for _, _, right in c.spans), 0.5),
    ("the same mask in every row", lambda c: len(set(c.spans)) > 1, 0.4),
]


def test_mask_cases_leave():
    holds_often("positions.cumsum", MASKS)


PACKS = [
    ("equal lengths", lambda c: len({len(s) for s in c.sequences}) > 1, 0.6),
    ("no sequence of one token", lambda c: {len(s) == 1 for s in c.sequences} == {True, False}, 0.15),
]


EMPTY = [
    ("the empty one is first", lambda c: bool(c.sequences[0]), 0.4),
    ("the empty one is last", lambda c: bool(c.sequences[-1]), 0.4),
    ("the empty one is inside", lambda c: not all(c.sequences[1:-1]), 0.3),
    ("one empty sequence", lambda c: c.sequences.count(()) > 1, 0.3),
    ("no empty sequence", lambda c: () in c.sequences, 1.0),
]


def test_pack_cases_leave():
    holds_often("packing.boundary", PACKS)
    holds_often("packing.empty-sequence", EMPTY)
    for slug in ("packing.tokens", "packing.boundary", "positions.restart"):
        holds_often(slug, [("several sequences", lambda c: len(c.sequences) == 1, 0.08)])
    assert min(sum(map(len, case.sequences)) for case in drawn("packing.boundary")) >= 2
