"""Time and memory of trials that trained together are those of each alone."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rankwise.engine.fused.engine import FusedEngine
from rankwise.engine.fused.model import PackedModel
from rankwise.engine.fused.training_state import TrainingState
from tests.engine.parity import CONFIG, TRIALS, Recorded
from tests.tiny_models import load_tiny


def test_time_and_memory_are_those_of_a_trial_alone(tmp_path: Path) -> None:
    base, train, held_out = load_tiny("bert", tmp_path)
    progress = Recorded()
    engine = FusedEngine(base, train, held_out, CONFIG, progress, pack_size=3)
    packed = list(engine.train(TRIALS))
    assert sum(progress.shares) == pytest.approx(3.0)
    assert {finished.pack_size for finished in packed} == {3}
    assert len({finished.pack_seconds for finished in packed}) == 1
    assert all(0 < finished.train_seconds <= finished.pack_seconds for finished in packed)
    alone = list(FusedEngine(base, train, held_out, CONFIG).train(TRIALS))
    for one, other in zip(packed, alone, strict=True):
        assert one.peak_memory_bytes == other.peak_memory_bytes  # what a trial needs by itself
        assert other.pack_seconds == other.train_seconds
    # Rank 4 has one row of A and of B more than rank 3: 4 bytes each for parameter, gradient and
    # two optimizer states; and one more column of x A^T in the layers passed so far.
    extra = sum(d_in + d_out for d_in, d_out in base.targets.values())
    tokens = sum(sorted(train.lengths)[-CONFIG.batch_size :])
    grown = alone[0].peak_memory_bytes - alone[2].peak_memory_bytes
    assert 16 * extra <= grown <= 16 * extra + 4 * tokens * len(base.targets)


def test_each_rank_is_measured_once(tmp_path: Path) -> None:
    """Trials of a rank in later packs have the figures of the first, and take no extra steps."""
    base, train, held_out = load_tiny("bert", tmp_path)
    engine = FusedEngine(base, train, held_out, CONFIG, pack_size=2)
    forward, passes = engine.loop.forward_backward, []

    def counted(model: PackedModel, states: list[TrainingState], *rest: Any) -> Any:
        passes.append(len(states))
        return forward(model, states, *rest)

    engine.loop.forward_backward = counted  # type: ignore[method-assign]
    first = list(engine.train(TRIALS[:2]))
    in_first = sum(passes)
    second = list(engine.train([replace(trial, seed=5) for trial in TRIALS[:2]]))
    assert sum(passes) == in_first > 0  # training itself does not come this way
    for one, other in zip(first, second, strict=True):
        assert one.peak_memory_bytes == other.peak_memory_bytes
