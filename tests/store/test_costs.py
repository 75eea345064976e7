from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rankwise.engine.trial import FinishedTrial, Trial
from rankwise.errors import RequestError
from rankwise.store.costs import rank_costs, token_means, trained_at
from rankwise.store.directory import SweepStore
from rankwise.store.records import TrialRecord, select_trials
from tests.factories import REQUEST, finished


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SweepStore]:
    with SweepStore(tmp_path / "out", REQUEST) as store:
        yield store


def trained(rank: int, seed: int, rate: float = 1e-3, **costs: float) -> FinishedTrial:
    trial = Trial(rank=rank, seed=seed, learning_rate=rate, lora_alpha=rank)
    return finished(trial=trial, **costs)


def truncated(rank: int, source: str) -> FinishedTrial:
    trial = Trial(rank=rank, seed=0, learning_rate=1e-3, lora_alpha=rank, truncated_from=source)
    return finished(trial=trial, train_seconds=0.0, pack_seconds=0.0, peak_memory_bytes=0)


def test_a_rank_costs_the_median_of_its_trials_at_its_own_rate(store: SweepStore) -> None:
    for seed, seconds in enumerate((1.0, 5.0, 2.0)):
        store.add(trained(8, seed, train_seconds=seconds, peak_memory_bytes=100 + seed), {})
    store.add(trained(8, 0, rate=1e-2, train_seconds=100.0), {})
    store.add(trained(4, 0, train_seconds=50.0), {})
    costs = rank_costs(store.trials(), 8, 1e-3)
    assert (costs["train_seconds"], costs["peak_memory_bytes"]) == (2.0, 102)
    assert costs["adapter_bytes"] == select_trials(store.trials(), rank=8)[0].adapter_bytes
    assert rank_costs(store.trials(), 8, None)["train_seconds"] == 3.5
    assert rank_costs(store.trials(), 16, None) == {}


def test_a_truncated_rank_has_a_size_but_no_training_time(store: SweepStore) -> None:
    store.add(trained(8, 0), {})
    store.add(truncated(4, "r8-lr0.001-seed0"), {})
    assert set(rank_costs(store.trials(), 4, 1e-3)) == {"trainable_params", "adapter_bytes"}
    assert trained_at(store.trials()) == 8
    assert trained_at(select_trials(store.trials(), rank=8)) is None


def test_truncated_adapters_of_several_trained_ranks_answer_no_question(store: SweepStore) -> None:
    for rank in (4, 8):
        store.add(trained(rank, 0), {})
    store.add(truncated(2, "r8-lr0.001-seed0"), {})
    with pytest.raises(RequestError, match="adapters trained at ranks 4, 8"):
        trained_at(store.trials())


def test_the_time_spent_shares_a_pack_among_its_trials(store: SweepStore) -> None:
    store.add(trained(4, 0, pack_seconds=6.0, pack_size=3, eval_seconds=0.5), {})
    store.add(trained(8, 0, pack_seconds=1.0, pack_size=1, eval_seconds=0.25), {})
    assert store.seconds_spent() == pytest.approx(2.5 + 1.25)
    assert isinstance(store.trials()[0], TrialRecord)


def test_token_means_weigh_long_examples_more() -> None:
    evidence = pd.DataFrame({"loss": [1.0, 4.0], "score": [1.0, 0.5], "tokens": [3, 1]})
    means = token_means(evidence)
    assert means["eval_token_loss"] == pytest.approx((3 * 1.0 + 4.0) / 4)
    assert means["eval_perplexity"] == pytest.approx(np.exp(7 / 4))
    assert means["eval_token_accuracy"] == pytest.approx(3.5 / 4)
    assert means["eval_exact_match"] == 0.5
    assert token_means(evidence.drop(columns="tokens")) == {}
