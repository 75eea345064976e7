"""Tasks in threads: results in order, shares of the cores, and an end to all after a failure."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from rankwise.engine.config import TrainingConfig
from rankwise.engine.fused.engine import FusedEngine
from rankwise.engine.fused.threads import run_in_threads
from rankwise.engine.trial import Trial
from tests.tiny_models import cores, load_tiny


@pytest.fixture
def two_cores() -> Iterator[None]:
    with cores(2):
        yield


def test_tasks_run_at_the_same_time_with_their_share_of_cores(two_cores: None) -> None:
    both = threading.Barrier(2, timeout=60)  # passed only if both are there

    def task(_: threading.Event) -> tuple[int, int]:
        return both.wait(), torch.get_num_threads()

    results = run_in_threads([task, task], 1)
    assert sorted(place for place, _ in results) == [0, 1]
    assert [threads for _, threads in results] == [1, 1]
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("error", [ValueError("lost"), KeyboardInterrupt()])
def test_a_failure_stops_the_other_tasks(two_cores: None, error: BaseException) -> None:
    ended = []

    def failing(_: threading.Event) -> None:
        raise error

    def waiting(stop: threading.Event) -> None:
        ended.append(stop.wait(60))

    with pytest.raises(type(error)):
        run_in_threads([waiting, failing], 1)
    assert ended == [True]
    assert torch.get_num_threads() == 2


def test_a_trial_is_bit_identical_in_any_pack(two_cores: None, tmp_path: Path) -> None:
    base, train, held_out = load_tiny("bert", tmp_path)
    trials = [
        Trial(rank=rank, seed=rank, learning_rate=5e-3, lora_alpha=rank) for rank in (2, 5, 3)
    ]
    engine = FusedEngine(base, train, held_out, TrainingConfig(epochs=1, batch_size=8), pack_size=2)
    first, _, third = engine.train(trials)
    again, other = engine.train([trials[2], trials[0]])
    assert (first.pack_size, third.pack_size, again.pack_size) == (2, 1, 2)
    for one, same in ((first, other), (third, again)):
        assert one.steps == same.steps
        assert one.evidence.equals(same.evidence)
        assert all(torch.equal(value, same.adapter[name]) for name, value in one.adapter.items())
