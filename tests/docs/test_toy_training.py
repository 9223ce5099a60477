"""The toy training goes up, and down where the advantages are negated."""

from __future__ import annotations

import importlib
import statistics
from pathlib import Path

import pytest

STEPS = 20
PICTURE = Path(__file__).resolve().parents[2] / "docs" / "pictures" / "toy-training.png"


@pytest.fixture
def toy_training():
    return importlib.import_module("toy_training")


def tenths(rewards):
    """The mean of the first tenth and of the last."""
    share = max(1, len(rewards) // 10)
    return statistics.mean(rewards[:share]), statistics.mean(rewards[-share:])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_reward_rises(toy_training, seed):
    first, last = tenths(toy_training.train(STEPS, seed))
    assert last > first


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_with_negated_advantages_it_does_not(toy_training, seed):
    first, last = tenths(toy_training.train(STEPS, seed, sign=-1.0))
    assert last <= first


def test_the_command_prints_a_line_for_each_step(toy_training, monkeypatch, capsys):
    monkeypatch.setattr(toy_training, "train", lambda: [0.0625, 0.5])
    monkeypatch.setattr("sys.argv", ["toy_training.py"])
    toy_training.main()
    assert capsys.readouterr().out == "step 0: mean reward 0.062\nstep 1: mean reward 0.500\n"


def test_the_picture_is_drawn(toy_training, monkeypatch, tmp_path, text):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(toy_training, "train", lambda seed: [0.1 * seed, 0.5])
    monkeypatch.setattr("sys.argv", ["toy_training.py", "--plot", str(tmp_path / "rewards.png")])
    toy_training.main()
    drawn, shown = (tmp_path / "rewards.png").read_bytes(), PICTURE.read_bytes()
    assert drawn[:8] == shown[:8] == b"\x89PNG\r\n\x1a\n"
    assert drawn[16:24] == shown[16:24]  # width and height
    assert f"pictures/{PICTURE.name}" in text("docs/toy-training.md")
