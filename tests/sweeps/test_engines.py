"""The engine of a request; truncation over an engine that records calls and scores by rank."""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from rankwise import SweepConfig
from rankwise.engine.fused.engine import FusedEngine
from rankwise.engine.reference import ReferenceEngine
from rankwise.engine.trial import FinishedTrial, Trial
from rankwise.lora import Adapter, read_adapter, write_adapter
from rankwise.lora.adapter import factor_pairs
from rankwise.sweeps.engines import TruncatingEngine, choose_engine
from rankwise.sweeps.run import open_run
from tests.factories import Notes, finished
from tests.lora.adapters import make_adapter


class RecordingEngine:
    pack_size = 2

    def __init__(self) -> None:
        self.trained: list[Trial] = []
        self.scored: list[list[int]] = []

    def train(
        self, trials: Sequence[Trial], starts: Mapping[str, Adapter] | None = None
    ) -> Generator[FinishedTrial, None, None]:
        self.trained += trials
        self.starts = dict(starts or {})
        for trial in trials:
            yield finished(trial=trial)

    def score(self, adapters: Sequence[Adapter]) -> list[pd.DataFrame]:
        ranks = [factor_pairs(adapter)[0].rank for adapter in adapters]
        self.scored.append(ranks)
        return [pd.DataFrame({"example_id": [3], "loss": [1.0 / r], "score": [0.0]}) for r in ranks]


def trial(rank: int, source: str | None = None) -> Trial:
    return Trial(rank=rank, seed=0, learning_rate=1e-3, lora_alpha=rank, truncated_from=source)


def test_truncations_of_one_adapter_are_scored_together(tmp_path: Path) -> None:
    write_adapter(make_adapter(rank=8, dtype=torch.float32), tmp_path / "source")
    inner = RecordingEngine()
    engine = TruncatingEngine(inner, lambda name: tmp_path / name)
    trials = [trial(8), trial(2, "source"), trial(4, "source")]
    results = list(engine.train(trials))
    assert inner.trained == [trial(8)]
    assert inner.scored == [[2, 4]]
    assert [result.trial for result in results] == trials
    for result in results[1:]:
        assert (result.train_seconds, result.pack_size, result.diverged) == (0.0, 1, False)
        assert result.evidence["loss"].tolist() == [1.0 / result.trial.rank]


def test_the_adapter_that_a_trial_starts_from_is_read(tmp_path: Path) -> None:
    cut = make_adapter(rank=4, dtype=torch.float32)
    write_adapter(cut, tmp_path / "cut")
    inner = RecordingEngine()
    engine = TruncatingEngine(inner, lambda name: tmp_path / name)
    list(engine.train([trial(8), replace(trial(4), starts_from="cut")]))
    assert list(inner.starts) == ["cut"]
    for name, value in cut.tensors.items():
        assert torch.equal(inner.starts["cut"].tensors[name], value)


def test_a_truncated_adapter_is_the_best_of_its_rank(tmp_path: Path) -> None:
    trained = make_adapter(rank=8, dtype=torch.float32)
    write_adapter(trained, tmp_path / "source")
    engine = TruncatingEngine(RecordingEngine(), lambda name: tmp_path / name)
    (result,) = engine.train([trial(4, "source")])
    truncated = {
        pair.name: pair for pair in factor_pairs(Adapter(result.adapter, result.adapter_config))
    }
    for pair in factor_pairs(read_adapter(tmp_path / "source")):
        best = truncated[pair.name]
        assert best.rank == 4
        delta = pair.scaling * (pair.b @ pair.a)
        least = float(torch.linalg.svdvals(delta)[4:].norm())
        error = float((delta - best.scaling * (best.b @ best.a)).norm())
        assert error == pytest.approx(least, rel=1e-3)
    assert result.trainable_params == sum(value.numel() for value in result.adapter.values())


@pytest.mark.parametrize(("name", "kind"), [("fused", FusedEngine), ("reference", ReferenceEngine)])
def test_the_engine_is_the_one_that_the_request_names(
    tiny_model: Path, reviews: Path, tmp_path: Path, name: str, kind: type
) -> None:
    config = SweepConfig(
        model=str(tiny_model),
        data=reviews,
        ranks=(2, 4),
        engine=name,
        epochs=3,
        out=tmp_path / "out",
    )
    notes = Notes()
    with open_run(config, notes) as run:
        engine = choose_engine(run)
    assert type(engine) is kind
    assert engine.config.epochs == 3
    assert not any("instead of the fused one" in note for note in notes.notes)
