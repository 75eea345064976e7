import io
import math
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from rankwise import sweep
from rankwise.decide import select
from rankwise.decide.decision import TestScore
from rankwise.decide.metrics import value_range
from rankwise.decide.summary import decision_sentences
from rankwise.formatting import (
    UNLIMITED,
    figure,
    interval,
    plain_bytes,
    seconds,
    signed,
)
from rankwise.report.decision_table import print_decision
from rankwise.report.progress_bar import ProgressBar


def test_numbers_as_people_read_them() -> None:
    assert [plain_bytes(n) for n in (0, 1023, 1024, 2.5 * 2**20, 150 * 2**30)] == [
        "0 B", "1023 B", "1.0 KiB", "2.5 MiB", "150 GiB",
    ]  # fmt: skip
    assert [seconds(value) for value in (0.04, 119.9, 600)] == ["0.0 s", "119.9 s", "10.0 min"]
    assert signed(0.01234) == "+0.0123"
    assert interval((0.1, 0.25)) == "[0.100, 0.250]"
    assert interval((0.1, 0.25), percent=True) == "[10.0, 25.0]"
    assert figure(0.5, (0.4, 0.6)) == "0.5000 ± 0.100"
    assert figure(0.765, (0.739, 0.791), percent=True) == "76.5 ± 2.6 %"
    assert figure(-0.01, (-0.02, 0.0), sign=True) == "-0.0100 ± 0.010"
    assert (figure(None), figure(0.5), figure(0.5, percent=True)) == ("", "0.5000", "50.0 %")


def test_an_interval_holds_only_what_is_possible() -> None:
    assert figure(0.98, (0.94, 1.02), percent=True, possible=(0, 1)) == "98.0 % [94.0, 100.0]"
    assert figure(0.0006, (-0.1384, 0.1396), possible=(0, math.inf)) == "0.0006 [0.000, 0.140]"
    assert figure(0.65, (-1.228, 2.528), percent=True, possible=(0, 1)) == "65.0 % [0.0, 100.0]"
    assert figure(0.765, (0.733, 0.797), percent=True, possible=(0, 1)) == "76.5 ± 3.2 %"
    assert interval((0.94, 1.02), percent=True, possible=(0, 1)) == "[94.0, 100.0]"
    assert figure(0.5, (-0.7, 1.7), sign=True, possible=(-1, 1)) == "+0.5000 [-0.700, +1.000]"


def test_what_a_metric_can_be_is_told_by_its_name_and_not_against_its_values() -> None:
    for name in ("accuracy", "token accuracy", "exact_match", "f1"):
        assert value_range(name, [0.2, None, 1.0]) == (0, 1), name
        assert value_range(name, [0.2, 98.0]) == (0, 100), name
    for name in ("loss", "mse", "perplexity", "word_error_rate"):
        assert value_range(name, [0.0, 7.0]) == (0, math.inf), name
    assert value_range("negative absolute error", [-3.0]) == (-math.inf, 0)
    assert value_range("reward", [0.5]) == UNLIMITED
    assert value_range("loss", [-2.0, 0.1]) == UNLIMITED  # of a density


@pytest.mark.parametrize("unit", [1, 100])  # others' accuracies may be in percent
def test_the_table_and_the_sentences_hold_only_what_is_possible(unit: int) -> None:
    odd = [(rank, seed, (rank + seed) % 2) for rank in (1, 2) for seed in (0, 1)]
    rows = [
        {"rank": r, "seed": s, "loss": 0.01 + 0.02 * n, "score": (0.97 + 0.02 * n) * unit}
        for r, s, n in odd
    ]
    decision = select(pd.DataFrame(rows))
    row = decision.table[0]
    assert row.loss_ci is not None and row.score_ci is not None
    assert row.loss_ci[0] < 0 < unit < row.score_ci[1]
    out = io.StringIO()
    print_decision(decision, Console(file=out, width=140))
    table = out.getvalue().split("└")[0]
    for text in (f"[0.000, {row.loss_ci[1]:.3f}]", "100.0]" if unit == 1 else "100.000]"):
        assert text in table
    assert not re.search(r"\[-|10[1-9]\.|1[1-9]\d\.", table)

    test = TestScore(
        trial="r1", examples=50, loss=0.01, loss_ci=(-0.01, 0.03), score=0.98, score_ci=(0.94, 1.02)
    )
    (line,) = [
        line
        for line in decision_sentences(replace(decision, test=test), "accuracy")
        if "test examples" in line
    ]
    assert "accuracy 98.0 % [94.0, 100.0] and loss 0.0100 [0.000, 0.030]" in line


@pytest.mark.parametrize("terminal", [True, False])
def test_the_table_has_a_line_for_each_rank(tiny_model: Path, swept: Path, terminal: bool) -> None:
    settings = {"ranks": (2, 4, 8), "learning_rate": (5e-3, 1e-2), "margin": 0.5}
    decision = sweep(
        model=str(tiny_model), data=swept.parent / "reviews.csv", out=swept, **settings
    ).decision
    out = io.StringIO()
    print_decision(
        decision, Console(file=out, width=120, force_terminal=terminal, color_system=None)
    )
    lines = out.getvalue().splitlines()
    for row in decision.table:
        (line,) = [
            line for line in lines if line.startswith(("│", "|")) and f" {row.rank} " in line[:8]
        ]
        assert f"{row.trainable_params:,}" in line
        assert f" {row.loss_mean:.4f} " in line
        assert f" {100 * row.score_mean:.1f} " in line
    assert decision.answer[:60] in out.getvalue()
    assert (
        f"On {decision.test.examples} test examples that played no part in the decision"
        in " ".join(out.getvalue().split())
    )


def test_the_bar_shows_the_time_left() -> None:
    out = io.StringIO()
    with ProgressBar() as progress:
        progress.console = progress._bar.live.console = Console(
            file=out, force_terminal=True, width=100
        )
        progress.plan(2, 8)
        progress.work(1.5)
        progress._bar.refresh()
    shown = out.getvalue()
    assert "2 trials are complete; continuing with the rest" in shown
    assert "1.5 of 6 trials" in shown
    assert "left" in shown
