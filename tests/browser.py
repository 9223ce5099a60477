"""A real browser, headless: what a page looks like, and what it measures of itself."""

from __future__ import annotations

import html
import json
import re
import shutil
import struct
import subprocess
import tempfile
import zlib
from pathlib import Path
from typing import Any

SECONDS = 60
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--hide-scrollbars", "--disable-dev-shm-usage"),
    "--force-device-scale-factor=1",
)


def chromium() -> str | None:
    """The browser, None where there is none."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def _run(*arguments: str) -> str:
    program = chromium()
    assert program is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [program, *FLAGS, f"--user-data-dir={profile}", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    return done.stdout


FRAME = """<!DOCTYPE html><meta charset="utf-8">
<style>body {{ margin: 0 }} iframe {{ display: block; border: 0; color-scheme: {scheme} }}</style>
<iframe width="{width}" height="{height}" srcdoc="{page}"></iframe>
<pre></pre>
<script>
onload = () => {{
  const page = document.querySelector("iframe").contentDocument;
  document.querySelector("pre").textContent = JSON.stringify(({measure})(page));
}}
</script>
"""
"""The page as a phone or a desk would show it: its media queries see the size and the scheme of the frame."""


def _framed(page: str, folder: Path, *, width: int, height: int, scheme: str, measure: str) -> Path:
    path = folder / "frame.html"
    values = {"page": html.escape(page), "width": width, "height": height, "scheme": scheme, "measure": measure}
    path.write_text(FRAME.format(**values), encoding="utf-8")
    return path


def measured(page: str, measure: str, *, width: int = 1280, scheme: str = "light") -> Any:
    """What the JavaScript function `measure` says of the page's document."""
    with tempfile.TemporaryDirectory() as folder:
        framed = _framed(page, Path(folder), width=width, height=900, scheme=scheme, measure=measure)
        dumped = _run("--dump-dom", "--virtual-time-budget=5000", framed.as_uri())
    found = re.search(r"<pre>(.*?)</pre>", dumped, re.S)
    assert found is not None, dumped[-2000:]
    return json.loads(html.unescape(found[1]))


def screenshot(page: str, *, width: int = 1280, height: int = 900, scheme: str = "light") -> bytes:
    """A PNG of the top of the page."""
    with tempfile.TemporaryDirectory() as folder:
        framed = _framed(page, Path(folder), width=width, height=height, scheme=scheme, measure="() => 0")
        picture = Path(folder) / "picture.png"
        # No window is less than 500 pixels wide; the frame in it is.
        size = f"--window-size={max(width, 500)},{height}"
        _run(f"--screenshot={picture}", size, "--virtual-time-budget=5000", framed.as_uri())
        return picture.read_bytes()


def pixels(png: bytes) -> tuple[int, int, bytes]:
    """Width, height and the filtered bytes of a PNG: enough to tell a picture from an empty one."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", png[16:24])
    data, at = b"", 8
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        if png[at + 4 : at + 8] == b"IDAT":
            data += png[at + 8 : at + 8 + length]
        at += length + 12
    return width, height, zlib.decompress(data)
