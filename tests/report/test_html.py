"""The report in a real browser that reaches no network."""

import math
import re
import shutil
from pathlib import Path

import pytest

from rankwise.errors import RequestError
from rankwise.report.html import write_report
from rankwise.store.records import read_json
from tests.factories import write_sealed
from tests.report.browser import faults, labels, needs_browser, read, rendered

PLOTS = ("sure", "loss", "score", "compared", "gain", "rates", "seconds", "memory", "params")


@pytest.fixture(scope="module")
def drawn_page(swept: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The report of a finished sweep as the browser draws it."""
    return rendered(swept / "report.html", tmp_path_factory.mktemp("profile"), width=500)


@needs_browser
def test_the_page_shows_decision_table_and_plots(swept: Path, drawn_page: str) -> None:
    page = drawn_page
    text, _ = read(page)
    decision = read_json(swept / "decision.json")
    assert decision is not None
    assert decision["answer"] in text
    for row in decision["table"]:
        assert f"{row['trainable_params']:,}" in text
        assert f"{row['loss_mean']:.4f}" in text
        if row["rank"] == decision["recommended"]:
            assert f"take the learning rate {row['learning_rate']:g} * sqrt(" in text
    for name in PLOTS:
        start = page.index(f'id="plot-{name}"')
        drawn = page[start : page.find('<div id="plot-', start + 20)]
        assert '<svg class="main-svg"' in drawn, name
    ranks = len(decision["table"])
    for name, marks in (
        ("sure", 0),
        ("loss", ranks),
        ("score", ranks),
        ("compared", 2 * ranks),
        ("rates", 2 * ranks),
    ):
        start = page.index(f'id="plot-{name}"')
        drawn = page[start : page.find("</svg></div>", start)]
        assert len(re.findall(r'<path class="point', drawn)) == marks, name


def plot_of(page: str, name: str) -> str:
    """Return the drawn SVG of a plot."""
    start = page.index(f'id="plot-{name}"')
    return page[start : page.find("</svg></div>", start)]


@needs_browser
@pytest.mark.parametrize("width", [500, pytest.param(1200, marks=pytest.mark.slow)])
def test_the_first_figure_shows_how_sure_each_rank_is(
    provisional: Path, tmp_path: Path, width: int
) -> None:
    page = rendered(provisional / "report.html", tmp_path / "profile", width=width)
    decision = read_json(provisional / "decision.json") or {}
    assert page.index('id="plot-sure"') < page.index('id="ranks"') < page.index('id="plot-loss"')
    drawn = plot_of(page, "sure")
    bars = re.findall(r'<g class="point"><path d="M0,[\d.]+V[\d.]+H([\d.]+)V', drawn)
    lengths = [float(length) for length in bars]
    known = [row["confidence_within_margin"] for row in decision["table"]]
    for length, confidence in zip(lengths, known, strict=True):
        assert length / max(lengths) == pytest.approx(confidence / max(known), rel=0.01)
    assert [tick.strip() for tick in labels(page, "sure", "y")] == ["2", "4", "8"]
    text, _ = read(drawn)
    reached = math.floor(100 * decision["confidence_reached"])
    assert "How sure that a rank is within 0.002 nats of the best" in text
    assert "95 % asked" in text
    assert f"{reached} %, for now" in text
    assert "use this" not in text
    assert drawn.count("<pattern") == 1  # the provisional rank alone is hatched
    whole, _ = read(page)
    assert f"Provisional: {reached} % sure, 95 % asked" in whole
    for step in decision["next"]:
        assert step["advice"] in whole


@needs_browser
@pytest.mark.parametrize(
    ("name", "width"),
    [
        ("provisional", 500),
        pytest.param("provisional", 1200, marks=pytest.mark.slow),
        pytest.param("swept", 500, marks=pytest.mark.slow),
        pytest.param("swept", 1200, marks=pytest.mark.slow),
    ],
)
def test_no_text_of_the_report_overlaps_or_is_cut_off(
    request: pytest.FixtureRequest, tmp_path: Path, name: str, width: int
) -> None:
    copy = tmp_path / name
    shutil.copytree(request.getfixturevalue(name), copy)
    decision = read_json(copy / "decision.json") or {}
    decision["confidence"] = 0.9987
    write_sealed(copy / "decision.json", decision)
    report = write_report(copy)
    pairs, cut = faults(report, tmp_path / "profile", width)
    assert [pair for pair in pairs if any("asked" in text for text in pair)] == []
    assert cut == []


def test_where_nothing_shows_how_sure_a_rank_is_the_figure_is_left_out(
    provisional: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(provisional, copy)
    decision = read_json(copy / "decision.json") or {}
    for row in decision["table"]:
        row["confidence_within_margin"] = None
    decision["confidence_reached"] = None
    write_sealed(copy / "decision.json", decision)
    page = write_report(copy).read_text()
    assert 'id="plot-sure"' not in page
    assert 'id="plot-loss"' in page
    text, _ = read(page)
    assert "how sure is not known, 95 % asked" in text


def test_a_selected_rank_bears_no_mark(swept: Path) -> None:
    text, _ = read((swept / "report.html").read_text())
    assert "Provisional" not in text
    assert 'class="chosen"' in (swept / "report.html").read_text()


def with_intervals(
    swept: Path, copy: Path, *, score: list[float], score_ci: list[float], loss_ci: list[float]
) -> Path:
    """Return the report of a copy of a sweep whose ranks have these scores, and these intervals about any mean."""
    shutil.copytree(swept, copy)
    decision = read_json(copy / "decision.json")
    assert decision is not None
    for row, mean in zip(decision["table"], score, strict=True):
        row |= {"score_mean": mean, "score_ci": score_ci, "loss_ci": loss_ci}
    decision["test"] |= {"score_ci": score_ci, "loss_ci": loss_ci}
    write_sealed(copy / "decision.json", decision)
    return write_report(copy)


def test_intervals_hold_only_what_is_possible(swept: Path, tmp_path: Path) -> None:
    report = with_intervals(
        swept, tmp_path / "copy", score=[0.98] * 3, score_ci=[0.94, 1.02], loss_ci=[-0.5, 1.5]
    )
    text, _ = read(report.read_text())
    assert (
        text.count("[94.0, 100.0]") == text.count("[0.000, 1.500]") == 4
    )  # three ranks, and the test examples
    assert "102.0" not in text and "[-0.500" not in text


@needs_browser
@pytest.mark.parametrize(
    ("score", "score_ci"),
    [
        ([1.0, 0.65, 0.0], [-1.2, 2.5]),
        pytest.param([1.0, 0.98, 0.97], [0.94, 1.02], marks=pytest.mark.slow),
        pytest.param([0.0] * 3, [0.0, 0.0], marks=pytest.mark.slow),
    ],
)
def test_the_axis_of_shares_has_only_shares(
    swept: Path, tmp_path: Path, score: list[float], score_ci: list[float]
) -> None:
    report = with_intervals(
        swept, tmp_path / "copy", score=score, score_ci=score_ci, loss_ci=[-0.5, 1.5]
    )
    page = rendered(report, tmp_path / "profile")
    for name, most in (("score", 100), ("loss", math.inf)):
        ticks = [
            float(tick.removesuffix("%").replace("−", "-")) for tick in labels(page, name, "y")
        ]
        assert len(ticks) > 2
        assert all(0 <= tick <= most for tick in ticks), ticks


@needs_browser
def test_the_page_loads_nothing(swept: Path, drawn_page: str) -> None:
    _, loads = read((swept / "report.html").read_text())
    assert loads == []
    _, loads = read(drawn_page)
    assert [link for link in loads if link.startswith("http")] == []


def test_texts_of_the_user_are_text_not_markup(swept: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(swept, copy)
    sweep = read_json(copy / "sweep.json") or {}
    sweep["task"]["name"] = "<img src=x>.csv"
    write_sealed(copy / "sweep.json", sweep)
    text, loads = read(write_report(copy).read_text())
    assert "Which LoRA rank does <img src=x>.csv need?" in text
    assert loads == []


def test_a_margin_has_the_digits_that_the_reason_has(swept: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(swept, copy)
    decision = read_json(copy / "decision.json")
    write_sealed(copy / "decision.json", {**(decision or {}), "margin": 0.00253393})
    text, _ = read(write_report(copy).read_text())
    assert "the margin is 0.00253 nats per example." in text


def test_the_report_is_rebuilt_from_the_directory(swept: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(swept, copy)
    (copy / "report.html").unlink()
    assert write_report(copy).read_bytes() == (swept / "report.html").read_bytes()


def test_directories_without_a_finished_sweep(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"no finished sweep: it has no sweep.json"):
        write_report(tmp_path)
    (tmp_path / "sweep.json").write_text("{}")
    with pytest.raises(RequestError, match=r"it has no decision.json"):
        write_report(tmp_path)
    (tmp_path / "decision.json").write_text("{")
    with pytest.raises(RequestError, match="cannot be read"):
        write_report(tmp_path)
