"""Accepted failures: each row excuses one failure, on its own case, until it is mended or its day has come."""

from __future__ import annotations

import datetime
import json
from dataclasses import replace
from pathlib import Path

import pytest

import rlhf_reference as ref
from rlhf_conformance import Adapter, check, conformance_suite
from rlhf_conformance.adapters.reference import Reference
from rlhf_conformance.chapters._models.cases import ModelCase
from rlhf_conformance.chapters.credit.interface import CreditOptions
from rlhf_conformance.chapters.group_advantages.interface import GroupAdvantageOptions
from rlhf_conformance.chapters.kl.cases import KlCase
from rlhf_conformance.chapters.kl.interface import KlOptions
from rlhf_conformance.chapters.off_policy_correction.interface import OffPolicyOptions
from rlhf_conformance.judging import storing
from rlhf_conformance.judging.declared import is_declared
from rlhf_conformance.oracle.layouts import Presentation, Sample
from rlhf_conformance.oracle.probes import Probe
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
    VERDICTS,
    Failure,
    Report,
    Result,
)
from rlhf_conformance.run import known
from rlhf_conformance.run.known import KnownFailure, read_known_failures, signature, with_known_failures
from rlhf_conformance.run.loading import UsageError
from rlhf_conformance.run.plan import Plan
from rlhf_conformance.run.suite import Suite

MUST, SHOULD = "policy-loss.clip", "policy-loss.overflow"
HALF, CLIP, GRADIENT = "value-loss.half", "value-loss.clip", "value-loss.gradient"
CONFORMANT, FAILED, USAGE, INCOMPLETE = 0, 1, 2, 3
TODAY = "2030-06-15"


class Right(Adapter):
    """The reference's value loss; counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def value_loss(self, values, old_values, returns, action_mask, options):
        self.calls += 1
        return ref.ValueLoss(options.clip_eps, options.aggregation)(values, old_values, returns, action_mask)


class ForgotHalf(Right):
    """The factor one half of the value loss is missing."""

    def value_loss(self, *arguments):
        return 2 * super().value_loss(*arguments)


class Detached(Right):
    """The right loss without a graph: its gradient is wrong."""

    def value_loss(self, *arguments):
        return super().value_loss(*arguments).detach()


class Raises(Right):
    def value_loss(self, *arguments):
        raise RuntimeError("no values of 17 rows")


def suite_of(adapter: Adapter, *rows: KnownFailure, **options) -> Suite:
    return Suite(Plan(known_failures=rows, today=TODAY, **options), adapter)


def accepted(adapter: Adapter, *rows: KnownFailure, only: tuple[str, ...] = (HALF,), **options) -> known.Accepted:
    """What `--accept` makes of a run of the clauses in `only`."""
    suite = suite_of(adapter, *rows, accepting=True, only=only, **options)
    report = Report(tuple(suite.run(slug) for slug in suite.slugs), strict=suite.plan.strict)
    return known.accept(report, suite.plan)


@pytest.fixture(scope="module")
def row() -> KnownFailure:
    """The forgotten half, accepted with its counterexample."""
    (found,) = accepted(ForgotHalf()).rows
    return replace(found, reason="the half is in the coefficient")


# --- rows without a counterexample ---------------------------------------------------------------------------------

KNOWN = KnownFailure(MUST, "clips after the mean", "https://example.org/issues/1")
PLAN = Plan(known_failures=(KNOWN,), today=TODAY)


@pytest.mark.parametrize("verdict", VERDICTS)
def test_what_an_accepted_failure_makes_of_a_verdict(verdict):
    changed = {FAIL: KNOWN_FAILURE, ERROR: KNOWN_FAILURE, PASS: UNEXPECTED_PASS}
    assert with_known_failures(Result(MUST, "MUST", verdict), PLAN).verdict == changed.get(verdict, verdict)


@pytest.mark.parametrize("verdict", VERDICTS)
def test_an_accepted_failure_concerns_its_own_clause_only(verdict):
    other = Result(SHOULD, "SHOULD", verdict)
    assert with_known_failures(other, PLAN) is other


def test_the_reason_of_a_known_failure_keeps_both_stories():
    result = with_known_failures(Result(MUST, "MUST", FAIL, reason="expected 1, got 2"), PLAN)
    assert "clips after the mean" in result.reason
    assert "expected 1, got 2" in result.reason


def test_a_report_of_known_failures_only_is_not_green():
    assert Report((with_known_failures(Result(MUST, "MUST", FAIL), PLAN),)).exit_status == INCOMPLETE


def test_a_row_without_counterexample_is_explored():
    adapter = ForgotHalf()
    assert suite_of(adapter, KnownFailure(HALF, "r")).run(HALF).verdict == KNOWN_FAILURE
    assert adapter.calls > 1


# --- rows with a counterexample ------------------------------------------------------------------------------------


def test_a_known_failure_is_tried_on_its_own_case_first(row):
    adapter = ForgotHalf()
    result = suite_of(adapter, row).run(HALF)
    assert result.verdict == KNOWN_FAILURE
    assert result.failure.stored == row.counterexample
    assert adapter.calls > 1
    assert "the half is in the coefficient" in result.reason


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("profile", ["smoke", "gate", "full"])
def test_the_seed_and_the_profile_change_nothing_of_it(row, seed, profile):
    results = {suite_of(ForgotHalf(), row, seed=s, profile=profile).run(HALF).failure.case for s in (0, seed)}
    assert len(results) == 1


def test_another_failure_of_the_clause_is_red(row):
    """Accepted is the number; now there is no number at all."""
    result = suite_of(Raises(), row).run(HALF)
    assert result.verdict == ERROR
    assert result.reason.startswith("accepted for another failure (fail: loss; the half is in the coefficient), now")
    assert "value_loss raised RuntimeError: no values of # rows" in result.reason


def test_another_quantity_that_fails_is_red(row):
    (gradient,) = accepted(Detached(), only=(GRADIENT,)).rows
    result = suite_of(Detached(), replace(gradient, fails="fail: loss")).run(GRADIENT)
    assert result.verdict == FAIL
    assert "now fail: gradient with respect to the new value" in result.reason


def test_a_failure_that_is_mended_is_red_until_its_row_is_removed(row):
    suite = suite_of(Right(), row, known_file="k.toml", command="rlhf-conformance check a.py:A --known-failures k.toml")
    result = suite.run(HALF)
    assert result.verdict == UNEXPECTED_PASS
    assert (
        f"remove the row with `rlhf-conformance check a.py:A --known-failures k.toml --only {HALF} --accept`"
        in result.reason
    )


def test_an_adapter_that_is_an_object_has_no_command_that_removes_a_row(row, tmp_path):
    path = tmp_path / "known.toml"
    known.write([row], path)
    result = conformance_suite(Right(), known_failures=path).run(HALF)
    assert (result.verdict, f"remove the row from {path}" in result.reason) == (UNEXPECTED_PASS, True)


def test_a_counterexample_that_compares_nothing_is_not_green(row):
    result = replace(Result(HALF, "MUST", INCONCLUSIVE), examples=1)
    judged = with_known_failures(result, Plan(known_failures=(row,)))
    assert judged.verdict == INCONCLUSIVE
    assert "no longer puts the clause to the test" in judged.reason


def test_a_case_that_is_replayed_says_nothing_against_the_row(row):
    """`--replay` tries another case, and that one may pass."""
    suite = suite_of(Right(), row, cases={HALF: row.counterexample})
    assert suite.run(HALF).verdict == PASS


def test_a_known_failure_through_check(row):
    report = check(ForgotHalf(), only=[HALF, "value-loss.scalar"], known_failures=[row])
    assert (report.exit_status, report.result(HALF).verdict) == (CONFORMANT, KNOWN_FAILURE)


def test_rows_reach_a_worker_as_they_are(row):
    plan = Plan(known_failures=(replace(row, expires=datetime.date(2031, 1, 1)), KNOWN), today=TODAY)
    assert Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize(
    "what, words",
    [
        ("loss", "fail: loss"),
        ("loss of turn 3", "fail: loss of turn #"),
        ("returned shape (1, 12); wanted (2, 1)", "fail: returned shape (#, #); wanted (#, #)"),
        ("raised at 0x7f3a: 1.5e-07 is not -2 (a.py:17 in f)", "fail: raised at #: # is not # (a.py:# in f)"),
        ("log-probs of float32 logits", "fail: log-probs of float32 logits"),
    ],
)
def test_the_signature_of_a_failure_has_no_numbers(what, words):
    assert signature(Failure(what, "row 3", "1", "2")) == words


# --- several failures of a clause ------------------------------------------------------------------------------------


def broken(*whats_and_backbones: tuple[str, str]) -> Result:
    """A clause with these quantities wrong on these backbones."""
    first, *others = (
        Failure(what, "", "1", "2", stored={"type": "Probe", "architecture": backbone})
        for what, backbone in whats_and_backbones
    )
    return Result(MUST, "MUST", FAIL, reason=first.sentence, failure=first, others=tuple(others))


def of(what: str, backbone: str, **fields) -> KnownFailure:
    case = {"type": "Probe", "architecture": backbone}
    return KnownFailure(MUST, f"{what} of {backbone}", fails=f"fail: {what}", counterexample=case, **fields)


VALUE, SIGN = ("value", "llama"), ("sign", "gpt2")


@pytest.mark.parametrize("other", [("sign", "llama"), ("value", "gpt2"), SIGN], ids=str)
@pytest.mark.parametrize("order", [1, -1])
def test_a_row_excuses_its_quantity_on_its_backbone_and_no_other_of_the_clause(other, order):
    plan = Plan(known_failures=(of(*VALUE),), today=TODAY)
    result = with_known_failures(broken(*(VALUE, other)[::order]), plan)
    assert (result.verdict, result.failure.what) == (FAIL, other[0])
    assert result.failure.stored["architecture"] == other[1]
    assert result.reason.startswith(f"beside what is accepted (value of llama): fail: {other[0]}. ")
    assert [f.what for f in result.others] == ["value"]


def test_what_is_accepted_row_by_row_is_known():
    plan = Plan(known_failures=(of(*VALUE), of(*SIGN)), today=TODAY)
    result = with_known_failures(broken(VALUE, SIGN), plan)
    assert result.verdict == KNOWN_FAILURE
    assert "value of llama; sign of gpt2" in result.reason


def test_one_of_several_rows_that_has_nothing_to_excuse_is_red():
    plan = Plan(known_failures=(of(*VALUE), of(*SIGN)), today=TODAY)
    result = with_known_failures(broken(VALUE), plan, stale=[of(*SIGN)])
    assert result.verdict == UNEXPECTED_PASS
    assert "accepted as a known failure (sign of gpt2), but it passes (of fail: sign)" in result.reason


def test_each_failure_gets_a_row_and_keeps_it():
    plan = Plan(accepting=True, today=TODAY)
    done = known.accept(Report((broken(VALUE, SIGN),)), plan)
    assert [(row.fails, row.backbone) for row in done.rows] == [("fail: value", "llama"), ("fail: sign", "gpt2")]
    known.rows_of(done.rows)
    again = known.accept(Report((broken(SIGN, VALUE),)), replace(plan, known_failures=done.rows))
    assert (again.kept, again.added, again.rows) == ((MUST,), (), done.rows)


def test_of_several_rows_the_one_whose_failure_is_gone_is_removed(tmp_path):
    plan = Plan(accepting=True, today=TODAY, known_failures=(of(*VALUE), of(*SIGN)))
    done = known.accept(Report((broken(SIGN),)), plan)
    assert (done.kept, done.removed, done.rows) == ((MUST,), (MUST,), (of(*SIGN),))
    known.write(plan.known_failures, tmp_path / "known.toml")
    known.write(done.rows, tmp_path / "known.toml")
    assert read_known_failures(tmp_path / "known.toml") == done.rows


# --- conditions and expiry -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "condition, device, dtype, applies",
    [
        ({}, "cuda", "bfloat16", True),
        ({"device": "cpu"}, "cpu", "float32", True),
        ({"device": "cuda"}, "cpu", "float32", False),
        ({"device": "cuda"}, "cuda:1", "float32", True),
        ({"dtype": "bfloat16"}, "cpu", "float32", False),
        ({"dtype": "bfloat16"}, "cuda", "bfloat16", True),
        ({"device": "cpu", "dtype": "bfloat16"}, "cuda", "bfloat16", False),
    ],
)
def test_a_row_counts_in_runs_that_meet_its_condition(condition, device, dtype, applies):
    plan = replace(PLAN, device=device, dtype=dtype, known_failures=(replace(KNOWN, **condition),))
    verdict = with_known_failures(Result(MUST, "MUST", FAIL), plan).verdict
    assert verdict == (KNOWN_FAILURE if applies else FAIL)


def test_each_condition_has_a_row_of_its_own():
    rows = replace(KNOWN, device="cpu", reason="on cpu"), replace(KNOWN, device="cuda", reason="on cuda")
    plan = replace(PLAN, device="cuda:0", known_failures=rows)
    assert "accepted: on cuda." in with_known_failures(Result(MUST, "MUST", FAIL), plan).reason


@pytest.mark.parametrize(
    "day, verdict", [("2030-06-14", FAIL), ("2030-06-15", FAIL), ("2030-06-16", KNOWN_FAILURE)], ids=str
)
def test_a_row_excuses_nothing_from_its_day_on(row, day, verdict):
    result = suite_of(ForgotHalf(), replace(row, expires=datetime.date.fromisoformat(day))).run(HALF)
    assert result.verdict == verdict


def test_an_expired_row_says_what_to_do(row):
    expired = replace(row, expires=datetime.date(2030, 1, 1))
    reason = suite_of(ForgotHalf(), expired, known_file="k.toml").run(HALF).reason
    assert "until 2030-01-01: set another day in k.toml, or mend the failure and remove the row" in reason


def test_an_expired_row_of_a_clause_that_passes_is_still_one_too_many(row):
    expired = replace(row, expires=datetime.date(2030, 1, 1))
    assert suite_of(Right(), expired).run(HALF).verdict == UNEXPECTED_PASS


# --- accepting -----------------------------------------------------------------------------------------------------


def test_a_new_row_has_the_case_and_the_day(row):
    (new,) = accepted(ForgotHalf()).rows
    assert (new.clause, new.reason) == (HALF, f"accepted on {TODAY}, not yet explained")
    assert new.fails == "fail: loss"
    assert new.counterexample["type"] == "ValueLossCase"


def test_a_row_that_still_holds_is_kept_as_it_is(row):
    mine = replace(row, issue="#7", expires=datetime.date(2031, 1, 1))
    done = accepted(ForgotHalf(), mine)
    assert (done.kept, done.rows) == ((HALF,), (mine,))


def test_a_row_without_a_case_gets_one_and_keeps_its_story(row):
    mine = KnownFailure(HALF, "mine", "#7", expires=datetime.date(2031, 1, 1))
    done = accepted(ForgotHalf(), mine)
    assert done.updated == (HALF,)
    assert done.rows == (replace(mine, fails=row.fails, hypothesis=row.hypothesis, counterexample=row.counterexample),)


def test_a_row_of_another_failure_is_written_anew(row):
    done = accepted(Raises(), row)
    assert done.updated == (HALF,)
    assert done.rows[0].fails.startswith("error: value_loss raised RuntimeError: no values of # rows")
    assert done.rows[0].reason == row.reason


def test_a_case_that_no_longer_fails_is_no_reason_to_drop_the_row(row):
    """Half mended: the stored case passes, others do not."""
    values = row.counterexample["values"]
    harmless = {**row.counterexample, "returns": values, "old_values": values}
    mine = replace(row, counterexample=harmless)
    result = suite_of(ForgotHalf(), mine).run(HALF)
    assert result.verdict == FAIL
    assert "but the case that was accepted passes now, and another one fails: fail: loss" in result.reason
    assert accepted(ForgotHalf(), mine).rows == (row,)


def test_a_row_of_a_clause_that_passes_is_removed(row):
    done = accepted(Right(), row)
    assert (done.removed, done.rows) == ((HALF,), ())


def test_rows_of_other_clauses_and_of_other_runs_are_left_alone(row):
    others = replace(row, clause=CLIP), replace(row, dtype="bfloat16"), KnownFailure("actor.log-probs", "r")
    assert accepted(Right(), *others).rows == others


def test_a_row_of_a_clause_that_is_not_provided_is_kept():
    mine = KnownFailure(MUST, "r")
    done = accepted(Right(), mine, only=(MUST,))
    assert (done.untried, done.rows) == ((MUST,), (mine,))


@pytest.mark.parametrize("verdict", [LOST, INCONCLUSIVE])
def test_what_was_not_finished_cannot_be_accepted(verdict, row):
    plan = Plan(known_failures=(row,), accepting=True, today=TODAY)
    results = Result(HALF, "MUST", verdict), Result(CLIP, "MUST", verdict)
    done = known.accept(Report(results), plan)
    assert (done.unfinished, done.rows) == ((HALF, CLIP), (row,))


@pytest.mark.parametrize("strict, rows", [(False, 0), (True, 1)])
def test_a_broken_should_gets_a_row_where_it_is_red(strict, rows):
    report = Report((Result(SHOULD, "SHOULD", FAIL, failure=Failure("loss", "", "1", "2")),), strict=strict)
    done = known.accept(report, Plan(accepting=True, strict=strict))
    assert (len(done.rows), len(done.warnings)) == (rows, 1 - rows)


def test_a_row_accepted_elsewhere_counts_there_only():
    report = Report((Result(MUST, "MUST", FAIL, failure=Failure("loss", "", "1", "2")),))
    (new,) = known.accept(report, Plan(device="cuda:1", dtype="bfloat16", accepting=True)).rows
    assert (new.device, new.dtype) == ("cuda", "bfloat16")


def test_a_second_row_of_a_clause_does_not_overlap_the_first():
    report = Report((Result(MUST, "MUST", FAIL, failure=Failure("loss", "", "1", "2")),))
    first = KnownFailure(MUST, "r", dtype="bfloat16")
    done = known.accept(report, Plan(accepting=True, known_failures=(first,)))
    assert [(row.device, row.dtype) for row in done.rows] == [("", "bfloat16"), ("cpu", "float32")]
    known.rows_of(done.rows)


def test_an_expired_row_is_kept_and_named(row):
    expired = replace(row, expires=datetime.date(2030, 1, 1))
    done = accepted(ForgotHalf(), expired)
    assert (done.kept, done.expired, done.rows) == ((HALF,), (HALF,), (expired,))


class Flips(Right):
    """Forgets the half only in its first few calls."""

    wrong: int

    def value_loss(self, *arguments):
        loss = super().value_loss(*arguments)
        return 2 * loss if self.calls <= self.wrong else loss


@pytest.mark.parametrize("wrong", [1, 2, 3, 4])
def test_a_failure_that_does_not_come_back_gets_no_case(wrong):
    """A row with a case that fails at random would be red at random."""
    adapter = Flips()
    adapter.wrong = wrong
    (new,) = accepted(adapter).rows
    assert (new.counterexample, new.fails) == (None, "")


# --- the file ------------------------------------------------------------------------------------------------------


def test_the_rows_of_a_file(tmp_path):
    path = tmp_path / "known.toml"
    path.write_text(
        f'[[known-failure]]\nclause = "{MUST}"\nreason = "r"\n\n'
        f'[[known-failure]]\nclause = "{HALF}"\nreason = "r"\nissue = "#1"\ndevice = "cuda"\ndtype = "bfloat16"\n'
        'expires = 2030-12-31\nfails = "fail: loss"\ncounterexample = \'{"type": "Probe", "architecture": "gpt2"}\'\n'
    )
    case = {"type": "Probe", "architecture": "gpt2"}
    assert read_known_failures(path) == (
        KnownFailure(MUST, "r"),
        KnownFailure(HALF, "r", "#1", "cuda", "bfloat16", datetime.date(2030, 12, 31), "fail: loss", "", case),
    )


ROW = '[[known-failure]]\nclause = "policy-loss.clip"\nreason = "r"\n'


@pytest.mark.parametrize(
    "text, says",
    [
        ("not toml", "known-failure"),
        (ROW.replace("clip", "clipp"), "Did you mean policy-loss.clip or"),
        (ROW + 'why = "x"\n', "row 1 (policy-loss.clip): unknown why; there are clause, reason, issue"),
        ('[[known-failure]]\nclause = "policy-loss.clip"\n', "reason missing"),
        (ROW.replace("[[", "[").replace("]]", "]"), "[[known-failure]]"),
        (ROW.replace("failure", "failures"), "unknown known-failures"),
        (ROW * 2, "policy-loss.clip stands in it twice, in the rows 1 and 2"),
        (ROW + ROW + 'device = "cuda"\n', "tell them apart by device, dtype, or what fails"),
        (ROW + 'device = "cuda"\n' + ROW + 'dtype = "bfloat16"\n', "for the same runs"),
        (ROW + "issue = 12\n", "issue = 12: wanted a string"),
        (ROW + 'device = "gpu"\n', "device = 'gpu': wanted one of cpu, cuda"),
        (ROW + 'dtype = "fp16"\n', "dtype = 'fp16': wanted one of float32"),
        (ROW + 'expires = "2030-12-31"\n', "wanted a day without quotes, as expires = 2030-12-31"),
        (ROW + "expires = 2030-12-31T10:00:00\n", "wanted a day without quotes"),
        (ROW + "expires = 2030-13-31\n", "not TOML"),
        (ROW + "counterexample = '{'\n", "counterexample is not a stored case"),
        (ROW + "counterexample = '[1]'\n", "not a case but a list"),
        (ROW + """counterexample = '{"type": "NoCase"}'\n""", "write the row anew with --accept"),
        (ROW + """counterexample = '{"type": "LossCase", "new": 1}'\n""", "not a LossCase of an earlier version"),
    ],
)
def test_a_bad_file_is_refused_with_its_name_and_the_mend(text, says, tmp_path):
    path = tmp_path / "known.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as error:
        read_known_failures(path)
    assert str(path) in str(error.value)
    assert says in str(error.value)


def test_a_file_in_another_encoding_is_refused(tmp_path):
    path = tmp_path / "known.toml"
    path.write_bytes("# schön\n".encode("latin-1"))
    with pytest.raises(UsageError, match=str(path)):
        read_known_failures(path)


def test_rows_that_overlap_are_refused_as_objects_too():
    with pytest.raises(UsageError, match=r"policy-loss\.clip stands in it twice"):
        conformance_suite(Right(), known_failures=[KNOWN, KNOWN])


NASTY = 'a "quoted" \\ path, a\ttab, a\nline, an apostrophe \', a control \x01, a delete \x7f, ünïcode 🙂'


def test_what_is_written_is_read_again(tmp_path, row):
    path = tmp_path / "known.toml"
    texts = json.loads(json.dumps(row.counterexample))
    texts["options"]["aggregation"] = "it's"
    rows = (
        replace(row, reason=NASTY, issue=NASTY, expires=datetime.date(2030, 1, 2)),
        replace(row, clause=CLIP, device="cuda", dtype="float16", fails=NASTY, counterexample=texts),
        KnownFailure(MUST, "plain"),
    )
    known.write(rows, path)
    assert read_known_failures(path) == rows


def test_the_comment_at_the_top_stays(tmp_path, row):
    path = tmp_path / "known.toml"
    path.write_text("# mine\n\n# and this\n\n" + ROW + "# not at the top\n")
    known.write([row], path)
    assert path.read_text().startswith("# mine\n\n# and this\n\n[[known-failure]]\n")
    known.write([], path)
    assert path.read_text() == "# mine\n\n# and this\n"


COMMENTED = """# mine

# a section

# why the half is missing
[[known-failure]]  # the first
clause = "value-loss.half"  # halves
reason = "r"
fails = "old"  # how it fails
# of the first, too

# about clipping
# in two lines
[[known-failure]]
clause = "policy-loss.clip"
device = "cpu"  # here alone
reason = "r"

# the end
"""


@pytest.mark.parametrize("fails", ["", "fail: loss"])
def test_comments_stay_where_they_were_written(tmp_path, fails):
    path = tmp_path / "known.toml"
    path.write_text(COMMENTED)
    half, clip = read_known_failures(path)
    known.write([half, clip], path)
    assert path.read_text() == COMMENTED
    changed = replace(half, fails=fails, reason="another")
    added = KnownFailure("actor.log-probs", "new")
    known.write([changed, clip, added], path)
    line = f'fails = "{fails}"  # how it fails\n' if fails else ""
    after = COMMENTED.replace('fails = "old"  # how it fails\n', line).replace('reason = "r"', 'reason = "another"', 1)
    assert path.read_text() == after + '\n[[known-failure]]\nclause = "actor.log-probs"\nreason = "new"\n'


def test_the_comments_of_a_row_go_with_it_and_no_others(tmp_path):
    path = tmp_path / "known.toml"
    path.write_text(COMMENTED)
    half, clip = read_known_failures(path)
    known.write([clip], path)
    rest = COMMENTED.partition("# about clipping")[2]
    assert path.read_text() == "# mine\n\n# a section\n\n# about clipping" + rest
    path.write_text(COMMENTED)
    known.write([half], path)
    assert path.read_text() == COMMENTED.partition("# about clipping")[0] + "# the end\n"


def test_rows_in_an_inline_array_become_rows_under_the_same_head(tmp_path):
    path = tmp_path / "known.toml"
    path.write_text('# mine\n\nknown-failure = [{clause = "value-loss.half", reason = "r"}]\n')
    known.write(read_known_failures(path), path)
    assert path.read_text() == '# mine\n\n[[known-failure]]\nclause = "value-loss.half"\nreason = "r"\n'


def test_a_new_file_explains_itself(tmp_path):
    path = tmp_path / "known.toml"
    known.write([], path)
    assert path.read_text().startswith("# Failures that are accepted for now.")
    assert read_known_failures(path) == ()


# --- through the command -------------------------------------------------------------------------------------------


def test_known_failures_through_the_command(command, hostile, tmp_path):
    """One clause that fails as accepted, one that passes although it is accepted, one that passes."""
    (tmp_path / "known.toml").write_text(
        '[[known-failure]]\nclause = "log-probs.definition"\nreason = "contiguous logits only"\nissue = "#7"\n'
        '[[known-failure]]\nclause = "positions.cumsum"\nreason = "was off by one"\n'
    )
    check = ("check", hostile("answers.py:Raises"), "--profile", "smoke", "-n", "1", "--known-failures", "known.toml")
    green = command(*check, "--only", "log-probs.definition", "--only", "policy-loss.ratio")
    assert green.status == CONFORMANT
    assert "known failure: log-probs.definition: accepted: contiguous logits only." in green.said
    surprising = command(*check, "--only", "log-probs.definition", "--only", "positions.cumsum")
    assert surprising.status == FAILED
    assert "UNEXPECTED-PASS positions.cumsum" in surprising.said
    assert "accepted as a known failure (was off by one), but it passes: remove the row with" in surprising.said


def test_accepting_through_the_command(command, hostile, tmp_path):
    """What it prints and writes; that what is written is green is said by the sample repository of test_init.py."""
    check = ("check", hostile("answers.py:Raises"), "--profile", "smoke", "-n", "1", "--only", "log-probs.definition")
    done = command(*check, "--known-failures", "known.toml", "--accept", "--report", "reports")
    assert done.status == CONFORMANT
    assert "ERROR log-probs.definition (MUST)" in done.said
    assert "added: log-probs.definition (say in each row why it is accepted)" in done.said
    assert "known.toml has 1 known failures" in done.said
    (row,) = read_known_failures(tmp_path / "known.toml")
    assert row.fails.startswith("error: token_log_probs raised")
    (result,) = json.loads((tmp_path / "reports" / "report.json").read_text())["results"]
    assert result["verdict"] == KNOWN_FAILURE


def test_a_clause_that_kills_its_process_cannot_be_accepted(command, hostile, tmp_path):
    check = ("check", hostile("processes.py:Exits"), "--profile", "smoke", "-n", "1")
    done = command(*check, "--known-failures", "known.toml", "--accept", "--only", "packing.tokens")
    assert done.status == INCOMPLETE
    assert "cannot be accepted: packing.tokens" in done.said
    assert read_known_failures(tmp_path / "known.toml") == ()


def test_nothing_is_accepted_of_an_adapter_that_was_not_tried(command, hostile, tmp_path):
    done = command("check", hostile("loading.py:Nothing"), "--known-failures", "known.toml", "--accept", "-n", "1")
    assert done.status == INCOMPLETE
    assert not (tmp_path / "known.toml").exists()


@pytest.mark.parametrize(
    "arguments, says",
    [
        (("--accept",), "--accept writes the file of --known-failures FILE"),
        (("--accept", "--known-failures", "no/such/folder.toml"), "there is no folder no/such"),
        (("--accept", "--known-failures", "."), "it is a folder"),
        (("--accept", "--known-failures", "k.toml", "--replay", "x.json"), "leave out --replay"),
        (("--known-failures", "k.toml"), "cannot read k.toml: No such file or directory; --accept makes a new one"),
    ],
)
def test_bad_usage_is_refused(arguments, says, monkeypatch, tmp_path, capsys):
    from rlhf_conformance.cli import main

    monkeypatch.chdir(tmp_path)
    assert main(["check", "reference", *arguments]) == USAGE
    assert says in capsys.readouterr().err
    assert list(Path().iterdir()) == []


def test_every_verdict_has_its_place_in_accepting():
    """None is forgotten when a verdict is added."""
    for verdict in (SKIP, NOT_PROVIDED, PASS, FAIL, ERROR, LOST, INCONCLUSIVE):
        known.accept(Report((Result(MUST, "MUST", verdict),)), Plan(accepting=True))


# --- rows of another mode -------------------------------------------------------------------------------------------


class OnTheRightOnly(Reference):
    """Is asked for rows that are padded on the right, and answers nothing else rightly."""

    layouts = ("right",)

    def action_log_probs(self, actor, batch):
        answers = super().action_log_probs(actor, batch)
        return answers if batch.layout == "right" else answers + 1


@pytest.mark.parametrize(
    "how, architecture", [("padded", "llama"), ("packed", "gpt2"), ("right", "granite")], ids=lambda x: x
)
def test_a_case_that_the_adapter_is_not_ready_for_is_no_question_to_it(how, architecture):
    case = ModelCase(Probe(architecture), (Sample((2, 3), (4, 5)),), Presentation(how))
    row = KnownFailure("actor.log-probs", "of another mode", fails="fail: x", counterexample=storing.to_json(case))
    adapter = OnTheRightOnly()
    adapter.architectures = ("llama", "gpt2")
    assert suite_of(adapter, row, profile="smoke").run("actor.log-probs").verdict == UNEXPECTED_PASS
    adapter.layouts, adapter.architectures = (how,), (architecture,)
    mine = suite_of(adapter, row, profile="smoke").run("actor.log-probs")
    assert mine.verdict == (UNEXPECTED_PASS if how == "right" else FAIL)


class OnlyK1(Reference):
    """Has one estimator, whatever it is asked for, and subtracts the mean of the others."""

    kl_estimators = ("k1",)
    group_baselines = ("leave-one-out",)

    def kl(self, log_probs, ref_log_probs, action_mask, options):
        return log_probs - ref_log_probs


def test_a_case_of_an_estimator_that_is_not_declared_is_no_question():
    case = KlCase(((-0.5,),), ((-1.5,),), ((1,),), KlOptions("k3"))
    row = KnownFailure("kl.agreement", "of another mode", fails="fail: x", counterexample=storing.to_json(case))
    assert suite_of(OnlyK1(), row, profile="smoke").run("kl.agreement").verdict == UNEXPECTED_PASS
    adapter = OnlyK1()
    adapter.kl_estimators = ("k1", "k3")
    assert suite_of(adapter, row, profile="smoke").run("kl.agreement").verdict == FAIL


@pytest.mark.parametrize(
    ("options", "declared"),
    [
        (KlOptions("k1"), True),
        (KlOptions("k2"), False),
        (CreditOptions("k1"), True),
        (CreditOptions("abs"), False),
        (GroupAdvantageOptions("leave-one-out", "none"), True),
        (GroupAdvantageOptions("mean", "group-std"), False),
    ],
)
def test_options_are_those_that_an_adapter_declares(options, declared):
    assert is_declared(options, OnlyK1()) == declared


@pytest.mark.parametrize(
    ("options", "declared"),
    [
        (OffPolicyOptions(), True),
        (OffPolicyOptions("sequence", "mask", sequence_weight="geometric"), True),
        (OffPolicyOptions("sequence", "mask", sequence_weight="product"), False),
        (OffPolicyOptions("sequence", "truncate", sequence_weight="geometric"), False),
        (OffPolicyOptions("token", "truncate", sequence_weight="product", lower=0.5), False),
        (OffPolicyOptions("token", "mask", lower=0.5), True),
    ],
)
def test_weights_are_of_a_kind_that_an_adapter_declares(options, declared):
    adapter = Reference()
    adapter.sequence_correction_modes, adapter.sequence_weights = ("mask",), ("geometric",)
    adapter.correction_lower = "mask"
    assert is_declared(options, adapter) == declared


def test_a_scale_is_one_that_an_adapter_declares():
    adapter = Reference()
    adapter.group_scales = ("none",)
    assert is_declared(GroupAdvantageOptions("mean", "none"), adapter)
    assert not is_declared(GroupAdvantageOptions("mean", "batch-std"), adapter)
