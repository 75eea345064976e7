"""Predictions against 40 published training steps on a Tesla T4."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from rankwise.planning.meta_model import load_meta_model
from rankwise.planning.params import count_at_rank
from rankwise.planning.prepare import make_skeleton

ROWS = json.loads(
    (Path(__file__).parents[3] / "benchmarks/data/t4_memory_measured.json").read_text()
)["rows"]


@pytest.fixture(scope="module")
def errors(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """Predicted peak over measured peak, less 1, row by row (repeats of a measurement once)."""
    from benchmarks.memory import predict_t4

    directory = tmp_path_factory.mktemp("models")
    seen = {}
    for row in ROWS:
        key = tuple(
            str(row[name])
            for name in ("model_id", "kernel", "quantization", "batch_size", "seq_len")
        )
        if key not in seen:
            measured = row["measured_mib"]["peak_allocated_mib"] * 2**20
            seen[key] = predict_t4(row, directory).peak_allocated / measured - 1
    return np.array(list(seen.values()))


def test_peaks_are_within_the_target_error(errors: np.ndarray) -> None:
    # The target of the project, not of this code: 1 % on average and 4 % at worst.
    assert np.abs(errors).mean() < 0.01
    assert np.abs(errors).max() < 0.04


def test_counts_equal_those_of_the_measured_models(tmp_path: Path) -> None:
    from benchmarks.memory import t4_config

    for row in {row["model_id"]: row for row in ROWS}.values():
        config = t4_config(row, tmp_path)
        meta = load_meta_model(config.model, torch.float16)
        skeleton = make_skeleton(meta, config)
        params = count_at_rank(skeleton, config, config.ranks[0])
        assert (params.trainable, params.all) == (row["trainable_params"], row["total_params"])


def test_static_parts_equal_the_measured_parts(tmp_path: Path) -> None:
    """Check what was measured part by part: gradients, states, packed weights and scales."""
    from benchmarks.memory import predict_t4

    for row in ROWS[:5]:
        memory, measured = predict_t4(row, tmp_path), row["measured_mib"]
        assert memory.gradients / 2**20 == pytest.approx(measured["gradient_mib"], rel=1e-3)
        assert memory.optimizer / 2**20 == pytest.approx(measured["optimizer_state_mib"], rel=1e-3)
        resident = (memory.weights + memory.adapter) / 2**20
        # The allocator's blocks above 1 MiB may be up to 1 MiB larger than their tensors.
        assert resident == pytest.approx(measured["resident_before_step_mib"], rel=0.015)
