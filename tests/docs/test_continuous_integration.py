"""docs/continuous-integration.md: its row is read and holds, its tables are those of the code."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import yaml

from rlhf_conformance import Adapter, check
from rlhf_conformance.results import KNOWN_FAILURE
from rlhf_conformance.run import known, starting

PAGE = "docs/continuous-integration.md"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def row(blocks, tmp_path) -> known.KnownFailure:
    """The row that the page shows."""
    file = tmp_path / "known-failures.toml"
    file.write_text(blocks(PAGE, "toml")[0])
    (found,) = known.read_known_failures(file)
    return found


class ForgotHalf(Adapter):
    def value_loss(self, values, old_values, returns, action_mask, options):
        import rlhf_reference as ref

        return 2 * ref.ValueLoss(options.clip_eps)(values, old_values, returns, action_mask)


def test_the_row_of_the_page_excuses_what_it_says(row):
    report = check(ForgotHalf(), only=[row.clause], known_failures=[dataclasses.replace(row, expires=None)])
    assert report.result(row.clause).verdict == KNOWN_FAILURE


def test_the_row_of_the_page_is_what_accept_writes(blocks, row, tmp_path):
    file = tmp_path / "written.toml"
    file.write_text("")
    known.write([row], file)
    assert file.read_text() == blocks(PAGE, "toml")[0]


def test_the_keys_are_those_of_a_row(table):
    keys = [key for cell, _ in table(PAGE, "key") for key in re.findall(r"`(\w+)`", cell)]
    assert keys == [field.name for field in dataclasses.fields(known.KnownFailure)]


def test_the_files_are_those_of_init(table):
    assert [cell.strip("`") for cell, _ in table(PAGE, "file")] == list(starting.FILES)


def test_the_inputs_and_defaults_are_those_of_the_action(table):
    inputs = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))["inputs"]
    shown = {name.strip("`"): default.strip("`") for name, default, _ in table(PAGE, "input")}
    assert shown == {name: row.get("default", "") for name, row in inputs.items()}


def test_the_job_of_the_page_gives_inputs_that_the_action_has(blocks):
    inputs = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))["inputs"]
    (gate,) = yaml.safe_load(blocks(PAGE, "yaml")[0])["jobs"].values()
    (step,) = (step for step in gate["steps"] if "rlhf-conformance" in step.get("uses", ""))
    assert set(step["with"]) <= set(inputs)
    assert gate["permissions"] == {"contents": "read", "pull-requests": "write"}
