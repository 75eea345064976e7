"""An adapter's spectra in the terminal and as a plot, in windows of different widths."""

import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from rankwise.lora import write_adapter
from rankwise.lora.inspection import inspect_adapter
from rankwise.lora.resize import resize
from rankwise.report.figures import write_figure
from rankwise.report.inspect_report import (
    print_inspection,
    print_resized,
    similarity_figure,
    spectra_figure,
    write_inspection_plot,
)
from tests.lora.adapters import make_adapter, write_two
from tests.report.browser import needs_browser, overlaps

SHORT = ["0.q", "0.v", "1.q", "10.q"]  # layers without the common start of their names


def adapter(directory: Path, rank: int, seed: int = 0) -> Path:
    """Save an adapter of two numbered layers and a pooler."""
    sizes = {"bert.layer.0.q": (24, 24), "bert.layer.1.q": (24, 24), "bert.pooler": (24, 24)}
    write_adapter(make_adapter(rank, sizes, seed=seed), directory)
    return directory


def test_the_terminal_shows_the_energy_that_each_rank_keeps(tmp_path: Path) -> None:
    inspection = inspect_adapter(adapter(tmp_path / "a", 4))
    out = io.StringIO()
    print_inspection(inspection, Console(file=out, width=120))
    text = " ".join(out.getvalue().split())
    energy = inspection.energy_by_rank()
    assert f"truncated to rank 1: {100 * energy[1]:.1f} %" in text
    assert "rank 4: 100.0 %" in text
    assert "Layers of bert." in text


def test_the_terminal_shows_each_layer_and_that_spectra_do_not_decide(tmp_path: Path) -> None:
    out = io.StringIO()
    print_inspection(inspect_adapter(*write_two(tmp_path)), Console(file=out, width=120))
    rows = {}
    for line in out.getvalue().splitlines():
        if "│" in line:
            name, *cells = [cell.strip() for cell in line.split("│")[1:-1]]
            rows.setdefault(name, cells)
    assert list(rows) == SHORT
    assert rows["1.q"][:6] == ["6", "1.0", "1.0", "1", "1", "no"]
    assert rows["1.q"][7] == "█▁▁▁▁▁"
    assert rows["0.q"][5] == "yes"
    words = " ".join(out.getvalue().split())
    assert "Layers of model.h." in words
    assert "1 of 4 layers does not use its rank" in words
    assert "model.h.1.q (1 of 6)" in words
    assert "they do not decide the rank" in words
    assert "Of 4 directions per layer, the two adapters share on average" in words
    assert "by chance 1.00" in words  # 6 * 4 / 24


def test_the_plots_show_the_values_of_the_inspection(tmp_path: Path) -> None:
    inspection = inspect_adapter(*write_two(tmp_path))
    heat, *marks = spectra_figure(inspection).data
    assert list(heat.y) == SHORT
    np.testing.assert_allclose(heat.z[0], 100 * inspection.spectrum.layers[0].energy)
    assert [mark.name for mark in marks] == ["rank for 99 %", "effective rank", "stable rank"]
    assert marks[2].x[2] == pytest.approx(1)
    figure = similarity_figure(inspection)
    assert [text.text for text in figure.layout.annotations] == ["q<br>mean of 3", "v"]
    queries = [layer for layer in inspection.overlaps if layer.name.endswith("q")]
    mean = sum(layer.similarity for layer in queries) / 3
    np.testing.assert_allclose(figure.data[0].z, mean)


def test_a_resized_adapter_is_described_by_ranks_and_energy(tmp_path: Path) -> None:
    resized = resize(adapter(tmp_path / "a", 4), tmp_path / "b", rank=2)
    out = io.StringIO()
    print_resized(resized, Console(file=out, width=120))
    lines = out.getvalue().splitlines()
    assert lines[0] == "Rank 4 to 2 in 3 layers; parameters of A and B: 576 to 288."
    assert lines[1].startswith(f"Energy kept: {100 * resized.energy:.2f} %; the least in ")
    assert lines[-1] == f"Adapter: {tmp_path / 'b'}"


def test_two_adapters_are_drawn_as_similarity_and_one_as_spectra(tmp_path: Path) -> None:
    first, second = adapter(tmp_path / "a", 4), adapter(tmp_path / "b", 2, seed=1)
    write_inspection_plot(inspect_adapter(first), tmp_path / "spectra.html")
    write_inspection_plot(inspect_adapter(first, second), tmp_path / "similarity.html")
    assert "effective rank" in (tmp_path / "spectra.html").read_text()
    assert "Subspace similarity of A" in (tmp_path / "similarity.html").read_text()


def test_layer_names_in_the_plot_leave_out_their_common_start(tmp_path: Path) -> None:
    figure = spectra_figure(inspect_adapter(adapter(tmp_path / "a", 4)))
    assert list(figure.data[0].y) == ["0.q", "1.q", "bert.pooler"]


@needs_browser
@pytest.mark.parametrize("width", [500, pytest.param(1280, marks=pytest.mark.slow)])
def test_texts_of_the_similarity_plot_do_not_overlap(tmp_path: Path, width: int) -> None:
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
@pytest.mark.parametrize("width", [500, pytest.param(1280, marks=pytest.mark.slow)])
def test_texts_of_the_spectra_plot_do_not_overlap(tmp_path: Path, width: int) -> None:
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
