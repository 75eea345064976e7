"""A headless browser that draws pages and reaches no network."""

import html
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
# A machine that runs CI must have a browser; others may not have one.
needs_browser = pytest.mark.skipif(
    CHROMIUM is None and not os.environ.get("CI"), reason="Chromium is not installed"
)


def rendered(page: Path, profile: Path, *, width: int = 1240) -> str:
    """Return the page's DOM after its scripts have run; no host name can be resolved."""
    assert CHROMIUM is not None
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--disable-quic", f"--user-data-dir={profile}",
        "--host-resolver-rules=MAP * ~NOTFOUND", f"--window-size={width},2000", "--virtual-time-budget=20000",
        "--dump-dom", page.as_uri(),
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def labels(page: str, plot: str, axis: str) -> list[str]:
    """Return the labels of an axis of a drawn plot."""
    start = page.index(f'id="plot-{plot}"')
    drawn = page[start : page.find("</svg></div>", start)]
    return re.findall(rf'<g class="{axis}tick"><text[^>]*>([^<]*)</text>', drawn)


class Body(HTMLParser):
    """Collects the visible text of a page and the addresses that it loads."""

    def __init__(self) -> None:
        super().__init__()
        self.text: list[str] = []
        self.loads: list[str] = []
        self.hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.hidden += tag in ("script", "style")
        self.loads += [
            value for name, value in attrs if name in ("src", "href") and value and value[0] != "#"
        ]

    def handle_endtag(self, tag: str) -> None:
        self.hidden -= tag in ("script", "style")

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.text.append(data)


def read(page: str) -> tuple[str, list[str]]:
    """Return the visible text of a page and the addresses that it loads."""
    body = Body()
    body.feed(page)
    return " ".join(" ".join(body.text).split()), body.loads


# A script that lists pairs of overlapping texts; 3 pixels of empty space around letters may overlap.
# Then it lists the texts of plots that reach beyond their plot, where they are cut off.
FAULTS = """<pre id="faults"></pre><script>setTimeout(() => {
  const boxes = [...document.querySelectorAll("svg text")].filter(one => one.textContent.trim()).map(
    one => [one.textContent, one.getBoundingClientRect()]);
  const meet = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 3
    && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 3;
  const pairs = boxes.flatMap(([a, p], i) => boxes.slice(i + 1).filter(([b, q]) => meet(p, q)).map(([b]) => [a, b]));
  const cut = [...document.querySelectorAll(".js-plotly-plot")].flatMap(plot => {
    const room = plot.getBoundingClientRect();
    return [...plot.querySelectorAll("svg text")].filter(one => one.textContent.trim()).filter(one => {
      const box = one.getBoundingClientRect();
      return box.left < room.left - 1 || box.right > room.right + 1 || box.top < room.top - 1 || box.bottom > room.bottom + 1;
    }).map(one => one.textContent);
  });
  document.getElementById("faults").textContent = JSON.stringify([pairs, cut]);
}, 2000)</script>"""


def faults(page: Path, profile: Path, width: int) -> tuple[list[list[str]], list[str]]:
    """Return the pairs of texts in a page's plots that overlap, and the texts that are cut off."""
    page.write_text(page.read_text().replace("</body>", FAULTS + "</body>"))
    (found,) = re.findall(r'<pre id="faults">(.+?)</pre>', rendered(page, profile, width=width))
    pairs, cut = json.loads(html.unescape(found))
    return pairs, cut


def overlaps(page: Path, profile: Path, width: int) -> list[list[str]]:
    """Return the pairs of texts in a page's plots that overlap."""
    return faults(page, profile, width)[0]
