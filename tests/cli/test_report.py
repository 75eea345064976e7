"""``rankwise report``: one directory or several."""

from pathlib import Path
from typing import Any

from tests.cli.test_main import refuse


def test_directories_that_hold_no_sweep_are_refused(tmp_path: Path, capfd: Any) -> None:
    (tmp_path / "empty").mkdir()
    assert "no finished sweep" in refuse(capfd, "report", tmp_path / "empty")
    assert "required: DIR; see 'rankwise report --help'" in refuse(capfd, "report")


def test_a_plot_needs_several_sweeps_and_a_known_ending(tmp_path: Path, capfd: Any) -> None:
    plot = ["--plot", tmp_path / "plot.html"]
    assert "name several sweeps" in refuse(capfd, "report", tmp_path, *plot)
    plot = ["--plot", tmp_path / "plot.pdf"]
    assert "plot.pdf" in refuse(capfd, "report", tmp_path, tmp_path, *plot)
