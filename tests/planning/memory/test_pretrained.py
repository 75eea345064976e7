"""Predictions against real steps of MiniLM-L6, and of SmolLM2-135M if its package is installed."""

from pathlib import Path

import pytest

from rankwise.planning.plan import plan
from tests.tiny_models import measured_peak, real_model


@pytest.mark.slow
def test_pretrained_models_are_predicted(tmp_path: Path) -> None:
    from benchmarks.memory import pretrained_cases

    for number, (_, _, config, weights) in enumerate(pretrained_cases(tmp_path)):
        measured = measured_peak(real_model(config, tmp_path / str(number), 8, weights), config)
        assert plan(config=config).rows[0].memory.peak_allocated == pytest.approx(
            measured, rel=0.01
        )
