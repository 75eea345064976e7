import io
from pathlib import Path

import pytest
from rich.console import Console

from rankwise import sweep
from rankwise.report.terminal import ProgressBar, print_decision
from rankwise.report.words import figure, interval, plain_bytes, seconds, signed


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


@pytest.mark.parametrize("terminal", [True, False])
def test_the_table_has_a_line_for_each_rank(tiny_model: Path, swept: Path, terminal: bool) -> None:
    settings = {"ranks": (2, 4, 8), "learning_rate": (5e-3, 1e-2), "margin": 0.5}
    decision = sweep(model=str(tiny_model), data=swept.parent / "reviews.csv", out=swept, **settings).decision
    out = io.StringIO()
    print_decision(decision, Console(file=out, width=120, force_terminal=terminal, color_system=None))
    lines = out.getvalue().splitlines()
    for row in decision.table:
        (line,) = [line for line in lines if line.startswith(("│", "|")) and f" {row.rank} " in line[:8]]
        assert f"{row.trainable_params:,}" in line
        assert f"{row.loss_mean:.4f} ±" in line
        assert f"{100 * row.score_mean:.1f} ±" in line
    assert decision.reason.split(";")[0][:60] in out.getvalue()
    assert f"On {decision.test.examples} test examples that no decision saw" in " ".join(out.getvalue().split())


def test_the_bar_shows_the_time_left() -> None:
    out = io.StringIO()
    with ProgressBar() as progress:
        progress.console = progress._bar.live.console = Console(file=out, force_terminal=True, width=100)
        progress.plan(2, 8)
        progress.work(1.5)
        progress._bar.refresh()
    shown = out.getvalue()
    assert "2 trials are complete; going on with the rest" in shown
    assert "1.5 of 6 trials" in shown
    assert "left" in shown
