"""The progress of a sweep on stderr."""

import io
import re
from dataclasses import replace

import pytest
from rich.console import Console

from rankwise.report.progress_bar import ProgressBar
from tests.factories import finished


def test_the_bar_shows_the_time_left() -> None:
    out = io.StringIO()
    with ProgressBar() as progress:
        progress.console = progress._bar.live.console = Console(
            file=out, force_terminal=True, width=100
        )
        progress.plan(2, 8)
        progress._bar.refresh()
        assert "2 trials are complete; continuing with the rest" in out.getvalue()
        assert "first trial" in out.getvalue()
        out.truncate(0)
        progress.work(1.0)
        progress.work(0.5)
        progress._bar.refresh()
    shown = out.getvalue()
    assert "1.5 of 6 trials" in shown
    assert re.search(r"left (\x1b\[\d+m)?0:00:0", shown)


def test_a_finished_sweep_shows_no_bar() -> None:
    out = io.StringIO()
    with ProgressBar() as progress:
        progress.console = Console(file=out)
        progress.plan(8, 8)
        progress.work(1.0)
    assert out.getvalue() == ""


@pytest.mark.parametrize(
    ("changes", "diverged", "line"),
    [
        ({}, False, "learning rate 0.001    seed 0: held-out loss 0.5000, score 0.5000, 1.5 s"),
        ({}, True, "learning rate 0.001    seed 0: diverged, 1.5 s"),
        (
            {"truncated_from": "r16-seed0"},
            False,
            "truncated from r16-seed0: held-out loss 0.5000, score 0.5000",
        ),
    ],
)
def test_each_finished_trial_gets_a_line(
    changes: dict[str, str], diverged: bool, line: str
) -> None:
    trial = finished(rank=4, diverged=diverged)
    trial.trial = replace(trial.trial, **changes)
    out = io.StringIO()
    progress = ProgressBar()
    progress.console = Console(file=out)
    progress.trial(trial)
    assert out.getvalue() == f"r=4    {line}\n"
