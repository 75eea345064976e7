"""Pictures in a window as narrow as a phone's and in a wide one: no text lies on another."""

import html
import io
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from rankwise.report.compare_sweeps import (
    ComparedSweep,
    print_sweep_comparison,
    write_sweep_comparison_plot,
)
from rankwise.report.figures import write_figure
from rankwise.report.inspect_report import similarity_figure, spectra_figure
from tests.report.test_html import needs_browser, rendered

# Lists the pairs of texts of which one lies on the other by more than the air around letters.
OVERLAPS = """<pre id="overlaps"></pre><script>setTimeout(() => {
  const boxes = [...document.querySelectorAll("svg text")].filter(one => one.textContent.trim()).map(
    one => [one.textContent, one.getBoundingClientRect()]);
  const meet = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 3
    && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 3;
  const found = boxes.flatMap(([a, p], i) => boxes.slice(i + 1).filter(([b, q]) => meet(p, q)).map(([b]) => [a, b]));
  document.getElementById("overlaps").textContent = JSON.stringify(found);
}, 2000)</script>"""


def overlaps(page: Path, profile: Path, width: int) -> list[list[str]]:
    page.write_text(page.read_text().replace("</body>", OVERLAPS + "</body>"))
    (found,) = re.findall(r'<pre id="overlaps">(.+?)</pre>', rendered(page, profile, width=width))
    pairs: list[list[str]] = json.loads(html.unescape(found))
    return pairs


@needs_browser
@pytest.mark.parametrize("width", [500, 1280])
def test_titles_and_ticks_of_sweeps_side_by_side_keep_apart(tmp_path: Path, width: int) -> None:
    lines = []
    for label, rates in (
        ("lora alpha r", (0.01, 0.004, 0.0005)),
        ("lora alpha 2r", (0.0105, 0.004, 0.002)),
    ):
        table = tuple(
            {"rank": rank, "loss_mean": 0.01 * rank, "loss_ci": [-0.02, 0.3], "learning_rate": rate}
            for rank, rate in zip((2, 4, 8), rates, strict=True)
        )
        lines.append(
            ComparedSweep(label, "nats per completion token", tmp_path, None, table, None, {})
        )
    out = io.StringIO()
    print_sweep_comparison(lines, Console(file=out, width=140))
    assert "0.0200 [0.000, 0.300] at 0.01" in out.getvalue()  # what of an interval is possible
    write_sweep_comparison_plot(lines, tmp_path / "plot.html")
    assert overlaps(tmp_path / "plot.html", tmp_path / "profile", width) == []


@needs_browser
@pytest.mark.parametrize("width", [500, 1280])
def test_titles_and_ticks_of_layers_compared_keep_apart(tmp_path: Path, width: int) -> None:
    kinds = (
        "attention.output.dense",
        "attention.self.query",
        "intermediate.dense",
        "output.dense",
        "pooler.dense",
    )
    found = [
        SimpleNamespace(name=f"bert.encoder.layer.{depth}.{kind}", similarity=np.eye(3))
        for depth in range(2)
        for kind in kinds
    ]
    names = {"adapter": Path("sweep-of-reviews/best"), "other": Path("sweep-of-ratings/best")}
    figure = similarity_figure(SimpleNamespace(overlaps=found, **names))  # type: ignore[arg-type]
    write_figure(figure, tmp_path / "plot.html")
    assert overlaps(tmp_path / "plot.html", tmp_path / "profile", width) == []


@needs_browser
@pytest.mark.parametrize("width", [500, 1280])
def test_title_legend_and_ticks_of_spectra_keep_apart(tmp_path: Path, width: int) -> None:
    layers = [
        SimpleNamespace(
            pair=SimpleNamespace(name=f"bert.encoder.layer.{depth}.attention.output.dense", rank=4),
            energy=np.array([0.6, 0.9, 0.98, 1.0]),
            rank_for=lambda share: 4,
            effective_rank=2.5,
            stable_rank=1.6,
        )
        for depth in range(6)
    ]
    spectrum = SimpleNamespace(layers=layers, largest_rank=4)
    figure = spectra_figure(
        SimpleNamespace(spectrum=spectrum, adapter=Path("sweep-of-reviews/best"))
    )  # type: ignore[arg-type]
    write_figure(figure, tmp_path / "plot.html")
    assert overlaps(tmp_path / "plot.html", tmp_path / "profile", width) == []
