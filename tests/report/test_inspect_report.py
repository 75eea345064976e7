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
from tests.lora.adapters import make_adapter
from tests.report.browser import needs_browser, overlaps


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
@pytest.mark.parametrize("width", [500, 1280])
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
@pytest.mark.parametrize("width", [500, 1280])
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
