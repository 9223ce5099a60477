"""The page of a report in a real browser: light and dark, on a desk and on a phone. And its picture in the documents.

`RLHF_CONFORMANCE_PICTURES=1 python -m pytest tests/docs/test_browser.py` takes that picture anew.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import browser
from rlhf_conformance import reporting
from rlhf_conformance.reporting import matrix, page
from samples import SHIFTED_VALUES, passed, sample_report

pytestmark = pytest.mark.skipif(browser.chromium() is None, reason="no chromium")

ROOT = Path(__file__).resolve().parents[2]
PICTURE = ROOT / "docs" / "pictures" / "report.png"
VIEWS = [(width, scheme) for width in (1280, 360) for scheme in ("light", "dark")]

LOOK = """(page) => {
  for (const details of page.querySelectorAll("details")) details.open = true;
  const view = page.defaultView, root = page.documentElement;
  const parsed = (color) => color.match(/[\\d.]+/g).map(Number);
  const luminance = (color) => {
    const [r, g, b] = color.map((c) => c / 255).map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const [r, g, b, alpha = 1] = parsed(view.getComputedStyle(e).backgroundColor);
      if (alpha > 0) return [r, g, b];
    }
    return [255, 255, 255];
  };
  const faint = [];
  const walker = page.createTreeWalker(page.body, view.NodeFilter.SHOW_TEXT);
  let texts = 0;
  while (walker.nextNode()) {
    const text = walker.currentNode.textContent.trim(), element = walker.currentNode.parentElement;
    if (!text || element.closest(".hidden")) continue;
    texts += 1;
    const style = view.getComputedStyle(element);
    const [a, b] = [parsed(style.color).slice(0, 3), behind(element)].map(luminance);
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    if (contrast < (large ? 3 : 4.5)) faint.push([text.slice(0, 30), contrast.toFixed(2)]);
  }
  const outline = (cell) => view.getComputedStyle(cell).outlineStyle;
  const cells = [...page.querySelectorAll("td.cell")];
  const beyond = (e) => e.getBoundingClientRect().right > root.clientWidth + 1;
  const wide = [...page.querySelectorAll("main *")].filter(beyond);
  return {
    width: root.clientWidth,
    needed: root.scrollWidth,
    outside: wide.filter((e) => !e.closest(".scroll")).map((e) => e.tagName + "." + e.className).slice(0, 5),
    background: luminance(behind(page.body)),
    texts,
    faint,
    outlined: cells.map((cell) => outline(cell) === "solid"),
    marked: cells.map((cell) => cell.querySelector(".mark") !== null),
    colors: new Set(cells.map((cell) => view.getComputedStyle(cell).backgroundColor)).size,
  };
}"""


@pytest.fixture(scope="module")
def pages():
    """The page of a run with one of everything, and of two such runs side by side."""
    report = sample_report()
    other = sample_report(passed("policy-loss.clip"), environment={"dtype": "bfloat16"})
    combined = matrix.combined([(Path("a"), report), (Path("b"), other)])
    return {"report": page.text(report, {SHIFTED_VALUES.clause: "import torch"}), "matrix": page.matrix(combined)}


@pytest.fixture(scope="module")
def look(pages):
    """`look("report", 360, "dark")`: what the browser says of a page; each view is opened once."""
    seen = {}

    def ask(name, width, scheme):
        if (name, width, scheme) not in seen:
            seen[name, width, scheme] = browser.measured(pages[name], LOOK, width=width, scheme=scheme)
        return seen[name, width, scheme]

    return ask


@pytest.mark.parametrize("width, scheme", VIEWS)
@pytest.mark.parametrize("name", ["report", "matrix"])
def test_a_page_is_as_wide_as_its_window(name, width, scheme, look):
    """No scrolling sideways, but for wide tables and pictures within their boxes."""
    seen = look(name, width, scheme)
    assert seen["width"] == width
    assert (seen["needed"], seen["outside"]) == (width, [])


@pytest.mark.parametrize("width, scheme", VIEWS)
@pytest.mark.parametrize("name", ["report", "matrix"])
def test_all_text_stands_out_from_what_is_behind_it(name, width, scheme, look):
    """4.5 to 1, and 3 to 1 for large text, as WCAG AA asks."""
    seen = look(name, width, scheme)
    assert seen["texts"] > 30
    assert seen["faint"] == []


@pytest.mark.parametrize("name", ["report", "matrix"])
def test_a_page_is_dark_where_that_is_wanted(name, look):
    assert look(name, 1280, "light")["background"] > 0.8
    assert look(name, 1280, "dark")["background"] < 0.05


@pytest.mark.parametrize("width, scheme", VIEWS)
def test_the_picture_of_the_batch_shows_what_was_expected_and_what_was_read(width, scheme, look):
    cells = [cell for row in SHIFTED_VALUES.failure.picture.rows for cell in row]
    seen = look("report", width, scheme)
    assert seen["outlined"] == [cell.expected for cell in cells]
    assert seen["marked"] == [cell.read for cell in cells]
    assert seen["colors"] == len({cell.kind for cell in cells})


@pytest.mark.parametrize("width, scheme", VIEWS)
def test_a_page_is_drawn(width, scheme, pages):
    wide, high, drawn = browser.pixels(browser.screenshot(pages["report"], width=width, height=800, scheme=scheme))
    assert (wide, high) == (max(width, 500), 800)
    assert len(set(drawn)) > 100, "one color, or little more: an empty page"


# --- the picture in the documents ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The report of a real run: a critic whose values are read one token early."""
    folder = tmp_path_factory.mktemp("run")
    floors = os.pathsep.join(str(ROOT / floor) for floor in ("spec", "reference", "conformance"))
    words = ["check", "fault:critic-values-shifted", "--only", "critic.state-before", "-n", "1", "--report", "reports"]
    done = subprocess.run(
        [sys.executable, "-m", "rlhf_conformance", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": floors},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    return folder / "reports"


def test_the_page_of_a_real_run_fits_and_can_be_read(folder):
    text = (folder / "report.html").read_text(encoding="utf-8")
    for width, scheme in ((360, "light"), (1280, "dark")):
        seen = browser.measured(text, LOOK, width=width, scheme=scheme)
        assert (seen["needed"], seen["outside"], seen["faint"]) == (width, [], [])
    picture = reporting.read(folder / "report.json").result("critic.state-before").failure.picture
    assert any(seen["outlined"]) == any(seen["marked"]) == (picture is not None)


def test_the_picture_in_the_documents_is_of_that_page(folder, text):
    taken = browser.screenshot((folder / "report.html").read_text(encoding="utf-8"), width=1100, height=1200)
    if os.environ.get("RLHF_CONFORMANCE_PICTURES"):
        PICTURE.parent.mkdir(exist_ok=True)
        PICTURE.write_bytes(taken)
    assert f"](pictures/{PICTURE.name})" in text("docs/report.md")
    assert browser.pixels(PICTURE.read_bytes())[:2] == browser.pixels(taken)[:2]
