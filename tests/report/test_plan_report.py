"""A plan in the terminal and as a plot."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from rankwise.formatting import plain_bytes
from rankwise.planning.plan import Plan, plan
from rankwise.report.figures import write_figure
from rankwise.report.plan_report import plan_figure, print_plan
from tests.report.browser import needs_browser, overlaps
from tests.tiny_models import write_config


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """A plan of a small model, in less memory than the largest rank needs."""
    model = write_config(tmp_path_factory.mktemp("llama"), "llama")
    return plan(model, ranks=[4, 64], batch_size=2, memory="700MB")


def test_the_table_has_the_parameters_and_the_peak_of_each_rank(planned: Plan) -> None:
    out = io.StringIO()
    print_plan(planned, Console(file=out, width=120))
    rows = {
        line.split("│")[1].strip(): [cell.strip() for cell in line.split("│")[2:-1]]
        for line in out.getvalue().splitlines()
        if line.count("│") == 4
    }
    assert rows["trainable parameters"] == [f"{row.params.trainable:,}" for row in planned.rows]
    peaks = [plain_bytes(row.memory.peak_allocated) for row in planned.rows]
    assert rows["training peak"] == peaks
    others = [planned.other_loop[row.rank].peak_allocated for row in planned.rows]
    assert rows["training peak with autocast"] == list(map(plain_bytes, others))
    assert rows["fits"] == ["yes" if row.fits else "no" for row in planned.rows]
    assert planned.limits is not None
    assert f"The largest rank that fits: {planned.limits.rank}" in out.getvalue()


def test_the_labels_over_the_bars_are_the_peaks_with_the_context(planned: Plan) -> None:
    (labels,) = [trace for trace in plan_figure(planned).data if trace.type == "scatter"]
    totals = [row.memory.peak_allocated + row.memory.context for row in planned.rows]
    assert list(labels.text) == [plain_bytes(total) for total in totals]


@needs_browser
@pytest.mark.parametrize("width", [500, pytest.param(1280, marks=pytest.mark.slow)])
def test_texts_of_the_plot_do_not_overlap(planned: Plan, tmp_path: Path, width: int) -> None:
    write_figure(plan_figure(planned), tmp_path / "plot.html")
    assert overlaps(tmp_path / "plot.html", tmp_path / "profile", width) == []
