"""The report in a real browser that reaches no network."""

import json
import math
import re
import shutil
from pathlib import Path

import pytest

from rankwise.errors import RequestError
from rankwise.report.html import write_report
from rankwise.store.records import read_json
from tests.report.browser import labels, needs_browser, read, rendered

PLOTS = ("loss", "score", "compared", "gain", "rates", "seconds", "memory", "params")


@needs_browser
def test_the_page_shows_decision_table_and_plots(swept: Path, tmp_path: Path) -> None:
    page = rendered(swept / "report.html", tmp_path / "profile")
    text, _ = read(page)
    decision = read_json(swept / "decision.json")
    assert decision is not None
    assert decision["answer"] in text
    for row in decision["table"]:
        assert f"{row['trainable_params']:,}" in text
        assert f"{row['loss_mean']:.4f}" in text
    for name in PLOTS:
        start = page.index(f'id="plot-{name}"')
        drawn = page[start : page.find('<div id="plot-', start + 20)]
        assert '<svg class="main-svg"' in drawn, name
    ranks = len(decision["table"])
    for name, marks in (
        ("loss", ranks),
        ("score", ranks),
        ("compared", 2 * ranks),
        ("rates", 2 * ranks),
    ):
        start = page.index(f'id="plot-{name}"')
        drawn = page[start : page.find("</svg></div>", start)]
        assert len(re.findall(r'<path class="point', drawn)) == marks, name


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
    (copy / "decision.json").write_text(json.dumps(decision))
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
    [([1.0, 0.98, 0.97], [0.94, 1.02]), ([0.65] * 3, [-1.2, 2.5]), ([0.0] * 3, [0.0, 0.0])],
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
def test_the_page_loads_nothing(swept: Path, tmp_path: Path) -> None:
    _, loads = read((swept / "report.html").read_text())
    assert loads == []
    _, loads = read(rendered(swept / "report.html", tmp_path / "profile", width=500))
    assert [link for link in loads if link.startswith("http")] == []


def test_texts_of_the_user_are_text_not_markup(swept: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(swept, copy)
    sweep = (copy / "sweep.json").read_text()
    (copy / "sweep.json").write_text(
        sweep.replace('"name": "reviews.csv"', '"name": "<img src=x>.csv"')
    )
    text, loads = read(write_report(copy).read_text())
    assert "Which LoRA rank does <img src=x>.csv need?" in text
    assert loads == []


def test_a_margin_has_the_digits_that_the_reason_has(swept: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(swept, copy)
    decision = read_json(copy / "decision.json")
    (copy / "decision.json").write_text(json.dumps({**(decision or {}), "margin": 0.00253393}))
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
