"""Where a returned number comes from: what is claimed, what is not, and the picture beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.chapters._models.cases import ModelCase
from rlhf_conformance.chapters.sequences.cases import GeneratedCase
from rlhf_conformance.diagnosis import pictures, provenance
from rlhf_conformance.diagnosis.evidence import Evidence, observe
from rlhf_conformance.faults import faults
from rlhf_conformance.judging.checks import checks
from rlhf_conformance.judging.subject import Subject
from rlhf_conformance.oracle.layouts import Presentation, Sample
from rlhf_conformance.oracle.probes import Probe
from rlhf_conformance.results import Diagnosis, Picture

SHORT, LONG = Sample((7, 9, 4), (11, 5)), Sample((8, 3, 12, 6), (2, 10, 13, 14))
HEAD = Probe(head_name="score")

Look = Callable[..., Evidence]


@pytest.fixture
def look(store: Any) -> Look:
    """The evidence of a clause on an adapter, from a failing case that is given."""

    def make(adapter: Any, slug: str, case: Any, dtype: str = "float32") -> Evidence:
        subject = Subject.make(adapter, device="cpu", dtype=dtype, store=store)
        return Evidence(checks()[slug], subject, observe(checks()[slug], subject, case))

    return make


def batch(slug: str, layout: str = "padded", **options: Any) -> ModelCase:
    probe = Probe() if slug.startswith(("actor", "positions")) or slug in ACTOR_PACKS else HEAD
    how = Presentation(layout, **{k: v for k, v in options.items() if k in ("extra_left", "extra_right", "garbage")})
    rest = {k: v for k, v in options.items() if k in ("temperature",)}
    return ModelCase(options.get("probe", probe), options.get("samples", (SHORT, LONG)), how, **rest)


ACTOR_PACKS = ("packing.equivalence", "packing.isolation", "packing.order", "packing.shards", "packing.tail")


def only(found: tuple[Diagnosis, ...]) -> Diagnosis:
    assert len(found) == 1
    return found[0]


class Late(Reference):
    """The slice begins one action late; `end` puts something in the place of the last."""

    end = staticmethod(lambda row: row[-1:])

    def action_log_probs(self, actor: Any, batch: Any) -> Any:
        rows = super().action_log_probs(actor, batch)
        return torch.cat([rows[:, 1:], self.end(rows.T).T], 1)


@pytest.mark.parametrize(
    "end",
    [lambda row: row[-1:], lambda row: 0 * row[-1:], lambda row: row[-1:] * 3 + 1],
    ids=["again", "zero", "anything"],
)
def test_a_shift_is_named_whatever_stands_at_the_end(look: Look, end: Any) -> None:
    long = Sample((5, 9), (17, 3, 21, 30, 6))
    case = batch("actor.log-probs", samples=(LONG, long))
    late = type("Late", (Late,), {"end": staticmethod(end)})
    found = only(provenance.diagnoses(look(late(), "actor.log-probs", case)))
    assert (found.kind, found.name) == ("place", "shift")
    assert "shifted by +1 in every action of every sample but the last" in found.sentence


def test_numbers_of_another_origin_are_no_shift_though_all_but_the_last_differ(look: Look) -> None:
    class Doubled(Reference):
        def action_log_probs(self, actor: Any, batch: Any) -> Any:
            rows = super().action_log_probs(actor, batch)
            return torch.cat([rows[:, :-1] * torch.linspace(1.1, 1.7, rows.shape[1] - 1), rows[:, -1:]], 1)

    case = batch("actor.log-probs", samples=(LONG, Sample((5, 9), (17, 3, 21, 30, 6))))
    assert not provenance.diagnoses(look(Doubled(), "actor.log-probs", case))


# --- claims --------------------------------------------------------------------------------------------------------

NORMED = Probe(head_name="score", mean=0.5, std=2.0)
NAMED = [
    ("critic-values-unshifted", {}, "place", "shift", "shifted by +1 in every action of every sample"),
    ("critic-values-shifted", {}, "place", "shift", "shifted by -1 in every action of every sample"),
    ("first-sample-right-only", {}, "place", "shift", "shifted by +1 in every sample but the first"),
    ("double-shift", {}, "place", "shift", "logits shifted by -1 in every action"),
    ("first-response-token-lost", {}, "place", "shift", "shifted by +1 in every action"),
    ("prompt-length-of-first-sample", {}, "place", "window", "the prompt length of sample 0 is used for all"),
    ("reward-one-early", {}, "place", "shift", "shifted by -1 in every sample"),
    ("reward-at-last-column", {"extra_right": 2}, "place", "pad", "the score of the pad in column"),
    ("reward-at-mask-count", {"extra_left": 2}, "place", "window", "read at column n - 1 of the row"),
    ("pack-has-one-reward", {"layout": "packed"}, "place", "neighbor", "at the end of the last one"),
    ("pack-answers-reversed", {"layout": "packed"}, "place", "swap", "the samples come back in reverse order"),
    ("packed-with-ones-mask", {"layout": "packed"}, "place", "neighbor", "sequences see those before them"),
    ("packed-positions-run-on", {"layout": "packed"}, "place", "neighbor", "the pack is read as one long sequence"),
    ("shards-blind-to-each-other", {"layout": "sharded"}, "place", "shards", "does not see what came before the cut"),
    ("forward-without-mask", {"extra_left": 2}, "place", "mask", "without an attention mask"),
    (
        "positions-ignore-left-pad",
        {"extra_left": 2, "probe": Probe("gpt2")},
        "place",
        "positions",
        "positions count columns, pads included",
    ),
    ("actor-temperature-ignored", {"temperature": 2.0}, "numbers", "temperature", "the temperature is missing"),
    ("actor-temperature-twice", {"temperature": 2.0}, "numbers", "temperature", "is divided out twice"),
    ("norm-statistics-unset", {"probe": NORMED}, "numbers", "normalization", "the raw score, not normalized"),
    ("std-without-mean", {"probe": NORMED}, "numbers", "normalization", "the mean is not subtracted"),
    ("bfloat-log-softmax", {}, "numbers", "dtype", "exact in bfloat16"),
    ("log-probs-in-bits", {}, "numbers", "logarithm", "to the base 2"),
    ("argmax-scored", {}, "numbers", "token", "the most probable token"),
    ("log-probs-floored", {}, "numbers", "clamp", "not let below -5"),
    ("last-value-zero", {}, "numbers", "zero", "0 is returned, in the last action of every sample only"),
    ("rewards-centred", {}, "numbers", "centred", "the mean over the batch is subtracted"),
    ("critic-head-with-bias", {}, "numbers", "offset", "the right number and +0.01, in every action of every sample"),
]


@pytest.mark.parametrize("name, options, kind, word, said", NAMED, ids=[row[0] for row in NAMED])
def test_the_lie_is_named(look: Look, name: str, options: dict[str, Any], kind: str, word: str, said: str) -> None:
    fault = faults()[name]
    slug = fault.clause
    case = batch(slug, **options)
    if "batch-independence" in slug:
        from rlhf_conformance.chapters._models.cases import EditedCase

        case = EditedCase(case, 0, Sample((9, 9), (17,)))  # type: ignore[assignment]
    if slug in ("packing.order", "packing.isolation"):
        from rlhf_conformance.chapters._models.cases import EditedCase, PermutedCase

        case = PermutedCase(case, (1, 0)) if slug == "packing.order" else EditedCase(case, 0, LONG)  # type: ignore
    found = only(provenance.diagnoses(look(fault.adapter(), slug, case)))
    assert (found.kind, found.name) == (kind, word)
    assert said in found.sentence


def test_a_shift_tells_both_positions(look: Look) -> None:
    adapter = faults()["critic-values-unshifted"].adapter()
    found = only(provenance.diagnoses(look(adapter, "critic.state-before", batch("critic.state-before"))))
    assert found.sentence == (
        "sample 0, action 0: you returned the value of position 3 where that of position 2 is due: "
        "shifted by +1 in every action of every sample"
    )


# --- no claims -----------------------------------------------------------------------------------------------------


def bent(change: Callable[[torch.Tensor, int], torch.Tensor]) -> Any:
    """The reference with the answers of its models changed, sample by sample."""

    class Bent(Reference):
        def action_log_probs(self, actor, batch):
            rows = batch.actions_to_ragged(super().action_log_probs(actor, batch))
            return [change(row, i) for i, row in enumerate(rows)]

        def action_values(self, critic, batch):
            rows = batch.actions_to_ragged(super().action_values(critic, batch))
            return [change(row, i) for i, row in enumerate(rows)]

        def rewards(self, reward_model, batch):
            answer = super().rewards(reward_model, batch)
            return torch.cat([change(answer[i : i + 1], i) for i in range(len(answer))])

    return Bent()


def noise(row: torch.Tensor) -> torch.Tensor:
    """Between -1 and 1, the same for the same numbers."""
    return torch.sin(row.detach().double() * 1e4).to(row)


SLUGS = ("actor.log-probs", "critic.state-before", "reward.last-attended")
UNCLAIMED = {
    "noise of a few allowances": lambda row, _: row + 4e-4 * noise(row),
    "noise": lambda row, _: row + noise(row),
    "a constant": lambda row, _: row * 0 + 1.5,
    "zeros": lambda row, _: row * 0,
    "two errors": lambda row, sample: row + 0.7 if sample % 2 else row * 1.5,
    "NaN": lambda row, _: row * float("nan"),
}


@pytest.mark.parametrize("slug", SLUGS)
@pytest.mark.parametrize("change", UNCLAIMED.values(), ids=UNCLAIMED.keys())
def test_nothing_is_claimed(look: Look, slug: str, change: Any) -> None:
    evidence = look(bent(change), slug, batch(slug))
    assert evidence.smallest.failed
    assert provenance.diagnoses(evidence) == ()
    assert pictures.picture(evidence) is not None


def test_nothing_is_claimed_of_answers_that_are_right(look: Look) -> None:
    evidence = look(Reference(), "critic.state-before", batch("critic.state-before"))
    assert provenance.diagnoses(evidence) == ()


def test_nothing_is_claimed_of_a_wrong_shape(look: Look) -> None:
    adapter = faults()["one-value-too-many"].adapter()
    evidence = look(adapter, "critic.shape", batch("critic.shape"))
    assert provenance.diagnoses(evidence) == ()
    assert "read" not in pictures.picture(evidence).caption


def test_nothing_is_claimed_of_a_model_that_draws_its_dropout(look: Look) -> None:
    adapter = faults()["old-log-prob-in-train-mode"].adapter()
    case = batch("actor.dropout-off", probe=Probe(dropout=True))
    assert provenance.diagnoses(look(adapter, "actor.dropout-off", case)) == ()


# --- pictures ------------------------------------------------------------------------------------------------------


def marks(picture: Picture, mark: str) -> list[list[int]]:
    """The columns of each row that are outlined ("expected") or marked ("read")."""
    return [[column for column, cell in enumerate(row) if getattr(cell, mark)] for row in picture.rows]


def kinds(picture: Picture) -> list[str]:
    letters = {"pad": ".", "prompt": "p", "response": "r", "eos": "e"}
    return ["".join(letters[cell.kind] for cell in row) for row in picture.rows]


LAYOUTS = [
    ("padded", [".ppprr..", "pppprrrr"], [[3, 4], [3, 4, 5, 6]], [[4, 5], [4, 5, 6, 7]]),
    ("left", ["...ppprr", "pppprrrr"], [[5, 6], [3, 4, 5, 6]], [[6, 7], [4, 5, 6, 7]]),
    ("right", ["ppprr...", "pppprrrr"], [[2, 3], [3, 4, 5, 6]], [[3, 4], [4, 5, 6, 7]]),
    ("packed", ["ppprrpppprrrr"], [[2, 3, 8, 9, 10, 11]], [[3, 4, 9, 10, 11, 12]]),
    ("sharded", ["ppprrpp", "pprrrr."], [[2, 3], [1, 2, 3, 4]], [[3, 4], [2, 3, 4, 5]]),
]


@pytest.mark.parametrize("layout, cells, due, read", LAYOUTS, ids=[row[0] for row in LAYOUTS])
def test_the_picture_of_a_shift(look: Look, layout: str, cells: Any, due: Any, read: Any) -> None:
    adapter = faults()["critic-values-unshifted"].adapter()
    evidence = look(adapter, "critic.state-before", batch("critic.state-before", layout))
    drawing = pictures.picture(evidence)
    assert drawing is not None
    assert kinds(drawing) == cells
    assert marks(drawing, "expected") == due
    assert marks(drawing, "read") == read


def test_the_picture_marks_nothing_that_is_not_known(look: Look) -> None:
    evidence = look(bent(UNCLAIMED["noise"]), "critic.state-before", batch("critic.state-before"))
    drawing = pictures.picture(evidence)
    assert drawing is not None
    assert marks(drawing, "read") == [[], []]
    assert "6 of 6 come from no known place" in drawing.caption


def test_the_remarks_of_a_pack_tell_its_samples(look: Look) -> None:
    adapter = faults()["critic-values-unshifted"].adapter()
    drawing = pictures.picture(look(adapter, "critic.state-before", batch("critic.state-before", "packed")))
    assert drawing is not None
    assert (drawing.labels, drawing.remarks) == (("pack",), ("sample 0: 0 to 4, sample 1: 5 to 12",))


def test_the_picture_of_generated_rows(look: Look) -> None:
    adapter = faults()["generated-padding-trained"].adapter()
    case = GeneratedCase((Sample((4, 5), (6, 1)), Sample((7,), (8, 9, 2, 3))), 4, (1,), 0)
    drawing = pictures.picture(look(adapter, "sequences.action-mask", case))
    assert drawing is not None
    assert kinds(drawing) == ["ppre..", ".prrrr"]
    assert marks(drawing, "expected") == [[2, 3], [2, 3, 4, 5]]
    assert marks(drawing, "read") == [[2, 3, 4, 5], [2, 3, 4, 5]]
    assert drawing.remarks == ("2 cells differ", "right")
