"""What the report's plots are called, and where their ticks are."""

import html
import math
import re
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest

from rankwise.report.figures import first_seed_means, log_ticks, rank_axis
from tests.factories import evidence_of
from tests.report.browser import labels, needs_browser, read, rendered


@needs_browser
def test_the_page_names_plots_by_their_titles_and_ticks_the_rates_tried(
    swept: Path, tmp_path: Path
) -> None:
    page = rendered(swept / "report.html", tmp_path / "profile", width=500)
    text, _ = read(page)
    titles = re.findall(r'<text class="gtitle"[^>]*>([^<]+)<', page)
    named = re.findall("“(.+?)”", text)
    assert len(named) == 2
    for name in named:
        assert sum(html.unescape(title).startswith(name) for title in titles) == 1, (name, titles)
    assert "right plot" not in text
    assert labels(page, "rates", "x") == ["0.005", "0.01"]


def test_each_rate_is_drawn_with_the_first_seed_that_tried_it() -> None:
    """Once tries rates with two seeds in turn; a seed that diverged is replaced by no other."""
    trials = [
        evidence_of(32, 1e-3, 0, [0.6, 0.8]),
        evidence_of(32, 2e-3, 1, [0.4, 0.6]),
        evidence_of(32, 2e-3, 2, [0.1, 0.1]),
        evidence_of(32, 4e-3, 0, []),
        evidence_of(32, 4e-3, 1, [0.1, 0.1]),
    ]
    means = first_seed_means(pd.concat(trials, ignore_index=True))
    assert means.to_dict() == {(32, 1e-3): pytest.approx(0.7), (32, 2e-3): pytest.approx(0.5)}


def test_of_many_rates_ticks_stand_apart() -> None:
    assert log_ticks([0.03, 0.01, 0.03])["tickvals"] == [0.01, 0.03]
    assert log_ticks([0.01])["ticktext"] == ["0.01"]
    rates = [1e-4 * 10 ** (step / 10) for step in range(21)]
    ticks = log_ticks(rates)["tickvals"]
    assert set(ticks) <= set(rates) and 4 <= len(ticks) <= 6
    assert min(math.log10(b / a) for a, b in pairwise(ticks)) >= 0.39


def test_of_many_ranks_ticks_stand_apart() -> None:
    powers = [2**exponent for exponent in range(11)]
    assert rank_axis(powers[:9])["ticktext"] == [str(rank) for rank in powers[:9]]
    assert rank_axis(powers)["ticktext"] == ["1", "4", "16", "64", "256", "1024"]
    close = rank_axis([8, 10, 12, 16, 20, 24, 32, 1024])
    assert close["ticktext"] == ["8", "16", "32", "1024"]
