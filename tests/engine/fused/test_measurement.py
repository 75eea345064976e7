"""Time and memory of trials that trained together are those of each alone."""

from pathlib import Path

import pytest

from rankwise.engine.fused.engine import FusedEngine
from tests.engine.parity import CONFIG, TRIALS
from tests.tiny_models import load_tiny


def test_time_and_memory_are_those_of_a_trial_alone(tmp_path: Path) -> None:
    base, train, held_out = load_tiny("bert", tmp_path)
    shares: list[float] = []
    engine = FusedEngine(base, train, held_out, CONFIG, on_work=shares.append, pack_size=3)
    packed = list(engine.train(TRIALS))
    assert sum(shares) == pytest.approx(3.0)
    assert {finished.pack_size for finished in packed} == {3}
    assert len({finished.pack_seconds for finished in packed}) == 1
    assert all(0 < finished.train_seconds < 3 * packed[0].pack_seconds for finished in packed)
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
